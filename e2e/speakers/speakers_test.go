// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	publicLabel  = "egress-service.k8s.ovn.org/ns-web"
	standbyLabel = v1alpha1.StandbyLabelPrefix + "ns-web"
)

func assignment(name, primary, standby string, generation int64) *v1alpha1.EgressAssignment {
	return &v1alpha1.EgressAssignment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Generation: generation},
		Spec: v1alpha1.EgressAssignmentSpec{
			Primary: primary, Standby: standby, LabelKey: "egress-service.k8s.ovn.org/ns-" + name, SourceIPs: []string{"192.0.2.10"},
		},
	}
}

// newSpeaker has seen the labels and assignments.
func newSpeaker(labels []string, assignments ...*v1alpha1.EgressAssignment) *speaker {
	s := &speaker{node: "n1", labels: map[string]string{}, assignments: map[string]*v1alpha1.EgressAssignment{}}
	for _, label := range labels {
		s.labels[label] = ""
	}
	for _, a := range assignments {
		s.assignments[a.Namespace+"/"+a.Name] = a
	}
	return s
}

// said is what a patch sets.
func said(t *testing.T, patch []byte) v1alpha1.EgressNodeStatus {
	t.Helper()
	var report v1alpha1.EgressNode
	if err := json.Unmarshal(patch, &report); err != nil {
		t.Fatal(err)
	}
	return report.Status
}

func TestAnswers(t *testing.T) {
	const noRoute, notSent = "MetalLB has not handed this node the route yet", "no established BGP session has been sent the route yet"
	primary, standby := assignment("web", "n1", "n2", 3), assignment("web", "n2", "n1", 3)
	tests := []struct {
		name                                    string
		assignment                              *v1alpha1.EgressAssignment
		labels                                  []string
		behaviour                               Behaviour
		wantProgrammed, wantOffered, wantAnnced bool
		wantReason                              string
	}{
		{"standby without label", standby, nil, Behaviour{}, true, false, false, ""},
		{"labelled standby", standby, []string{standbyLabel}, Behaviour{}, true, true, false, ""},
		{"standby with the public label", standby, []string{publicLabel}, Behaviour{}, true, true, false, ""},
		{"primary without label", primary, nil, Behaviour{}, true, false, false, noRoute},
		{"primary with the standby's label", primary, []string{standbyLabel}, Behaviour{}, true, true, false, notSent},
		{"labelled primary", primary, []string{publicLabel}, Behaviour{}, true, true, true, ""},
		{"another service's label", primary, []string{publicLabel + "2"}, Behaviour{}, true, false, false, noRoute},
		{"refuses", primary, []string{publicLabel}, Behaviour{Refuse: "no"}, false, true, false, "no"},
		{"not offered", primary, []string{publicLabel}, Behaviour{NotOffered: true}, true, false, false, noRoute},
		{"not announced", primary, []string{publicLabel}, Behaviour{NotAnnounced: true}, true, true, false, notSent},
		{"no session", primary, []string{publicLabel}, Behaviour{NoSession: true}, true, true, false, notSent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSpeaker(test.labels, test.assignment)
			now, err := s.status(test.behaviour)
			if err != nil {
				t.Fatal(err)
			}
			patch, err := now.patch(nil)
			if err != nil {
				t.Fatal(err)
			}
			want := v1alpha1.EgressNodeService{
				Key: "ns/web", UID: "uid-web", ObservedGeneration: 3, Role: roleOf(test.assignment, "n1"), Programmed: test.wantProgrammed,
				Offered: test.wantOffered, Announced: test.wantAnnced, Reason: test.wantReason,
			}
			if want.Programmed {
				want.Addresses = []string{"192.0.2.10"}
			}
			if diff := cmp.Diff([]v1alpha1.EgressNodeService{want}, said(t, patch).Services); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestNodesOwnFacts(t *testing.T) {
	many := slices.Repeat([]string{"ns/a"}, 60)
	established := v1alpha1.BGPSession{Peer: fakePeer, State: "Established", GracefulRestart: true}
	tests := []struct {
		name      string
		behaviour Behaviour
		want      v1alpha1.EgressNodeStatus
	}{
		{"without fault", Behaviour{}, v1alpha1.EgressNodeStatus{
			Version: "fake", GatewayMode: "local", BGPSessions: []v1alpha1.BGPSession{established},
		}},
		{"shared gateway, networks", Behaviour{GatewayMode: "shared", Networks: []string{"100", "blue"}}, v1alpha1.EgressNodeStatus{
			Version: "fake", GatewayMode: "shared", Networks: []string{"100", "blue"}, BGPSessions: []v1alpha1.BGPSession{established},
		}},
		{"no graceful restart", Behaviour{NoGracefulRestart: true}, v1alpha1.EgressNodeStatus{
			Version: "fake", GatewayMode: "local", BGPSessions: []v1alpha1.BGPSession{{Peer: fakePeer, State: "Established"}},
		}},
		{"no session, behind", Behaviour{NoSession: true, Behind: many}, v1alpha1.EgressNodeStatus{
			Version: "fake", GatewayMode: "local", BGPSessions: []v1alpha1.BGPSession{{Peer: fakePeer, State: "Active"}},
			Behind: many[:50], BehindCount: 60,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			now, err := newSpeaker(nil).status(test.behaviour)
			if err != nil {
				t.Fatal(err)
			}
			patch, err := now.patch(nil)
			if err != nil {
				t.Fatal(err)
			}
			test.want.Services = []v1alpha1.EgressNodeService{}
			if diff := cmp.Diff(test.want, said(t, patch)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPatchHoldsWhatChanged(t *testing.T) {
	s := newSpeaker([]string{publicLabel}, assignment("web", "n1", "", 1), assignment("mail", "n2", "n1", 1))
	patchAfter := func(b Behaviour) string {
		t.Helper()
		now, err := s.status(b)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := now.patch(s.written)
		if err != nil {
			t.Fatal(err)
		}
		s.written = now
		return string(patch)
	}
	if first := said(t, []byte(patchAfter(Behaviour{}))); len(first.Services) != 2 || first.Services[0].Key != "ns/mail" {
		t.Errorf("the first report: %+v", first)
	}
	if again := patchAfter(Behaviour{}); again != "" {
		t.Errorf("an equal report is written: %s", again)
	}
	if got, want := patchAfter(Behaviour{Networks: []string{"blue"}}), `{"status":{"networks":["blue"]}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.assignments["ns/web"] = assignment("web", "n1", "", 2)
	delete(s.assignments, "ns/mail")
	got := said(t, []byte(patchAfter(Behaviour{Networks: []string{"blue"}})))
	if len(got.Services) != 1 || got.Services[0].ObservedGeneration != 2 || got.Version != "" {
		t.Errorf("after a new generation: %+v", got)
	}
}

func TestLagDelaysWhatIsSeen(t *testing.T) {
	s := newSpeaker(nil)
	s.behaviour.Lag = time.Second
	begin := time.Unix(1000, 0)
	s.inbox = []change{
		{at: begin, key: "ns/web", assignment: assignment("web", "n1", "", 1)},
		{at: begin.Add(500 * time.Millisecond), labels: map[string]string{publicLabel: ""}},
		{at: begin.Add(600 * time.Millisecond), key: "ns/web"},
	}
	steps := []struct {
		after            time.Duration
		wantAssignments  int
		wantLabels       int
		wantNextIn       time.Duration
		withoutLagAtLast bool
	}{
		{after: 900 * time.Millisecond, wantNextIn: 100 * time.Millisecond},
		{after: time.Second, wantAssignments: 1, wantNextIn: 500 * time.Millisecond},
		{after: 1500 * time.Millisecond, wantAssignments: 1, wantLabels: 1, wantNextIn: 100 * time.Millisecond},
		{after: 1501 * time.Millisecond, withoutLagAtLast: true, wantLabels: 1, wantNextIn: never},
	}
	for _, step := range steps {
		if step.withoutLagAtLast {
			s.behaviour.Lag = 0
		}
		_, next := s.look(begin.Add(step.after))
		if len(s.assignments) != step.wantAssignments || len(s.labels) != step.wantLabels || next != step.wantNextIn {
			t.Errorf("after %v: %d assignments, %d labels, next in %v, want %+v", step.after, len(s.assignments), len(s.labels), next, step)
		}
	}
}

func TestChangesReachTheirNodesOnly(t *testing.T) {
	f := &Fleet{
		speakers: map[string]*speaker{}, assignments: map[string]*v1alpha1.EgressAssignment{},
		held: map[string]map[string]*v1alpha1.EgressAssignment{}, labels: map[string]map[string]string{},
	}
	nodes := []string{"n1", "n2", "n3"}
	for _, node := range nodes {
		f.speakers[node] = newSpeaker(nil)
	}
	again := assignment("web", "n2", "", 2)
	again.Status.LastMove = &v1alpha1.Move{}
	steps := []struct {
		name string
		do   func()
		want map[string]string
	}{
		{"assigned", func() { f.assignmentSeen("ns/web", assignment("web", "n1", "n2", 1)) }, map[string]string{"n1": "Primary", "n2": "Standby"}},
		{"moved", func() { f.assignmentSeen("ns/web", assignment("web", "n2", "", 2)) }, map[string]string{"n1": "none", "n2": "Primary"}},
		{"status written", func() { f.assignmentSeen("ns/web", again) }, map[string]string{}},
		{"labelled", func() { f.labelsSeen("n3", map[string]string{"a": ""}) }, map[string]string{"n3": "labels"}},
		{"labelled the same", func() { f.labelsSeen("n3", map[string]string{"a": ""}) }, map[string]string{}},
		{"deleted", func() { f.assignmentSeen("ns/web", nil) }, map[string]string{"n2": "none"}},
	}
	for _, step := range steps {
		step.do()
		got := map[string]string{}
		for _, node := range nodes {
			for _, c := range f.speakers[node].inbox {
				switch {
				case c.key == "":
					got[node] += "labels"
				case c.assignment == nil:
					got[node] += "none"
				default:
					got[node] += string(roleOf(c.assignment, node))
				}
			}
			f.speakers[node].inbox = nil
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", step.name, diff)
		}
	}
	if len(f.assignments) != 0 || len(f.held["n1"]) != 0 || len(f.held["n2"]) != 0 {
		t.Errorf("left behind: %v, %v", f.assignments, f.held)
	}
}

func TestLeasesAreBounded(t *testing.T) {
	tests := []struct {
		speakers     int
		wantInterval time.Duration
		wantSeconds  int32
	}{
		{1, 2500 * time.Millisecond, 10},
		{125, 2500 * time.Millisecond, 10},
		{130, 2600 * time.Millisecond, 11},
		{1000, 20 * time.Second, 80},
	}
	for _, test := range tests {
		got := interval(test.speakers)
		seconds := *(&speaker{node: "n1"}).leaseSpec(got).LeaseDurationSeconds
		if got != test.wantInterval || seconds != test.wantSeconds {
			t.Errorf("%d speakers: every %v for %d s, want every %v for %d s", test.speakers, got, seconds, test.wantInterval, test.wantSeconds)
		}
	}
}
