// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

// world plays the cluster around one service, or several that share an address: every decision
// is written to the assignment, as the controller does, and the nodes answer when a test says so.
type world struct {
	t       *testing.T
	now     time.Time
	nodes   []election.Node
	service *Service   // the oldest
	others  []*Service // younger, of the same group
	group   Group
	memory  Memory
	last    Decision   // of the oldest
	rest    []Decision // of the others
	again   time.Duration
}

func newWorld(t *testing.T, nodes ...string) *world {
	w := &world{t: t, now: time.Unix(1000, 0), service: newService("s")}
	for _, name := range nodes {
		w.nodes = append(w.nodes, election.Node{Name: name, Ready: true, Reporting: true, SessionEstablished: true, SessionHeld: true})
	}
	electorate := func() *election.Electorate {
		e := election.New(w.nodes)
		// The load orders the nodes: the first is preferred.
		for i, n := range w.nodes {
			e.Add(n.Name, i)
		}
		return e
	}
	w.group = Group{
		Live:   func(name string) bool { return w.node(name).Ready },
		Silent: func(name string) bool { return w.node(name).Silent },
		Elect: func(primary, standby string, avoid map[string]bool) election.Result {
			return electorate().Elect(election.Service{Key: "ns/s", Primary: primary, Standby: standby, Avoid: avoid})
		},
		Rejected: func() string { return election.Count(electorate().Reject(election.Service{Key: "ns/s"})) },
	}
	return w
}

func newService(name string) *Service {
	return &Service{
		Key: "ns/" + name, HasEndpoints: true, Reports: map[string]v1alpha1.EgressNodeService{},
		Want: v1alpha1.EgressAssignmentSpec{LabelKey: "k/ns-" + name, SourceIPBy: "LoadBalancerIP", SourceIPs: []string{"192.0.2.1"}, FailurePolicy: v1alpha1.FailOpen},
	}
}

func (w *world) node(name string) *election.Node {
	for i := range w.nodes {
		if w.nodes[i].Name == name {
			return &w.nodes[i]
		}
	}
	w.t.Fatalf("no node %s", name)
	return nil
}

// decide makes one decision for the group and writes it.
func (w *world) decide() Decision {
	all := append([]*Service{w.service}, w.others...)
	w.group.Members = nil
	for _, service := range all {
		w.group.Members = append(w.group.Members, *service)
	}
	var decisions []Decision
	decisions, w.again, w.memory = Decide(w.now, w.group, w.memory)
	for i, service := range all {
		a := service.Assignment
		if a == nil {
			a = &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
		}
		if !cmp.Equal(a.Spec, decisions[i].Spec) {
			a.Generation++
			a.Spec = decisions[i].Spec
		}
		service.Assignment = a
	}
	w.last, w.rest = decisions[0], decisions[1:]
	return w.last
}

// report is a node's answer to the assignment of the oldest service as it stands.
func (w *world) report(node string, programmed, offered, announced bool) {
	report(w.service, node, programmed, offered, announced)
}

func report(s *Service, node string, programmed, offered, announced bool) {
	s.Reports[node] = v1alpha1.EgressNodeService{
		Key: s.Key, UID: "u", ObservedGeneration: s.Assignment.Generation,
		Programmed: programmed, Offered: offered, Announced: announced, Addresses: s.Want.SourceIPs,
	}
}

// expect compares epoch, primary, standby and the condition's reason.
func (w *world) expect(when string, epoch int64, primary, standby, reason string) {
	w.t.Helper()
	got := []any{w.last.Spec.Epoch, w.last.Spec.Primary, w.last.Spec.Standby, w.last.Assigned.Reason}
	if diff := cmp.Diff([]any{epoch, primary, standby, reason}, got); diff != "" {
		w.t.Fatalf("%s: epoch, primary, standby, reason: -want +got:\n%s", when, diff)
	}
}

// settle brings the service to its first primary.
func (w *world) settle() {
	w.t.Helper()
	w.decide()
	w.report(w.last.Spec.Standby, true, true, false)
	w.decide()
	w.report(w.last.Spec.Primary, true, true, true)
	if w.last.Spec.Standby != "" {
		w.report(w.last.Spec.Standby, true, true, false)
	}
	w.decide()
}
