// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package nft

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

const (
	serverPort = 7000
	// closedPort is one that nothing answers at.
	closedPort = 9
	// Ports of Services, and those of the pod that they lead to.
	httpPort, httpsPort, dnsPort, sctpPort = 80, 443, 53, 3868
	httpTarget, dnsTarget, sctpTarget      = 8080, 5353, 38412
)

// The services: the pods of the first one are translated, those of the second one may be held.
const served, waiting = "ns/a", "ns/b"

// narrow is the MTU on the way to a family's server far.
const narrow = 1300

// addresses are those of one IP version.
type addresses struct {
	version string
	icmp    uint8
	// Pods behind the management port. Of the first node: one that is translated, the one that Services
	// lead to, and one in no map. Of another node: one that is translated and one in no map.
	pod, backend, ordinary, other, otherOrdinary netip.Addr
	// Inside the cluster beyond the uplink: a pod and a node. And the first node itself.
	podBeyond, nodeBeyond, node netip.Addr
	lb, unguarded               netip.Addr
	// Outside. The second one is behind a narrow link.
	server, far netip.Addr

	pods, ownPods netip.Prefix
}

func ipVersions() []addresses {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	return []addresses{{
		version: "IPv4", icmp: unix.IPPROTO_ICMP,
		pod: a("10.244.1.5"), backend: a("10.244.1.9"), ordinary: a("10.244.1.7"), other: a("10.244.2.5"), otherOrdinary: a("10.244.2.9"),
		podBeyond: a("10.244.3.5"), nodeBeyond: a("172.18.0.12"), node: a("172.18.1.11"),
		lb: a("172.19.0.100"), unguarded: a("172.19.0.101"), server: a("198.51.100.7"), far: a("203.0.113.7"),
		pods: p("10.244.0.0/16"), ownPods: p("10.244.1.0/24"),
	}, {
		version: "IPv6", icmp: unix.IPPROTO_ICMPV6,
		pod: a("fd00:10:244:1::5"), backend: a("fd00:10:244:1::9"), ordinary: a("fd00:10:244:1::7"), other: a("fd00:10:244:2::5"), otherOrdinary: a("fd00:10:244:2::9"),
		podBeyond: a("fd00:10:244:3::5"), nodeBeyond: a("fc00:18::12"), node: a("fc00:18:1::11"),
		lb: a("fd00:19::100"), unguarded: a("fd00:19::101"), server: a("2001:db8::7"), far: a("2001:db8:f::7"),
		pods: p("fd00:10:244::/48"), ownPods: p("fd00:10:244:1::/64"),
	}}
}

// kubeProxy is the table of somebody else that leads Services to a pod.
const kubeProxy = `table inet kube-proxy {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 172.19.0.100 tcp dport { 80, 443 } dnat ip to 10.244.1.9:8080
		ip daddr 172.19.0.100 udp dport 53 dnat ip to 10.244.1.9:5353
		ip daddr 172.19.0.100 sctp dport 3868 dnat ip to 10.244.1.9:38412
		ip6 daddr fd00:19::100 tcp dport { 80, 443 } dnat ip6 to [fd00:10:244:1::9]:8080
		ip6 daddr fd00:19::100 udp dport 53 dnat ip6 to [fd00:10:244:1::9]:5353
		ip6 daddr fd00:19::100 sctp dport 3868 dnat ip6 to [fd00:10:244:1::9]:38412
	}
}`

// packetPlan is a primary's, of both IP versions.
func packetPlan() dataplane.Host {
	h := dataplane.Host{Counted: []string{served, waiting}}
	for _, a := range ipVersions() {
		bits := a.lb.BitLen()
		h.Internal = append(h.Internal, a.pods, netip.PrefixFrom(a.nodeBeyond, bits), netip.PrefixFrom(a.node, bits))
		h.Translations = append(h.Translations, dataplane.Translation{Pod: a.pod, Source: a.lb}, dataplane.Translation{Pod: a.other, Source: a.lb})
		h.Accounts = append(h.Accounts, dataplane.Account{Source: a.lb, Service: served})
		h.Pods, h.OwnPods = append(h.Pods, a.pods), append(h.OwnPods, a.ownPods)
		h.Guards = append(h.Guards, dataplane.Guard{Address: a.lb, Ports: []dataplane.Port{
			{Protocol: dataplane.TCP, Number: httpPort}, {Protocol: dataplane.UDP, Number: dnsPort}, {Protocol: dataplane.SCTP, Number: sctpPort},
		}})
	}
	return h
}

// world is pods, nodes and the outside. Every node is on a way of its own from the pods to the
// outside; both sides have routes by the first one.
type world struct {
	pods, outside *testbed.Namespace
	nodes         []*node
	port          uint16 // the last one that source gave
}

// node is a node's host, with captures where its wires end.
type node struct {
	*testbed.Namespace
	applier      *Applier
	pods, uplink *testbed.Capture
}

func newWorld(t *testing.T, nodes int) *world {
	t.Helper()
	w := &world{pods: testbed.NewNamespace(t), outside: testbed.NewNamespace(t), port: 20000}
	far := testbed.NewNamespace(t)
	testbed.Wire(t, w.outside, "far", far, "tor")
	far.Configure(t, farCommands)
	w.outside.Configure(t, fmt.Sprintf(outsideCommands, narrow))
	w.outside.Forward(t)
	w.pods.Configure(t, podCommands)
	for i := range nodes {
		w.nodes = append(w.nodes, w.newNode(t, i+1))
	}
	w.routePods(t, 1)
	w.routeLB(t, 1)
	for _, a := range ipVersions() {
		for _, server := range []netip.Addr{a.server, a.podBeyond, a.nodeBeyond} {
			w.outside.Echo(t, netip.AddrPortFrom(server, serverPort))
		}
		far.Echo(t, netip.AddrPortFrom(a.far, serverPort))
		w.nodes[0].Echo(t, netip.AddrPortFrom(a.node, serverPort))
		w.pods.Echo(t, netip.AddrPortFrom(a.backend, httpTarget))
		w.pods.Echo(t, netip.AddrPortFrom(a.backend, dnsTarget))
		w.pods.Echo(t, netip.AddrPortFrom(a.otherOrdinary, httpTarget))
	}
	return w
}

const (
	podCommands = `
		addr add 10.244.1.5/32 dev lo
		addr add 10.244.1.7/32 dev lo
		addr add 10.244.1.9/32 dev lo
		addr add 10.244.2.5/32 dev lo
		addr add 10.244.2.9/32 dev lo
		addr add fd00:10:244:1::5/128 dev lo
		addr add fd00:10:244:1::7/128 dev lo
		addr add fd00:10:244:1::9/128 dev lo
		addr add fd00:10:244:2::5/128 dev lo
		addr add fd00:10:244:2::9/128 dev lo`
	outsideCommands = `
		addr add 198.51.100.7/32 dev lo
		addr add 172.18.0.12/32 dev lo
		addr add 10.244.3.5/32 dev lo
		addr add 2001:db8::7/128 dev lo
		addr add fc00:18::12/128 dev lo
		addr add fd00:10:244:3::5/128 dev lo
		addr add 172.18.9.1/24 dev far
		addr add fc00:18:9::1/64 dev far
		route add 203.0.113.7/32 via 172.18.9.2 mtu lock %[1]d
		route add 2001:db8:f::7/128 via fc00:18:9::2 mtu lock %[1]d`
	farCommands = `
		addr add 203.0.113.7/32 dev lo
		addr add 2001:db8:f::7/128 dev lo
		addr add 172.18.9.2/24 dev tor
		addr add fc00:18:9::2/64 dev tor
		route add default via 172.18.9.1
		route add default via fc00:18:9::1`
	nodeCommands = `
		addr add 169.254.%[1]d.1/24 dev ovn-k8s-mp0
		addr add fd00:169:%[1]d::1/64 dev ovn-k8s-mp0
		route add 10.244.1.0/24 via 169.254.%[1]d.2
		route add 10.244.2.0/24 via 169.254.%[1]d.2
		route add fd00:10:244:1::/64 via fd00:169:%[1]d::2
		route add fd00:10:244:2::/64 via fd00:169:%[1]d::2
		addr add 172.18.%[1]d.11/24 dev uplink
		addr add fc00:18:%[1]d::11/64 dev uplink
		route add default via 172.18.%[1]d.100
		route add default via fc00:18:%[1]d::100`
	podEndCommands = `
		addr add 169.254.%[1]d.2/24 dev node%[1]d
		addr add fd00:169:%[1]d::2/64 dev node%[1]d`
	outsideEndCommands = `
		addr add 172.18.%[1]d.100/24 dev node%[1]d
		addr add fc00:18:%[1]d::100/64 dev node%[1]d`
	podRouteCommands = `
		route replace default via 169.254.%[1]d.1
		route replace default via fd00:169:%[1]d::1`
	lbRouteCommands = `
		route replace 172.19.0.100/31 via 172.18.%[1]d.11
		route replace 10.244.1.0/24 via 172.18.%[1]d.11
		route replace 10.244.2.0/24 via 172.18.%[1]d.11
		route replace fd00:19::100/127 via fc00:18:%[1]d::11
		route replace fd00:10:244:1::/64 via fc00:18:%[1]d::11
		route replace fd00:10:244:2::/64 via fc00:18:%[1]d::11`
)

// routePods makes what pods send go by a node.
func (w *world) routePods(t *testing.T, number int) {
	t.Helper()
	w.pods.Configure(t, fmt.Sprintf(podRouteCommands, number))
}

// routeLB makes what the outside sends go by a node.
func (w *world) routeLB(t *testing.T, number int) {
	t.Helper()
	w.outside.Configure(t, fmt.Sprintf(lbRouteCommands, number))
}

func (w *world) newNode(t *testing.T, number int) *node {
	t.Helper()
	n, end := &node{Namespace: testbed.NewNamespace(t)}, fmt.Sprintf("node%d", number)
	testbed.Wire(t, n.Namespace, managementPort, w.pods, end)
	testbed.Wire(t, n.Namespace, "uplink", w.outside, end)
	n.Configure(t, fmt.Sprintf(nodeCommands, number))
	w.pods.Configure(t, fmt.Sprintf(podEndCommands, number))
	w.outside.Configure(t, fmt.Sprintf(outsideEndCommands, number))
	n.Forward(t)
	n.Run(t, "nft", kubeProxy)
	n.Do(t, func() {
		tables, err := knftables.New(Family, Table)
		if err != nil {
			t.Errorf("nftables: %v", err)
		}
		n.applier = New(tables)
	})
	n.pods, n.uplink = w.pods.Capture(t, end), w.outside.Capture(t, end)
	return n
}

// apply makes the node hold a plan.
func (n *node) apply(t *testing.T, want dataplane.Host) {
	t.Helper()
	n.Do(t, func() { sync(t, n.applier, want) })
}

func (n *node) counters(t *testing.T) dataplane.HostCounters {
	t.Helper()
	var counted dataplane.HostCounters
	n.Do(t, func() {
		var err error
		if counted, err = n.applier.Counters(context.Background()); err != nil {
			t.Errorf("Counters: %v", err)
		}
	})
	return counted
}

// from is a source with a port that nobody has used before.
func (w *world) from(a netip.Addr) netip.AddrPort {
	w.port++
	return netip.AddrPortFrom(a, w.port)
}
