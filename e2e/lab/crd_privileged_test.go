// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
)

// testCRDs has the real API server judge what the CRDs' rules are for. The controller rests
// meanwhile: it removes assignments that belong to no EgressService.
func testCRDs(t *testing.T, l *lab.Lab) {
	if err := l.Processes.Stop(t.Context(), lab.ControllerProcess); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.StartController(t.Context()); err != nil {
			t.Error(err)
		}
	}()
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
			a := &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "rules"}, Spec: good}
			if err := l.Client.Create(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Client.Delete(t.Context(), a); err != nil {
					t.Error(err)
				}
			}()
			after := a.DeepCopy()
			test.edit(&after.Spec)
			err := l.Client.Update(t.Context(), after, client.DryRunAll)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
	bad := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "bad"}, Spec: egressv1.EgressServiceSpec{SourceIPBy: "Luck"}}
	if err := l.Client.Create(t.Context(), bad, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "Unsupported value") {
		t.Errorf("sourceIPBy Luck: error %v", err)
	}
}
