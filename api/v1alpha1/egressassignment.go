// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FailurePolicy says what the pods' traffic to the outside does while no node can be elected.
// +kubebuilder:validation:Enum=Open;Closed
type FailurePolicy string

const (
	// FailOpen lets the pods leave as ordinary pods do, as upstream's EgressService does.
	FailOpen FailurePolicy = "Open"
	// FailClosed drops their traffic to the outside.
	FailClosed FailurePolicy = "Closed"
)

// EgressAssignment is the controller's decision for the EgressService of the same name,
// which owns it. The controller alone writes it; the speakers follow it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=egressassignments,singular=egressassignment,scope=Namespaced,shortName=eassign
// +kubebuilder:printcolumn:name="Primary",type=string,JSONPath=`.spec.primary`
// +kubebuilder:printcolumn:name="Standby",type=string,JSONPath=`.spec.standby`
// +kubebuilder:printcolumn:name="Epoch",type=integer,JSONPath=`.spec.epoch`
// +kubebuilder:printcolumn:name="Source IPs",type=string,JSONPath=`.spec.sourceIPs`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressAssignment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   EgressAssignmentSpec   `json:"spec"`
	Status EgressAssignmentStatus `json:"status,omitempty"`
}

// EgressAssignmentSpec is the decision.
//
// +kubebuilder:validation:XValidation:rule="self.epoch >= oldSelf.epoch",message="epoch never goes back"
// +kubebuilder:validation:XValidation:rule="self.primary == oldSelf.primary || self.epoch > oldSelf.epoch",message="a change of primary takes a new epoch"
type EgressAssignmentSpec struct {
	// epoch grows by one at every change of primary. It starts at 0, with no primary.
	// +kubebuilder:validation:Minimum=0
	Epoch int64 `json:"epoch"`

	// primary is the node that may announce the source IPs, or empty.
	Primary string `json:"primary"`

	// standby is the node that programs the service beforehand, to be the next primary, or
	// empty.
	Standby string `json:"standby"`

	// labelKey is the key of the public label on the primary. It is recorded once.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="labelKey is recorded once"
	LabelKey string `json:"labelKey"`

	// sourceIPBy is LoadBalancerIP or Network.
	// +kubebuilder:validation:Enum=LoadBalancerIP;Network
	SourceIPBy string `json:"sourceIPBy"`

	// sourceIPs are the Service's LoadBalancer IPs, at most one per family, in their
	// canonical spelling (RFC 5952). Empty when sourceIPBy is Network.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	SourceIPs []string `json:"sourceIPs,omitempty"`

	// network is the EgressService's spec.network.
	// +optional
	Network string `json:"network,omitempty"`

	// failurePolicy holds while neither a primary nor a standby can be had.
	FailurePolicy FailurePolicy `json:"failurePolicy"`
}

// StandbyLabelKey is the key of the label on the standby, derived from labelKey.
func (s *EgressAssignmentSpec) StandbyLabelKey() string {
	for i := range s.LabelKey {
		if s.LabelKey[i] == '/' {
			return StandbyLabelPrefix + s.LabelKey[i+1:]
		}
	}
	return StandbyLabelPrefix + s.LabelKey
}

// EgressAssignmentStatus is how far the cluster has followed the decision.
type EgressAssignmentStatus struct {
	// conditions: NodeAssigned, DataplaneReady, Announced, AdvertisementsConsistent, Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// lastMove is the newest change of primary.
	// +optional
	LastMove *Move `json:"lastMove,omitempty"`
}

// Move is one change of primary.
type Move struct {
	// epoch is the epoch that the move began.
	Epoch int64 `json:"epoch"`
	// cause is a CamelCase reason.
	Cause string `json:"cause"`
	// from is the primary before, or empty.
	// +optional
	From string `json:"from,omitempty"`
	// to is the primary after, or empty.
	// +optional
	To string `json:"to,omitempty"`
	// startedAt is when the controller first wanted the move.
	StartedAt metav1.MicroTime `json:"startedAt"`
	// duration is the time from startedAt until the primary reported the source IPs as
	// announced. Absent until then.
	// +optional
	Duration *metav1.Duration `json:"duration,omitempty"`
}

// EgressAssignmentList is a list of EgressAssignment.
//
// +kubebuilder:object:root=true
type EgressAssignmentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressAssignment `json:"items"`
}
