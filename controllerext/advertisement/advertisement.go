// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// PoolAnnotations are those by which MetalLB's controller says on a Service which pool its address is
// from (metallb controller/service.go); the second is the deprecated spelling.
var PoolAnnotations = []string{"metallb.io/ip-allocated-from-pool", "metallb.universe.tf/ip-allocated-from-pool"}

// Pool is the name of the IPAddressPool that the Service's address is from, by the
// annotations that MetalLB's controller sets; empty when it has not said so, or when what is there
// is no name of an object: whoever may write the Service may write the annotation.
func Pool(serviceAnnotations map[string]string) string {
	for _, annotation := range PoolAnnotations {
		if pool := serviceAnnotations[annotation]; len(validation.IsDNS1123Subdomain(pool)) == 0 {
			return pool
		}
	}
	return ""
}

// Name is the name of a service's advertisement.
func Name(namespace, service string) string {
	return "egress-" + namespace + "-" + service + "-" + lifecycle.Digest(namespace, service)
}

// Owned is the BGPAdvertisement, in MetalLB's namespace, of one assignment. Its
// nodeSelectors are the public label and the standby's label, so that MetalLB offers the
// route on both nodes beforehand and a promotion makes it rewrite nothing; the guard in the
// speakers decides which of the two sends it.
func Owned(assignment *v1alpha1.EgressAssignment, pool, metallbNamespace string) *metallbv1beta1.BGPAdvertisement {
	onNodesWith := func(key string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{key: ""}}
	}
	digest := lifecycle.Digest(assignment.Namespace, assignment.Name)
	return &metallbv1beta1.BGPAdvertisement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   metallbNamespace,
			Name:        Name(assignment.Namespace, assignment.Name),
			Labels:      map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue, v1alpha1.ServiceLabel: digest},
			Annotations: map[string]string{v1alpha1.OwnerAnnotation: assignment.Namespace + "/" + assignment.Name},
		},
		Spec: metallbv1beta1.BGPAdvertisementSpec{
			IPAddressPools: []string{pool},
			// The CRD's defaults, and what serviceSelectors allow.
			AggregationLength: new(int32(32)), AggregationLengthV6: new(int32(128)),
			NodeSelectors: []metav1.LabelSelector{
				onNodesWith(assignment.Spec.LabelKey),
				onNodesWith(assignment.Spec.StandbyLabelKey()),
			},
			ServiceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{v1alpha1.ServiceLabel: digest}}},
		},
	}
}
