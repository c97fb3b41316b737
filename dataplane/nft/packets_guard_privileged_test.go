// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

// answerDeadline is how long an error is awaited.
const answerDeadline = 10 * time.Second

// wantEchoed exchanges a message over an open connection.
func wantEchoed(t *testing.T, c *testbed.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Errorf("write: %v", err)
	}
	answer := make([]byte, len(message))
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != message {
		t.Errorf("echoed %q, error %v; want %q", answer, err, message)
	}
}

func packetsGuarded(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	client := func() netip.AddrPort { return w.from(a.server) }
	for _, d := range []testbed.Datagram{
		testbed.TCPSegment(client(), at(a.lb, closedPort), testbed.SYN, ""),
		testbed.TCPSegment(client(), at(a.lb, dnsPort), testbed.SYN, ""), // a Service's port, of UDP
		testbed.UDPDatagram(client(), at(a.lb, closedPort), "hello"),
		testbed.EchoRequest(a.server, a.lb, client().Port()),
		testbed.SCTPInit(client(), at(a.lb, closedPort)),
	} {
		w.wantDropped(t, a, w.outside, d, countedClosed)
	}
	for _, port := range []uint16{httpPort, closedPort} {
		d := testbed.TCPSegment(client(), at(a.lb, port), testbed.ACK|testbed.PSH, "of another connection")
		w.wantDropped(t, a, w.outside, d, countedMidstream)
	}
	for _, d := range invalid(w, a.server, a.lb) {
		w.wantDropped(t, a, w.outside, d, countedInvalid)
	}
}

func packetsToServices(t *testing.T, w *world, a addresses) {
	n := w.nodes[0]
	n.apply(t, packetPlan())
	s := w.watch(t, a)
	w.wantServed(t, a)
	w.wantInitiated(t, a)
	s.wantGrown(t, tally{})

	// A Service that shares the address and is no egress service.
	w.wantDropped(t, a, w.outside, testbed.TCPSegment(w.from(a.server), at(a.lb, httpsPort), testbed.SYN, ""), countedClosed)
	shared := packetPlan()
	for i := range shared.Guards {
		shared.Guards[i].Ports = append(shared.Guards[i].Ports, dataplane.Port{Protocol: dataplane.TCP, Number: httpsPort})
	}
	n.apply(t, shared)
	s = w.watch(t, a)
	open := w.wantSeen(t, w.outside, "tcp", w.from(a.server), at(a.lb, httpsPort), a.server)
	w.wantServed(t, a)
	s.wantGrown(t, tally{})
	// When its port goes its open connections stay.
	n.apply(t, packetPlan())
	w.wantDropped(t, a, w.outside, testbed.TCPSegment(w.from(a.server), at(a.lb, httpsPort), testbed.SYN, ""), countedClosed)
	s = w.watch(t, a)
	wantEchoed(t, open, "still there")
	s.wantGrown(t, tally{})
}

// packetsNotGuarded: other addresses are left alone, and so are the neighbors' own messages.
func packetsNotGuarded(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	list := []testbed.Datagram{
		testbed.TCPSegment(w.from(a.server), at(a.unguarded, closedPort), testbed.SYN, ""),
		testbed.TCPSegment(w.from(a.server), at(a.unguarded, httpPort), testbed.ACK|testbed.PSH, "of another connection"),
		testbed.UDPDatagram(w.from(a.server), at(a.unguarded, closedPort), "hello"),
		testbed.EchoRequest(a.server, a.unguarded, w.from(a.server).Port()),
	}
	if a.lb.Is6() {
		list = append(list, testbed.NeighborSolicitation(a.server, a.lb))
	}
	for _, d := range list {
		s := w.watch(t, a)
		// The outside has a route to it by the node, and the node one by the outside.
		d.HopLimit = 3
		w.outside.Send(t, d)
		testbed.Eventually(t, "it comes out again: "+d.Packet().String(), func() bool { return len(s.left(alike(d))) > 0 })
		s.wantGrown(t, tally{})
	}
}

// packetsWithErrors has the outside and the pods answer by errors.
func packetsWithErrors(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	for _, pod := range []netip.Addr{a.pod, a.other} {
		s, source := w.watch(t, a), w.from(pod)
		w.wantRefused(t, source, at(a.server, closedPort))
		// What comes late is refused by the pod, whose error is translated as well.
		w.wantSeen(t, w.pods, "udp", source, at(a.server, serverPort), a.lb).Close()
		w.outside.Send(t, testbed.UDPDatagram(at(a.server, serverPort), netip.AddrPortFrom(a.lb, source.Port()), "late"))
		testbed.Eventually(t, "the pod's error leaves", func() bool {
			return slices.ContainsFunc(s.left(testbed.Packet.IsUnreachable), func(p testbed.Packet) bool {
				return p.Source.Addr() == a.lb && p.Destination.Addr() == a.server
			})
		})
		s.settle(t, a)
		if list := s.left(func(p testbed.Packet) bool { return p.Source.Addr() == pod }); len(list) > 0 {
			t.Errorf("left with their own source: %v", list)
		}
		wantTranslatedOnly(t, s)
	}
}

// wantRefused sends a datagram to a port that is closed, which the error tells the sender.
func (w *world) wantRefused(t *testing.T, source, to netip.AddrPort) {
	t.Helper()
	w.pods.Do(t, func() {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(source), net.UDPAddrFromAddrPort(to))
		if err != nil {
			t.Errorf("dial: %v", err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(answerDeadline))
		_, _ = c.Write([]byte("hello"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to %s: %v, want it refused", source, to, err)
		}
	})
}

// packetsTooBig has a router outside tell a pod that its segments are too big.
func packetsTooBig(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	for _, pod := range []netip.Addr{a.pod, a.other} {
		s := w.watch(t, a)
		c := w.wantSeen(t, w.pods, "tcp", w.from(pod), at(a.far, serverPort), a.lb)
		wantEchoed(t, c, strings.Repeat("0123456789", 10_000))
		if route := w.pods.Run(t, "ip", "route", "get", a.far.String(), "from", pod.String()); !strings.Contains(route, fmt.Sprintf("mtu %d", narrow)) {
			t.Errorf("route: %s; want the MTU %d", route, narrow)
		}
		s.settle(t, a)
		wantTranslatedOnly(t, s)
	}
}

// packetsOfTheSamePort: what a pod opens from a Service's port and what comes to that port don't
// get into each other's way.
func packetsOfTheSamePort(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	s := w.watch(t, a)
	server := at(a.server, serverPort)
	for network, port := range map[string]uint16{"tcp": httpPort, "udp": dnsPort} {
		before := w.wantSeen(t, w.outside, network, w.from(a.server), at(a.lb, port), a.server)
		opened := w.wantSeen(t, w.pods, network, at(a.pod, port), server, a.lb)
		after := w.wantSeen(t, w.outside, network, w.from(a.server), at(a.lb, port), a.server)
		if network == "tcp" {
			for _, c := range []*testbed.Conn{before, opened, after, opened, before} {
				wantEchoed(t, c, c.LocalAddr().String())
			}
		}
	}
	wantTranslatedOnly(t, s)

	// What a client has taken already the pod does not get.
	client := w.from(a.server)
	w.wantSeen(t, w.outside, "udp", client, at(a.lb, dnsPort), a.server)
	s = w.watch(t, a)
	w.pods.Send(t, testbed.UDPDatagram(at(a.pod, dnsPort), client, "from the same port"))
	testbed.Eventually(t, "it leaves from another port", func() bool {
		return slices.ContainsFunc(s.left(sentTo(client)), func(p testbed.Packet) bool {
			return p.Source.Addr() == a.lb && p.Source.Port() != dnsPort
		})
	})
}

// packetsInFragments are datagrams that don't fit a wire.
func packetsInFragments(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	s, large := w.watch(t, a), strings.Repeat("0123456789", 300)
	fragments := func(d testbed.Datagram) func(testbed.Packet) bool {
		return func(p testbed.Packet) bool {
			return p.Destination.Addr() == d.Destination && p.Protocol != a.icmp && p.Length > 60
		}
	}
	d := testbed.UDPDatagram(w.from(a.pod), at(a.server, closedPort), large)
	w.pods.Send(t, d)
	testbed.Eventually(t, "all fragments leave", func() bool { return len(s.left(fragments(d))) == 3 })
	for _, p := range s.left(fragments(d)) {
		if p.Source.Addr() != a.lb {
			t.Errorf("%v, want the source %s", p, a.lb)
		}
	}
	s.wantGrown(t, tally{countedTranslated: {Packets: 1, Bytes: uint64(d.Packet().Length)}})

	s, d = w.watch(t, a), testbed.UDPDatagram(w.from(a.server), at(a.lb, dnsPort), large)
	w.outside.Send(t, d)
	inside := testbed.Datagram{Destination: a.backend}
	testbed.Eventually(t, "all fragments reach the pod", func() bool { return len(s.arrived(fragments(inside))) == 3 })
	s.wantGrown(t, tally{})

	s, d = w.watch(t, a), testbed.UDPDatagram(w.from(a.server), at(a.lb, closedPort), large)
	w.outside.Send(t, d)
	testbed.Eventually(t, "the whole is counted", func() bool { return len(s.grown(t)) > 0 })
	s.settle(t, a)
	s.wantGrown(t, tally{countedClosed: {Packets: 1, Bytes: uint64(d.Packet().Length)}})
	if list := s.left(fragments(d)); len(list) > 0 {
		t.Errorf("came out of the uplink: %v", list)
	}
}

func wantTranslatedOnly(t *testing.T, s *watch) {
	t.Helper()
	if got := s.grown(t); len(got) != 1 || got[countedTranslated].Packets == 0 {
		t.Errorf("counted %v, want %s only", got, countedTranslated)
	}
}
