// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

var configurationKey = types.NamespacedName{Namespace: "metallb-system", Name: "metallb-n1"}

// peer edits the neighbor of n1's FRRConfiguration.
func (r *rig) peer(edit func(*frrk8sv1beta1.Neighbor)) {
	r.Helper()
	change(r, configurationKey, &bgp.FRRConfiguration{}, func(c *bgp.FRRConfiguration) { edit(&c.Spec.BGP.Routers[0].Neighbors[0]) })
}

// password is the neighbor's, or why there is none.
func (r *rig) password() string {
	if len(r.bgp.config.Routers) == 0 {
		return "no neighbor"
	}
	return r.bgp.config.Routers[0].Neighbors[0].Password
}

func (r *rig) problems() []string {
	r.Helper()
	var report v1alpha1.EgressNode
	if err := r.Client.Get(r.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
		r.Fatal(err)
	}
	return report.Status.Problems
}

// told returns the events since the last call.
func (r *rig) told() (list []string) {
	for {
		select {
		case event := <-r.events.Events:
			list = append(list, event)
		default:
			return list
		}
	}
}

// TestPasswords: a Secret that comes, changes or goes is followed; what is wrong with it is said.
func TestPasswords(t *testing.T) {
	r := newRig(t)
	r.peer(func(n *frrk8sv1beta1.Neighbor) {
		n.PasswordSecret = frrk8sv1beta1.SecretReference{Name: "tor", Namespace: "metallb-system"}
	})
	r.sync()
	r.settle()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "tor"}}
	for _, step := range []struct {
		name    string
		edit    func()
		want    string
		problem string
	}{
		{"missing", func() {}, "no neighbor", "there is no Secret metallb-system/tor of type kubernetes.io/basic-auth"},
		{"another type", func() { secret.Type = corev1.SecretTypeOpaque }, "no neighbor", "there is no Secret"},
		{"no key", func() { secret.Type = corev1.SecretTypeBasicAuth }, "no neighbor", "no key password"},
		{"right", func() { secret.Data = map[string][]byte{"password": []byte("hush")} }, "hush", ""},
		{"another", func() { secret.Data = map[string][]byte{"password": []byte("hush now")} }, "hush now", ""},
		{"empty", func() { secret.Data = map[string][]byte{"password": nil} }, "no neighbor", "has no password"},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.edit()
			_ = r.Client.Delete(t.Context(), secret.DeepCopy())
			if step.name != "missing" {
				if err := r.Client.Create(t.Context(), secret.DeepCopy()); err != nil {
					t.Fatal(err)
				}
			}
			r.syncBGP()
			problems := strings.Join(r.problems(), "\n")
			if r.password() != step.want || (step.problem == "") != (problems == "") || !strings.Contains(problems, step.problem) {
				t.Errorf("password %q, problems %q; want %q, %q", r.password(), problems, step.want, step.problem)
			}
			if strings.Contains(problems, "hush") || slices.ContainsFunc(r.told(), func(e string) bool { return strings.Contains(e, "hush") }) {
				t.Error("a password is told")
			}
		})
	}
}

// TestFindings: what of an FRRConfiguration is not honored is said on EgressNode, by one event on the
// object, and for the metric.
func TestFindings(t *testing.T) {
	r := newRig(t)
	r.sync()
	r.settle()
	if told, findings := r.told(), r.Findings(); len(told)+len(findings) > 0 {
		t.Errorf("nothing is wrong: %v, %v", told, findings)
	}
	r.peer(func(n *frrk8sv1beta1.Neighbor) { n.BFDProfile, n.AllowAsIn = "none", "origin" })
	r.syncBGP()
	r.syncBGP()
	want := []string{`Warning NotHonored node n1: neighbor 172.18.0.100: bfdProfile "none": the object has no such profile; the session runs without BFD; neighbor 172.18.0.100: allowAsIn: routes are not received from neighbors; ignored`}
	if diff := cmp.Diff(want, r.told()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[types.NamespacedName]int{configurationKey: 2}, r.Findings()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if got := r.problems(); len(got) != 2 || !strings.HasPrefix(got[0], "FRRConfiguration metallb-system/metallb-n1, neighbor 172.18.0.100:") {
		t.Errorf("problems %q", got)
	}
	if !r.announces("192.0.2.9") {
		t.Error("the session is not up")
	}
	// One of them put right is news; all of them put right is none.
	r.peer(func(n *frrk8sv1beta1.Neighbor) { n.AllowAsIn = "" })
	r.syncBGP()
	if told := r.told(); len(told) != 1 {
		t.Errorf("events %q", told)
	}
	r.peer(func(n *frrk8sv1beta1.Neighbor) { n.BFDProfile = "" })
	r.syncBGP()
	if told, problems := r.told(), r.problems(); len(told)+len(problems)+len(r.Findings()) > 0 {
		t.Errorf("all is right: events %q, problems %q, findings %v", told, problems, r.Findings())
	}
}

func TestNote(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, test := range []struct {
		texts []string
		want  string
	}{
		{[]string{"a"}, "a"},
		{[]string{"a", "b"}, "a; b"},
		{[]string{long, long, "c"}, long + "; and 2 more, see EgressNode"},
		{[]string{strings.Repeat("é", 600)}, strings.Repeat("é", maxNote/2)},
	} {
		if diff := cmp.Diff(test.want, note(test.texts)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// TestBesideFRRK8s: a real frr-k8s that reads the same objects on this node is left alone with them.
func TestBesideFRRK8s(t *testing.T) {
	for _, label := range ComponentLabels {
		t.Run(label, func(t *testing.T) {
			r := newRig(t)
			r.sync()
			r.settle()
			pod := aPod("metallb-system", "frr-k8s-x", "n1", "172.18.0.11")
			pod.Labels = map[string]string{label: "frr-k8s"}
			place := func(namespace, node string, phase corev1.PodPhase, other bool) {
				t.Helper()
				_ = r.Client.Delete(t.Context(), pod.DeepCopy())
				pod.Namespace, pod.Spec.NodeName, pod.Status.Phase = namespace, node, phase
				if err := r.Client.Create(t.Context(), pod.DeepCopy()); err != nil {
					t.Fatal(err)
				}
				if relevant := r.concernsBGP(nil, pod); relevant != (namespace == "metallb-system" && phase == corev1.PodRunning) {
					t.Errorf("the pod in %s, %s: relevant %t", namespace, phase, relevant)
				}
				r.syncBGP()
				refused := slices.ContainsFunc(r.problems(), func(p string) bool {
					return strings.Contains(p, "frr-k8s runs on this node, as pod metallb-system/frr-k8s-x")
				})
				if refused != other || (len(r.bgp.config.Routers) == 0) != other {
					t.Errorf("with frr-k8s in %s, on %s, %s: refused %t, %d routers", namespace, node, phase, refused, len(r.bgp.config.Routers))
				}
			}
			place("metallb-system", "n1", corev1.PodRunning, true)
			place("metallb-system", "n2", corev1.PodRunning, false)
			place("metallb-system", "n1", corev1.PodFailed, false)
			place("openshift-frr-k8s", "n1", corev1.PodRunning, false)
		})
	}
	r := newRig(t)
	if r.concernsBGP(nil, aPod("metallb-system", "speaker", "n1", "172.18.0.11")) || !r.concernsBGP(nil, &corev1.Secret{}) || !r.concernsBGP(aNode("n1", "1"), aNode("n1", "1")) {
		t.Error("what concerns BGP is mistaken")
	}
}

// states are the BGPSessionStates, by name.
func (r *rig) states() (list []frrk8sv1beta1.BGPSessionState) {
	r.Helper()
	var states frrk8sv1beta1.BGPSessionStateList
	if err := r.Client.List(r.Context(), &states, client.InNamespace("metallb-system")); err != nil {
		r.Fatal(err)
	}
	return states.Items
}

func TestSessionStates(t *testing.T) {
	four, six := bgp.Session{Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Established, BFD: bgp.BFDUp}, bgp.Session{VRF: "red", Peer: netip.MustParseAddr("2001:db8::1"), State: bgp.Active}
	r := newRig(t, aPod("metallb-system", "egress-speaker-x", "n1", "172.18.0.11"))
	r.Pod = "egress-speaker-x"
	r.bgp.sessions = []bgp.Session{} // before the start is over there are none, which says nothing
	if err := r.Client.Create(t.Context(), r.sessionState(four, metav1.OwnerReference{Kind: "Pod", Name: "an-older-one"})); err != nil {
		t.Fatal(err)
	}
	theirs := r.sessionState(six, metav1.OwnerReference{Kind: "Pod", Name: "frr-k8s-x"})
	theirs.Name = "n1-x7k2p"
	r.sync()
	if got := r.states(); len(got) != 1 || got[0].OwnerReferences[0].Name != "an-older-one" {
		t.Errorf("states before the start is over: %v", got)
	}
	r.settle()
	if err := r.Client.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	show := func() (lines []string) {
		for _, s := range r.states() {
			if s.Name == theirs.Name {
				continue
			}
			owner := "nobody"
			if len(s.OwnerReferences) == 1 {
				owner = s.OwnerReferences[0].Kind + " " + s.OwnerReferences[0].Name
			}
			if s.Labels["frrk8s.metallb.io/node"] != s.Status.Node || s.Labels["frrk8s.metallb.io/peer"] != s.Status.Peer || s.Labels["frrk8s.metallb.io/vrf"] != s.Status.VRF {
				t.Errorf("labels %v, status %+v", s.Labels, s.Status)
			}
			lines = append(lines, fmt.Sprintf("%s %q %s %s %s, of %s", s.Status.Node, s.Status.VRF, s.Status.Peer, s.Status.BGPStatus, s.Status.BFDStatus, owner))
		}
		slices.Sort(lines)
		return lines
	}
	for _, step := range []struct {
		name     string
		edit     func()
		sessions []bgp.Session
		want     []string
	}{
		{"made", func() {}, []bgp.Session{four, six}, []string{
			`n1 "" 172.18.0.100 Established Up, of Pod egress-speaker-x`, `n1 "red" 2001-0db8-0000-0000-0000-0000-0000-0001 Active N/A, of Pod egress-speaker-x`,
		}},
		{"followed", func() {}, []bgp.Session{{Peer: four.Peer, State: bgp.Idle, BFD: bgp.BFDSuspended}, six}, []string{
			`n1 "" 172.18.0.100 Idle Down, of Pod egress-speaker-x`, `n1 "red" 2001-0db8-0000-0000-0000-0000-0000-0001 Active N/A, of Pod egress-speaker-x`,
		}},
		{"gone", func() {}, []bgp.Session{four}, []string{`n1 "" 172.18.0.100 Established Up, of Pod egress-speaker-x`}},
		{"taken over, without a pod", func() { r.Pod = "" }, []bgp.Session{four}, []string{`n1 "" 172.18.0.100 Established Up, of EgressNode n1`}},
		{"none", func() {}, []bgp.Session{}, nil},
	} {
		step.edit()
		r.bgp.sessions = step.sessions
		r.now = r.now.Add(sessionStatesInterval)
		r.sync()
		if diff := cmp.Diff(step.want, show()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}

	if len(r.states()) != 1 {
		t.Error("the object of frr-k8s is gone")
	}

	// At most once a second.
	r.bgp.sessions = []bgp.Session{four}
	r.now = r.now.Add(sessionStatesInterval)
	r.sync()
	r.bgp.sessions = []bgp.Session{{Peer: four.Peer, State: bgp.Idle}}
	r.now = r.now.Add(reportInterval)
	if again, err := r.SyncReport(t.Context()); err != nil || again <= 0 || again > sessionStatesInterval {
		t.Errorf("again in %v, error %v", again, err)
	}
	if got := show(); len(got) != 1 || !strings.Contains(got[0], "Established") {
		t.Errorf("written again at once: %q", got)
	}
}

// TestSuspendedBFDIsAProblem on EgressNode.
func TestSuspendedBFDIsAProblem(t *testing.T) {
	r := newRig(t)
	r.bgp.sessions = []bgp.Session{{VRF: "red", Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Established, BFD: bgp.BFDSuspended}}
	r.sync()
	if got := r.problems(); len(got) != 1 || !strings.Contains(got[0], "BFD ended the session with 172.18.0.100 of VRF red again and again") {
		t.Errorf("problems %q", got)
	}
}

// TestExternalBackEnd: MetalLB announces itself; this speaker programs and acknowledges.
func TestExternalBackEnd(t *testing.T) {
	r := newRig(t)
	r.BGP = nil
	var names []string
	for _, loop := range r.Loops() {
		names = append(names, loop.Name)
		for _, kind := range loop.Watched {
			switch kind.(type) {
			case *frrk8sv1beta1.FRRConfiguration, *frrk8sv1beta1.BGPSessionState, *corev1.Secret:
				t.Errorf("loop %s watches %T", loop.Name, kind)
			}
		}
	}
	if diff := cmp.Diff([]string{"dataplane", "report"}, names); diff != "" {
		t.Errorf("loops (-want +got):\n%s", diff)
	}
	sync := func() {
		for _, loop := range r.Loops() {
			r.now = r.now.Add(reportInterval)
			if _, err := loop.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	sync()
	r.dataplane.installed = r.dataplane.sequence
	sync()
	got := r.report()
	if !got.Programmed || got.Announced || got.Reason != "" || len(got.Addresses) != 1 {
		t.Errorf("report %+v", got)
	}
	if err := r.loops.work(r.now, names); err != nil {
		t.Errorf("no heartbeat: %v", err)
	}
}

// TestSessionStatesThatCannotBeWritten hold up nothing, and are told; the time between two tries grows.
func TestSessionStatesThatCannotBeWritten(t *testing.T) {
	r := newRig(t)
	r.sync()
	r.settle()
	refused := true
	r.Client = interceptor.NewClient(r.Client.(client.WithWatch), interceptor.Funcs{
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, options ...client.SubResourcePatchOption) error {
			if _, state := o.(*frrk8sv1beta1.BGPSessionState); state && refused {
				return errors.New("forbidden")
			}
			return c.SubResource(sub).Patch(ctx, o, p, options...)
		},
	})
	r.bgp.sessions = []bgp.Session{{Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Active}}
	var waits []time.Duration
	for range 8 {
		r.now = r.now.Add(longestStatesInterval)
		again, err := r.SyncReport(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		waits = append(waits, again)
	}
	seconds := func(n ...time.Duration) (list []time.Duration) {
		for _, one := range n {
			list = append(list, one*time.Second)
		}
		return list
	}
	if diff := cmp.Diff(seconds(2, 4, 8, 16, 32, 60, 60, 60), waits); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
	if got := strings.Join(r.problems(), " "); !strings.Contains(got, "BGPSessionState") || !strings.Contains(got, "forbidden") {
		t.Errorf("problems %q", got)
	}
	refused = false
	for range 2 {
		r.now = r.now.Add(longestStatesInterval)
		if _, err := r.SyncReport(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.states(); len(got) != 1 || got[0].Status.BGPStatus != "Active" || len(r.problems()) > 0 {
		t.Errorf("states %+v, problems %q", got, r.problems())
	}
}
