// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package nft

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

// tally is what was counted, by what it is.
type tally map[string]dataplane.Count

const (
	countedStrays     = "strays"
	countedTranslated = "translated " + served
	countedHeld       = "held " + waiting
	countedInvalid    = "guarded invalid"
	countedMidstream  = "guarded midstream"
	countedClosed     = "guarded closed"
)

func tallyOf(c dataplane.HostCounters) tally {
	all := tally{countedStrays: c.Strays}
	for reason, count := range c.Guarded {
		all["guarded "+reason] = count
	}
	for service, count := range c.Translated {
		all["translated "+service] = count
	}
	for service, count := range c.Held {
		all["held "+service] = count
	}
	return all
}

// watch is what has passed the first node's wires and was counted there since it began.
type watch struct {
	w            *world
	node         *node
	pods, uplink int
	before       tally
}

func (w *world) watch(t *testing.T, a addresses) *watch {
	t.Helper()
	s := &watch{w: w, node: w.nodes[0]}
	s.settle(t, a) // what the captures get from here on was not counted before
	s.pods, s.uplink, s.before = s.node.pods.Count(), s.node.uplink.Count(), tallyOf(s.node.counters(t))
	return s
}

// grown is what was counted since, without what was not.
func (s *watch) grown(t *testing.T) tally {
	t.Helper()
	all := tally{}
	for name, now := range tallyOf(s.node.counters(t)) {
		before := s.before[name]
		if now != before {
			all[name] = dataplane.Count{Packets: now.Packets - before.Packets, Bytes: now.Bytes - before.Bytes}
		}
	}
	return all
}

func (s *watch) wantGrown(t *testing.T, want tally) {
	t.Helper()
	if d := cmp.Diff(want, s.grown(t)); d != "" {
		t.Errorf("counted (-want +got):\n%s", d)
	}
}

// left are packets that came out of the node's uplink.
func (s *watch) left(match func(testbed.Packet) bool) []testbed.Packet {
	return s.node.uplink.Since(s.uplink, func(p testbed.Packet) bool { return !p.Out && match(p) })
}

// entered are packets that the outside has put on the uplink.
func (s *watch) entered(match func(testbed.Packet) bool) []testbed.Packet {
	return s.node.uplink.Since(s.uplink, func(p testbed.Packet) bool { return p.Out && match(p) })
}

// arrived are packets that came out of the management port.
func (s *watch) arrived(match func(testbed.Packet) bool) []testbed.Packet {
	return s.node.pods.Since(s.pods, func(p testbed.Packet) bool { return !p.Out && match(p) })
}

// settle waits until the captures have what passed before: a datagram that nobody translates, and
// its answer, which come after it.
func (s *watch) settle(t *testing.T, a addresses) {
	t.Helper()
	source := s.w.from(a.ordinary)
	s.w.pods.Dial(t, "udp", source, netip.AddrPortFrom(a.podBeyond, serverPort))
	testbed.Eventually(t, "the captures have caught up", func() bool {
		return len(s.left(sentBy(source))) > 0 && len(s.arrived(sentTo(source))) > 0
	})
}

func sentBy(source netip.AddrPort) func(testbed.Packet) bool {
	return func(p testbed.Packet) bool { return p.Source == source }
}

func sentTo(destination netip.AddrPort) func(testbed.Packet) bool {
	return func(p testbed.Packet) bool { return p.Destination == destination }
}

// alike are packets of the same protocol to the same destination, whatever source they have by now.
func alike(d testbed.Datagram) func(testbed.Packet) bool {
	one := d.Packet()
	return func(p testbed.Packet) bool { return p.Protocol == one.Protocol && p.Destination == one.Destination }
}

// wantDropped sends a datagram from pods or outside, and wants it to be counted, to go nowhere, to
// have no answer, and to leave no connection behind.
func (w *world) wantDropped(t *testing.T, a addresses, from *testbed.Namespace, d testbed.Datagram, counted string) {
	t.Helper()
	s, one := w.watch(t, a), d.Packet()
	from.Send(t, d)
	testbed.Eventually(t, "it is counted: "+one.String(), func() bool { return len(s.grown(t)) > 0 })
	s.settle(t, a)
	s.wantGrown(t, tally{counted: {Packets: 1, Bytes: uint64(one.Length)}})
	answer := func(p testbed.Packet) bool {
		return p.Protocol == one.Protocol && p.Destination == one.Source || p.Protocol == a.icmp && p.Destination.Addr() == one.Source.Addr()
	}
	passed, answers := s.left(alike(d)), s.arrived(answer)
	if from == w.outside {
		same := func(p testbed.Packet) bool { return p.Protocol == one.Protocol && p.Source == one.Source }
		passed, answers = slices.Concat(passed, s.arrived(same)), s.left(answer)
		if list := s.entered(alike(d)); len(list) != 1 {
			t.Errorf("crossed the uplink: %v; want it once", list)
		}
	}
	if len(passed) > 0 || len(answers) > 0 {
		t.Errorf("%v: passed as %v, answered by %v", one, passed, answers)
	}
	if list := s.node.Connections(t, func(c testbed.Connection) bool {
		return c.Protocol == one.Protocol && c.Source == one.Source && c.Destination == one.Destination
	}); len(list) > 0 {
		t.Errorf("connections left: %v", list)
	}
}

// wantSeen opens a connection from pods or outside, and wants the other side to see a source.
func (w *world) wantSeen(t *testing.T, from *testbed.Namespace, network string, source, to netip.AddrPort, seen netip.Addr) *testbed.Conn {
	t.Helper()
	c := from.Dial(t, network, source, to)
	if want := netip.AddrPortFrom(seen, source.Port()); c.Seen != want {
		t.Errorf("%s from %s to %s is seen as %s, want %s", network, source, to, c.Seen, want)
	}
	return c
}
