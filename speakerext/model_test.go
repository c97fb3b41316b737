// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
	"github.com/metallb-egress/metallb-egress/bgp/gobgp"
)

// TestGuardModel takes random steps, each one event of the API, the dataplane or the session, and lets
// the loops of two nodes run in between as they come. After every step the peer of node n1, across a
// real GoBGP and a TCP connection, must have been sent nothing that I1 forbids, not even for a moment,
// and have everything that is allowed; and no two nodes announce the same egress address once both
// have seen the newest assignment (I2).
func TestGuardModel(t *testing.T) {
	const steps = 400
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano())}
	if testing.Short() {
		seeds = seeds[:1]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newModelWorld(t, seed)
			for step := range steps {
				w.step(step == steps/2)
				if t.Failed() {
					t.Fatalf("after step %d; the last ones:\n%s", step, strings.Join(w.trail[max(0, len(w.trail)-20):], "\n"))
				}
			}
		})
	}
}

// modelWorld has three services, whose addresses they may come to share, on nodes n1 and n2.
type modelWorld struct {
	*rig  // of n1; its BGP is real
	other *Speaker
	// otherBGP and otherDataplane are n2's.
	otherBGP       *fakeBGP
	otherDataplane *fakeDataplane
	peer           *sink
	random         *rand.Rand
	programmed     history // of n1
	lingering      map[types.UID]bool
	canary         int
	created        int
	trail          []string
}

// history is every plan that a node's dataplane was asked for.
type history struct {
	installed uint64 // as the dataplane loop has seen it last
	plans     []struct {
		sequence uint64 // 0: it failed
		services map[claim]bool
	}
}

// claim is one address of one assignment.
type claim struct {
	assignment types.UID
	address    netip.Addr
}

// has says whether the address is programmed: in the newest plan that the integration bridge has, and
// in all that were asked for since.
func (h *history) has(c claim) bool {
	newest := -1
	for i, plan := range h.plans {
		if plan.sequence > 0 && plan.sequence <= h.installed {
			newest = i
		}
	}
	if newest < 0 {
		return false
	}
	for _, plan := range h.plans[newest:] {
		if !plan.services[c] {
			return false
		}
	}
	return true
}

const modelNamespace = "metallb-system"

var modelAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}

func newModelWorld(t *testing.T, seed uint64) *modelWorld {
	t.Helper()
	w := &modelWorld{rig: newRig(t), peer: newSink(t), random: rand.New(rand.NewPCG(seed, 0)), otherBGP: &fakeBGP{}, otherDataplane: &fakeDataplane{}}
	routes := gobgp.New(log.NewNopLogger(), gobgp.Options{})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := routes.Stop(ctx, bgp.Withdraw); err != nil {
			t.Error(err)
		}
	})
	w.BGP = routes
	options := w.Options
	options.Node, options.BGP, options.Dataplane, options.Recorder = "n2", w.otherBGP, w.otherDataplane, events.NewFakeRecorder(1000)
	w.other = New(options)
	for i := range 3 {
		name := w.service(i)
		if i > 0 { // the rig has the first
			w.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}})
			w.newEgressService(i)
		}
	}
	w.configure("metallb-n1", []string{lbIP.String()})
	w.syncDataplane()
	w.dataplane.installed = w.dataplane.sequence
	w.syncDataplane()
	return w
}

func (w *modelWorld) service(i int) types.NamespacedName {
	return types.NamespacedName{Namespace: "ns", Name: []string{"s", "t", "u"}[i]}
}

func (w *modelWorld) labelKey(i int) string { return egressv1.LabelPrefix + "ns-" + w.service(i).Name }

func (w *modelWorld) create(object client.Object) {
	w.Helper()
	w.created++
	object.SetUID(types.UID(fmt.Sprint("uid-", w.created)))
	if err := w.Client.Create(w.Context(), object); err != nil {
		w.Fatal(err)
	}
}

// remove deletes an object that may not be there.
func (w *modelWorld) remove(object client.Object, name types.NamespacedName) {
	w.Helper()
	object.SetNamespace(name.Namespace)
	object.SetName(name.Name)
	if err := client.IgnoreNotFound(w.Client.Delete(w.Context(), object)); err != nil {
		w.Fatal(err)
	}
}

// read is nil when there is no such object.
func read[T client.Object](w *modelWorld, name types.NamespacedName, object T) (found T) {
	w.Helper()
	found, err := get(w.Context(), w.Client, name, object)
	if err != nil {
		w.Fatal(err)
	}
	return found
}

func (w *modelWorld) newEgressService(i int) {
	w.create(&egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: w.service(i).Namespace, Name: w.service(i).Name}})
}

func (w *modelWorld) pick(list ...string) string { return list[w.random.IntN(len(list))] }

func (w *modelWorld) someAddresses() (list []string) {
	for i, a := range modelAddresses {
		if w.random.IntN(5) > i { // the first always: services share it
			list = append(list, a.String())
		}
	}
	return list
}

// step does one random thing, lets loops run, and looks at what the peer was sent.
func (w *modelWorld) step(reset bool) {
	w.Helper()
	i := max(0, w.random.IntN(5)-2) // the first more often, so that things meet
	what := "the session is lost"
	if reset {
		w.peer.reset()
	} else {
		what = w.event(i)
	}
	w.trail = append(w.trail, fmt.Sprintf("%s: %s", w.service(i).Name, what))
	w.peer.take()
	for range 1 + w.random.IntN(4) {
		switch w.random.IntN(5) {
		case 0, 1:
			w.note("n1's dataplane")
			w.syncDataplane()
		case 2:
			w.note("n1's bridge has the flows")
			w.dataplane.installed = w.dataplane.sequence
		case 3:
			w.note("n2")
			w.syncOther()
		case 4:
			w.note("n1's BGP")
			w.settleBGP()
		}
	}
	w.note("n1's BGP")
	w.settleBGP()
	if w.random.IntN(2) == 0 {
		w.note("n2")
		w.syncOther()
		w.alone()
	}
}

func (w *modelWorld) note(text string) {
	w.trail[len(w.trail)-1] += ", " + text
}

// syncDataplane runs n1's dataplane loop, and keeps what was to be programmed.
func (w *modelWorld) syncDataplane() {
	w.Helper()
	services, lingering := map[claim]bool{}, map[types.UID]bool{}
	for i := range 3 {
		a := w.assignment(i)
		if a == nil {
			continue
		}
		// What n1 was primary of until just now it goes on forwarding, for longer than this test lasts.
		lingering[a.UID] = a.Spec.Primary == "n1" || a.Spec.Primary != "" && w.lingering[a.UID]
		if lingering[a.UID] || a.Spec.Standby == "n1" {
			for _, source := range a.Spec.SourceIPs {
				services[claim{a.UID, netip.MustParseAddr(source)}] = true
			}
		}
	}
	w.lingering = lingering
	_, err := w.SyncDataplane(w.Context())
	if (err != nil) != (w.dataplane.err != nil) {
		w.Fatal(err)
	}
	sequence := uint64(w.dataplane.sequence)
	if err != nil {
		sequence = 0
	}
	if err == nil {
		w.programmed.installed = uint64(w.dataplane.installed)
	}
	w.programmed.plans = append(w.programmed.plans, struct {
		sequence uint64
		services map[claim]bool
	}{sequence, services})
}

// assignment is that of service i, nil when it has none of the LoadBalancerIP kind.
func (w *modelWorld) assignment(i int) *v1alpha1.EgressAssignment {
	w.Helper()
	egress, a := read(w, w.service(i), &egressv1.EgressService{}), read(w, w.service(i), &v1alpha1.EgressAssignment{})
	if egress == nil || a == nil || egress.Spec.SourceIPBy == egressv1.SourceIPNetwork || a.OwnerReferences[0].UID != egress.UID {
		return nil
	}
	return a
}

func (w *modelWorld) syncOther() {
	w.Helper()
	for range 2 {
		if _, err := w.other.SyncDataplane(w.Context()); err != nil {
			w.Fatal(err)
		}
		w.otherDataplane.installed = w.otherDataplane.sequence
	}
	if _, err := w.other.SyncBGP(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// settleBGP runs n1's BGP loop, waits until the peer has all that came of it, and compares.
func (w *modelWorld) settleBGP() {
	w.Helper()
	if _, err := w.SyncBGP(w.Context()); err != nil {
		w.Fatal(err)
	}
	// What is announced later arrives later: a route of our own tells that all has been sent.
	w.canary++
	canary := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(w.canary >> 8), byte(w.canary)}), 32)
	w.configure("canary", []string{canary.Addr().String()})
	if _, err := w.SyncBGP(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.peer.until(canary)
	table, history := w.peer.take()
	for _, address := range modelAddresses {
		may := w.mayAnnounce(address)
		route := hostRoute(address)
		switch {
		case table[route] && !may:
			w.Errorf("the peer has %s, which it must not", route)
		case !may && slices.Contains(history, "+"+route.String()):
			w.Errorf("the peer was sent %s for a moment, which it must not: %v", route, history)
		case !table[route] && may && w.offered(address):
			w.Errorf("the peer does not have %s, which is allowed", route)
		}
	}
}

// offered says whether an FRRConfiguration holds the address.
func (w *modelWorld) offered(address netip.Addr) bool {
	for _, writer := range []string{"metallb-n1", "another-writer"} {
		c := read(w, types.NamespacedName{Namespace: modelNamespace, Name: writer}, &bgp.FRRConfiguration{})
		if c != nil && slices.Contains(c.Spec.BGP.Routers[0].Prefixes, hostRoute(address).String()) {
			return true
		}
	}
	return false
}

// egress says whether the address is one of a LoadBalancerIP EgressService's.
func (w *modelWorld) egress(address netip.Addr) bool {
	for i := range 3 {
		egress := read(w, w.service(i), &egressv1.EgressService{})
		if egress == nil || egress.Spec.SourceIPBy == egressv1.SourceIPNetwork {
			continue
		}
		if a := w.assignment(i); a != nil && slices.Contains(a.Spec.SourceIPs, address.String()) {
			return true
		}
		service := read(w, w.service(i), &corev1.Service{})
		if service != nil && slices.ContainsFunc(service.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool { return in.IP == address.String() }) {
			return true
		}
	}
	return false
}

// mayAnnounce is I1: labelled, primary of the newest assignment, programmed; and no other node is
// primary of a service that has the address too. An address of no egress service is free.
func (w *modelWorld) mayAnnounce(address netip.Addr) bool {
	if !w.egress(address) {
		return true
	}
	node := read(w, types.NamespacedName{Name: "n1"}, &corev1.Node{})
	open := false
	for i := range 3 {
		a := w.assignment(i)
		if a == nil || !slices.Contains(a.Spec.SourceIPs, address.String()) {
			continue
		}
		if a.Spec.Primary != "" && a.Spec.Primary != "n1" {
			return false
		}
		_, labelled := node.Labels[w.labelKey(i)]
		open = open || a.Spec.Primary == "n1" && labelled && w.programmed.has(claim{a.UID, address})
	}
	return open
}

// alone is I2, once both nodes have seen everything.
func (w *modelWorld) alone() {
	w.Helper()
	table, _ := w.peer.take()
	for _, address := range modelAddresses {
		if w.egress(address) && table[hostRoute(address)] && w.otherBGP.config.Offers(address) {
			w.Errorf("%s is announced by both nodes", address)
		}
	}
}
