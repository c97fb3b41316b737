// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// BGPAdvertisement is MetalLB's, with the field that it got after the Go types in use.
type BGPAdvertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPAdvertisementSpec `json:"spec,omitempty"`
}

// BGPAdvertisementSpec is MetalLB's.
type BGPAdvertisementSpec struct {
	metallbv1beta1.BGPAdvertisementSpec `json:",inline"`

	// ASPathPrepend is how often the own AS number is prepended, 1 to 10, or 0. MetalLB has it since v0.16.2, in its frr-k8s mode.
	ASPathPrepend int32 `json:"asPathPrepend,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *BGPAdvertisement) DeepCopyObject() runtime.Object {
	if a == nil {
		return nil
	}
	return a.DeepCopy()
}

// DeepCopy makes another one with the same content.
func (a *BGPAdvertisement) DeepCopy() *BGPAdvertisement {
	after := &BGPAdvertisement{TypeMeta: a.TypeMeta, ObjectMeta: *a.ObjectMeta.DeepCopy()}
	after.Spec.ASPathPrepend = a.Spec.ASPathPrepend
	a.Spec.BGPAdvertisementSpec.DeepCopyInto(&after.Spec.BGPAdvertisementSpec)
	return after
}

// BGPAdvertisementList is a list of BGPAdvertisement.
type BGPAdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPAdvertisement `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *BGPAdvertisementList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	after := &BGPAdvertisementList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy(), Items: make([]BGPAdvertisement, len(l.Items))}
	for i := range l.Items {
		after.Items[i] = *l.Items[i].DeepCopy()
	}
	return after
}

// AddToScheme registers the kinds of MetalLB that this package reads and writes.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(metallbv1beta1.GroupVersion,
		&BGPAdvertisement{}, &BGPAdvertisementList{},
		&metallbv1beta1.IPAddressPool{}, &metallbv1beta1.IPAddressPoolList{},
		&metallbv1beta1.L2Advertisement{}, &metallbv1beta1.L2AdvertisementList{},
		&metallbv1beta1.ServiceBGPStatus{}, &metallbv1beta1.ServiceBGPStatusList{},
		&metallbv1beta1.ServiceL2Status{}, &metallbv1beta1.ServiceL2StatusList{},
		&metallbv1beta1.ConfigurationState{}, &metallbv1beta1.ConfigurationStateList{},
	)
	metav1.AddToGroupVersion(scheme, metallbv1beta1.GroupVersion)
	return metallbv1beta2.AddToScheme(scheme)
}
