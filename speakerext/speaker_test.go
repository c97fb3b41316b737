// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

// TestGuard is invariant I1: labelled, primary and programmed, each missing once.
func TestGuard(t *testing.T) {
	tests := []struct {
		name string
		do   func(*rig)
		want bool
	}{
		{"labelled, primary, programmed", func(*rig) {}, true},
		{"not labelled", func(r *rig) { r.setLabel(false) }, false},
		{"another node is primary", func(r *rig) { r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Epoch = "n2", 2 }) }, false},
		{"only standby", func(r *rig) {
			r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "n1", 2 })
		}, false},
		{"nobody is primary", func(r *rig) { r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Epoch = "", 2 }) }, false},
		{"the address is another now, not programmed yet", func(r *rig) {
			r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.SourceIPs = []string{"192.0.2.9"} })
			if _, err := r.SyncDataplane(r.Context()); err != nil {
				r.Fatal(err)
			}
		}, false},
		{"no assignment", func(r *rig) {
			if err := r.Client.Delete(r.Context(), &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}); err != nil {
				r.Fatal(err)
			}
		}, false},
		{"an assignment of an earlier EgressService of that name", func(r *rig) {
			change(r, key, &v1alpha1.EgressAssignment{}, func(a *v1alpha1.EgressAssignment) { a.OwnerReferences[0].UID = "old" })
		}, false},
		{"the EgressService is gone: an ordinary service", func(r *rig) {
			if err := r.Client.Delete(r.Context(), &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}); err != nil {
				r.Fatal(err)
			}
		}, true},
		{"sourceIPBy Network: an ordinary service", func(r *rig) {
			change(r, key, &egressv1.EgressService{}, func(e *egressv1.EgressService) { e.Spec.SourceIPBy = egressv1.SourceIPNetwork })
			r.setLabel(false)
		}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			r.setLabel(true)
			r.sync()
			if r.announces("192.0.2.1") {
				t.Fatal("announced before the flows were there")
			}
			r.settle()
			if !r.announces("192.0.2.1") {
				t.Fatal("not announced although labelled, primary and programmed")
			}
			test.do(r)
			r.syncBGP()
			if got := r.announces("192.0.2.1"); got != test.want {
				t.Errorf("announces the egress address: %v, want %v", got, test.want)
			}
		})
	}
}

func TestOtherAddressesAreNeverWithheld(t *testing.T) {
	r := newRig(t)
	r.sync()
	r.settle()
	if r.announces("192.0.2.1") || !r.announces("192.0.2.9") {
		t.Errorf("announces .1: %v, .9: %v; want only .9", r.announces("192.0.2.1"), r.announces("192.0.2.9"))
	}
}

func TestEndpointChurnDoesNotHoldBackWhatIsProgrammed(t *testing.T) {
	r := newRig(t)
	r.setLabel(true)
	r.sync()
	r.settle()
	for _, address := range []string{"10.244.1.6", "10.244.1.7"} {
		if err := r.Client.Create(t.Context(), aPod("ns", "p"+address, "n1", address)); err != nil {
			t.Fatal(err)
		}
		change(r, types.NamespacedName{Namespace: "ns", Name: "s-1"}, &discoveryv1.EndpointSlice{}, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
		})
		r.sync() // the flows of this change are not there yet
		if !r.announces("192.0.2.1") {
			t.Fatal("an endpoint that is being programmed withdrew the address")
		}
	}
}

func TestReport(t *testing.T) {
	r := newRig(t)
	r.setLabel(true)
	r.startedAt = r.now.Add(-startGrace)
	r.sync()
	got := r.report()
	if got.Programmed || got.ObservedGeneration != 7 || got.Role != v1alpha1.RolePrimary || !got.Offered || got.Announced || !strings.Contains(got.Reason, "not programmed") {
		t.Errorf("before the flows are there: %+v", got)
	}
	r.settle()
	want := v1alpha1.EgressNodeService{
		Key: "ns/s", UID: "uid-of-assignment", ObservedGeneration: 7, Role: v1alpha1.RolePrimary,
		Programmed: true, Offered: true, Announced: true, Addresses: []string{"192.0.2.1"},
	}
	if diff := cmp.Diff(want, r.report()); diff != "" {
		t.Errorf("settled: -want +got:\n%s", diff)
	}
	var report v1alpha1.EgressNode
	if err := r.Client.Get(t.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
		t.Fatal(err)
	}
	sessions := []v1alpha1.BGPSession{{Peer: "172.18.0.100", State: "Established", GracefulRestart: true}}
	if diff := cmp.Diff(sessions, report.Status.BGPSessions); diff != "" {
		t.Errorf("sessions: -want +got:\n%s", diff)
	}

	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "n1", 2 })
	r.sync()
	if got := r.report(); got.ObservedGeneration != 7 || got.Announced {
		t.Errorf("demoted, the change not yet programmed: %+v", got)
	}
	r.settle()
	if got := r.report(); got.ObservedGeneration != 8 || got.Role != v1alpha1.RoleStandby || !got.Programmed || got.Announced {
		t.Errorf("demoted: %+v", got)
	}
}

func TestReportIsRateLimited(t *testing.T) {
	r := newRig(t)
	r.sync() // has just written
	if again, err := r.SyncReport(t.Context()); err != nil || again != reportInterval {
		t.Errorf("right after a write: again in %v, error %v; want %v", again, err, reportInterval)
	}
	r.now = r.now.Add(reportInterval)
	if again, err := r.SyncReport(t.Context()); err != nil || again != 0 {
		t.Errorf("later, with nothing new: again in %v, error %v", again, err)
	}
}

// While the API server is slow, many changes go into one report.
func TestReportsGiveWayToASlowServer(t *testing.T) {
	r := newRig(t)
	r.sync()
	var took time.Duration
	r.Client = interceptor.NewClient(r.Client.(client.WithWatch), interceptor.Funcs{
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, options ...client.SubResourcePatchOption) error {
			r.now = r.now.Add(took)
			return c.SubResource(sub).Patch(ctx, o, p, options...)
		},
	})
	for i, test := range []struct{ took, want time.Duration }{
		{time.Millisecond, reportInterval}, {50 * time.Millisecond, time.Second}, {time.Second, longestInterval}, {0, reportInterval},
	} {
		took = test.took
		r.now = r.now.Add(longestInterval)
		r.setGatewayMode(strings.Repeat("x", i+1))
		if _, err := r.SyncReport(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again, err := r.SyncReport(t.Context()); err != nil || again != test.want {
			t.Errorf("after a write that took %v: again in %v, error %v; want %v", test.took, again, err, test.want)
		}
	}
}

func TestReplacedNodeLingers(t *testing.T) {
	r := newRig(t)
	r.sync()
	r.settle()
	translates := func() bool { return len(r.dataplane.plan.Host.Translations) > 0 }
	if !translates() {
		t.Fatal("the primary does not translate")
	}
	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "", 2 })
	again, err := r.SyncDataplane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !translates() || again != min(Linger, lookAgain) {
		t.Errorf("just replaced: translates %v, again in %v; want true and %v", translates(), again, Linger)
	}
	r.now = r.now.Add(Linger)
	r.sync()
	if translates() {
		t.Error("still translates after it lingered")
	}

	// One that becomes the standby at once carries what is under way as well, and not for longer.
	r = newRig(t)
	r.sync()
	accounts := func() int { return len(r.dataplane.plan.Host.Accounts) }
	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "n1", 2 })
	r.sync()
	if accounts() != 1 || r.report().Role != v1alpha1.RoleStandby {
		t.Errorf("just replaced: %d accounts, role %s", accounts(), r.report().Role)
	}
	r.now = r.now.Add(Linger)
	r.sync()
	if accounts() != 0 || !translates() {
		t.Errorf("after it lingered: %d accounts, translates %v", accounts(), translates())
	}

	r = newRig(t)
	if again, err := r.SyncDataplane(t.Context()); err != nil || again != lookAgain {
		t.Errorf("with nothing under way: again in %v, error %v; want %v", again, err, lookAgain)
	}
	r.assign(func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "", "", 2 })
	r.sync()
	if len(r.dataplane.plan.Host.Translations) > 0 {
		t.Error("a service without a primary is still translated")
	}
}

// TestRestartedSpeaker: sessions that were up with graceful restart when the speaker before ended are said to be
// until they are back, for as long as that may take; others not.
func TestRestartedSpeaker(t *testing.T) {
	session := func(peer, state string, gracefulRestart bool) v1alpha1.BGPSession {
		return v1alpha1.BGPSession{Peer: peer, State: state, GracefulRestart: gracefulRestart}
	}
	before := &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: v1alpha1.EgressNodeStatus{BGPSessions: []v1alpha1.BGPSession{
		session("172.18.0.100", "Established", true), session("172.18.0.101", "Established", false), session("172.18.0.102", "Idle", true),
	}}}
	r := newRig(t, before)
	states := func() (list []string) {
		if _, err := r.SyncReport(r.Context()); err != nil {
			t.Fatal(err)
		}
		var report v1alpha1.EgressNode
		if err := r.Client.Get(r.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
			t.Fatal(err)
		}
		for _, s := range report.Status.BGPSessions {
			list = append(list, s.Peer+" "+s.State)
		}
		r.now = r.now.Add(reportInterval)
		return list
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, states()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	r.bgp.sessions = []bgp.Session{}
	expect("before there is any session", "172.18.0.100 Established")
	r.bgp.sessions = []bgp.Session{{Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Active}, {Peer: netip.MustParseAddr("172.18.0.101"), State: bgp.Active}}
	expect("under way", "172.18.0.100 Established", "172.18.0.101 Active")
	if again, err := r.SyncReport(r.Context()); err != nil || again > returnTime || again <= 0 {
		t.Errorf("again in %v, error %v", again, err)
	}
	r.now = r.now.Add(returnTime)
	expect("it has not come back", "172.18.0.100 Active", "172.18.0.101 Active")

	r = newRig(t, before)
	expect("back at once", "172.18.0.100 Established")
	r.bgp.sessions = []bgp.Session{{Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Active}}
	expect("and lost again", "172.18.0.100 Active")
}

func TestForeignEndpointsAreLeftAlone(t *testing.T) {
	tests := []struct {
		name string
		pod  *corev1.Pod
	}{
		{"no pod has the address", nil},
		{"another namespace's pod", aPod("victim", "p", "n1", "10.244.1.9")},
		{"a host-networked pod", func() *corev1.Pod {
			p := aPod("ns", "p", "n1", "10.244.1.9")
			p.Spec.HostNetwork = true
			return p
		}()},
		{"a pod that has ended", func() *corev1.Pod {
			p := aPod("ns", "p", "n1", "10.244.1.9")
			p.Status.Phase = corev1.PodSucceeded
			return p
		}()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			if test.pod != nil {
				if err := r.Client.Create(t.Context(), test.pod); err != nil {
					t.Fatal(err)
				}
			}
			change(r, types.NamespacedName{Namespace: "ns", Name: "s-1"}, &discoveryv1.EndpointSlice{}, func(s *discoveryv1.EndpointSlice) {
				s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.1.9"}})
			})
			r.sync()
			if dump := r.dataplane.plan.Dump(); strings.Contains(dump, "10.244.1.9") || !strings.Contains(dump, "10.244.1.5") {
				t.Errorf("plan:\n%s", dump)
			}
			if !slices.ContainsFunc(r.ledger.allProblems(), func(p string) bool { return strings.Contains(p, "belong to no pod") }) {
				t.Errorf("problems %v", r.ledger.allProblems())
			}
		})
	}
}

func TestNodeThatCannotServeNeverAcknowledges(t *testing.T) {
	tests := []struct{ name, annotation, value, want string }{
		{"no pod subnet", ovnkubernetes.NodeSubnets, `{}`, "no IPv4 pod subnet"},
		{"no transit switch", ovnkubernetes.TransitSwitchPort, `{}`, "interconnect is needed"},
		{"shared gateway mode", ovnkubernetes.L3GatewayConfig, `{"default":{"mode":"shared"}}`, "gateway mode shared"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			change(r, types.NamespacedName{Name: "n1"}, &corev1.Node{}, func(n *corev1.Node) { n.Annotations[test.annotation] = test.value })
			r.setLabel(true)
			r.sync()
			r.settle()
			if got := r.report(); got.Programmed || !strings.Contains(got.Reason, test.want) {
				t.Errorf("programmed %v, reason %q; want a reason that says %q", got.Programmed, got.Reason, test.want)
			}
			if r.announces("192.0.2.1") {
				t.Error("announced")
			}
		})
	}
}

func TestNothingIsAnnouncedBeforeTheStartIsOver(t *testing.T) {
	r := newRig(t)
	again, err := r.SyncBGP(t.Context())
	if err != nil || again != startGrace || len(r.bgp.config.Routers) > 0 {
		t.Fatalf("again in %v, error %v, %d routers; want %v and none", again, err, len(r.bgp.config.Routers), startGrace)
	}
	r.now = r.now.Add(startGrace)
	r.syncBGP()
	if !r.announces("192.0.2.9") || r.announces("192.0.2.1") {
		t.Error("after the grace, without a dataplane: want the ordinary address and not the egress one")
	}

	r = newRig(t)
	r.setLabel(true)
	r.dataplane.installed = 1
	r.sync()
	if !r.announces("192.0.2.1") {
		t.Error("a restarted speaker whose dataplane is in place left its address out of the first exchange")
	}
}

func TestDataplaneErrorKeepsWhatIsProgrammed(t *testing.T) {
	r := newRig(t)
	r.setLabel(true)
	r.sync()
	r.settle()
	r.dataplane.err = errors.New("the database is away")
	if _, err := r.SyncDataplane(t.Context()); err == nil {
		t.Fatal("no error")
	}
	r.syncBGP()
	if !r.announces("192.0.2.1") {
		t.Error("an unreachable database withdrew an address that is programmed")
	}
}
