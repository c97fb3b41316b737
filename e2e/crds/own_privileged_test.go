// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package crds_test

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

func testAssignments(t *testing.T, c client.Client) {
	good := v1alpha1.EgressAssignmentSpec{
		Epoch: 3, Primary: "n1", Standby: "n2", LabelKey: "egress-service.k8s.ovn.org/a-b", SourceIPBy: "LoadBalancerIP",
		SourceIPs: []string{"192.0.2.1"}, FailurePolicy: v1alpha1.FailOpen,
	}
	tests := []struct {
		name string
		edit func(*v1alpha1.EgressAssignmentSpec)
		want string // part of the refusal; empty: accepted
	}{
		{"a new standby", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "n3" }, ""},
		{"a new primary with a new epoch", func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Epoch = "n2", 4 }, ""},
		{"no primary with a new epoch", func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "", "", 4 }, ""},
		{"a new primary in the old epoch", func(s *v1alpha1.EgressAssignmentSpec) { s.Primary = "n2" }, "takes a new epoch"},
		{"an older epoch", func(s *v1alpha1.EgressAssignmentSpec) { s.Epoch = 2 }, "never goes back"},
		{"another label key", func(s *v1alpha1.EgressAssignmentSpec) { s.LabelKey = "egress-service.k8s.ovn.org/c" }, "recorded once"},
		{"three addresses", func(s *v1alpha1.EgressAssignmentSpec) {
			s.SourceIPs = []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
		}, "at most 2"},
		{"an unknown failure policy", func(s *v1alpha1.EgressAssignmentSpec) { s.FailurePolicy = "Ajar" }, "Unsupported value"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "rules"}, Spec: good}
			if err := c.Create(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := c.Delete(t.Context(), a); err != nil {
					t.Error(err)
				}
			}()
			after := a.DeepCopy()
			test.edit(&after.Spec)
			refused(t, c.Update(t.Context(), after, client.DryRunAll), test.want)
		})
	}
}

func testNodes(t *testing.T, c client.Client) {
	node := &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	if err := c.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	lines := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprint("ns/service-", i))
		}
		return list
	}
	service := v1alpha1.EgressNodeService{Key: "a/b", UID: "u", Role: v1alpha1.RolePrimary, Addresses: []string{"192.0.2.1"}}
	tests := []struct {
		name   string
		status v1alpha1.EgressNodeStatus
		want   string
	}{
		{"as much as there may be", v1alpha1.EgressNodeStatus{Behind: lines(50), BehindCount: 100, Problems: lines(50)}, ""},
		{"too many services behind", v1alpha1.EgressNodeStatus{Behind: lines(51)}, "at most 50"},
		{"too many problems", v1alpha1.EgressNodeStatus{Problems: lines(51)}, "at most 50"},
		{"a service", v1alpha1.EgressNodeStatus{Services: []v1alpha1.EgressNodeService{service}}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			after := node.DeepCopy()
			after.Status = test.status
			refused(t, c.Status().Update(t.Context(), after, client.DryRunAll), test.want)
		})
	}
}
