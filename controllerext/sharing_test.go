// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// L4, R11: a pod in two EgressServices stays with the older one, and the younger says so.
func TestL4PodInTwoEgressServices(t *testing.T) {
	older, younger := service("old", "192.0.2.1"), service("young", "192.0.2.2")
	older[2].SetCreationTimestamp(metav1.Unix(1, 0))
	younger[2].SetCreationTimestamp(metav1.Unix(2, 0))
	younger[1].(*discoveryv1.EndpointSlice).Endpoints = older[1].(*discoveryv1.EndpointSlice).Endpoints
	c := newCluster(t, slices.Concat(node("a"), node("b"), older, younger)...)
	c.settle("old")
	c.settle("young")
	if got := c.condition("old", v1alpha1.ConditionReady); got != "True/Ready" {
		t.Errorf("old: Ready is %s", got)
	}
	conflict := meta.FindStatusCondition(c.egress("young").Status.Conditions, v1alpha1.ConditionDataplaneReady)
	if conflict == nil || conflict.Reason != v1alpha1.ReasonEndpointConflict || !strings.Contains(conflict.Message, "ns/old") || !strings.Contains(conflict.Message, "ns/young") {
		t.Errorf("young: %+v", conflict)
	}
	c.quiet()
}

// Another namespace's EndpointSlice that names the same address is a forgery or nothing of ours:
// the speakers leave it out, and it makes no conflict.
func TestAddressesOfAnotherNamespaceMakeNoConflict(t *testing.T) {
	older, younger := service("old", "192.0.2.1"), service("young", "192.0.2.2")
	younger[1].(*discoveryv1.EndpointSlice).Endpoints = older[1].(*discoveryv1.EndpointSlice).Endpoints
	older[2].SetCreationTimestamp(metav1.Unix(1, 0))
	younger[2].SetCreationTimestamp(metav1.Unix(2, 0))
	for _, o := range older {
		o.SetNamespace("other")
	}
	c := newCluster(t, slices.Concat(node("a"), older, younger)...)
	c.settle("young")
	if got := c.condition("young", v1alpha1.ConditionDataplaneReady); got != "True/Programmed" {
		t.Errorf("young: DataplaneReady is %s", got)
	}
}

func TestRepliesDiverted(t *testing.T) {
	other := service("web", "192.0.2.9")
	exposed := other[0].(*corev1.Service)
	tests := []struct {
		name   string
		kind   corev1.ServiceType
		policy corev1.ServiceExternalTrafficPolicy
		shared bool
		want   string
	}{
		{"NodePort with policy Local and the same pods", corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal, true, "True/SharedEndpoints"},
		{"LoadBalancer with policy Local and the same pods", corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, true, "True/SharedEndpoints"},
		{"policy Cluster", corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyCluster, true, "absent"},
		{"a ClusterIP Service", corev1.ServiceTypeClusterIP, corev1.ServiceExternalTrafficPolicyLocal, true, "absent"},
		{"other pods", corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal, false, "absent"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := service("s", "192.0.2.1")
			web, slice := exposed.DeepCopy(), other[1].(*discoveryv1.EndpointSlice).DeepCopy()
			web.Spec.Type, web.Spec.ExternalTrafficPolicy = test.kind, test.policy
			if test.shared {
				slice.Endpoints = s[1].(*discoveryv1.EndpointSlice).Endpoints
			}
			c := newCluster(t, append(slices.Concat(node("a"), s), web, slice)...)
			c.settle("s")
			if got := c.condition("s", v1alpha1.ConditionRepliesDiverted); got != test.want {
				t.Errorf("RepliesDiverted is %s, want %s", got, test.want)
			}
			if got := c.condition("s", v1alpha1.ConditionReady); got != "True/Ready" {
				t.Errorf("Ready is %s", got)
			}
			c.quiet()
			if test.want != "absent" {
				edit(c, get(c, "ns", "web", &corev1.Service{}), func(web *corev1.Service) { web.Spec.Type = corev1.ServiceTypeClusterIP })
				c.sync()
				if got := c.condition("s", v1alpha1.ConditionRepliesDiverted); got != "absent" {
					t.Errorf("RepliesDiverted is %s when the other Service is no longer exposed", got)
				}
			}
		})
	}
}

// R23: services that share a LoadBalancer IP get one node.
func TestR23SharedAddress(t *testing.T) {
	one, two := service("one", "192.0.2.1"), service("two", "192.0.2.1")
	two[1].(*discoveryv1.EndpointSlice).Endpoints[0].Addresses = []string{"10.244.1.77"}
	one[2].SetCreationTimestamp(metav1.Unix(1, 0))
	two[2].SetCreationTimestamp(metav1.Unix(2, 0))
	c := newCluster(t, slices.Concat(node("a"), node("b"), node("c"), one, two)...)
	c.sync()
	candidate := c.assignment("one").Spec.Standby
	c.report(candidate, "one", true, true, false)
	c.sync()
	if spec := c.assignment("one").Spec; spec.Primary != "" {
		t.Errorf("one is primary on %s before two was acknowledged", spec.Primary)
	}
	c.report(candidate, "two", true, true, false)
	c.sync()
	one1, two1 := c.assignment("one").Spec, c.assignment("two").Spec
	if one1.Primary != candidate || two1.Primary != candidate || one1.Standby != two1.Standby {
		t.Errorf("one on %s/%s, two on %s/%s", one1.Primary, one1.Standby, two1.Primary, two1.Standby)
	}
	c.sync()
	c.quiet()
}
