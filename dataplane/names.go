// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
)

const (
	// ClusterRouter is the logical router that OVN-Kubernetes connects all pods of a zone to.
	ClusterRouter = "ovn_cluster_router"

	// transitPortPrefix and a node's name make the name of its router port on the transit switch.
	transitPortPrefix = "rtots-"

	// OwnerKey with OwnerValue in a row's external_ids marks it as ours.
	OwnerKey = "metallb-egress"
	// OwnerValue is the value of OwnerKey.
	OwnerValue = "egress-speaker"
	// RowKey in external_ids holds RowID.Row.
	RowKey = "metallb-egress-row"
	// ServiceKey in external_ids holds RowID.Service.
	ServiceKey = "metallb-egress-service"

	// AddressSetPrefix begins the name of each of our address sets and of nobody else's. Names
	// must match [a-zA-Z_.][a-zA-Z_.0-9]* (ovn-nb(5), Address_Set).
	AddressSetPrefix = "metallb_egress_"

	// PriorityExempt leaves packets to destinations inside the cluster alone.
	PriorityExempt = 111
	// PriorityArrival takes packets of other zones' pods that arrive over the transit switch.
	PriorityArrival = 110
	// PrioritySteer takes packets of a service's pods.
	PrioritySteer = 109

	// PriorityStrayExempt is below everything of OVN-Kubernetes: it leaves alone what arrives for
	// destinations in the cluster.
	PriorityStrayExempt = 6
	// PriorityStray takes what pods of services send here that this node does not translate for.
	PriorityStray = 5

	// PacketMarkNodeIP is OVN-Kubernetes' mark 0x3f0: flows of its external bridge give a packet
	// from OVN that carries it the node's address as source.
	PacketMarkNodeIP = 1008
)

// family is an IP version together with its words in names and in OVN's expressions.
type family struct {
	name string // as in OVN's ip4.src
	is   func(netip.Addr) bool
}

func families() []family {
	return []family{
		{name: "ip4", is: netip.Addr.Is4},
		{name: "ip6", is: netip.Addr.Is6},
	}
}

// TransitPort is the name of a node's router port on the transit switch.
func TransitPort(node string) string { return transitPortPrefix + node }

// sharedSetName names an address set that all services of a zone share.
func sharedSetName(what string, f family) string { return AddressSetPrefix + what + "_" + f.name }

// serviceSetName names an address set of one service.
func serviceSetName(what, key string, f family) string {
	return AddressSetPrefix + what + "_" + ServiceHash(key) + "_" + f.name
}

// ServiceHash stands for a service's key in names that can't hold its characters: the first 32 hex
// digits of its SHA-256. Tenants choose keys, and two that collide would stop the whole node.
func ServiceHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:16])
}
