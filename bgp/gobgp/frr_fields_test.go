// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package gobgp

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// TestFRRPath is about the fields that shape the path FRR sees.
func TestFRRPath(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*bgp.Neighbor)
		remote string // AS number that FRR expects
		path   string
		hop    string
	}{
		{"as it is", func(*bgp.Neighbor) {}, "64513", "64513", nodeAddress},
		{"prepended", func(n *bgp.Neighbor) { n.Routes[0].Prepend = 2 }, "64513", "64513 64513 64513", nodeAddress},
		{"another local AS number, prepended", func(n *bgp.Neighbor) { n.LocalASN, n.Routes[0].Prepend = 4200000000, 1 }, "4200000000", "4200000000 4200000000", nodeAddress},
		{"another local AS number", func(n *bgp.Neighbor) { n.LocalASN = 64600 }, "64600", "64600", nodeAddress},
		{"another next hop", func(n *bgp.Neighbor) { n.Routes[0].NextHop = netip.MustParseAddr("192.0.2.50") }, "64513", "64513", "192.0.2.50"},
		{"any AS number but the own", func(n *bgp.Neighbor) { n.ASN = 0 }, "64513", "64513", nodeAddress},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newTor(t, torConfig(test.remote, ""))
			speaker := newSpeaker(t, Options{})
			n := torNeighbor(route("203.0.113.1/32"))
			test.change(&n)
			apply(t, speaker, n)
			eventually(t, "the route", func() bool { return len(r.prefixes("ipv4")) == 1 })
			path := r.table("ipv4")["203.0.113.1/32"][0]
			if diff := cmp.Diff([]string{test.path, test.hop}, []string{path.Path, path.Nexthops[0].IP}); diff != "" {
				t.Errorf("AS path and next hop (-want +got):\n%s", diff)
			}
		})
	}
}

// TestFRRDynamicASNExternal: a peer with the router's own AS number gets no session, says why, and is
// tried again.
func TestFRRDynamicASNExternal(t *testing.T) {
	r := newTor(t, strings.Replace(torConfig("64513", ""), "router bgp 64512", "router bgp 64513", 1))
	speaker := newSpeaker(t, Options{})
	n := torNeighbor(route("203.0.113.1/32"))
	n.ASN = 0
	apply(t, speaker, n)
	untilSession(t, speaker, "tells of the AS number", func(s bgp.Session) bool {
		return s.State == bgp.Idle && strings.Contains(s.LastError, "AS number 64513, the router's own")
	})
	eventually(t, "FRR has nothing", func() bool { return len(r.prefixes("ipv4")) == 0 && r.state() != "Established" })
	if speaker.Announced(n.Routes[0].Prefix) {
		t.Error("announced")
	}
	// The peer is put right.
	r.vtysh("configure\nno router bgp 64513\n"+torConfig("64513", ""), nil)
	i := speaker.list()[0]
	i.mu.Lock()
	i.sessions[n.Address].refusedUntil = time.Now()
	i.mu.Unlock()
	i.wake()
	eventually(t, "the route", func() bool { return len(r.prefixes("ipv4")) == 1 })
}

// TestFRRTimers: what FRR has negotiated.
func TestFRRTimers(t *testing.T) {
	r := newTor(t, torConfig("64513", ""))
	speaker := newSpeaker(t, Options{})
	n := torNeighbor()
	n.HoldTime, n.KeepaliveTime = 33*time.Second, 7*time.Second
	apply(t, speaker, n)
	untilSession(t, speaker, "is established", func(s bgp.Session) bool { return s.State == bgp.Established })
	var answer map[string]struct {
		Hold int `json:"bgpTimerHoldTimeMsecs"`
	}
	r.vtysh("show bgp neighbors json", &answer)
	if got := answer[nodeAddress].Hold; got != 33_000 {
		t.Errorf("hold time %d ms, want 33,000", got)
	}
}

// TestFRRHops counts the TTLs that sessions are made with: 1 to a neighbor next door, so that nobody
// farther away answers, and enough for one that is hops away.
func TestFRRHops(t *testing.T) {
	require(t, "nft")
	for _, test := range []struct {
		name     string
		multihop bool
		ttl      int
	}{
		{"next door", false, 1},
		{"several hops", true, 255},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines := ""
			if test.multihop {
				lines = " neighbor 192.0.2.11 ebgp-multihop 3"
			}
			r := newTor(t, torConfig("64513", lines))
			r.run("nft", "add table ip ttl; add chain ip ttl in { type filter hook input priority 0; }; "+
				"add rule ip ttl in tcp dport 179 ip ttl "+strconv.Itoa(test.ttl)+" counter; add rule ip ttl in tcp dport 179 ip ttl != "+strconv.Itoa(test.ttl)+" drop")
			speaker := newSpeaker(t, Options{})
			n := torNeighbor(route("203.0.113.1/32"))
			n.EBGPMultiHop = test.multihop
			apply(t, speaker, n)
			eventually(t, "the route", func() bool { return len(r.kernel("-4")) == 1 })
		})
	}
}
