// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Plan is what one node must hold. All lists are ordered, so equal plans compare equal.
type Plan struct {
	OVN  OVN
	Host Host
}

// OVN is the part that belongs into the zone's northbound database.
type OVN struct {
	// AddressSets, ordered by name.
	AddressSets []AddressSet
	// Policies of the logical router ClusterRouter, ordered by priority, highest first, and ID.
	Policies []Policy
	// SourceRoutes of ClusterRouter, ordered by prefix. Each is wanted only while no source
	// route of somebody else covers its prefix.
	SourceRoutes []SourceRoute
}

// Equal is whether two plans ask the same of the database.
func (o OVN) Equal(other OVN) bool {
	return slices.Equal(o.Policies, other.Policies) && slices.Equal(o.SourceRoutes, other.SourceRoutes) &&
		slices.EqualFunc(o.AddressSets, other.AddressSets, func(a, b AddressSet) bool {
			return a.ID == b.ID && a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
		})
}

// RowID tells rows of ours apart. It is kept in the row's external_ids and stays the same while
// everything else of the row may change.
type RowID struct {
	// Row says what the row is for, for example "steer-ip4".
	Row string
	// Service is the key of the service that the row belongs to, or empty.
	Service string
}

// AddressSet is a row of table Address_Set.
type AddressSet struct {
	ID   RowID
	Name string
	// Addresses are addresses or CIDRs, in order, without duplicates.
	Addresses []string
}

// Action is an action of a logical router policy.
type Action string

const (
	// ActionAllow leaves the packet to ordinary routing.
	ActionAllow Action = "allow"
	// ActionDrop drops it.
	ActionDrop Action = "drop"
	// ActionReroute sends it to the policy's next hop.
	ActionReroute Action = "reroute"
)

// Policy is a row of table Logical_Router_Policy.
type Policy struct {
	ID       RowID
	Priority int
	Match    string
	Action   Action
	// NextHop is valid with ActionReroute only.
	NextHop netip.Addr
	// PacketMark is set on the packet when it is not 0.
	PacketMark uint32
}

// SourceRoute is a row of table Logical_Router_Static_Route with policy src-ip.
type SourceRoute struct {
	ID      RowID
	Prefix  netip.Prefix
	NextHop netip.Addr
}

// Host is the part that belongs into the node's nftables table.
type Host struct {
	// Internal are the destinations that are never translated, held or counted: no prefix of the
	// list lies within another. Ordered.
	Internal []netip.Prefix
	// Translations, ordered by pod, one per pod address.
	Translations []Translation
	// Accounts, ordered by source: the LoadBalancer IPs that packets may leave this node with now.
	// When one goes, all connections that carry it here end.
	Accounts []Account
	// Holds, ordered by pod, one per pod address: what these pods send to the outside is dropped,
	// but for replies.
	Holds []Hold
	// Counted are the services that something is counted for, ordered.
	Counted []string
	// Pods are the cluster's pod subnets and OwnPods this node's. A packet from Pods that came by the
	// management port and nobody has translated must not leave the node, unless it is from OwnPods.
	// Both empty: it may.
	Pods, OwnPods []netip.Prefix
	// Guards, ordered by address.
	Guards []Guard
}

// Equal is whether two plans ask the same of the host.
func (h Host) Equal(o Host) bool {
	return slices.Equal(h.Internal, o.Internal) && slices.Equal(h.Translations, o.Translations) &&
		slices.Equal(h.Accounts, o.Accounts) && slices.Equal(h.Holds, o.Holds) && slices.Equal(h.Counted, o.Counted) &&
		slices.Equal(h.Pods, o.Pods) && slices.Equal(h.OwnPods, o.OwnPods) && slices.EqualFunc(h.Guards, o.Guards, func(a, b Guard) bool {
		return a.Address == b.Address && slices.Equal(a.Ports, b.Ports)
	})
}

// Translation gives the connections that a pod opens to the outside their source.
type Translation struct {
	Pod    netip.Addr
	Source netip.Addr
}

// Account counts what leaves with a source for a service. Of several that share it, for the oldest.
type Account struct {
	Source  netip.Addr
	Service string
	// Epoch is the assignment's on its primary, and 0 on a node that was primary until just now.
	Epoch int64
}

// Hold drops what a pod sends to the outside, and counts it for the service.
type Hold struct {
	Pod     netip.Addr
	Service string
}

// Guard keeps new connections from outside to a LoadBalancer IP out, but for those to a port of a
// Service.
type Guard struct {
	Address netip.Addr
	// Service is the key of an egress service with this address; in a plan it is empty.
	Service string
	// Ports are of all Services with this address, ordered, without duplicates.
	Ports []Port
}

// Port is a port of a Service.
type Port struct {
	Protocol Protocol
	Number   uint16
}

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols of Services.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the protocol's name in lower case.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// Dump is the plan as text, one object a line, for logs and tests.
func (p Plan) Dump() string {
	var b strings.Builder
	for _, s := range p.OVN.AddressSets {
		fmt.Fprintf(&b, "address_set %s {%s}%s\n", s.Name, strings.Join(s.Addresses, " "), forService(s.ID))
	}
	for _, r := range p.OVN.Policies {
		fmt.Fprintf(&b, "policy %d %q %s", r.Priority, r.Match, r.Action)
		if r.NextHop.IsValid() {
			fmt.Fprintf(&b, " %s", r.NextHop)
		}
		if r.PacketMark != 0 {
			fmt.Fprintf(&b, " pkt_mark=%d", r.PacketMark)
		}
		fmt.Fprintf(&b, "%s\n", forService(r.ID))
	}
	for _, r := range p.OVN.SourceRoutes {
		fmt.Fprintf(&b, "source_route %s %s\n", r.Prefix, r.NextHop)
	}
	for _, n := range p.Host.Internal {
		fmt.Fprintf(&b, "internal %s\n", n)
	}
	for _, t := range p.Host.Translations {
		fmt.Fprintf(&b, "translate %s %s\n", t.Pod, t.Source)
	}
	for _, a := range p.Host.Accounts {
		fmt.Fprintf(&b, "account %s for %s", a.Source, a.Service)
		if a.Epoch != 0 {
			fmt.Fprintf(&b, " epoch %d", a.Epoch)
		}
		b.WriteByte('\n')
	}
	for _, h := range p.Host.Holds {
		fmt.Fprintf(&b, "hold %s for %s\n", h.Pod, h.Service)
	}
	for _, n := range p.Host.Pods {
		fmt.Fprintf(&b, "pods %s\n", n)
	}
	for _, n := range p.Host.OwnPods {
		fmt.Fprintf(&b, "own_pods %s\n", n)
	}
	for _, g := range p.Host.Guards {
		fmt.Fprintf(&b, "guard %s", g.Address)
		for _, port := range g.Ports {
			fmt.Fprintf(&b, " %s/%d", port.Protocol, port.Number)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func forService(id RowID) string {
	if id.Service == "" {
		return ""
	}
	return " for " + id.Service
}
