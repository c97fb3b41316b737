// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package nft

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/conntrack"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

const streamInterval = 10 * time.Millisecond

// stream sends messages over a connection, one each interval, and has them come back in order.
type stream struct {
	echoed atomic.Int64
	failed chan error // receives what ended it
}

func newStream(t *testing.T, c *testbed.Conn) *stream {
	t.Helper()
	s, stop := &stream{failed: make(chan error, 2)}, make(chan struct{})
	go func() {
		tick := time.NewTicker(streamInterval)
		defer tick.Stop()
		for i := 0; ; i++ {
			if _, err := io.WriteString(c, message(i)); err != nil {
				s.failed <- err
				return
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	go func() {
		answer := make([]byte, len(message(0)))
		for i := 0; ; i++ {
			if _, err := io.ReadFull(c, answer); err != nil {
				s.failed <- err
				return
			} else if string(answer) != message(i) {
				s.failed <- fmt.Errorf("message %q came back as %q", message(i), answer)
				return
			}
			s.echoed.Add(1)
		}
	}()
	t.Cleanup(func() { close(stop) })
	return s
}

func message(i int) string { return fmt.Sprintf("%08d\n", i) }

// wantMore waits for so many messages to come back.
func (s *stream) wantMore(t *testing.T, messages int64) {
	t.Helper()
	until := s.echoed.Load() + messages
	testbed.Eventually(t, "the messages come back", func() bool {
		select {
		case err := <-s.failed:
			t.Fatalf("after %d messages: %v", s.echoed.Load(), err)
		default:
		}
		return s.echoed.Load() >= until
	})
}

// standby is packetPlan while another node is the primary.
func standby() dataplane.Host {
	plan := packetPlan()
	plan.Accounts = nil
	return plan
}

// give makes a node hold a plan, and ends the connections that are over with it.
func (n *node) give(t *testing.T, plan dataplane.Host) {
	t.Helper()
	n.end(t, n.take(t, plan))
}

// take makes a node hold a plan, and returns the pairs whose connections are to be ended.
func (n *node) take(t *testing.T, plan dataplane.Host) []dataplane.Translation {
	t.Helper()
	var leaving []dataplane.Translation
	n.Do(t, func() {
		ctx := context.Background()
		if _, err := n.applier.Add(ctx, plan); err != nil {
			t.Errorf("Add: %v", err)
		}
		var err error
		if leaving, err = n.applier.Remove(ctx, plan); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
	return leaving
}

// end ends connections and returns their number.
func (n *node) end(t *testing.T, leaving []dataplane.Translation) uint {
	t.Helper()
	var ended uint
	n.Do(t, func() {
		cleaner, err := conntrack.New()
		if err != nil {
			t.Errorf("conntrack: %v", err)
			return
		}
		defer cleaner.Close()
		if ended, err = cleaner.End(leaving); err != nil {
			t.Errorf("End: %v", err)
		}
		if err := n.applier.Forget(context.Background(), leaving); err != nil {
			t.Errorf("Forget: %v", err)
		}
	})
	return ended
}

// streamBy begins a connection of a pod, both ways by the first node; the second node has this plan.
func (w *world) streamBy(t *testing.T, a addresses, second dataplane.Host) (s *stream, source, server netip.AddrPort) {
	t.Helper()
	w.routePods(t, 1)
	w.routeLB(t, 1)
	w.nodes[0].give(t, packetPlan())
	w.nodes[1].give(t, second)
	source, server = w.from(a.pod), at(a.server, serverPort)
	s = newStream(t, w.wantSeen(t, w.pods, "tcp", source, server, a.lb))
	s.wantMore(t, 10)
	return s, source, server
}

// packetsTakenOver moves the two ways of an open connection to another node, and back.
func packetsTakenOver(t *testing.T, w *world, a addresses, first, second func(*world, *testing.T, int)) {
	s, source, server := w.streamBy(t, a, standby())
	for _, to := range []int{2, 1} {
		w.takeOver(t, source.Port(), to, first, second)
		s.wantMore(t, 50)
		// So far the node was standby.
		next, last := w.nodes[to-1], w.nodes[2-to]
		next.give(t, packetPlan())
		last.give(t, standby())
		s.wantMore(t, 10)
		if got := next.counters(t).Translated[served]; got.Packets < 10 {
			t.Errorf("node %d has translated %v, want more than 10 packets", to, got)
		}
	}
	for i, n := range w.nodes {
		list := n.uplink.Since(0, func(p testbed.Packet) bool { return !p.Out && p.Destination == server })
		if len(list) < 50 {
			t.Errorf("only %d packets left node %d", len(list), i+1)
		}
		for _, p := range list {
			if p.Source != netip.AddrPortFrom(a.lb, source.Port()) {
				t.Fatalf("left node %d: %v; want the source %s", i+1, p, a.lb)
			}
		}
	}
}

// packetsBackSoon moves the two ways of an open connection to another node and, while the first still
// remembers it, back: as that node becomes primary, what it remembers is loosened.
func packetsBackSoon(t *testing.T, w *world, a addresses, first, second func(*world, *testing.T, int)) {
	s, source, _ := w.streamBy(t, a, packetPlan())
	for _, to := range []int{2, 1} {
		if n := w.nodes[to-1].loosen(t, a.pod); n != 1 && to == 1 {
			t.Errorf("%d connections loosened, want 1", n)
		}
		w.takeOver(t, source.Port(), to, first, second)
		s.wantMore(t, 60)
	}
}

// inZone has the nodes track all connections in a zone, as Open vSwitch does those that pass it.
func (w *world) inZone(t *testing.T) {
	t.Helper()
	for _, n := range w.nodes {
		n.Run(t, "nft", "table inet tracked { chain early { type filter hook prerouting priority -300; ct zone set 7; }; }")
	}
}

// packetsByTwoWays: while a service moves away, the pod's packets take the new way and the answers the old
// one, through a node that is loosened when it ceases to be the primary.
func packetsByTwoWays(t *testing.T, w *world, a addresses) {
	s, _, _ := w.streamBy(t, a, packetPlan())
	if n := w.nodes[0].loosen(t, a.pod); n != 1 {
		t.Errorf("%d connections loosened, want 1", n)
	}
	w.routePods(t, 2)
	s.wantMore(t, 100)
}

func (n *node) loosen(t *testing.T, pod netip.Addr) uint {
	t.Helper()
	var loosened uint
	n.Do(t, func() {
		cleaner, err := conntrack.New()
		if err != nil {
			t.Errorf("conntrack: %v", err)
			return
		}
		defer cleaner.Close()
		if loosened, err = cleaner.Loosen([]netip.Addr{pod}, packetPlan().Internal); err != nil {
			t.Errorf("Loosen: %v", err)
		}
	})
	return loosened
}

// takeOver moves one way of the connection with this port, and the other when packets have passed.
func (w *world) takeOver(t *testing.T, port uint16, to int, first, second func(*world, *testing.T, int)) {
	t.Helper()
	uplink := w.nodes[to-1].uplink
	before := uplink.Count()
	first(w, t, to)
	testbed.Eventually(t, "one way is by the other node", func() bool {
		return len(uplink.Since(before, func(p testbed.Packet) bool {
			return p.Source.Port() == port || p.Destination.Port() == port
		})) >= 3
	})
	second(w, t, to)
}

// packetsRemoved: a connection whose translation was removed keeps nothing of it, others keep all.
func packetsRemoved(t *testing.T, w *world, a addresses) {
	n, server := w.nodes[0], at(a.server, serverPort)
	n.give(t, packetPlan())
	source := w.from(a.pod)
	over := w.wantSeen(t, w.pods, "tcp", source, server, a.lb)
	stays := w.wantSeen(t, w.pods, "tcp", w.from(a.other), server, a.lb)
	comes := w.wantSeen(t, w.outside, "tcp", w.from(a.server), at(a.lb, httpPort), a.server)

	plan := packetPlan()
	plan.Translations = slices.DeleteFunc(plan.Translations, func(p dataplane.Translation) bool { return p.Pod == a.pod })
	leaving := n.take(t, plan)
	if d := cmp.Diff([]dataplane.Translation{{Pod: a.pod, Source: a.lb}}, leaving, byValue); d != "" {
		t.Errorf("leaving (-want +got):\n%s", d)
	}
	wantEchoed(t, over, "as long as its connection is not ended")
	w.acknowledged(t, over)
	if ended := n.end(t, leaving); ended != 1 {
		t.Errorf("%d connections ended, want 1", ended)
	}

	s := w.watch(t, a)
	if _, err := io.WriteString(over, "the next one"); err != nil {
		t.Errorf("write: %v", err)
	}
	testbed.Eventually(t, "the next one leaves with its own source", func() bool { return len(s.left(sentBy(source))) > 0 })
	lbSource := netip.AddrPortFrom(a.lb, source.Port())
	if list := s.left(sentBy(lbSource)); len(list) > 0 {
		t.Errorf("left with the LoadBalancer IP: %v", list)
	}
	if list := n.Connections(t, func(c testbed.Connection) bool { return c.ReplyDestination == lbSource }); len(list) > 0 {
		t.Errorf("connections left: %v", list)
	}
	s.wantGrown(t, tally{})
	w.wantDropped(t, a, w.outside, testbed.TCPSegment(server, lbSource, testbed.ACK|testbed.PSH, "late"), countedMidstream)
	wantEchoed(t, stays, "of another pod")
	wantEchoed(t, comes, "of a client")
	w.acknowledged(t, stays)
	w.wantStraying(t, a, stays)
}

// acknowledged waits until the pod has acknowledged what came last, so that nobody repeats anything.
func (w *world) acknowledged(t *testing.T, c *testbed.Conn) {
	t.Helper()
	testbed.Eventually(t, "the last message is acknowledged", func() bool {
		all := w.nodes[0].uplink.Since(0, func(p testbed.Packet) bool { return p.Source == c.Seen || p.Destination == c.Seen })
		return !all[len(all)-1].Out
	})
}

// wantStraying removes the translation of a connection of another node's pod, whose next packet must
// not leave at all.
func (w *world) wantStraying(t *testing.T, a addresses, c *testbed.Conn) {
	t.Helper()
	n, plan := w.nodes[0], packetPlan()
	plan.Translations = slices.DeleteFunc(plan.Translations, func(p dataplane.Translation) bool { return p.Pod == a.other })
	n.give(t, plan)
	s := w.watch(t, a)
	if _, err := io.WriteString(c, "the next one"); err != nil {
		t.Errorf("write: %v", err)
	}
	testbed.Eventually(t, "the next one is dropped", func() bool { return s.grown(t)[countedStrays].Packets > 0 })
	_ = c.Close()
	s.settle(t, a)
	if list := s.left(func(p testbed.Packet) bool {
		return p.Protocol == unix.IPPROTO_TCP && p.Destination == at(a.server, serverPort)
	}); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// packetsGuardedLater: what came to the address before it was guarded leaves nothing that the guard
// would take for a connection. What reached a pod stays.
func packetsGuardedLater(t *testing.T, w *world, a addresses) {
	n, plan := w.nodes[0], packetPlan()
	plan.Guards = nil
	n.give(t, plan)
	s := w.watch(t, a)
	comes := w.wantSeen(t, w.outside, "tcp", w.from(a.server), at(a.lb, httpPort), a.server)
	stray := testbed.UDPDatagram(w.from(a.server), at(a.lb, closedPort), "before")
	stray.HopLimit = 3
	w.outside.Send(t, stray)
	testbed.Eventually(t, "it comes out again", func() bool { return len(s.left(alike(stray))) > 0 })

	n.Do(t, func() {
		if _, err := n.applier.Add(context.Background(), packetPlan()); err != nil {
			t.Errorf("Add: %v", err)
		}
		cleaner, err := conntrack.New()
		if err != nil {
			t.Errorf("conntrack: %v", err)
			return
		}
		defer cleaner.Close()
		if ended, err := cleaner.EndStrays([]netip.Addr{a.lb}); err != nil || ended != 1 {
			t.Errorf("%d entries ended, error %v; want 1", ended, err)
		}
	})
	stray.HopLimit = 0
	w.wantDropped(t, a, w.outside, stray, countedClosed)
	wantEchoed(t, comes, "from before")
}
