// SPDX-License-Identifier: Apache-2.0

package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of EgressService.
var GroupVersion = schema.GroupVersion{Group: "k8s.ovn.org", Version: "v1"}

// LabelPrefix is the group part, slash included, of the public node label
// egress-service.k8s.ovn.org/<namespace>-<name>: "". The label means permission to
// announce the service's LoadBalancer IP from that node.
const LabelPrefix = "egress-service.k8s.ovn.org/"

// HostAll is the value of status.host of a service whose sourceIPBy is Network: every
// node handles its own endpoints.
const HostAll = "ALL"

// SourceIPMode says which source address the pods' traffic carries.
// +kubebuilder:validation:Enum=LoadBalancerIP;Network
type SourceIPMode string

const (
	// SourceIPLoadBalancer is the LoadBalancer IP of the Service, through one elected node.
	// An absent value means the same.
	SourceIPLoadBalancer SourceIPMode = "LoadBalancerIP"
	// SourceIPNetwork is the address of the network that spec.network names, on each
	// pod's own node.
	SourceIPNetwork SourceIPMode = "Network"
)

// EgressService steers the traffic that the pods of the LoadBalancer Service of the same
// namespace and name send to the outside.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=egressservices,singular=egressservice,scope=Namespaced,shortName=esvc
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.status.host`
// +kubebuilder:printcolumn:name="Standby",type=string,JSONPath=`.status.standby`
// +kubebuilder:printcolumn:name="Source",type=string,JSONPath=`.spec.sourceIPBy`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
type EgressService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   EgressServiceSpec   `json:"spec,omitempty"`
	Status EgressServiceStatus `json:"status,omitempty"`
}

// EgressServiceSpec is what the user asks for.
type EgressServiceSpec struct {
	// sourceIPBy is LoadBalancerIP (the default) or Network.
	// +optional
	// +kubebuilder:default=LoadBalancerIP
	SourceIPBy SourceIPMode `json:"sourceIPBy,omitempty"`

	// nodeSelector limits the nodes that may be elected. Empty matches every node. Ignored
	// when sourceIPBy is Network.
	// +optional
	// +structType=atomic
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="the operators are In, NotIn, Exists and DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, !(e.operator in ['In', 'NotIn']) || has(e.values) && size(e.values) > 0)",message="the operators In and NotIn need values"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, !(e.operator in ['Exists', 'DoesNotExist']) || !has(e.values) || size(e.values) == 0)",message="the operators Exists and DoesNotExist take no values"
	NodeSelector metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// network is the routing table (a number or a name) or the VRF device that the traffic
	// leaves through. Empty means the node's ordinary routing.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[^\p{C}\p{Z}/]*$')`,message="network is the name or number of a routing table, or a VRF device: printable, without spaces and slashes"
	Network string `json:"network,omitempty"`
}

// EgressServiceStatus is what was decided.
type EgressServiceStatus struct {
	// host is the elected node's name, ALL when sourceIPBy is Network, or empty when no
	// node handles the service.
	Host string `json:"host"`

	// standby is the node that has the service programmed to take over, or empty. Absent where
	// another project's CRD is installed.
	// +optional
	Standby string `json:"standby,omitempty"`

	// conditions say why. Absent where another project's CRD is installed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// EgressServiceList is a list of EgressService.
//
// +kubebuilder:object:root=true
type EgressServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressService `json:"items"`
}

// AddToScheme registers the types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &EgressService{}, &EgressServiceList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
