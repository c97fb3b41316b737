// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package gobgp

import (
	"bytes"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// torConfig is a router that takes what the node says; lines are the neighbor's.
func torConfig(remoteAS, lines string) string {
	return `
router bgp 64512
 bgp router-id 192.0.2.1
 no bgp ebgp-requires-policy
 bgp graceful-restart
 neighbor 192.0.2.11 remote-as ` + remoteAS + `
 neighbor 192.0.2.11 passive
` + lines + `
 address-family ipv6 unicast
  neighbor 192.0.2.11 activate
 exit-address-family
`
}

// torNeighbor is the session with that router.
func torNeighbor(routes ...bgp.Route) bgp.Neighbor {
	return bgp.Neighbor{
		Address: netip.MustParseAddr(torAddress), Port: 179, ASN: 64512,
		HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectTime: 2 * time.Second,
		Families: bgp.Families{IPv4: true}, Routes: routes,
	}
}

func route(prefix string) bgp.Route { return bgp.Route{Prefix: netip.MustParsePrefix(prefix)} }

func TestFRRTakesRoutes(t *testing.T) {
	r := newTor(t, torConfig("64513", ""))
	speaker := newSpeaker(t, Options{})
	first := route("203.0.113.1/32")
	first.Communities = []bgp.Community{64512<<16 | 7, 64512<<16 | 9}
	first.LargeCommunities = []bgp.LargeCommunity{{GlobalAdministrator: 64512, LocalData1: 1, LocalData2: 2}}
	preference := uint32(200)
	first.LocalPref = &preference // eBGP: must not be sent
	six := route("2001:db8::1/128")
	six.NextHop = netip.MustParseAddr(nodeAddress6)
	n := torNeighbor(first, route("203.0.113.2/32"), six)
	n.Families.IPv6 = true
	n.Source = netip.MustParseAddr(nodeAddress)

	apply(t, speaker, n)
	eventually(t, "both routes in the kernel", func() bool {
		return slices.Equal(r.kernel("-4"), []string{"203.0.113.1", "203.0.113.2"}) && slices.Equal(r.kernel("-6"), []string{"2001:db8::1"})
	})
	if diff := cmp.Diff([]string{"203.0.113.1/32", "203.0.113.2/32"}, r.prefixes("ipv4")); diff != "" {
		t.Errorf("FRR's IPv4 table (-want +got):\n%s", diff)
	}
	got := r.table("ipv4")["203.0.113.1/32"]
	if len(got) != 1 || !got[0].Valid || got[0].Path != "64513" || got[0].LocPrf != 0 || got[0].Nexthops[0].IP != nodeAddress {
		t.Errorf("path: %+v", got)
	}
	if hops := r.table("ipv6")["2001:db8::1/128"]; len(hops) != 1 || hops[0].Nexthops[0].IP != nodeAddress6 {
		t.Errorf("IPv6 path: %+v", hops)
	}
	for prefix, want := range map[string][2]string{
		"203.0.113.1/32": {"64512:7 64512:9", "64512:1:2"},
		"203.0.113.2/32": {},
	} {
		communities, large := r.communities(prefix)
		if diff := cmp.Diff(want, [2]string{communities, large}); diff != "" {
			t.Errorf("communities of %s (-want +got):\n%s", prefix, diff)
		}
	}
	if !speaker.Announced(first.Prefix) || !speaker.Announced(six.Prefix) {
		t.Error("not announced")
	}

	n.Routes = n.Routes[1:2]
	apply(t, speaker, n)
	eventually(t, "the other route alone in the kernel", func() bool {
		return slices.Equal(r.kernel("-4"), []string{"203.0.113.2"}) && len(r.kernel("-6")) == 0
	})
}

// TestFRRInternalInVRF has an internal session, with a password, on a socket bound to a device as
// to that of a VRF.
func TestFRRInternalInVRF(t *testing.T) {
	r := newTor(t, torConfig("64512", " neighbor 192.0.2.11 password right"))
	speaker := newSpeaker(t, Options{})
	with := func(password string) bgp.Config {
		preferred := route("203.0.113.1/32")
		preference := uint32(200)
		preferred.LocalPref = &preference
		n := torNeighbor(preferred, route("203.0.113.2/32"))
		n.Password = password
		return bgp.Config{Routers: []bgp.Router{{VRF: nodeDevice, ASN: 64512, ID: netip.MustParseAddr(nodeAddress), Neighbors: []bgp.Neighbor{n}}}}
	}
	if err := speaker.Apply(t.Context(), with("wrong")); err != nil {
		t.Fatal(err)
	}
	untilSession(t, speaker, "tells of the time-out that a wrong password makes", func(s bgp.Session) bool {
		return s.VRF == nodeDevice && strings.Contains(s.LastError, "timeout")
	})
	if err := speaker.Apply(t.Context(), with("right")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both routes", func() bool {
		return slices.Equal(r.prefixes("ipv4"), []string{"203.0.113.1/32", "203.0.113.2/32"})
	})
	table := r.table("ipv4")
	if got := []uint32{table["203.0.113.1/32"][0].LocPrf, table["203.0.113.2/32"][0].LocPrf}; !slices.Equal(got, []uint32{200, 100}) {
		t.Errorf("local preferences %v, want 200 and 100", got)
	}
}

func TestFRRWrongASN(t *testing.T) {
	for _, test := range []struct {
		name      string
		remoteAS  string // that FRR expects
		peerASN   uint32 // that the speaker expects
		lastError string
	}{
		{"the speaker expects another", "64513", 64999, "bad peer as"},
		{"FRR expects another", "64999", 64512, "refused the OPEN message"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newTor(t, torConfig(test.remoteAS, ""))
			speaker := newSpeaker(t, Options{})
			n := torNeighbor(route("203.0.113.1/32"))
			n.ASN = test.peerASN
			apply(t, speaker, n)
			untilSession(t, speaker, "tells of "+test.lastError, func(s bgp.Session) bool {
				return s.State != bgp.Established && strings.Contains(s.LastError, test.lastError)
			})
			if got := r.prefixes("ipv4"); len(got) != 0 || speaker.Announced(netip.MustParsePrefix("203.0.113.1/32")) {
				t.Errorf("announced: %v", got)
			}
		})
	}
}

// TestFRRKeepsRoutes replaces a speaker by another one, as an upgrade does, and looks for routes
// that the kernel of the router loses meanwhile.
func TestFRRKeepsRoutes(t *testing.T) {
	for _, test := range []struct {
		name, lines string
		bfd         bgp.BFD
	}{
		{"without BFD", "", bgp.BFD{}},
		// FRR learns of the closed connection before it misses BFD.
		{"with BFD", " neighbor 192.0.2.11 bfd 3 100 100\n", bgp.BFD{ReceiveInterval: 100 * time.Millisecond, TransmitInterval: 100 * time.Millisecond, Multiplier: 3}},
	} {
		t.Run(test.name, func(t *testing.T) { testFRRKeepsRoutes(t, test.lines, test.bfd) })
	}
}

func testFRRKeepsRoutes(t *testing.T, lines string, bfd bgp.BFD) {
	r := newTor(t, torConfig("64513", lines))
	monitor := monitorRoutes(t, r)
	n := torNeighbor(route("203.0.113.1/32"), route("203.0.113.2/32"))
	n.GracefulRestart, n.BFD = true, bfd

	old := newSpeaker(t, Options{})
	apply(t, old, n)
	both := []string{"203.0.113.1", "203.0.113.2"}
	eventually(t, "both routes in the kernel", func() bool { return slices.Equal(r.kernel("-4"), both) })
	if bfd != (bgp.BFD{}) {
		untilSession(t, old, "is watched", func(s bgp.Session) bool { return s.BFD == bgp.BFDUp })
	}

	if err := old.Stop(t.Context(), bgp.Keep); err != nil {
		t.Fatal(err)
	}
	eventually(t, "FRR sees the session go", func() bool { return r.state() != "Established" })
	if got := r.kernel("-4"); !slices.Equal(got, both) {
		t.Fatalf("the kernel has %v after a graceful stop", got)
	}
	if paths := r.table("ipv4")["203.0.113.1/32"]; len(paths) != 1 || !paths[0].Stale {
		t.Errorf("FRR doesn't call the path stale: %+v", paths)
	}

	next := newSpeaker(t, Options{ForwardingPreserved: true})
	apply(t, next, n)
	eventually(t, "the paths are fresh again", func() bool {
		table := r.table("ipv4")
		return r.state() == "Established" && len(table) == 2 && !table["203.0.113.1/32"][0].Stale && !table["203.0.113.2/32"][0].Stale
	})
	if text := monitor(); strings.Contains(text, "Deleted 203.0.113.") {
		t.Errorf("the kernel lost routes:\n%s", text)
	}

	// A withdrawal just before the end must not be kept.
	n.Routes = n.Routes[:1]
	apply(t, next, n)
	if err := next.Stop(t.Context(), bgp.Keep); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the withdrawn route is gone", func() bool { return slices.Equal(r.kernel("-4"), both[:1]) })
}

// TestFRRGracefulRestart: what a session says of graceful restart is what FRR does when the speaker
// goes away without a word.
func TestFRRGracefulRestart(t *testing.T) {
	for _, test := range []struct {
		name string
		frr  string // its mode
		ours bool
		want bool
	}{
		{"both", "bgp graceful-restart", true, true},
		{"FRR as it is without configuration: it keeps routes, and can't restart itself", "", true, true},
		{"FRR has it disabled", "bgp graceful-restart-disable", true, false},
		{"we have it disabled", "bgp graceful-restart", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newTor(t, strings.Replace(torConfig("64513", ""), "bgp graceful-restart", test.frr, 1))
			six := route("2001:db8::1/128")
			six.NextHop = netip.MustParseAddr(nodeAddress6)
			n := torNeighbor(route("203.0.113.1/32"), six)
			n.Families.IPv6, n.GracefulRestart = true, test.ours
			speaker := newSpeaker(t, Options{})
			apply(t, speaker, n)
			untilSession(t, speaker, "is established", func(s bgp.Session) bool {
				if s.State == bgp.Established && s.GracefulRestart != test.want {
					t.Errorf("the session says %v of graceful restart, want %v", s.GracefulRestart, test.want)
				}
				return s.State == bgp.Established
			})
			eventually(t, "both routes in the kernel", func() bool { return len(r.kernel("-4")) == 1 && len(r.kernel("-6")) == 1 })

			if err := speaker.Stop(t.Context(), bgp.Keep); err != nil {
				t.Fatal(err)
			}
			eventually(t, "FRR sees the session go", func() bool { return r.state() != "Established" })
			if !test.want {
				eventually(t, "no routes in the kernel", func() bool { return len(r.kernel("-4")) == 0 && len(r.kernel("-6")) == 0 })
				return
			}
			four, six6 := r.table("ipv4")["203.0.113.1/32"], r.table("ipv6")["2001:db8::1/128"]
			if len(four) != 1 || !four[0].Stale || len(six6) != 1 || !six6[0].Stale || len(r.kernel("-4")) != 1 || len(r.kernel("-6")) != 1 {
				t.Errorf("FRR did not keep the routes: %+v, %+v", four, six6)
			}
		})
	}
}

func TestFRRWithdrawsAtStop(t *testing.T) {
	r := newTor(t, torConfig("64513", ""))
	speaker := newSpeaker(t, Options{})
	n := torNeighbor(route("203.0.113.1/32"))
	n.GracefulRestart = true
	apply(t, speaker, n)
	eventually(t, "the route in the kernel", func() bool { return len(r.kernel("-4")) == 1 })
	if err := speaker.Stop(t.Context(), bgp.Withdraw); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no route in the kernel", func() bool { return len(r.kernel("-4")) == 0 })
}

// monitorRoutes records every change of the router's kernel routes. The function it returns gives
// the record of all changes made before it is called.
func monitorRoutes(t *testing.T, r *tor) func() string {
	t.Helper()
	record := &lockedBuffer{}
	command := r.inside("ip", "monitor", "route")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout = record
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// A route of our own, set until it is seen, says that everything before it has been seen.
	mark := func(address string) string {
		eventually(t, "the monitor works", func() bool {
			r.run("ip", "route", "replace", "blackhole", address)
			seen := strings.Contains(record.String(), address)
			if !seen {
				r.run("ip", "route", "delete", "blackhole", address)
			}
			return seen
		})
		return record.String()
	}
	mark("198.51.100.1")
	return func() string { return mark("198.51.100.2") }
}

// lockedBuffer is a buffer for a writer and a reader.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
