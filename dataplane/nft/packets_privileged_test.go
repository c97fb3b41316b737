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

// TestPackets sends packets through the table: from pods to the outside, and back.
func TestPackets(t *testing.T) {
	testbed.RequireTools(t, "nft", "ip")
	cases := []struct {
		name  string
		nodes int
		run   func(t *testing.T, w *world, a addresses)
	}{
		{"translated", 1, packetsTranslated},
		{"other node's pods", 1, packetsOfOtherNodes},
		{"no connection", 1, packetsOfNoConnection},
		{"held", 1, packetsHeld},
		{"internal", 1, packetsInternal},
		{"guarded", 1, packetsGuarded},
		{"to ports of Services", 1, packetsToServices},
		{"not guarded", 1, packetsNotGuarded},
		{"errors", 1, packetsWithErrors},
		{"path MTU", 1, packetsTooBig},
		{"fragments", 1, packetsInFragments},
		{"the same port", 1, packetsOfTheSamePort},
		{"taken over, pods first", 2, func(t *testing.T, w *world, a addresses) {
			packetsTakenOver(t, w, a, (*world).routePods, (*world).routeLB)
		}},
		{"taken over, outside first", 2, func(t *testing.T, w *world, a addresses) {
			packetsTakenOver(t, w, a, (*world).routeLB, (*world).routePods)
		}},
		{"back soon, pods first", 2, func(t *testing.T, w *world, a addresses) {
			packetsBackSoon(t, w, a, (*world).routePods, (*world).routeLB)
		}},
		{"back soon, outside first", 2, func(t *testing.T, w *world, a addresses) {
			packetsBackSoon(t, w, a, (*world).routeLB, (*world).routePods)
		}},
		{"back soon, in a zone", 2, func(t *testing.T, w *world, a addresses) {
			if a.version == "IPv4" { // the nodes are both families'
				w.inZone(t)
			}
			packetsBackSoon(t, w, a, (*world).routePods, (*world).routeLB)
		}},
		{"by two ways", 2, packetsByTwoWays},
		{"removed", 1, packetsRemoved},
		{"guarded later", 1, packetsGuardedLater},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.nodes)
			for _, a := range ipVersions() {
				t.Run(a.version, func(t *testing.T) { c.run(t, w, a) })
			}
		})
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func packetsTranslated(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	s := w.watch(t, a)
	for _, pod := range []netip.Addr{a.pod, a.other} {
		for _, network := range []string{"tcp", "udp"} {
			w.wantSeen(t, w.pods, network, w.from(pod), at(a.server, serverPort), a.lb)
		}
		w.pods.Send(t, testbed.EchoRequest(pod, a.server, 7))
		testbed.Eventually(t, "the echo comes back", func() bool {
			return len(s.arrived(func(p testbed.Packet) bool { return p.IsEchoReply() && p.Destination.Addr() == pod })) > 0
		})
		w.wantAssociation(t, s, a, pod)
	}
	testbed.Eventually(t, "all that left is counted", func() bool {
		s.settle(t, a)
		left := s.left(func(p testbed.Packet) bool {
			return slices.ContainsFunc(ipVersions(), func(v addresses) bool { return p.Source.Addr() == v.lb })
		})
		want := dataplane.Count{Packets: uint64(len(left))}
		for _, p := range left {
			want.Bytes += uint64(p.Length)
		}
		return cmp.Equal(tally{countedTranslated: want}, s.grown(t))
	})
	if list := s.left(func(p testbed.Packet) bool { return p.Source.Addr() == a.pod || p.Source.Addr() == a.other }); len(list) > 0 {
		t.Errorf("left with their own source: %v", list)
	}
}

// wantAssociation opens one of SCTP, always from the same port: where another pod's has it already,
// the node takes another port and has to write the checksum anew.
func (w *world) wantAssociation(t *testing.T, s *watch, a addresses, pod netip.Addr) {
	t.Helper()
	server := at(a.server, sctpPort)
	before := len(s.left(sentTo(server)))
	w.pods.Send(t, testbed.SCTPInit(at(pod, 5000), server))
	testbed.Eventually(t, "the association is seen", func() bool { return len(s.left(sentTo(server))) > before })
	p := s.left(sentTo(server))[before]
	if p.Source.Addr() != a.lb || !testbed.SCTPChecksumIsRight(p.Payload) {
		t.Errorf("%v, the checksum is right: %v; want the source %s", p, testbed.SCTPChecksumIsRight(p.Payload), a.lb)
	}
	if moved := p.Source.Port() != 5000; moved != (pod == a.other) {
		t.Errorf("%v of pod %s: the port is another one: %v", p, pod, moved)
	}
	// Nobody speaks SCTP there. The error has to reach the pod too.
	testbed.Eventually(t, "the error comes back", func() bool {
		return len(s.arrived(func(p testbed.Packet) bool {
			return p.Protocol == a.icmp && !p.IsEchoReply() && p.Source.Addr() == a.server && p.Destination.Addr() == pod
		})) > 0
	})
}

func packetsOfOtherNodes(t *testing.T, w *world, a addresses) {
	n, server := w.nodes[0], at(a.server, serverPort)
	n.apply(t, packetPlan())
	s := w.watch(t, a)
	for _, network := range []string{"tcp", "udp"} {
		w.wantSeen(t, w.pods, network, w.from(a.ordinary), server, a.ordinary)
	}
	s.wantGrown(t, tally{})
	for _, d := range opening(w, a, a.otherOrdinary) {
		w.wantDropped(t, a, w.pods, d, countedStrays)
	}
	// Its answers pass.
	s = w.watch(t, a)
	for _, network := range []string{"tcp", "udp"} {
		w.wantSeen(t, w.outside, network, w.from(a.server), at(a.otherOrdinary, httpTarget), a.server)
	}
	s.wantGrown(t, tally{})

	// So does what they send to a pod here, even if nothing is known to be internal.
	alone := packetPlan()
	alone.Internal = nil
	n.apply(t, alone)
	s = w.watch(t, a)
	w.wantSeen(t, w.outside, "udp", w.from(a.podBeyond), at(a.backend, httpTarget), a.podBeyond)
	s.wantGrown(t, tally{})

	passing := packetPlan()
	passing.Pods, passing.OwnPods = nil, nil
	n.apply(t, passing)
	s = w.watch(t, a)
	for _, network := range []string{"tcp", "udp"} {
		w.wantSeen(t, w.pods, network, w.from(a.otherOrdinary), server, a.otherOrdinary)
	}
	s.wantGrown(t, tally{})
}

// opening are datagrams that open a connection to the server, of each protocol.
func opening(w *world, a addresses, source netip.Addr) []testbed.Datagram {
	return []testbed.Datagram{
		testbed.TCPSegment(w.from(source), at(a.server, closedPort), testbed.SYN, ""),
		testbed.TCPSegment(w.from(source), at(a.server, closedPort), testbed.ACK|testbed.PSH, "picked up"),
		testbed.UDPDatagram(w.from(source), at(a.server, closedPort), "hello"),
		testbed.EchoRequest(source, a.server, w.from(source).Port()),
		testbed.SCTPInit(w.from(source), at(a.server, sctpPort)),
	}
}

func packetsOfNoConnection(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	for _, pod := range []netip.Addr{a.pod, a.ordinary, a.other, a.otherOrdinary} {
		for _, d := range invalid(w, pod, a.server) {
			w.wantDropped(t, a, w.pods, d, countedStrays)
		}
	}
}

// invalid are datagrams that connection tracking takes for nothing.
func invalid(w *world, source, destination netip.Addr) []testbed.Datagram {
	to := at(destination, closedPort)
	damaged := testbed.TCPSegment(w.from(source), to, testbed.SYN, "")
	damaged.Payload[16]++
	return []testbed.Datagram{
		testbed.TCPSegment(w.from(source), to, testbed.RST, ""),
		testbed.TCPSegment(w.from(source), to, testbed.RST|testbed.ACK, ""),
		testbed.TCPSegment(w.from(source), to, testbed.FIN|testbed.ACK, ""),
		testbed.TCPSegment(w.from(source), to, testbed.SYN|testbed.ACK, ""),
		testbed.TCPSegment(w.from(source), to, testbed.SYN|testbed.FIN|testbed.RST, ""),
		damaged,
		testbed.PortUnreachable(source, testbed.UDPDatagram(to, w.from(source), "of nobody")),
	}
}

func packetsHeld(t *testing.T, w *world, a addresses) {
	n := w.nodes[0]
	plan := packetPlan()
	for _, v := range ipVersions() {
		plan.Holds = append(plan.Holds, dataplane.Hold{Pod: v.backend, Service: waiting}, dataplane.Hold{Pod: v.otherOrdinary, Service: waiting})
	}
	n.apply(t, plan)
	for _, pod := range []netip.Addr{a.backend, a.otherOrdinary} {
		for _, d := range append(opening(w, a, pod), invalid(w, pod, a.server)...) {
			w.wantDropped(t, a, w.pods, d, countedHeld)
		}
	}
	s := w.watch(t, a)
	for _, network := range []string{"tcp", "udp"} {
		for _, inside := range []netip.Addr{a.podBeyond, a.nodeBeyond, a.node} {
			w.wantSeen(t, w.pods, network, w.from(a.backend), at(inside, serverPort), a.backend)
		}
	}
	w.wantServed(t, a)
	w.wantInitiated(t, a)
	s.wantGrown(t, tally{})
}

// wantServed connects from outside to the Service's ports of the LoadBalancer IP.
func (w *world) wantServed(t *testing.T, a addresses) {
	t.Helper()
	for network, port := range map[string]uint16{"tcp": httpPort, "udp": dnsPort} {
		s, client := w.watch(t, a), w.from(a.server)
		w.wantSeen(t, w.outside, network, client, at(a.lb, port), a.server)
		s.settle(t, a)
		answers := s.left(sentTo(client))
		if len(answers) == 0 {
			t.Errorf("%s: no answer left", network)
		}
		for _, p := range answers {
			if p.Source != at(a.lb, port) {
				t.Errorf("%s: answered by %v, want the LoadBalancer IP", network, p)
			}
		}
	}
}

// wantInitiated opens an association from outside. The pod answers by an error, speaking no SCTP.
func (w *world) wantInitiated(t *testing.T, a addresses) {
	t.Helper()
	s, client := w.watch(t, a), w.from(a.server)
	w.outside.Send(t, testbed.SCTPInit(client, at(a.lb, sctpPort)))
	testbed.Eventually(t, "the association reaches the pod", func() bool {
		return slices.ContainsFunc(s.arrived(sentTo(at(a.backend, sctpTarget))), func(p testbed.Packet) bool {
			return p.Source == client && testbed.SCTPChecksumIsRight(p.Payload)
		})
	})
	testbed.Eventually(t, "the pod's error reaches the client, from the LoadBalancer IP", func() bool {
		return len(s.left(func(p testbed.Packet) bool {
			return p.Protocol == a.icmp && p.Source.Addr() == a.lb && p.Destination.Addr() == a.server
		})) > 0
	})
}

func packetsInternal(t *testing.T, w *world, a addresses) {
	w.nodes[0].apply(t, packetPlan())
	s := w.watch(t, a)
	for _, pod := range []netip.Addr{a.pod, a.other, a.otherOrdinary} {
		for _, inside := range []netip.Addr{a.podBeyond, a.nodeBeyond, a.node} {
			for _, network := range []string{"tcp", "udp"} {
				w.wantSeen(t, w.pods, network, w.from(pod), at(inside, serverPort), pod)
			}
		}
		w.pods.Send(t, testbed.EchoRequest(pod, a.podBeyond, 7))
		testbed.Eventually(t, "the echo comes back", func() bool {
			return len(s.arrived(func(p testbed.Packet) bool { return p.IsEchoReply() && p.Destination.Addr() == pod })) > 0
		})
	}
	s.settle(t, a)
	s.wantGrown(t, tally{})
}
