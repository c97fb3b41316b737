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

func TestOnlyAnAcknowledgedStandbyBecomesPrimary(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.decide()
	w.expect("at first", 0, "", "a", "WaitingForStandby")
	if w.again != AcknowledgeTimeout {
		t.Errorf("again in %v, want %v", w.again, AcknowledgeTimeout)
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
	want := &v1alpha1.Move{Epoch: 1, Cause: "FirstAssignment", To: "a", StartedAt: metav1.NewMicroTime(time.Unix(1000, 0))}
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
	w.service.Want.FailurePolicy = v1alpha1.FailClosed
	w.decide()
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("a was silent", 0, "", "b", "WaitingForStandby")
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("both were silent: keep waiting", 0, "", "b", "StandbySilent")
	if want := RestMin - AcknowledgeTimeout; w.again != want {
		t.Errorf("again in %v, want %v, when a has rested", w.again, want)
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

// Under the policy Open the pods' traffic is not dropped for longer than one wait because the
// only node there is does not answer.
func TestOpenServiceIsLetGoWhileItsOnlyNodeIsSilent(t *testing.T) {
	w := newWorld(t, "a")
	w.decide()
	w.expect("at first", 0, "", "a", "WaitingForStandby")
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("silent", 0, "", "", "StandbySilent")
	if w.again != RestMin {
		t.Errorf("again in %v, want %v", w.again, RestMin)
	}
	w.now = w.now.Add(RestMin / 2)
	w.decide()
	w.expect("while it rests", 0, "", "", "StandbySilent")
	w.now = w.now.Add(RestMin / 2)
	w.decide()
	w.expect("rested", 0, "", "a", "WaitingForStandby")
	w.now = w.now.Add(AcknowledgeTimeout - time.Second)
	w.decide()
	w.expect("the wait is a whole one again", 0, "", "a", "WaitingForStandby")
	w.report("a", true, true, false)
	w.decide()
	w.expect("answers", 1, "a", "", "Assigned")
}

func TestRestEndsWhenTheSpeakerComesBack(t *testing.T) {
	w := newWorld(t, "a")
	w.node("a").Silent = true
	w.decide()
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("silent", 0, "", "", "StandbySilent")
	w.node("a").Silent = false
	w.decide()
	w.expect("alive again", 0, "", "a", "WaitingForStandby")
}

func TestConditionStaysTrueWhileTheServiceMoves(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.node("a").Excluded = true
	delete(w.service.Reports, "b")
	w.decide()
	w.expect("b has not answered", 1, "a", "b", "Moving")
	if w.last.Assigned.Status != metav1.ConditionTrue {
		t.Error("NodeAssigned is not true although a is primary")
	}
}

func TestClosedServiceGoesOnWaitingForItsOnlyNode(t *testing.T) {
	w := newWorld(t, "a")
	w.service.Want.FailurePolicy = v1alpha1.FailClosed
	for range 4 {
		w.decide()
		w.now = w.now.Add(AcknowledgeTimeout)
	}
	w.expect("alone and silent", 0, "", "a", "StandbySilent")
	if !strings.Contains(w.last.Assigned.Message, "there is no other node to try") {
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

// R23: services that share an address are elected as one.
func TestR23GroupIsElectedAsOne(t *testing.T) {
	expect := func(w *world, when string, epoch int64, primary, standby, reason string) {
		t.Helper()
		got := []any{w.rest[0].Spec.Epoch, w.rest[0].Spec.Primary, w.rest[0].Spec.Standby, w.rest[0].Assigned.Reason}
		if diff := cmp.Diff([]any{epoch, primary, standby, reason}, got); diff != "" {
			t.Fatalf("%s: the younger's epoch, primary, standby, reason: -want +got:\n%s", when, diff)
		}
	}
	settled := func() *world {
		w := newWorld(t, "a", "b", "c")
		w.others = []*Service{newService("t")}
		w.decide()
		w.expect("at first", 0, "", "a", "WaitingForStandby")
		expect(w, "at first", 0, "", "a", "WaitingForStandby")
		report(w.service, "a", true, true, false)
		w.decide()
		w.expect("the younger is not acknowledged", 0, "", "a", "WaitingForStandby")
		report(w.others[0], "a", true, true, false)
		w.decide()
		w.expect("both are", 1, "a", "b", "Assigned")
		expect(w, "both are", 1, "a", "b", "Assigned")
		for _, s := range []*Service{w.service, w.others[0]} {
			report(s, "a", true, true, true)
			report(s, "b", true, true, false)
		}
		return w
	}
	t.Run("failover moves all", func(*testing.T) {
		w := settled()
		w.node("a").Ready = false
		w.decide()
		w.expect("a died", 2, "b", "c", "Assigned")
		expect(w, "a died", 2, "b", "c", "Assigned")
	})
	t.Run("one that is not offered holds all", func(*testing.T) {
		w := settled()
		w.node("a").Excluded = true
		report(w.others[0], "b", true, false, false)
		w.decide()
		w.expect("not offered", 1, "a", "b", "Moving")
		expect(w, "not offered", 1, "a", "b", "Moving")
	})
	t.Run("a newcomer follows", func(*testing.T) {
		w := settled()
		newcomer := newService("u")
		w.others = append(w.others, newcomer)
		w.decide()
		w.expect("the others stay", 1, "a", "b", "Assigned")
		if got := w.rest[1].Spec; got.Primary != "" || got.Standby != "a" {
			t.Fatalf("newcomer: %+v", got)
		}
		report(newcomer, "a", true, true, false)
		w.decide()
		if got := w.rest[1].Spec; got.Primary != "a" || got.Standby != "b" || got.Epoch != 1 {
			t.Errorf("newcomer, acknowledged: %+v", got)
		}
	})
	t.Run("one that is elsewhere is released first", func(*testing.T) {
		w := settled()
		w.others[0].Assignment.Spec.Primary = "c"
		w.decide()
		w.expect("the oldest leads", 1, "a", "b", "Assigned")
		expect(w, "released", 2, "", "a", "WaitingForStandby")
		if move := w.rest[0].Move; move == nil || move.Cause != v1alpha1.CauseSharedAddress || move.From != "c" {
			t.Errorf("move %+v", move)
		}
		report(w.others[0], "a", true, true, false)
		w.decide()
		expect(w, "follows", 3, "a", "b", "Assigned")
	})
}

// A newcomer follows its group while the group can't move, and is not waited for when it can.
func TestNewcomerAndAMoveThatHangs(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.node("a").Excluded = true
	w.report("b", true, false, false)
	newcomer := newService("t")
	w.others = []*Service{newcomer}
	w.decide()
	w.expect("not offered", 1, "a", "b", "Moving")
	if got := w.rest[0].Spec; got.Standby != "a" {
		t.Fatalf("newcomer: %+v, want it to follow to a", got)
	}
	w.now = w.now.Add(OfferTimeout)
	report(newcomer, "a", true, true, false)
	w.decide()
	if got := w.rest[0].Spec; got.Primary != "a" || w.last.Assigned.Reason != "ReplacementNotOffered" {
		t.Fatalf("newcomer, acknowledged: %+v; the oldest: %s", got, w.last.Assigned.Reason)
	}

	w = newWorld(t, "a", "b")
	w.settle()
	w.node("a").Ready = false
	w.others = []*Service{newService("t")}
	w.decide()
	w.expect("failover waits for no newcomer", 2, "b", "", "Assigned")
	if got := w.rest[0].Spec; got.Primary != "" || got.Standby != "b" {
		t.Errorf("newcomer: %+v", got)
	}
}

// Two services with nothing in common become one group when a third shares an address with each: the
// younger of the two keeps its node until it is acknowledged on the other.
func TestBridgedServiceStaysUntilItIsAcknowledged(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	bridged, bridge := newService("t"), newService("u")
	bridged.Want.SourceIPs = []string{"2001:db8::1"}
	bridge.Want.SourceIPs = []string{"192.0.2.1", "2001:db8::1"}
	bridged.Assignment = &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{UID: "u", Generation: 3}, Spec: bridged.Want}
	bridged.Assignment.Spec.Epoch, bridged.Assignment.Spec.Primary = 1, "b"
	w.others = []*Service{bridged, bridge}
	w.decide()
	if got := w.rest[0].Spec; got.Primary != "b" || got.Standby != "a" || got.Epoch != 1 {
		t.Fatalf("bridged: %+v, want it to stay on b with a as standby", got)
	}
	report(bridged, "a", true, true, false)
	w.decide()
	if got := w.rest[0]; got.Spec.Primary != "a" || got.Spec.Epoch != 2 || got.Move.From != "b" {
		t.Errorf("bridged, acknowledged: %+v, move %+v", got.Spec, got.Move)
	}
}

// A member that its group's node does not acknowledge is let go for a while under Open, and asked again.
func TestFollowerIsAskedAgain(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.others = []*Service{newService("t")}
	var standbys []string
	for range 6 {
		w.decide()
		standbys = append(standbys, w.rest[0].Spec.Standby)
		w.now = w.now.Add(AcknowledgeTimeout)
	}
	if diff := cmp.Diff([]string{"a", "", "", "", "a", ""}, standbys); diff != "" {
		t.Errorf("standby every 10 s: -want +got:\n%s", diff)
	}
}

func TestAcknowledgementIsOfWhatIsWanted(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.EgressAssignmentSpec){
		"another network":         func(s *v1alpha1.EgressAssignmentSpec) { s.Network = "red" },
		"another LoadBalancer IP": func(s *v1alpha1.EgressAssignmentSpec) { s.SourceIPs = []string{"192.0.2.2"} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.settle()
			change(&w.service.Want)
			w.node("a").Ready = false
			w.decide()
			w.expect("b has acknowledged something else", 1, "a", "b", "Moving")
		})
	}
}

// A standby that does not acknowledge is replaced before it is needed.
func TestStandbyIsWatched(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.settle()
	w.decide()
	if w.again != 0 {
		t.Errorf("with an acknowledged standby: again in %v", w.again)
	}
	delete(w.service.Reports, "b")
	w.decide()
	w.expect("b is asked", 1, "a", "b", "Assigned")
	if w.again != AcknowledgeTimeout {
		t.Errorf("again in %v, want %v", w.again, AcknowledgeTimeout)
	}
	w.now = w.now.Add(AcknowledgeTimeout)
	w.decide()
	w.expect("c instead", 1, "a", "c", "Assigned")
	w.report("c", true, true, false)
	w.decide()
	w.now = w.now.Add(RestMin)
	w.decide()
	w.expect("b has rested", 1, "a", "c", "Assigned")
}

func TestRestartDoesNotWaitAgainForTheOffer(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.node("a").Excluded = true
	w.report("b", true, false, false)
	w.service.Assignment.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionNodeAssigned, Reason: v1alpha1.ReasonReplacementNotOffered}}
	w.memory = Memory{}
	w.decide()
	w.expect("after a restart", 1, "a", "b", "ReplacementNotOffered")
}

func TestMostSpeakersSilentMovesNothingAndSaysSo(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.settle()
	w.group.MostSilent = true
	w.decide()
	w.expect("most are silent", 1, "a", "b", "MostSpeakersSilent")
	if w.last.Assigned.Status != metav1.ConditionTrue {
		t.Error("NodeAssigned is not true")
	}
}
