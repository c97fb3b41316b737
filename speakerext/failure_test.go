// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// TestSharedAddress: ns/s has n1 as primary, and another service has the same address.
func TestSharedAddress(t *testing.T) {
	assigned := func(primary, standby string, sources ...string) *v1alpha1.EgressAssignmentSpec {
		return &v1alpha1.EgressAssignmentSpec{
			Epoch: 1, Primary: primary, Standby: standby, LabelKey: "egress-service.k8s.ovn.org/ns-other", SourceIPBy: "LoadBalancerIP", SourceIPs: sources,
		}
	}
	tests := []struct {
		name  string
		other *v1alpha1.EgressAssignmentSpec
		do    func(*rig)
		want  bool
	}{
		{"the other has no assignment yet", nil, nil, true},
		{"the other has a standby alone, elsewhere", assigned("", "n2", "192.0.2.1"), nil, true},
		{"the other has a standby alone, here", assigned("", "n1", "192.0.2.1"), nil, true},
		{"the other is served here too, its label not there yet", assigned("n1", "n2", "192.0.2.1"), nil, true},
		{"the other is served elsewhere", assigned("n2", "n1", "192.0.2.1"), nil, false},
		{"the other is served elsewhere, by another address so far", assigned("n2", "n1", "192.0.2.8"), nil, true},
		{"the first has lost its label, the other has no assignment yet", nil, func(r *rig) { r.setLabel(false) }, false},
		{"the first is served elsewhere, the other not yet programmed here", assigned("n1", "n2", "192.0.2.1"), func(r *rig) {
			r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Epoch = "n2", 2 })
		}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			other := service("other")
			if test.other != nil {
				assignment := &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other"}, Spec: *test.other}
				owner := metav1.NewControllerRef(other[1], egressv1.GroupVersion.WithKind("EgressService"))
				assignment.OwnerReferences = []metav1.OwnerReference{*owner}
				other = append(other, assignment)
			}
			for _, otherIsOlder := range []bool{false, true} {
				r := newRig(t, other...)
				younger := "other"
				if otherIsOlder {
					younger = "s"
				}
				change(r, types.NamespacedName{Namespace: "ns", Name: younger}, &egressv1.EgressService{}, func(e *egressv1.EgressService) {
					e.CreationTimestamp = metav1.Unix(2000, 0)
				})
				r.setLabel(true)
				r.sync()
				if r.announces("192.0.2.1") {
					t.Fatal("announced before it is programmed")
				}
				r.settle()
				if test.do != nil {
					test.do(r)
					r.syncBGP()
				}
				if got := r.announces("192.0.2.1"); got != test.want {
					t.Errorf("announces: %v, want %v (the other is older: %v)", got, test.want, otherIsOlder)
				}
			}
		})
	}
}

// service is a Service with the rig's address, and its EgressService without an assignment.
func service(name string) []client.Object {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-of-" + name)}
	return []client.Object{
		&corev1.Service{ObjectMeta: meta, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: lbIP.String()}}}}},
		&egressv1.EgressService{ObjectMeta: meta},
	}
}

// TestAnotherAssignmentOfTheSameName: what was programmed for the one before counts for nothing.
func TestAnotherAssignmentOfTheSameName(t *testing.T) {
	r := newRig(t)
	r.setLabel(true)
	r.sync()
	r.settle()
	old := &v1alpha1.EgressAssignment{}
	if err := r.Client.Get(t.Context(), key, old); err != nil {
		t.Fatal(err)
	}
	if err := r.Client.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	again := old.DeepCopy()
	again.UID, again.ResourceVersion = "another", ""
	if err := r.Client.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	r.syncBGP()
	if r.announces("192.0.2.1") {
		t.Error("announced by what was programmed for another assignment")
	}
	if got := r.report(); got.Programmed || got.UID != "another" {
		t.Errorf("report %+v", got)
	}
	r.dataplane.installed = 0
	r.sync()
	if r.announces("192.0.2.1") || r.report().Programmed {
		t.Error("what is pending for the new assignment was taken from the old one")
	}
	r.settle()
	if !r.announces("192.0.2.1") {
		t.Error("not announced after it was programmed again")
	}
}

func TestClosedServicesAreDroppedWithoutANode(t *testing.T) {
	tests := []struct {
		name string
		do   func(*rig)
		want string
	}{
		{"no assignment, annotated Closed", func(r *rig) {
			change(r, key, &egressv1.EgressService{}, func(e *egressv1.EgressService) {
				e.Annotations = map[string]string{v1alpha1.FailurePolicyAnnotation: "Closed"}
			})
			if err := r.Client.Delete(r.Context(), &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}); err != nil {
				r.Fatal(err)
			}
		}, "drop"},
		{"no assignment", func(r *rig) {
			if err := r.Client.Delete(r.Context(), &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}); err != nil {
				r.Fatal(err)
			}
		}, ""},
		{"a network that is not supported", func(r *rig) {
			change(r, key, &egressv1.EgressService{}, func(e *egressv1.EgressService) {
				e.Spec.SourceIPBy, e.Spec.Network = egressv1.SourceIPNetwork, "100"
			})
			r.assign(func(s *v1alpha1.EgressAssignmentSpec) {
				*s = v1alpha1.EgressAssignmentSpec{Epoch: 2, LabelKey: label, SourceIPBy: "Network", Network: "100", FailurePolicy: v1alpha1.FailClosed}
			})
		}, "drop"},
		{"the Network kind without a network", func(r *rig) {
			change(r, key, &egressv1.EgressService{}, func(e *egressv1.EgressService) { e.Spec.SourceIPBy = egressv1.SourceIPNetwork })
			r.assign(func(s *v1alpha1.EgressAssignmentSpec) {
				*s = v1alpha1.EgressAssignmentSpec{Epoch: 2, LabelKey: label, SourceIPBy: "Network", FailurePolicy: v1alpha1.FailOpen}
			})
		}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			test.do(r)
			r.sync()
			dump := r.dataplane.plan.Dump()
			steered := ""
			for line := range strings.Lines(dump) {
				if strings.HasPrefix(line, "policy 109 ") && strings.Contains(line, "ip4.src") {
					steered = "other"
				}
				if strings.HasPrefix(line, "hold ") && steered == "other" {
					steered = "drop"
				}
			}
			if steered != test.want {
				t.Errorf("the pods' packets: %q, want %q; plan:\n%s", steered, test.want, dump)
			}
		})
	}
}

// TestBehind: ns/s has endpoints on both nodes, and n1, this one, is its primary.
func TestBehind(t *testing.T) {
	r := newRig(t)
	status := func() v1alpha1.EgressNodeStatus {
		var report v1alpha1.EgressNode
		if err := r.Client.Get(t.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
			t.Fatal(err)
		}
		return report.Status
	}
	fail := func(what string, want ...string) {
		t.Helper()
		r.dataplane.err = errors.New("the database is away")
		if _, err := r.SyncDataplane(t.Context()); err == nil {
			t.Fatal("no error")
		}
		r.syncBGP()
		if got := status(); !slices.Equal(got.Behind, want) || int(got.BehindCount) != len(want) {
			t.Errorf("%s: %d behind: %v, want %v", what, got.BehindCount, got.Behind, want)
		}
	}
	succeed := func() {
		t.Helper()
		r.dataplane.err = nil
		r.settle()
		if got := status(); len(got.Behind) > 0 || got.BehindCount != 0 {
			t.Errorf("after a success: %d behind: %v", got.BehindCount, got.Behind)
		}
	}
	setNode := func(pod, node, address string) {
		if err := r.Client.Delete(t.Context(), aPod("ns", pod, "", "")); err != nil {
			t.Fatal(err)
		}
		if err := r.Client.Create(t.Context(), aPod("ns", pod, node, address)); err != nil {
			t.Fatal(err)
		}
	}

	fail("nothing was ever applied", "ns/s")
	succeed()
	fail("nothing has changed since it was applied")
	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "n1", 2 })
	fail("another primary; this node is standby now", "ns/s")
	succeed()
	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "" })
	fail("no role any more", "ns/s")
	succeed()
	setNode("p2", "n1", "10.244.2.5")
	fail("another endpoint on this node", "ns/s")
	succeed()
	setNode("p1", "n2", "10.244.1.5")
	setNode("p2", "n2", "10.244.2.5")
	fail("no endpoint on this node")
}

func TestManyBehind(t *testing.T) {
	var objects []client.Object
	for i := range 60 {
		name := fmt.Sprintf("b%02d", i)
		many := service(name)
		many[1].SetAnnotations(map[string]string{v1alpha1.FailurePolicyAnnotation: "Closed"})
		many[1].SetCreationTimestamp(metav1.Unix(int64(1000-i), 0)) // which is how they are listed
		objects = append(objects, many...)
		objects = append(objects, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.5"}}},
		})
	}
	r := newRig(t, objects...)
	r.dataplane.err = errors.New("the database is away")
	if _, err := r.SyncDataplane(t.Context()); err == nil {
		t.Fatal("no error")
	}
	r.syncBGP()
	var report v1alpha1.EgressNode
	if err := r.Client.Get(t.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
		t.Fatal(err)
	}
	behind := report.Status.Behind
	if len(behind) != 50 || report.Status.BehindCount != 61 || behind[0] != "ns/b00" || behind[49] != "ns/b49" {
		t.Errorf("%d behind, %d named: %v", report.Status.BehindCount, len(behind), behind)
	}
}

func TestFailedApplicationIsReported(t *testing.T) {
	r := newRig(t)
	r.sync()
	r.dataplane.err = errors.New("the database is away")
	if _, err := r.SyncDataplane(t.Context()); err == nil {
		t.Fatal("no error")
	}
	r.syncBGP()
	problems := func() []string {
		var report v1alpha1.EgressNode
		if err := r.Client.Get(t.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
			t.Fatal(err)
		}
		return report.Status.Problems
	}
	away := func(p string) bool { return strings.Contains(p, "the database is away") }
	if !slices.ContainsFunc(problems(), away) {
		t.Errorf("problems %v", problems())
	}
	r.dataplane.err = nil
	r.sync()
	if slices.ContainsFunc(problems(), away) {
		t.Errorf("problems after it is back: %v", problems())
	}
}
