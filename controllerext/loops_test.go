// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

func TestWhatCallsForAnElection(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.settle("s")
	one := get(c, "", "a", &corev1.Node{})
	change := func(edit func(*corev1.Node)) *corev1.Node {
		after := one.DeepCopy()
		edit(after)
		return after
	}
	assignment := c.assignment("s")
	reported := assignment.DeepCopy()
	reported.Status.Conditions, reported.ResourceVersion = nil, "999"
	decided := assignment.DeepCopy()
	decided.Generation++
	tests := []struct {
		name          string
		before, after client.Object
		want          bool
	}{
		{"a kubelet's report", one, change(func(n *corev1.Node) { n.ResourceVersion = "999" }), false},
		{"a node that is cordoned", one, change(func(n *corev1.Node) { n.Spec.Unschedulable = true }), true},
		{"a node that is not ready", one, change(func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }), true},
		{"a node's label", one, change(func(n *corev1.Node) { n.Labels = map[string]string{"x": "y"} }), true},
		{"a new node", nil, one, true},
		{"an assignment's status", assignment, reported, false},
		{"an assignment's spec", assignment, decided, true},
		{"an assignment that is gone", assignment, nil, true},
		{"a Service of the namespace", nil, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}, true},
		{"a Service elsewhere", nil, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "else"}}, false},
		{"an EndpointSlice of the namespace", &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}, nil, true},
		{"an EndpointSlice elsewhere", &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "else"}}, nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := c.controller.changesElection(test.before, test.after); got != test.want {
				t.Errorf("%t", got)
			}
		})
	}
	for name, want := range map[string]bool{"s": true, "other": false} {
		object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
		if got := c.controller.changesAdvertisements(nil, object); got != want {
			t.Errorf("Service %s calls for advertisements: %t", name, got)
		}
	}
}

func TestPodSubnets(t *testing.T) {
	var r subnetReader
	subnets := func(texts ...string) prefixes {
		var nodes []*corev1.Node
		for _, text := range texts {
			nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{ovnkubernetes.NodeSubnets: text}}})
		}
		return r.read(nodes)
	}
	got := subnets(`{"default":["10.244.2.0/24","fd00::/64"]}`, `{"default":["10.244.0.0/16"]}`, `nonsense`, `{"default":["10.244.9.0/24"]}`, `{"default":["10.1.0.0/24"]}`)
	for address, want := range map[string]bool{
		"10.244.2.1": true, "10.244.200.1": true, "10.244.9.255": true, "10.244.255.255": true, "10.1.0.0": true, "fd00::1": true,
		"10.245.0.0": false, "10.243.255.255": false, "10.1.1.0": false, "fd01::": false, "0.0.0.0": false,
	} {
		if got.contain(netip.MustParseAddr(address)) != want {
			t.Errorf("%s: want %t of %v", address, want, got)
		}
	}
	if subnets().contain(netip.MustParseAddr("10.244.2.1")) {
		t.Error("subnets of nodes that are gone are remembered")
	}
}

// Two names with one digest can be made with effort: the service in service keeps what the digest
// names, else the older one.
func TestNameCollision(t *testing.T) {
	named := func(name, primary string) *work {
		w := &work{key: types.NamespacedName{Namespace: "ns", Name: name}, digest: "0123456789abcdef"}
		if primary != "" {
			w.before = &v1alpha1.EgressAssignment{Spec: v1alpha1.EgressAssignmentSpec{Primary: primary}}
		}
		return w
	}
	for name, test := range map[string]struct {
		works []*work
		want  []string
	}{
		"the older":            {[]*work{named("old", ""), named("young", "")}, []string{"", v1alpha1.ReasonNameCollision}},
		"the one in service":   {[]*work{named("old", ""), named("young", "a")}, []string{v1alpha1.ReasonNameCollision, ""}},
		"the older in service": {[]*work{named("old", "a"), named("young", "a")}, []string{"", v1alpha1.ReasonNameCollision}},
	} {
		t.Run(name, func(t *testing.T) {
			refuseCollisions(test.works)
			for i, w := range test.works {
				if w.observed.Blocked != test.want[i] {
					t.Errorf("%s: %q, want %q", w.key.Name, w.observed.Blocked, test.want[i])
				}
			}
		})
	}
}

// A decision made from an assignment that another leader has changed is refused by the API server.
func TestStaleDecisionIsRefused(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.EgressAssignmentSpec){
		"epoch":   func(s *v1alpha1.EgressAssignmentSpec) { s.Epoch++ },
		"primary": func(s *v1alpha1.EgressAssignmentSpec) { s.Primary = "x" },
		"standby": func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "x" },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
			c.settle("s")
			before := c.assignment("s")
			edit(c, c.assignment("s"), func(a *v1alpha1.EgressAssignment) { change(&a.Spec) })
			want := c.assignment("s").Spec
			w := &work{before: before, assignment: before.DeepCopy()}
			w.assignment.Spec.Epoch, w.assignment.Spec.Primary = 7, "b"
			if err := c.controller.changeAssignment(t.Context(), w); err == nil {
				t.Error("accepted")
			}
			if got := c.assignment("s").Spec; got.Epoch != want.Epoch || got.Primary != want.Primary {
				t.Errorf("spec %+v, want %+v", got, want)
			}
		})
	}
}
