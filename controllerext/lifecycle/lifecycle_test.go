// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

// world plays the cluster around one service: every decision is written to the assignment,
// as the controller does, and the nodes answer when a test says so.
type world struct {
	t       *testing.T
	now     time.Time
	nodes   []election.Node
	service Service
	memory  Memory
	last    Decision
}

func newWorld(t *testing.T, nodes ...string) *world {
	w := &world{t: t, now: time.Unix(1000, 0)}
	for _, name := range nodes {
		w.nodes = append(w.nodes, election.Node{Name: name, Ready: true, Reporting: true, SessionEstablished: true})
	}
	w.service = Service{
		Key: "ns/s", HasEndpoints: true, Reports: map[string]v1alpha1.EgressNodeService{},
		Want: v1alpha1.EgressAssignmentSpec{LabelKey: "k/ns-s", SourceIPBy: "LoadBalancerIP", SourceIPs: []string{"192.0.2.1"}, FailurePolicy: v1alpha1.FailOpen},
		Live: func(name string) bool { return w.node(name).Ready },
		Elect: func(primary, standby string, avoid map[string]bool) election.Result {
			// The load orders the nodes: the first is preferred.
			load := map[string]int{}
			for i, n := range w.nodes {
				load[n.Name] = i
			}
			return election.Elect(w.nodes, load, election.Service{Key: "ns/s", Primary: primary, Standby: standby, Avoid: avoid})
		},
	}
	return w
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

// decide makes one decision and writes it.
func (w *world) decide() Decision {
	w.last, w.memory = Decide(w.now, w.service, w.memory)
	a := w.service.Assignment
	if a == nil {
		a = &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	}
	if !cmp.Equal(a.Spec, w.last.Spec) {
		a.Generation++
		a.Spec = w.last.Spec
	}
	w.service.Assignment = a
	return w.last
}

// report is a node's answer to the assignment as it stands.
func (w *world) report(node string, programmed, offered, announced bool) {
	w.service.Reports[node] = v1alpha1.EgressNodeService{
		Key: "ns/s", UID: "u", ObservedGeneration: w.service.Assignment.Generation,
		Programmed: programmed, Offered: offered, Announced: announced, Addresses: w.service.Want.SourceIPs,
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

func TestOnlyAnAcknowledgedStandbyBecomesPrimary(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.decide()
	w.expect("at first", 0, "", "a", "WaitingForStandby")
	if w.last.Again != AcknowledgeTimeout {
		t.Errorf("again in %v, want %v", w.last.Again, AcknowledgeTimeout)
	}
	w.decide()
	w.expect("without an answer", 0, "", "a", "WaitingForStandby")

	for name, report := range map[string]v1alpha1.EgressNodeService{
		"not programmed":   {UID: "u", ObservedGeneration: 1, Addresses: []string{"192.0.2.1"}},
		"older generation": {UID: "u", ObservedGeneration: 0, Programmed: true, Addresses: []string{"192.0.2.1"}},
		"another object":   {UID: "old", ObservedGeneration: 9, Programmed: true, Addresses: []string{"192.0.2.1"}},
		"another address":  {UID: "u", ObservedGeneration: 1, Programmed: true, Addresses: []string{"192.0.2.9"}},
	} {
		w.service.Reports["a"] = report
		w.decide()
		w.expect(name, 0, "", "a", "WaitingForStandby")
	}

	w.report("a", true, false, false)
	w.now = w.now.Add(2 * time.Second)
	w.decide()
	w.expect("acknowledged", 1, "a", "b", "Assigned")
	want := &v1alpha1.Move{Epoch: 1, Cause: "NoPrimary", To: "a", StartedAt: metav1.NewMicroTime(time.Unix(1000, 0))}
	if diff := cmp.Diff(want, w.last.Move); diff != "" {
		t.Errorf("move: -want +got:\n%s", diff)
	}
	w.decide()
	w.expect("decided again", 1, "a", "b", "Assigned")
	if w.last.Move != nil {
		t.Error("a second decision moved again")
	}
}

func TestSilentStandbyIsReplacedAndRested(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.decide()
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("a was silent", 0, "", "b", "WaitingForStandby")
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("both were silent: keep waiting", 0, "", "b", "StandbySilent")
	if want := RestMin - AcknowledgeTimeout; w.last.Again != want {
		t.Errorf("again in %v, want %v, when a has rested", w.last.Again, want)
	}
	w.report("b", true, true, false)
	w.decide()
	w.expect("b answers late", 1, "b", "a", "Assigned")
}

func TestRestsGrowAndEnd(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.decide()
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.now = w.now.Add(RestMin)
	w.decide()
	w.expect("a has rested, b was silent too", 0, "", "a", "WaitingForStandby")
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.now = w.now.Add(RestMin)
	w.decide()
	if w.last.Spec.Standby != "b" {
		t.Errorf("standby %s; a rests twice as long the second time", w.last.Spec.Standby)
	}
}

func TestConditionStaysTrueWhileTheServiceMoves(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.node("a").Excluded = true
	delete(w.service.Reports, "b")
	w.decide()
	w.expect("b has not answered", 1, "a", "b", "WaitingForStandby")
	if w.last.Assigned.Status != metav1.ConditionTrue {
		t.Error("NodeAssigned is not true although a is primary")
	}
}

func TestOnlyNodeIsWaitedForForever(t *testing.T) {
	w := newWorld(t, "a")
	for range 5 {
		w.decide()
		w.now = w.now.Add(AcknowledgeTimeout)
	}
	w.expect("alone and silent", 0, "", "a", "StandbySilent")
	if !strings.Contains(w.last.Assigned.Message, "there is no other node") {
		t.Errorf("message %q", w.last.Assigned.Message)
	}
	w.report("a", true, true, false)
	w.decide()
	w.expect("answers at last", 1, "a", "", "Assigned")
}

func TestFailoverIsOneDecision(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.settle()
	w.expect("settled", 1, "a", "b", "Assigned")
	w.node("a").Ready = false
	w.decide()
	w.expect("a died", 2, "b", "c", "Assigned")
	if w.last.Move.Cause != "NotReady" || w.last.Move.From != "a" || w.last.Move.To != "b" {
		t.Errorf("move %+v", w.last.Move)
	}
	w.node("a").Ready = true
	w.decide()
	w.expect("a is back: nothing moves", 2, "b", "c", "Assigned")
}

func TestReplacingAnAnnouncingPrimaryWaitsForTheOffer(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.node("a").Excluded = true
	w.report("b", true, false, false)
	w.decide()
	w.expect("not offered yet", 1, "a", "b", "Moving")
	w.now = w.now.Add(OfferTimeout)
	w.decide()
	w.expect("not offered in time: stays", 1, "a", "b", "ReplacementNotOffered")
	w.report("b", true, true, false)
	w.decide()
	w.expect("offered", 2, "b", "", "Assigned")
	if w.last.Move.Cause != string(election.Excluded) {
		t.Errorf("cause %s", w.last.Move.Cause)
	}
}

func TestReplacingAPrimaryThatDoesNotAnnounceDoesNotWait(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.report("a", true, true, false)
	w.report("b", true, false, false)
	w.node("a").Excluded = true
	w.decide()
	w.expect("nothing to lose", 2, "b", "", "Assigned")
}

func TestRelease(t *testing.T) {
	tests := []struct {
		name          string
		change        func(*world)
		reason        string
		message       string
		staysAssigned bool
	}{
		{"no LoadBalancer IP", func(w *world) { w.service.Blocked, w.service.BlockedMessage = "NoLoadBalancerIP", "none" }, "NoLoadBalancerIP", "none", false},
		{"no node", func(w *world) { w.node("a").Ready = false; w.node("b").Excluded = true }, "NoEligibleNode", "1 ExcludedFromLoadBalancers, 1 NotReady", false},
		{"network mode", func(w *world) { w.service.Want.SourceIPBy, w.service.Want.SourceIPs = "Network", nil }, "EveryNode", "every node handles", false},
		{"no endpoints any more", func(w *world) { w.service.HasEndpoints = false }, "Assigned", "node a", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.settle()
			test.change(w)
			w.decide()
			if test.staysAssigned {
				w.expect("after", 1, "a", "b", test.reason)
			} else {
				w.expect("after", 2, "", "", test.reason)
			}
			if !strings.Contains(w.last.Assigned.Message, test.message) {
				t.Errorf("message %q does not say %q", w.last.Assigned.Message, test.message)
			}
			before := w.last.Spec
			w.decide()
			if diff := cmp.Diff(before, w.last.Spec); diff != "" {
				t.Errorf("the second decision differs: -first +second:\n%s", diff)
			}
		})
	}
}

func TestFirstAssignmentNeedsAnEndpoint(t *testing.T) {
	w := newWorld(t, "a")
	w.service.HasEndpoints = false
	w.decide()
	w.expect("no endpoint", 0, "", "", "NoEndpoints")
}

func TestLabelKey(t *testing.T) {
	long := strings.Repeat("n", 40)
	tests := []struct {
		name, namespace, service string
		taken                    bool
		want                     string
	}{
		{"upstream's spelling", "example-namespace", "example-service", false, "egress-service.k8s.ovn.org/example-namespace-example-service"},
		{"63 characters fit", long, strings.Repeat("s", 22), false, "egress-service.k8s.ovn.org/" + long + "-" + strings.Repeat("s", 22)},
		{"64 do not", long, strings.Repeat("s", 23), false, "egress-service.k8s.ovn.org/" + Digest(long, strings.Repeat("s", 23))},
		{"taken by an older service", "a", "b-c", true, "egress-service.k8s.ovn.org/" + Digest("a", "b-c")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := LabelKey(test.namespace, test.service, func(string) bool { return test.taken })
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	if a, b := Digest("a-b", "c"), Digest("a", "b-c"); a == b || len(a) != 16 {
		t.Errorf("digests %s and %s", a, b)
	}
}
