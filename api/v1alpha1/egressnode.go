// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Role is what a node is to a service.
// +kubebuilder:validation:Enum=Primary;Standby;Previous
type Role string

const (
	// RolePrimary is the node that may announce.
	RolePrimary Role = "Primary"
	// RoleStandby is the node that has everything programmed to take over.
	RoleStandby Role = "Standby"
	// RolePrevious is the node just replaced: it still forwards what is under way.
	RolePrevious Role = "Previous"
)

// EgressNode is what one node's egress-speaker reports. It has the Node's name and is
// owned by it. Everything is status: that speaker alone writes it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=egressnodes,singular=egressnode,scope=Cluster,shortName=enode
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Gateway mode",type=string,JSONPath=`.status.gatewayMode`
// +kubebuilder:printcolumn:name="Sessions",type=string,JSONPath=`.status.bgpSessions[*].state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Status EgressNodeStatus `json:"status,omitempty"`
}

// EgressNodeStatus is the report.
type EgressNodeStatus struct {
	// version of the egress-speaker.
	// +optional
	Version string `json:"version,omitempty"`

	// gatewayMode is the node's OVN-Kubernetes gateway mode: local or shared.
	// +optional
	GatewayMode string `json:"gatewayMode,omitempty"`

	// networks are the routing tables (numbers and names) and VRF devices that a spec.network can
	// name on this node, ordered.
	// +optional
	// +listType=atomic
	Networks []string `json:"networks,omitempty"`

	// vrfs are those of the networks that are VRF devices, ordered.
	// +optional
	// +listType=atomic
	VRFs []string `json:"vrfs,omitempty"`

	// bgpSessions are the node's BGP sessions, ordered by VRF and peer.
	// +optional
	// +listType=atomic
	BGPSessions []BGPSession `json:"bgpSessions,omitempty"`

	// services are those whose primary or standby is this node, or was until just now, one entry each.
	// The speaker writes all of them: the API server has no need to keep account of
	// thousands of entries one by one.
	// +optional
	// +listType=atomic
	Services []EgressNodeService `json:"services,omitempty"`

	// behind are the services, as <namespace>/<name>, with endpoints on this node whose newest
	// generation it could not program. At most 50; behindCount counts all.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=50
	Behind []string `json:"behind,omitempty"`

	// behindCount is how many services are behind.
	// +optional
	BehindCount int32 `json:"behindCount,omitempty"`

	// problems are what this node could not honour, one line each, at most 50.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=50
	Problems []string `json:"problems,omitempty"`
}

// BGPSession is one session of the node's BGP speaker.
type BGPSession struct {
	// peer is the neighbour's address.
	Peer string `json:"peer"`
	// vrf is the VRF's name; empty for the default one.
	// +optional
	VRF string `json:"vrf,omitempty"`
	// state is the BGP finite state machine's state (RFC 4271 §8.2.2), for example Established.
	State string `json:"state"`
	// bfd is the state of the BFD session beside it: Up, Down, or Suspended for some minutes because
	// it ended the BGP session again and again. Empty without BFD.
	// +optional
	BFD string `json:"bfd,omitempty"`
	// gracefulRestart is true when both sides have announced graceful restart (RFC 4724) for the
	// address families in use: the peer keeps the routes for a while when this speaker goes away.
	// +optional
	GracefulRestart bool `json:"gracefulRestart,omitempty"`
	// lastError is the newest error of a session that is not established.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// EgressNodeService is what this node has done for one service.
type EgressNodeService struct {
	// key is <namespace>/<name>.
	Key string `json:"key"`
	// uid is the EgressAssignment's, so that an answer to an older object is told apart.
	UID types.UID `json:"uid"`
	// observedGeneration is the EgressAssignment's generation that this entry answers.
	ObservedGeneration int64 `json:"observedGeneration"`
	// role is this node's role in the newest generation that it has seen.
	Role Role `json:"role"`
	// programmed is true when nftables is committed, OVN is committed, and the local
	// integration bridge has the flows.
	Programmed bool `json:"programmed"`
	// offered is true when this node's FRRConfigurations hold the host routes.
	Offered bool `json:"offered"`
	// announced is true when the host routes were sent to an established session.
	Announced bool `json:"announced"`
	// addresses are the LoadBalancer IPs that this node translates to.
	// +optional
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// reason says in words what is missing while something is.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// EgressNodeList is a list of EgressNode.
//
// +kubebuilder:object:root=true
type EgressNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressNode `json:"items"`
}
