// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package gobgp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// blackhole drops all that the node sends to the router and gets from it, and leaves the link up. The
// function it returns ends that.
func (r *tor) blackhole(verdict string) (end func()) {
	r.t.Helper()
	run(r.t, "nft", "add table inet blackhole; "+
		"add chain inet blackhole in { type filter hook input priority 0; }; add chain inet blackhole out { type filter hook output priority 0; }; "+
		"add rule inet blackhole in iifname uplink "+verdict+"; add rule inet blackhole out oifname uplink "+verdict)
	return func() { run(r.t, "nft", "delete table inet blackhole") }
}

// bfdState is what FRR says of its BFD session with the node.
func (r *tor) bfdState(node string) string {
	r.t.Helper()
	var answer []struct{ Peer, Status string }
	r.vtysh("show bfd peers json", &answer)
	for _, peer := range answer {
		if peer.Peer == node {
			return peer.Status
		}
	}
	return ""
}

const bfdLine = " neighbor 192.0.2.11 bfd 3 100 100\n"

func bfdNeighbor() bgp.Neighbor {
	n := torNeighbor(route("203.0.113.1/32"))
	n.HoldTime, n.KeepaliveTime = 180*time.Second, 60*time.Second // far above the test's patience
	n.BFD = bgp.BFD{ReceiveInterval: 100 * time.Millisecond, TransmitInterval: 100 * time.Millisecond, Multiplier: 3}
	return n
}

// TestFRRBFD: BFD comes up without ending the session once, takes the route away long before the hold
// time when the path fails, and comes back with it.
func TestFRRBFD(t *testing.T) {
	require(t, frrDir+"/bfdd", "nft")
	r := newTor(t, torConfig("64513", bfdLine))
	speaker := newSpeaker(t, Options{})
	n := bfdNeighbor()
	n.GracefulRestart = true
	apply(t, speaker, n)
	watched := func(s bgp.Session) bool { return s.State == bgp.Established && s.BFD == bgp.BFDUp }
	untilSession(t, speaker, "is watched", watched)
	eventually(t, "FRR's BFD is up", func() bool { return r.bfdState(nodeAddress) == "up" && len(r.kernel("-4")) == 1 })
	counters := speaker.Counters(t.Context())
	if len(counters) != 1 || counters[0].BFDUps != 1 || counters[0].BFDDowns != 0 || counters[0].Sent.Opens != 1 {
		t.Errorf("the session came up more than once: %+v", counters)
	}
	if counters[0].BFDPacketsSent == 0 || counters[0].BFDPacketsReceived == 0 || counters[0].AnnouncedPrefixes != 1 {
		t.Errorf("counters %+v", counters)
	}

	// Other parameters are taken without a new session.
	since := speaker.Sessions()[0].Since
	n.BFD.TransmitInterval = 150 * time.Millisecond
	apply(t, speaker, n)
	eventually(t, "FRR has the other interval", func() bool {
		var answer []struct {
			Interval int `json:"remote-transmit-interval"`
		}
		r.vtysh("show bfd peers json", &answer)
		return len(answer) == 1 && answer[0].Interval == 150
	})
	untilSession(t, speaker, "is watched with other parameters", watched)

	// The path fails. With graceful restart, too, the routes go: nobody forwards.
	end := r.blackhole("drop")
	eventually(t, "no route in the kernel", func() bool { return len(r.kernel("-4")) == 0 })
	untilSession(t, speaker, "knows why it ended", func(s bgp.Session) bool {
		return s.State != bgp.Established && s.LastError == "BFD found the path down"
	})
	end()
	untilSession(t, speaker, "is watched again", func(s bgp.Session) bool { return watched(s) && s.Since.After(since) })
	eventually(t, "the route is back", func() bool { return len(r.kernel("-4")) == 1 && r.bfdState(nodeAddress) == "up" })

	// Without BFD the session goes on.
	since = speaker.Sessions()[0].Since
	n.BFD = bgp.BFD{}
	apply(t, speaker, n)
	eventually(t, "FRR misses BFD", func() bool { return r.bfdState(nodeAddress) != "up" })
	untilSession(t, speaker, "has no BFD", func(s bgp.Session) bool { return s.BFD == bgp.NoBFD })
}

// TestFRRBFDOverIPv6 is about sessions with a global IPv6 address.
func TestFRRBFDOverIPv6(t *testing.T) {
	require(t, frrDir+"/bfdd", "nft")
	config := `
router bgp 64512
 bgp router-id 192.0.2.1
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor ` + nodeAddress6 + ` remote-as 64513
 neighbor ` + nodeAddress6 + ` passive
 neighbor ` + nodeAddress6 + ` bfd 3 100 100
 neighbor ` + nodeAddress6 + ` capability extended-nexthop
 address-family ipv4 unicast
  neighbor ` + nodeAddress6 + ` activate
 exit-address-family
 address-family ipv6 unicast
  neighbor ` + nodeAddress6 + ` activate
 exit-address-family
`
	r := newTor(t, config)
	speaker := newSpeaker(t, Options{})
	n := bfdNeighbor()
	n.Address, n.Families = netip.MustParseAddr(torAddress6), bgp.Families{IPv4: true, IPv6: true}
	n.Routes = append(n.Routes, route("2001:db8::1/128"))
	apply(t, speaker, n)
	untilSession(t, speaker, "is watched", func(s bgp.Session) bool { return s.State == bgp.Established && s.BFD == bgp.BFDUp })
	eventually(t, "both routes, IPv4 over IPv6 (RFC 8950)", func() bool { return len(r.kernel("-4")) == 1 && len(r.kernel("-6")) == 1 })
	defer r.blackhole("drop")()
	eventually(t, "no route", func() bool { return len(r.kernel("-4")) == 0 && len(r.kernel("-6")) == 0 })
}

// TestFRRBFDPeerWithout: a peer that doesn't speak BFD has its session and routes.
func TestFRRBFDPeerWithout(t *testing.T) {
	r := newTor(t, torConfig("64513", ""))
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, bfdNeighbor())
	untilSession(t, speaker, "is established and not watched", func(s bgp.Session) bool { return s.State == bgp.Established && s.BFD == bgp.BFDDown })
	eventually(t, "the route", func() bool { return len(r.kernel("-4")) == 1 })
}
