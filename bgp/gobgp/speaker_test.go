// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// The tests run one after the other: GoBGP's StartBgp writes package variables that other running
// servers read (see startInstance), which the race detector rightly dislikes.

const (
	testTimeout = 30 * time.Second
	ownASN      = 64513
)

func newSpeaker(t *testing.T, options Options) *Speaker {
	t.Helper()
	s := New(log.NewNopLogger(), options)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := s.Stop(ctx, bgp.Withdraw); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return s
}

func apply(t *testing.T, s *Speaker, neighbors ...bgp.Neighbor) {
	t.Helper()
	if err := s.Apply(t.Context(), config(neighbors...)); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func config(neighbors ...bgp.Neighbor) bgp.Config {
	return bgp.Config{Routers: []bgp.Router{{ASN: ownASN, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: neighbors}}}
}

// neighbor is the session with a sink, and host routes without attributes for it.
func neighbor(s *sink, routes ...string) bgp.Neighbor {
	n := bgp.Neighbor{
		Address: s.address, Port: s.port, ASN: s.asn,
		HoldTime: 90 * time.Second, KeepaliveTime: 30 * time.Second, ConnectTime: 2 * time.Second,
		Families: bgp.Families{IPv4: s.address.Is4(), IPv6: s.address.Is6()},
	}
	for _, text := range routes {
		n.Routes = append(n.Routes, bgp.Route{Prefix: netip.MustParsePrefix(text)})
	}
	return n
}

// untilSession waits for a session that fulfills the condition.
func untilSession(t *testing.T, s *Speaker, what string, condition func(bgp.Session) bool) {
	t.Helper()
	deadline := time.After(testTimeout)
	for !slices.ContainsFunc(s.Sessions(), condition) {
		select {
		case <-s.Changed():
		case <-deadline:
			t.Fatalf("no session that %s: %+v", what, s.Sessions())
		}
	}
}

func TestAnnounceAndWithdraw(t *testing.T) {
	tor := newSink(t, "127.0.0.1", 64512)
	speaker := newSpeaker(t, Options{})
	one, two := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.2/32")

	apply(t, speaker, neighbor(tor, one.String()))
	if speaker.Announced(one) {
		t.Error("announced before the session is established")
	}
	if got := tor.has(one.String()); !strings.Contains(got, "next hop 127.0.0.1") || !strings.Contains(got, "64513") {
		t.Errorf("attributes %q, want next hop self and AS 64513", got)
	}
	untilSession(t, speaker, "is established", func(s bgp.Session) bool {
		return s.Peer == tor.address && s.State == bgp.Established && s.LastError == "" && time.Since(s.Since) < testTimeout
	})
	if !speaker.Announced(one) || speaker.Announced(two) {
		t.Error("want the one prefix announced, not the other")
	}

	tor.forget()
	apply(t, speaker, neighbor(tor, two.String()))
	tor.has(two.String())
	if diff := gocmp.Diff([]string{"withdraw 203.0.113.1/32", "announce 203.0.113.2/32"}, tor.log()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if speaker.Announced(one) || !speaker.Announced(two) {
		t.Error("want the other prefix announced, not the one")
	}
}

// TestGatePerPeer takes a prefix from one of two peers: only that peer may see a withdraw.
func TestGatePerPeer(t *testing.T) {
	a, b := newSink(t, "127.0.0.2", 64512), newSink(t, "127.0.0.3", 64512)
	speaker := newSpeaker(t, Options{})
	const gated, markerOne, markerTwo = "203.0.113.1/32", "203.0.113.101/32", "203.0.113.102/32"

	apply(t, speaker, neighbor(a, gated), neighbor(b, gated))
	a.has(gated)
	b.has(gated)
	a.forget()
	b.forget()

	// A stream is in order: whatever the change makes is there before the marker.
	apply(t, speaker, neighbor(a), neighbor(b, gated))
	apply(t, speaker, neighbor(a, markerOne), neighbor(b, gated, markerOne))
	a.has(markerOne)
	b.has(markerOne)
	if diff := gocmp.Diff([]string{"withdraw " + gated, "announce " + markerOne}, a.log()); diff != "" {
		t.Errorf("gated peer's events (-want +got):\n%s", diff)
	}
	if slices.Contains(b.log(), "withdraw "+gated) {
		t.Errorf("the other peer saw a withdraw: %v", b.log())
	}

	// Taken from the last peer, and given back to the first.
	apply(t, speaker, neighbor(a, markerOne), neighbor(b, markerOne))
	apply(t, speaker, neighbor(a, gated, markerTwo), neighbor(b, markerTwo))
	a.has(markerTwo)
	b.has(markerTwo)
	if diff := gocmp.Diff([]string{markerTwo}, b.prefixes()); diff != "" {
		t.Errorf("the other peer's table (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff([]string{gated, markerTwo}, a.prefixes()); diff != "" {
		t.Errorf("first peer's table (-want +got):\n%s", diff)
	}
}

// TestAttributes gives one prefix different attributes at an external and an internal peer. The
// attributes are compared whole, so that an internal tag that leaks is seen.
func TestAttributes(t *testing.T) {
	external, internal := newSink(t, "127.0.0.4", 64512), newSink(t, "127.0.0.5", ownASN)
	speaker := newSpeaker(t, Options{})
	preference := uint32(250)
	route := func(change func(*bgp.Route)) bgp.Route {
		r := bgp.Route{Prefix: netip.MustParsePrefix("203.0.113.1/32")}
		change(&r)
		return r
	}
	with := func(s *sink, routes ...bgp.Route) bgp.Neighbor {
		n := neighbor(s)
		n.Routes = routes
		return n
	}

	apply(t, speaker,
		with(external, route(func(r *bgp.Route) {
			r.LocalPref = &preference
			r.Communities = []bgp.Community{64512<<16 | 7}
		})),
		with(internal, route(func(r *bgp.Route) {
			r.LocalPref = &preference
			r.LargeCommunities = []bgp.LargeCommunity{{GlobalAdministrator: 64512, LocalData1: 1, LocalData2: 2}}
			r.NextHop = netip.MustParseAddr("192.0.2.99")
		})))
	for sink, want := range map[*sink]string{
		external: "communities [64512:7] next hop 127.0.0.1 {AsPath: 64513}",
		internal: "large [64512:1:2] next hop 192.0.2.99 {AsPath: } {LocalPref: 250}",
	} {
		if diff := gocmp.Diff(want, sink.has("203.0.113.1/32")); diff != "" {
			t.Errorf("attributes at %s (-want +got):\n%s", sink.address, diff)
		}
	}

	// Other attributes for both, and none any more.
	apply(t, speaker,
		with(external, route(func(r *bgp.Route) { r.Communities = []bgp.Community{65535 << 16} })),
		with(internal, route(func(*bgp.Route) {})))
	for sink, want := range map[*sink]string{
		external: "communities [65535:0] next hop 127.0.0.1 {AsPath: 64513}",
		internal: "next hop 127.0.0.1 {AsPath: } {LocalPref: 100}",
	} {
		sink.until("new attributes "+want, func() bool { return sink.table["203.0.113.1/32"] == want })
	}
}

// TestStatementsGo sees that the policies of attributes and peers that are gone have gone too.
func TestStatementsGo(t *testing.T) {
	a, b := newSink(t, "127.0.0.6", 64512), newSink(t, "127.0.0.7", 64512)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(a, "203.0.113.1/32"), neighbor(b, "203.0.113.1/32"))
	for value := range bgp.Community(5) {
		n := neighbor(a, "203.0.113.1/32")
		n.Routes[0].Communities = []bgp.Community{value}
		apply(t, speaker, n)
	}
	i := speaker.list()[0]
	if got := []int{len(i.policies.statements), len(i.policies.neighborSets), len(i.policies.attributes)}; !slices.Equal(got, []int{1, 1, 1}) {
		t.Errorf("statements, neighbor sets, attributes: %v, want one of each", got)
	}
	if i.policies.nextPeer != 2 || i.policies.nextAttributes != 6 {
		t.Errorf("next numbers %d and %d: numbers were used twice", i.policies.nextPeer, i.policies.nextAttributes)
	}
}

func TestSecondApplyCallsNothing(t *testing.T) {
	tor := newSink(t, "127.0.0.8", 64512)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(tor, "203.0.113.1/32"))
	tor.has("203.0.113.1/32")

	// A server that has been stopped fails every call: no error means no call.
	i := speaker.list()[0]
	if err := i.stop(t.Context(), bgp.Withdraw); err != nil {
		t.Fatal(err)
	}
	if err := speaker.Apply(t.Context(), config(neighbor(tor, "203.0.113.1/32"))); err == nil {
		t.Error("a server that has been stopped takes something")
	}
	i.ended = false // now it is as if GoBGP had ended by itself
	if err := speaker.Apply(t.Context(), config(neighbor(tor, "203.0.113.1/32"))); err != nil {
		t.Errorf("applying the same again called GoBGP: %v", err)
	}
	if err := speaker.Apply(t.Context(), config(neighbor(tor, "203.0.113.2/32"))); err == nil {
		t.Error("applying another one did not call GoBGP")
	}
	speaker.mu.Lock()
	clear(speaker.instances)
	speaker.mu.Unlock()
}

// TestPeerComesLater gives a peer that is added to a running server exactly its routes.
func TestPeerComesLater(t *testing.T) {
	a, b := newSink(t, "127.0.0.9", 64512), newSink(t, "127.0.0.10", 64512)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(a, "203.0.113.1/32", "203.0.113.2/32"))
	a.has("203.0.113.2/32")
	a.forget()
	apply(t, speaker, neighbor(a, "203.0.113.1/32", "203.0.113.2/32"), neighbor(b, "203.0.113.2/32", "203.0.113.3/32"))
	b.has("203.0.113.3/32")
	b.has("203.0.113.2/32")
	if diff := gocmp.Diff([]string{"203.0.113.2/32", "203.0.113.3/32"}, b.prefixes()); diff != "" {
		t.Errorf("new peer's table (-want +got):\n%s", diff)
	}
	for _, event := range a.log() {
		if strings.HasPrefix(event, "withdraw") || strings.HasSuffix(event, "203.0.113.3/32") {
			t.Errorf("old peer saw %q", event)
		}
	}
}

func TestFamilies(t *testing.T) {
	four, six := newSink(t, "127.0.0.16", 64512), newSink(t, "::1", 64512)
	speaker := newSpeaker(t, Options{})
	both := bgp.Families{IPv4: true, IPv6: true}
	overFour, overSix := neighbor(four, "203.0.113.1/32", "2001:db8::1/128"), neighbor(six, "203.0.113.1/32", "2001:db8::1/128")
	overFour.Families, overSix.Families = both, both
	overFour.Routes[1].NextHop = netip.MustParseAddr("2001:db8:ffff::11")
	apply(t, speaker, overFour, overSix)
	for _, want := range []struct {
		sink           *sink
		prefix, attrib string
	}{
		{four, "203.0.113.1/32", "next hop 127.0.0.1 {AsPath: 64513}"},
		{four, "2001:db8::1/128", "next hop 2001:db8:ffff::11 {AsPath: 64513}"},
		{six, "203.0.113.1/32", "next hop ::1 {AsPath: 64513}"},
		{six, "2001:db8::1/128", "next hop ::1 {AsPath: 64513}"},
	} {
		if diff := gocmp.Diff(want.attrib, want.sink.has(want.prefix)); diff != "" {
			t.Errorf("%s at %s (-want +got):\n%s", want.prefix, want.sink.address, diff)
		}
	}
	// Withdrawing works for every combination.
	apply(t, speaker, func() bgp.Neighbor { n := neighbor(four); n.Families = both; return n }(),
		func() bgp.Neighbor { n := neighbor(six); n.Families = both; return n }())
	for _, sink := range []*sink{four, six} {
		sink.until("empty table", func() bool { return len(sink.table) == 0 })
	}
}

// manyRoutes returns host routes to 10.0.0.0 and up.
func manyRoutes(count int) (routes []bgp.Route) {
	for k := range count {
		routes = append(routes, bgp.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}), 32)})
	}
	return routes
}

func TestManyPrefixes(t *testing.T) {
	tor := newSink(t, "127.0.0.17", 64512)
	speaker := newSpeaker(t, Options{})
	const count = 2*batch + 100
	n := neighbor(tor)
	n.Routes = manyRoutes(count)
	apply(t, speaker, n)
	tor.until("all prefixes", func() bool { return len(tor.table) == count })
	n.Routes = n.Routes[:1]
	apply(t, speaker, n)
	tor.until("one prefix", func() bool { return len(tor.table) == 1 })
}

// TestSeveralRouters runs a router per VRF. A plain device stands for the VRF's: binding a socket
// to it is the same call.
func TestSeveralRouters(t *testing.T) {
	a, b, c := newSink(t, "127.0.0.25", 64512), newSink(t, "127.0.0.26", 64512), newSink(t, "127.0.0.27", 64512)
	speaker := newSpeaker(t, Options{})
	want := config(neighbor(a, "203.0.113.1/32"))
	for _, router := range []struct {
		vrf  string
		sink *sink
	}{{"lo", b}, {"none-such", c}} {
		want.Routers = append(want.Routers, bgp.Router{
			VRF: router.vrf, ASN: ownASN, ID: netip.MustParseAddr("192.0.2.11"),
			Neighbors: []bgp.Neighbor{neighbor(router.sink, "203.0.113.2/32")},
		})
	}
	if err := speaker.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	a.has("203.0.113.1/32")
	b.has("203.0.113.2/32")
	untilSession(t, speaker, "lacks its device", func(s bgp.Session) bool {
		return s.VRF == "none-such" && strings.Contains(s.LastError, "no such device")
	})
	var sessions []string
	for _, s := range speaker.Sessions() {
		sessions = append(sessions, s.VRF+" "+s.Peer.String())
	}
	if diff := gocmp.Diff([]string{" 127.0.0.25", "lo 127.0.0.26", "none-such 127.0.0.27"}, sessions); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff([]string{"203.0.113.1/32"}, a.prefixes()); diff != "" {
		t.Errorf("a VRF's routes are in another (-want +got):\n%s", diff)
	}
}

// TestRandomConfigs applies configurations one after the other, each different from the last in a few
// routes of a few neighbors, and compares what the peers have with what they should.
func TestRandomConfigs(t *testing.T) {
	const configs = 300
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	sinks := []*sink{newSink(t, "127.0.3.1", 64512), newSink(t, "127.0.3.2", 64512), newSink(t, "127.0.3.3", 64511)}
	speaker := newSpeaker(t, Options{})
	pool := manyRoutes(30)
	attributes := []func(*bgp.Route){
		func(*bgp.Route) {},
		func(r *bgp.Route) { r.Communities = []bgp.Community{1} },
		func(r *bgp.Route) { r.Communities = []bgp.Community{1, 2} },
		func(r *bgp.Route) { r.LargeCommunities = []bgp.LargeCommunity{{GlobalAdministrator: 1}} },
		func(r *bgp.Route) { r.NextHop = netip.MustParseAddr("192.0.2.50") },
		func(r *bgp.Route) { r.Prepend = 1 },
	}
	chosen := make([]map[int]int, len(sinks)) // by sink: prefix to attributes
	for k := range chosen {
		chosen[k] = map[int]int{}
	}
	for step := range configs {
		for range random.IntN(4) {
			k, prefix := random.IntN(len(sinks)), random.IntN(len(pool))
			if random.IntN(3) == 0 {
				delete(chosen[k], prefix)
			} else {
				chosen[k][prefix] = random.IntN(len(attributes))
			}
		}
		if random.IntN(10) == 0 {
			chosen[1] = chosen[0] // from now on they share their routes
		}
		if random.IntN(10) == 0 {
			chosen[1] = maps.Clone(chosen[0])
		}
		canary := bgp.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(step >> 8), byte(step)}), 32)}
		var neighbors []bgp.Neighbor
		routes := map[string][]bgp.Route{}
		for k, s := range sinks {
			text := fmt.Sprint(chosen[k])
			if routes[text] == nil {
				for _, prefix := range slices.Sorted(maps.Keys(chosen[k])) {
					r := pool[prefix]
					attributes[chosen[k][prefix]](&r)
					routes[text] = append(routes[text], r)
				}
				routes[text] = append(routes[text], canary)
			}
			n := neighbor(s)
			n.Routes = routes[text]
			if step > configs/2 && k == 2 {
				n.LocalASN = 64600 // another session, other AS paths
			}
			neighbors = append(neighbors, n)
		}
		if step > 0 && random.IntN(5) == 0 { // nothing of it can be done at first
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_ = speaker.Apply(ctx, config(neighbors...)) // what has to go goes all the same
		}
		apply(t, speaker, neighbors...)
		if step == 2*configs/3 { // a peer goes, and comes back
			apply(t, speaker, neighbors[1:]...)
			apply(t, speaker, neighbors...)
		}
		for k, s := range sinks {
			s.has(canary.Prefix.String())
			want := map[string]string{}
			for _, r := range neighbors[k].Routes {
				want[r.Prefix.String()] = onTheWire(r, cmp.Or(neighbors[k].LocalASN, ownASN))
			}
			s.until("the right table", func() bool { return maps.Equal(want, s.table) })
		}
		if step%50 == 0 {
			// However long it goes on, statements are as many as there are attributes in use.
			if got := len(speaker.list()[0].policies.statements); got > len(sinks)*len(attributes) {
				t.Fatalf("%d statements after %d configurations", got, step)
			}
		}
	}
}

// onTheWire is how a sink writes the attributes of a route.
func onTheWire(r bgp.Route, asn uint32) string {
	var parts []string
	if len(r.Communities) > 0 {
		parts = append(parts, fmt.Sprint("communities ", r.Communities))
	}
	if len(r.LargeCommunities) > 0 {
		parts = append(parts, fmt.Sprint("large ", r.LargeCommunities))
	}
	hop := "127.0.0.1"
	if r.NextHop.IsValid() {
		hop = r.NextHop.String()
	}
	path := fmt.Sprint(asn)
	for range r.Prepend {
		path += fmt.Sprintf(" %d", asn)
	}
	return strings.Join(append(parts, "next hop "+hop, "{AsPath: "+path+"}"), " ")
}
