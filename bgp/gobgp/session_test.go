// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

func TestRemoval(t *testing.T) {
	a, b := newSink(t, "127.0.0.11", 64512), newSink(t, "127.0.0.12", 64512)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(a, "203.0.113.1/32"), neighbor(b, "203.0.113.1/32"))
	a.has("203.0.113.1/32")
	b.has("203.0.113.1/32")
	b.forget()

	apply(t, speaker, neighbor(b, "203.0.113.1/32"))
	a.seen("notification 6/3")
	if got := len(speaker.Sessions()); got != 1 {
		t.Errorf("%d sessions, want 1", got)
	}
	other := config(neighbor(b, "203.0.113.1/32"))
	other.Routers[0].ID = netip.MustParseAddr("192.0.2.12")
	if err := speaker.Apply(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	b.seen("notification 6/3")
	b.until("OPEN of the new router ID", func() bool {
		return len(b.opens) == 2 && b.opens[1].ID == netip.MustParseAddr("192.0.2.12")
	})
	b.has("203.0.113.1/32")
	b.forget()

	if err := speaker.Apply(t.Context(), bgp.Config{}); err != nil {
		t.Fatal(err)
	}
	b.seen("notification 6/3")
	if sessions := speaker.Sessions(); len(sessions) != 0 {
		t.Errorf("sessions are left: %v", sessions)
	}
}

// TestSessionChangesRenewTheSession changes the hold time: GoBGP alone would keep the old one.
func TestSessionChangesRenewTheSession(t *testing.T) {
	tor := newSink(t, "127.0.0.13", 64512)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(tor, "203.0.113.1/32"))
	tor.has("203.0.113.1/32")
	n := neighbor(tor, "203.0.113.1/32")
	n.HoldTime = 30 * time.Second
	apply(t, speaker, n)
	tor.until("second OPEN with the new hold time", func() bool { return len(tor.opens) == 2 && tor.opens[1].HoldTime == 30 })
	tor.has("203.0.113.1/32")
}

func TestLastError(t *testing.T) {
	tor := newSink(t, "127.0.0.14", 64512)
	closed := newSink(t, "127.0.0.15", 64512)
	if err := closed.listener.Close(); err != nil {
		t.Fatal(err)
	}
	speaker := newSpeaker(t, Options{})
	wrong := neighbor(tor, "203.0.113.1/32")
	wrong.ASN = 64999
	apply(t, speaker, wrong, neighbor(closed, "203.0.113.1/32"))
	untilSession(t, speaker, "tells of the wrong AS number", func(s bgp.Session) bool {
		return s.Peer == tor.address && s.State != bgp.Established && strings.Contains(s.LastError, "bad peer as")
	})
	untilSession(t, speaker, "tells of the refused connection", func(s bgp.Session) bool {
		return s.Peer == closed.address && s.State != bgp.Established && strings.Contains(s.LastError, "connection refused")
	})

	// Set right, the session comes up and the error is gone; lost, it says why.
	apply(t, speaker, neighbor(tor, "203.0.113.1/32"), neighbor(closed))
	untilSession(t, speaker, "is established", func(s bgp.Session) bool {
		return s.Peer == tor.address && s.State == bgp.Established && s.LastError == ""
	})
	tor.reset()
	untilSession(t, speaker, "tells how it was lost", func(s bgp.Session) bool {
		return s.Peer == tor.address && s.State != bgp.Established && s.LastError != ""
	})
	if speaker.Announced(netip.MustParsePrefix("203.0.113.1/32")) {
		t.Error("announced without a session")
	}
}

func TestStopModes(t *testing.T) {
	for _, test := range []struct {
		name     string
		address  string
		mode     bgp.StopMode
		graceful bool
		want     []string
	}{
		{"withdraw sends a Cease", "127.0.0.18", bgp.Withdraw, true, []string{"notification 6/3"}},
		{"keep says nothing", "127.0.0.19", bgp.Keep, true, nil},
		{"keep without graceful restart sends a Cease", "127.0.0.20", bgp.Keep, false, []string{"notification 6/3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tor := newSink(t, test.address, 64512)
			speaker := newSpeaker(t, Options{})
			n := neighbor(tor, "203.0.113.1/32")
			n.GracefulRestart = test.graceful
			apply(t, speaker, n)
			tor.has("203.0.113.1/32")
			if test.graceful {
				tor.seen("end of RIB") // sent where both ends speak of graceful restart
			}
			tor.forget()
			if err := speaker.Stop(t.Context(), test.mode); err != nil {
				t.Fatal(err)
			}
			_ = tor.listener.Close()
			tor.wait.Wait() // the connection has been read to its end
			if diff := cmp.Diff(test.want, tor.log()); diff != "" {
				t.Errorf("events at the end (-want +got):\n%s", diff)
			}
			if err := speaker.Apply(t.Context(), config(n)); err == nil {
				t.Error("Apply works after Stop")
			}
		})
	}
}

// TestGracefulRestartCapability reads what the OPEN claims, session by session.
func TestGracefulRestartCapability(t *testing.T) {
	for _, test := range []struct {
		name      string
		address   string
		preserved bool
		want      []string
	}{
		{"after a restart, the first session alone claims forwarding", "127.0.0.21", true,
			[]string{"restarting=true forwarding=true time=30", "restarting=false forwarding=false time=30"}},
		{"after a boot none does", "127.0.0.22", false,
			[]string{"restarting=false forwarding=false time=30", "restarting=false forwarding=false time=30"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tor := newSink(t, test.address, 64512)
			speaker := newSpeaker(t, Options{ForwardingPreserved: test.preserved})
			n := neighbor(tor, "203.0.113.1/32")
			n.GracefulRestart = true
			apply(t, speaker, n)
			tor.has("203.0.113.1/32")
			n.HoldTime = 30 * time.Second
			apply(t, speaker, n)
			tor.until("second session", func() bool { return len(tor.opens) == 2 })
			var got []string
			for _, open := range tor.opens {
				got = append(got, gracefulRestart(open))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("capability (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeepsRoutes(t *testing.T) {
	type capabilities = []gobgppacket.ParameterCapabilityInterface
	four, six := gobgppacket.NewCapMultiProtocol(gobgppacket.RF_IPv4_UC), gobgppacket.NewCapMultiProtocol(gobgppacket.RF_IPv6_UC)
	restart := func(families ...gobgppacket.Family) gobgppacket.ParameterCapabilityInterface {
		var tuples []*gobgppacket.CapGracefulRestartTuple
		for _, family := range families {
			tuples = append(tuples, gobgppacket.NewCapGracefulRestartTuple(family, false))
		}
		return gobgppacket.NewCapGracefulRestart(false, false, 30, tuples)
	}
	both := restart(gobgppacket.RF_IPv4_UC, gobgppacket.RF_IPv6_UC)
	for _, test := range []struct {
		name          string
		local, remote capabilities
		want          bool
	}{
		{"both, for all families", capabilities{four, six, both}, capabilities{four, six, both}, true},
		{"the peer names no family", capabilities{four, six, both}, capabilities{four, six, restart()}, true},
		{"the peer does not speak of it", capabilities{four, six, both}, capabilities{four, six}, false},
		{"we do not speak of it", capabilities{four, six}, capabilities{four, six, both}, false},
		{"we name no family", capabilities{four, six, restart()}, capabilities{four, six, both}, false},
		{"we leave out one in use", capabilities{four, six, restart(gobgppacket.RF_IPv4_UC)}, capabilities{four, six, both}, false},
		{"we leave out the other in use", capabilities{four, six, restart(gobgppacket.RF_IPv6_UC)}, capabilities{four, six, both}, false},
		{"we leave out one that the peer does not take", capabilities{four, six, restart(gobgppacket.RF_IPv4_UC)}, capabilities{four, both}, true},
		{"a peer without multiprotocol extensions", capabilities{four, restart(gobgppacket.RF_IPv4_UC)}, capabilities{restart()}, true},
		{"no family in common", capabilities{four, both}, capabilities{six, both}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := keepsRoutes(test.local, test.remote); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// TestGracefulRestartIsRemembered: a session that is down still says what its peer does with the routes.
func TestGracefulRestartIsRemembered(t *testing.T) {
	tor := newSink(t, "127.0.0.29", 64512)
	speaker := newSpeaker(t, Options{})
	n := neighbor(tor, "203.0.113.1/32")
	n.GracefulRestart = true
	apply(t, speaker, n)
	untilSession(t, speaker, "is established, with it", func(s bgp.Session) bool { return s.State == bgp.Established && s.GracefulRestart })
	_ = tor.listener.Close()
	tor.reset()
	untilSession(t, speaker, "is down, and remembers it", func(s bgp.Session) bool { return s.State != bgp.Established && s.GracefulRestart })
}

func gracefulRestart(open *gobgppacket.BGPOpen) string {
	for _, parameter := range open.OptParams {
		capabilities, ok := parameter.(*gobgppacket.OptionParameterCapability)
		if !ok {
			continue
		}
		for _, capability := range capabilities.Capability {
			if c, ok := capability.(*gobgppacket.CapGracefulRestart); ok && len(c.Tuples) == 1 {
				return fmt.Sprintf("restarting=%t forwarding=%t time=%d", c.Flags&8 != 0, c.Tuples[0].Flags&0x80 != 0, c.Time)
			}
		}
	}
	return "none"
}

// TestNothingIsLeft starts and stops speakers and looks for their goroutines.
func TestNothingIsLeft(t *testing.T) {
	tor := newSink(t, "127.0.0.23", 64512)
	before := runtime.NumGoroutine()
	for _, mode := range []bgp.StopMode{bgp.Withdraw, bgp.Keep} {
		speaker := New(log.NewNopLogger(), Options{})
		apply(t, speaker, neighbor(tor, "203.0.113.1/32"))
		tor.has("203.0.113.1/32")
		if err := speaker.Stop(t.Context(), mode); err != nil {
			t.Fatal(err)
		}
		tor.reset()
		tor.mu.Lock()
		clear(tor.table)
		tor.mu.Unlock()
	}
	deadline := time.Now().Add(testTimeout)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		runtime.Gosched()
	}
}

// TestReadersBesideApply is for the race detector.
func TestReadersBesideApply(t *testing.T) {
	tor := newSink(t, "127.0.0.24", 64512)
	speaker := newSpeaker(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			speaker.Sessions()
			speaker.Announced(netip.MustParsePrefix("203.0.113.1/32"))
			runtime.Gosched()
		}
	}()
	for k := range 50 {
		n := neighbor(tor, "203.0.113.1/32", fmt.Sprintf("203.0.113.%d/32", 2+k))
		n.Routes[1].Communities = []bgp.Community{bgp.Community(k)}
		apply(t, speaker, n)
	}
	tor.has("203.0.113.51/32")
	cancel()
	<-done
}

// TestKeepLetsWithdrawalsOut stops right after a withdrawal. What GoBGP hasn't sent by then, peers
// would keep.
func TestKeepLetsWithdrawalsOut(t *testing.T) {
	tor := newSink(t, "127.0.0.28", 64512)
	speaker := newSpeaker(t, Options{})
	n := neighbor(tor)
	n.GracefulRestart = true
	n.Routes = manyRoutes(20_000)
	apply(t, speaker, n)
	tor.until("all prefixes", func() bool { return len(tor.table) == len(n.Routes) })
	n.Routes = nil
	apply(t, speaker, n)
	if err := speaker.Stop(t.Context(), bgp.Keep); err != nil {
		t.Fatal(err)
	}
	_ = tor.listener.Close()
	tor.wait.Wait() // the connection has been read to its end
	if left := tor.prefixes(); len(left) != 0 {
		t.Errorf("%d prefixes are left at the peer", len(left))
	}
}

// TestStopIsBounded: a call into GoBGP that hangs does not keep the process from ending.
func TestStopIsBounded(t *testing.T) {
	tor := newSink(t, "127.0.0.50", 64512)
	for _, hold := range []func(*Speaker) *sync.Mutex{
		func(s *Speaker) *sync.Mutex { return &s.applying },
		func(s *Speaker) *sync.Mutex { return &s.list()[0].applying },
	} {
		speaker := New(log.NewNopLogger(), Options{})
		apply(t, speaker, neighbor(tor))
		i, mu := speaker.list()[0], hold(speaker)
		mu.Lock()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := speaker.Stop(ctx, bgp.Keep); err == nil {
			t.Error("stopped, with a call under way")
		}
		mu.Unlock()
		if err := i.stop(t.Context(), bgp.Withdraw); err != nil {
			t.Error(err)
		}
	}
}

// TestPeerThatCannotBeRemovedNow is removed later, and the one that it should be comes then. Meanwhile a
// server that has to end, and can't, announces nothing.
func TestPeerThatCannotBeRemovedNow(t *testing.T) {
	tor := newSink(t, "127.0.0.51", 64512)
	speaker := newSpeaker(t, Options{})
	n := neighbor(tor, "203.0.113.1/32")
	apply(t, speaker, n)
	tor.has("203.0.113.1/32")
	i := speaker.list()[0]
	answers := func(ok bool) { // GoBGP's BFD server
		i.mu.Lock()
		i.bfdRuns[tor.address] = !ok
		i.mu.Unlock()
	}
	answers(false)
	n.HoldTime = 30 * time.Second
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := speaker.Apply(short, config(n)); err == nil {
		t.Fatal("no error")
	}
	answers(true)
	apply(t, speaker, n)
	tor.until("a session with the new hold time", func() bool { return len(tor.opens) == 2 && tor.opens[1].HoldTime == 30 })
	tor.has("203.0.113.1/32")

	tor.forget()
	answers(false)
	if err := speaker.Apply(t.Context(), bgp.Config{}); err == nil || len(speaker.list()) != 1 {
		t.Errorf("the server is forgotten, error %v", err)
	}
	tor.seen("withdraw 203.0.113.1/32")
	answers(true)
	if err := speaker.Apply(t.Context(), bgp.Config{}); err != nil || len(speaker.list()) != 0 {
		t.Errorf("the server is still there, error %v", err)
	}
	tor.seen("notification 6/3")
}

func TestBFDMemory(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	var memory bfdMemory
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{0, false}, {time.Second, false}, {2 * time.Second, false},
		{61 * time.Second, false}, // the first is too long ago
		{61 * time.Second, true},
		{700 * time.Second, false}, {701 * time.Second, false}, {702 * time.Second, false}, {703 * time.Second, true},
	} {
		if got := memory.down(start.Add(step.after)); got != step.want {
			t.Errorf("down after %s: suspended %t, want %t", step.after, got, step.want)
		}
	}
	if got := memory.suspendedUntil.Sub(start); got != 703*time.Second+bfdSuspension || memory.downs != 9 {
		t.Errorf("suspended until %s, after %d", got, memory.downs)
	}
}

// TestBFDIsSuspended: GoBGP's BFD runs while the session is established, not while it is suspended, and
// takes other parameters.
func TestBFDIsSuspended(t *testing.T) {
	tor := newSink(t, "127.0.0.47", 64512)
	speaker := newSpeaker(t, Options{})
	n := neighbor(tor, "203.0.113.1/32")
	n.BFD = bgp.BFD{ReceiveInterval: time.Second, TransmitInterval: time.Second, Multiplier: 3}
	apply(t, speaker, n)
	watched := func(want bool) {
		t.Helper()
		untilSession(t, speaker, fmt.Sprintf("is established, GoBGP watching its path: %t", want), func(s bgp.Session) bool {
			return s.State == bgp.Established && (len(speaker.list()[0].bfdPeers(t.Context())) == 1) == want
		})
	}
	watched(true)
	i := speaker.list()[0]
	for range maxBFDDowns {
		i.bfdEvent(tor.address, false)
	}
	i.wake() // in life the session's end does
	watched(false)
	untilSession(t, speaker, "is suspended", func(s bgp.Session) bool { return s.BFD == bgp.BFDSuspended })
	i.mu.Lock()
	i.sessions[tor.address].suspendedUntil = time.Now()
	i.mu.Unlock()
	i.wake()
	watched(true)
	if opens := len(tor.opens); opens != 1 {
		t.Errorf("%d sessions", opens)
	}
}

// TestLostConnection: a session that was lost comes back with the F bit, so that the peer keeps what
// it has, but one that does not stay up is left to GoBGP's patience.
func TestLostConnection(t *testing.T) {
	for _, test := range []struct {
		name      string
		address   string
		minUptime time.Duration
		want      string
	}{
		{"lost", "127.0.0.48", 0, "restarting=true forwarding=true time=30"},
		{"lost at once", "127.0.0.49", time.Hour, "restarting=false forwarding=false time=30"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tor := newSink(t, test.address, 64512)
			speaker := newSpeaker(t, Options{})
			speaker.minUptime = test.minUptime
			n := neighbor(tor, "203.0.113.1/32")
			n.GracefulRestart = true
			apply(t, speaker, n)
			tor.has("203.0.113.1/32")
			tor.reset()
			tor.until("a second session", func() bool { return len(tor.opens) == 2 })
			if got := gracefulRestart(tor.opens[1]); got != test.want {
				t.Errorf("capability %s, want %s", got, test.want)
			}
			tor.has("203.0.113.1/32")
			untilSession(t, speaker, "is up, with graceful restart", func(s bgp.Session) bool { return s.State == bgp.Established && s.GracefulRestart && s.LastError == "" })
		})
	}
}
