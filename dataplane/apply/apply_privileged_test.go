// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package apply

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

const (
	pod, pod6           = "10.244.1.5", "fd00:10:244:1::5"
	otherPod, otherPod6 = "10.244.1.9", "fd00:10:244:1::9"
	outside, outside6   = "198.51.100.7", "2001:db8::7"
	node2, node26       = "172.18.0.12", "fc00:18::12"
	lb, lb6             = "172.19.0.100", "fd00:19::100"
	echoPort            = 7000

	// otherTable masquerades pods as OVN-Kubernetes does in local gateway mode, IPv4 only here.
	otherTable = "table inet other { chain post { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 masquerade; }; }"
	node1      = "172.18.0.11"
)

// lab is a pod, a node's host and the outside in a row, with the databases of the node's zone.
// The part of OVN's datapath is played by a wire: the pod's packets reach the host as they do
// over the management port.
type lab struct {
	pod, host, outside *testbed.Namespace
	nb, vs             *testbed.Database
	dataplane          dataplane.Dataplane
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testbed.RequireTools(t, "nft", "ip")
	l := &lab{
		pod: testbed.NewNamespace(t), host: testbed.NewNamespace(t), outside: testbed.NewNamespace(t),
		nb: testbed.NewNorthbound(t), vs: testbed.NewOpenvSwitch(t),
	}
	wire(t, l.host, "mp0", l.pod, "eth0")
	wire(t, l.host, "uplink", l.outside, "eth0")
	configure := func(ns *testbed.Namespace, commands string) {
		for _, c := range strings.Split(strings.TrimSpace(commands), "\n") {
			ns.Run(t, "ip", strings.Fields(c)...)
		}
	}
	configure(l.host, `
		addr add 10.244.1.2/24 dev mp0
		addr add fd00:10:244:1::2/64 dev mp0
		addr add 172.18.0.11/24 dev uplink
		addr add fc00:18::11/64 dev uplink
		route add default via 172.18.0.100
		route add default via fc00:18::100`)
	configure(l.pod, `
		addr add 10.244.1.5/24 dev eth0
		addr add 10.244.1.9/24 dev eth0
		addr add fd00:10:244:1::5/64 dev eth0
		addr add fd00:10:244:1::9/64 dev eth0
		route add default via 10.244.1.2
		route add default via fd00:10:244:1::2`)
	configure(l.outside, `
		addr add 172.18.0.100/24 dev eth0
		addr add 172.18.0.12/24 dev eth0
		addr add fc00:18::100/64 dev eth0
		addr add fc00:18::12/64 dev eth0
		addr add 198.51.100.7/32 dev lo
		addr add 2001:db8::7/128 dev lo nodad
		route add 172.19.0.100/32 via 172.18.0.11
		route add fd00:19::100/128 via fc00:18::11
		route add 10.244.0.0/16 via 172.18.0.11
		route add fd00:10:244::/48 via fc00:18::11`)
	l.host.Do(t, func() {
		for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+s, []byte("1"), 0o644); err != nil {
				t.Error(err)
			}
		}
	})
	l.echo(t)

	l.nb.Control(t, "lr-add", dataplane.ClusterRouter)
	l.vs.Control(t, "add-br", "br-int")
	l.start(t)
	return l
}

func wire(t *testing.T, a *testbed.Namespace, aName string, b *testbed.Namespace, bName string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.FD()))
	a.Run(t, "ip", "link", "set", aName, "up")
	b.Run(t, "ip", "link", "set", bName, "up")
}

// start starts a dataplane as a program that begins would.
func (l *lab) start(t *testing.T) {
	t.Helper()
	var err error
	l.host.Do(t, func() {
		l.dataplane, err = New(log.NewNopLogger(), Options{NorthboundSocket: l.nb.Socket, OpenvSwitchSocket: l.vs.Socket})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.dataplane.Close)
}

// apply applies until the zone's database is connected and ready.
func (l *lab) apply(t *testing.T, p dataplane.Plan) dataplane.Sequence {
	t.Helper()
	var sequence dataplane.Sequence
	testbed.Eventually(t, "the plan is applied", func() bool {
		var err error
		l.host.Do(t, func() { sequence, err = l.dataplane.Apply(context.Background(), p) })
		return err == nil
	})
	return sequence
}

// install does what ovn-controller does.
func (l *lab) install(t *testing.T, sequence dataplane.Sequence) {
	t.Helper()
	l.vs.Control(t, "set", "bridge", "br-int", fmt.Sprintf("external_ids:ovn-nb-cfg=%d", sequence))
	testbed.Eventually(t, "the bridge is seen to have caught up", func() bool {
		select {
		case <-l.dataplane.Changed():
			return l.dataplane.Installed() >= sequence
		default:
			return false
		}
	})
}

// echo answers every datagram to the outside with the source that it came from.
func (l *lab) echo(t *testing.T) {
	t.Helper()
	l.outside.Do(t, func() {
		for _, a := range []string{outside, outside6, node2, node26} {
			c, err := net.ListenPacket("udp", net.JoinHostPort(a, fmt.Sprint(echoPort)))
			if err != nil {
				t.Errorf("listen: %v", err)
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				buffer := make([]byte, 64)
				for {
					_, from, err := c.ReadFrom(buffer)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.String()), from)
				}
			}()
		}
	})
}

// ask sends a datagram from the pod's namespace and returns the source that the other side saw.
func (l *lab) ask(t *testing.T, src string, port uint16, dst string) string {
	t.Helper()
	var seen string
	l.pod.Do(t, func() {
		local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(src), port))
		remote := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(dst), echoPort))
		c, err := net.DialUDP("udp", local, remote)
		if err != nil {
			t.Errorf("dial: %v", err)
			return
		}
		defer c.Close()
		buffer := make([]byte, 64)
		// The first packet on a new wire can be lost to neighbor discovery.
		for range 5 {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if _, err = c.Write([]byte("?")); err != nil {
				continue
			}
			var n int
			if n, err = c.Read(buffer); err == nil {
				from, err := netip.ParseAddrPort(string(buffer[:n]))
				if err != nil {
					t.Errorf("answer %q", buffer[:n])
				}
				seen = from.Addr().String()
				return
			}
		}
		t.Errorf("%s to %s: %v", src, dst, err)
	})
	return seen
}

// entries are the host's conntrack entries of a pod, as "original source > reply destination".
func (l *lab) entries(t *testing.T, src string) []string {
	t.Helper()
	var list []string
	l.host.Do(t, func() {
		list = conntrackEntries(t, netip.MustParseAddr(src))
	})
	return list
}

func (l *lab) wantSource(t *testing.T, src string, port uint16, dst, want string) {
	t.Helper()
	if got := l.ask(t, src, port, dst); got != want {
		t.Errorf("%s to %s is seen as %s, want %s", src, dst, got, want)
	}
}

// plan is n1's, primary of a service with the given pods.
func plan(pods ...string) dataplane.Plan {
	s := dataplane.Service{
		Key: "ns/a", Role: dataplane.RolePrimary, Primary: "n1",
		SourceIPs: []netip.Addr{netip.MustParseAddr(lb), netip.MustParseAddr(lb6)},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, dataplane.Endpoint{Node: "n1", Address: netip.MustParseAddr(p)})
	}
	p, _ := dataplane.Compute(dataplane.Input{
		Node: "n1",
		Nodes: map[string]dataplane.NodeFacts{
			"n1": {
				Addresses:           []netip.Prefix{netip.MustParsePrefix("172.18.0.11/24"), netip.MustParsePrefix("fc00:18::11/64")},
				ManagementAddresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")},
				PodSubnets:          []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
			},
			"n2": {Addresses: []netip.Prefix{netip.MustParsePrefix(node2 + "/24"), netip.MustParsePrefix(node26 + "/64")}},
		},
		Cluster:  dataplane.Cluster{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}},
		Services: []dataplane.Service{s},
	})
	return p
}

func TestPackets(t *testing.T) {
	l := newLab(t)
	l.host.Run(t, "nft", otherTable)
	l.wantSource(t, pod, 1001, outside, node1)

	sequence := l.apply(t, plan(pod, pod6))
	l.install(t, sequence)
	for _, flow := range []struct{ src, dst, want string }{
		{pod, outside, lb}, {pod6, outside6, lb6},
		{pod, node2, node1}, {pod6, node26, pod6},
		{otherPod, outside, node1}, {otherPod6, outside6, otherPod6},
	} {
		l.wantSource(t, flow.src, 2000, flow.dst, flow.want)
	}
	// A connection keeps the source that it began with.
	l.wantSource(t, pod, 1001, outside, node1)

	// The endpoints leave: as long as the flows that steer are there the translation is, too.
	sequence = l.apply(t, plan())
	l.wantSource(t, pod, 2001, outside, lb)
	l.install(t, sequence)
	if got := l.entries(t, pod); !strings.Contains(strings.Join(got, " "), lb) {
		t.Errorf("no entry to delete: %v", got)
	}
	if got := l.apply(t, plan()); got != sequence {
		t.Errorf("sequence %d, want %d", got, sequence)
	}
	// What wasn't translated is still there.
	if d := cmp.Diff([]string{pod + " > " + node1}, unique(l.entries(t, pod))); d != "" {
		t.Errorf("entries of the pod (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{pod6 + " > " + pod6}, unique(l.entries(t, pod6))); d != "" {
		t.Errorf("IPv6 entries of the pod (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{otherPod + " > " + node1}, unique(l.entries(t, otherPod))); d != "" {
		t.Errorf("entries of the other pod (-want +got):\n%s", d)
	}
	l.wantSource(t, pod, 2000, outside, node1)
	l.wantSource(t, pod6, 2000, outside6, pod6)
}

// TestRestart: a program that starts again changes nothing for a connection, and finishes what
// the one before left undone.
func TestRestart(t *testing.T) {
	l := newLab(t)
	l.install(t, l.apply(t, plan(pod)))
	l.wantSource(t, pod, 2000, outside, lb)
	before := l.entries(t, pod)
	table := l.host.Run(t, "nft", "list", "map", "inet", "metallb-egress", "snat4")

	// It dies after OVN was told that the pod left.
	sequence := l.apply(t, plan())
	l.dataplane.Close()
	if d := cmp.Diff(table, l.host.Run(t, "nft", "list", "map", "inet", "metallb-egress", "snat4")); d != "" {
		t.Errorf("map (-before +after):\n%s", d)
	}
	if d := cmp.Diff(before, l.entries(t, pod)); d != "" {
		t.Errorf("entries (-before +after):\n%s", d)
	}
	l.start(t)
	l.install(t, l.apply(t, plan()))
	if got := l.apply(t, plan()); got <= sequence {
		t.Errorf("sequence %d after the start, want more than %d", got, sequence)
	}
	if got := l.entries(t, pod); len(got) > 0 {
		t.Errorf("entries left: %v", got)
	}
	l.wantSource(t, pod, 2000, outside, pod)
}

// TestSurvived: a node is as booted until something was applied, and again after everything was
// removed; another program's table does not count.
func TestSurvived(t *testing.T) {
	l := newLab(t)
	l.host.Run(t, "nft", otherTable)
	expect := func(when string, want bool) {
		t.Helper()
		l.host.Do(t, func() {
			if got, err := Survived(context.Background()); err != nil || got != want {
				t.Errorf("%s: survived is %v, error %v; want %v", when, got, err, want)
			}
		})
	}
	expect("at first", false)
	l.apply(t, plan())
	expect("after a plan", true)
	l.dataplane.Close()
	expect("after the program ended", true)
	l.start(t)
	l.host.Do(t, func() {
		// The database has to be connected first, which an Apply waits for.
		if _, err := l.dataplane.Apply(context.Background(), plan()); err != nil {
			t.Fatal(err)
		}
		if err := l.dataplane.Remove(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	expect("after everything was removed", false)
}

// TestHostProblems: the setting that keeps connections from surviving a move is told, in the namespace asked in.
func TestHostProblems(t *testing.T) {
	testbed.RequireTools(t, "nft", "ip")
	ns := testbed.NewNamespace(t)
	ns.Do(t, func() {
		for value, want := range map[string]int{"1": 0, "0": 1} {
			if err := os.WriteFile("/proc/sys/"+tcpLoose, []byte(value), 0o644); err != nil {
				t.Error(err)
			}
			if got := HostProblems(); len(got) != want {
				t.Errorf("%s is %s: %q", tcpLoose, value, got)
			}
		}
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.host.Run(t, "nft", otherTable)
	l.install(t, l.apply(t, plan(pod, pod6)))
	l.wantSource(t, pod, 2000, outside, lb)
	l.wantSource(t, pod6, 2000, outside6, lb6)
	l.wantSource(t, otherPod, 2000, outside, node1)
	var err error
	l.host.Do(t, func() { err = l.dataplane.Remove(context.Background()) })
	if err != nil {
		t.Fatal(err)
	}
	if got := l.host.Run(t, "nft", "list", "tables"); got != "table inet other\n" {
		t.Errorf("tables:\n%s", got)
	}
	for _, table := range []string{"Logical_Router_Policy", "Address_Set", "Logical_Router_Static_Route"} {
		if got := l.nb.Control(t, "list", table); got != "" {
			t.Errorf("%s:\n%s", table, got)
		}
	}
	if got := append(l.entries(t, pod), l.entries(t, pod6)...); len(got) > 0 {
		t.Errorf("entries left: %v", got)
	}
	if got := l.entries(t, otherPod); len(got) == 0 {
		t.Error("the other pod's entries are gone")
	}
}
