// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of this project's own objects.
var GroupVersion = schema.GroupVersion{Group: "metallb-egress.io", Version: "v1alpha1"}

const (
	// StandbyLabelPrefix is the group part, slash included, of the label on the standby node.
	StandbyLabelPrefix = "standby.metallb-egress.io/"

	// ServiceLabel is the label that the controller puts on a Service, so that one
	// BGPAdvertisement can select that Service alone. Its value is unique in the cluster.
	ServiceLabel = "metallb-egress.io/egress-service"

	// OwnerAnnotation names, as <namespace>/<name>, the EgressService that an object of
	// ours in another namespace belongs to.
	OwnerAnnotation = "metallb-egress.io/owner"

	// OriginalSelectorsAnnotation holds, on a BGPAdvertisement that is not ours, its serviceSelectors as JSON from before the egress
	// services were excluded from it.
	OriginalSelectorsAnnotation = "metallb-egress.io/original-service-selectors"

	// FailurePolicyAnnotation on an EgressService sets its failure policy, Open or Closed.
	FailurePolicyAnnotation = "metallb-egress.io/failure-policy"

	// SpeakerLeaseLabel marks the Leases, in MetalLB's namespace, by which the egress-speakers show
	// that they live: one per node, named SpeakerLeasePrefix and the node's name, held by the node,
	// and renewed three times within leaseDurationSeconds.
	SpeakerLeaseLabel = "metallb-egress.io/speaker-lease"
	// SpeakerLeasePrefix begins the names of those Leases.
	SpeakerLeasePrefix = "egress-speaker."

	// ManagedByLabel and ManagedByValue mark the objects that the controller makes.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	// ManagedByValue is the value of ManagedByLabel.
	ManagedByValue = "metallb-egress"
)

// AddToScheme registers the types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &EgressAssignment{}, &EgressAssignmentList{}, &EgressNode{}, &EgressNodeList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
