// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package gobgp

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// TestFRRKeepsRoutesOverALostConnection breaks the TCP connection on both sides. FRR keeps the routes,
// and must not drop one of them when the session comes back: nobody stopped forwarding. GoBGP alone
// would come back without the F bit (RFC 4724 §3).
func TestFRRKeepsRoutesOverALostConnection(t *testing.T) {
	const routes = 5000 // a handful FRR would have got again before it drops the rest
	require(t, "nft")
	r := newTor(t, torConfig("64513", ""))
	speaker := newSpeaker(t, Options{})
	speaker.minUptime = 0
	n := torNeighbor(manyRoutes(routes)...)
	n.GracefulRestart, n.HoldTime, n.KeepaliveTime = true, 9*time.Second, time.Second
	apply(t, speaker, n)
	eventually(t, "all routes in the kernel", func() bool { return len(r.kernel("-4")) == routes })
	monitor := monitorRoutes(t, r)
	first := speaker.Sessions()[0]

	end := r.blackhole("meta l4proto tcp reject with tcp reset")
	untilSession(t, speaker, "is lost", func(s bgp.Session) bool { return s.State != bgp.Established && s.LastError != "" })
	end()
	untilSession(t, speaker, "is back", func(s bgp.Session) bool { return s.State == bgp.Established && s.Since.After(first.Since) })
	eventually(t, "no path is stale", func() bool {
		stale := slices.ContainsFunc(slices.Collect(maps.Values(r.table("ipv4"))), func(paths []torPath) bool { return paths[0].Stale })
		return r.state() == "Established" && !stale
	})
	if got := len(r.kernel("-4")); got != routes {
		t.Errorf("%d routes in the kernel, want %d", got, routes)
	}
	if lost := strings.Count(monitor(), "Deleted 10."); lost > 0 {
		t.Errorf("the kernel lost %d routes", lost)
	}
}

// TestFRRTwoRouters: each has its own fate. After a restart GoBGP waits for the End-of-RIB of all
// routers (RFC 4724 §4.1), also of one that is down, for as long as the deferral time.
func TestFRRTwoRouters(t *testing.T) {
	one, two := newTor(t, torConfig("64513", "")), newOtherTor(t, torConfig("64513", ""))
	both := func() []bgp.Neighbor {
		a, b := torNeighbor(route("203.0.113.1/32")), torNeighbor(route("203.0.113.1/32"), route("203.0.113.2/32"))
		b.Address = netip.MustParseAddr(otherTorAddress)
		a.GracefulRestart, b.GracefulRestart = true, true
		return []bgp.Neighbor{a, b}
	}()
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, both...)
	eventually(t, "each has its routes", func() bool { return len(one.kernel("-4")) == 1 && len(two.kernel("-4")) == 2 })
	if err := speaker.Stop(t.Context(), bgp.Keep); err != nil {
		t.Fatal(err)
	}

	end := one.blackhole("drop")
	defer end()
	next := newSpeaker(t, Options{ForwardingPreserved: true})
	both[1].Routes = append(both[1].Routes, route("203.0.113.3/32"))
	apply(t, next, both...)
	eventually(t, "the router that lives has the new route", func() bool { return len(two.kernel("-4")) == 3 })
	if states := next.Sessions(); states[0].State == bgp.Established {
		t.Errorf("the session with the dead router: %+v", states[0])
	}
}
