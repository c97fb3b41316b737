// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"net/netip"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	"k8s.io/apimachinery/pkg/types"
)

// Cluster is what there is: the EgressServices, and what has a say in where their addresses are announced. Making a plan changes
// nothing in it.
type Cluster struct {
	// Namespace is MetalLB's, which all of its objects here are of.
	Namespace string
	// Features are those of the MetalLB that is installed.
	Features Features
	// Guarded is true where the speakers' guard withholds the addresses on every node but the primary (back end gobgp): advertisements of
	// others do no harm then, and ours hand the address to the standby beforehand.
	Guarded bool
	// Manage allows to exclude the services from advertisements of others.
	Manage bool
	// IgnoreExclude mirrors the flag of MetalLB's speakers to announce from nodes labelled
	// node.kubernetes.io/exclude-from-external-load-balancers too.
	IgnoreExclude bool

	// EgressServices are in the order of their age.
	EgressServices   []EgressService
	Services         []Service // all of type LoadBalancer
	Nodes            []Node
	Pools            []*metallbv1beta1.IPAddressPool
	Advertisements   []*BGPAdvertisement
	L2Advertisements []*metallbv1beta1.L2Advertisement
	Peers            []*metallbv1beta2.BGPPeer

	// BGPAnnouncements and L2Announcements are what MetalLB's speakers say they announce (ServiceBGPStatus, ServiceL2Status).
	BGPAnnouncements, L2Announcements []Announcement
	// Invalid says, by node, what that node's MetalLB speaker finds wrong with its configuration (ConfigurationState).
	Invalid map[string]string
}

// Features are told from the schema of the installed BGPAdvertisement CRD.
type Features struct {
	// ServiceSelectors: MetalLB v0.16.0. Without them an advertisement can't be confined to one service.
	ServiceSelectors bool
	// ASPathPrepend: MetalLB v0.16.2.
	ASPathPrepend bool
}

// EgressService is one as elected.
type EgressService struct {
	Key types.NamespacedName
	// EveryNode is sourceIPBy Network: the address may be announced from anywhere.
	EveryNode bool
	// LabelKey and StandbyLabelKey are the keys of its Node labels; empty while there is no assignment.
	LabelKey, StandbyLabelKey string
	// Digest is the value of its Service's label.
	Digest string
	// Primary is the node that may announce, or empty.
	Primary string
	// Network is spec.network, and VRF is true where that is a VRF.
	Network string
	VRF     bool
}

// Service is one of type LoadBalancer.
type Service struct {
	Key    types.NamespacedName
	Labels map[string]string
	// Pool is the IPAddressPool that its addresses are from, as MetalLB's controller says; empty while it has not.
	Pool string
	// Addresses are its LoadBalancer IPs.
	Addresses []netip.Addr
	// DualStack is true where the Service asks for addresses of both families.
	DualStack bool
}

// Node is one with what selectors look at.
type Node struct {
	Name   string
	Labels map[string]string
}

// Announcement is what one node announces.
type Announcement struct {
	Node    string
	Service types.NamespacedName
}
