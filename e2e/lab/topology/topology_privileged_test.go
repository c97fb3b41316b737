// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// inhabited is a topology with pods "a" and "b" on n1 and "c" on n2, and the echo server everywhere.
func inhabited(t *testing.T) (lab, *Topology, map[string]Pod) {
	t.Helper()
	l := newLab(t, "up")
	topology, err := Up(t.Context(), l.options, l.procs, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	placed := []struct{ node, name string }{{"n1", "a"}, {"n1", "b"}, {"n2", "c"}}
	added := make([]Pod, len(placed))
	group, ctx := errgroup.WithContext(t.Context())
	for i, place := range placed {
		group.Go(func() error {
			pod, err := topology.AddPod(ctx, place.node, place.name)
			added[i] = pod
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pods in %v", len(placed), time.Since(began))
	program := whoami(t)
	pods := map[string]Pod{}
	for _, pod := range added {
		pods[pod.Name] = pod
		l.serve(t, program, pod.Netns)
	}
	for _, n := range topology.Nodes() {
		l.serve(t, program, n.Netns)
	}
	l.serve(t, program, topology.OutsideNetns())
	return l, topology, pods
}

func TestTopology(t *testing.T) {
	l, topology, pods := inhabited(t)
	t.Run("traffic", func(t *testing.T) { testTraffic(t, topology, pods) })
	t.Run("neighbors", func(t *testing.T) { testNeighbors(t, topology, pods) })
	t.Run("bulk", func(t *testing.T) { testBulk(t, topology, pods) })
	t.Run("load balancers", func(t *testing.T) { testLoadBalancers(t, topology, pods) })
	t.Run("counters", func(t *testing.T) { testCounters(t, topology) })
	t.Run("pods", func(t *testing.T) { testPods(t, topology, pods) })
	t.Run("tor", func(t *testing.T) { testRouter(t, l, topology) })
	t.Run("second up", func(t *testing.T) {
		if _, err := Up(t.Context(), l.options, l.procs, nil); err == nil || !strings.Contains(err.Error(), "exists already") {
			t.Errorf("got %v, want exists already", err)
		}
	})
	t.Run("down", func(t *testing.T) { testDown(t, l) })
}

// twins are the IPv6 addresses beside the IPv4 ones.
func twins(topology *Topology, pods map[string]Pod) map[netip.Addr]netip.Addr {
	twins := map[netip.Addr]netip.Addr{OutsideAddress: OutsideAddress6}
	for _, n := range topology.Nodes() {
		twins[n.Address], twins[n.ManagementAddress] = n.Address6, n.ManagementAddress6
	}
	for _, pod := range pods {
		twins[pod.Address] = pod.Address6
	}
	return twins
}

// inBoth are an address, and its twin where it has one.
func inBoth(address netip.Addr, twins map[netip.Addr]netip.Addr) []netip.Addr {
	if six, ok := twins[address]; ok {
		return []netip.Addr{address, six}
	}
	return []netip.Addr{address}
}

func testTraffic(t *testing.T, topology *Topology, pods map[string]Pod) {
	n1, n2 := topology.Nodes()[0], topology.Nodes()[1]
	a, b, c := pods["a"], pods["b"], pods["c"]
	tests := map[string]struct {
		from string
		to   netip.Addr
		want netip.Addr
	}{
		"pod to pod on its node":             {a.Netns, b.Address, a.Address},
		"pod to pod on another node":         {a.Netns, c.Address, a.Address},
		"and the other way":                  {c.Netns, a.Address, c.Address},
		"pod to outside":                     {a.Netns, OutsideAddress, n1.Address},
		"pod on another node to outside":     {c.Netns, OutsideAddress, n2.Address},
		"pod to its own node":                {a.Netns, n1.Address, a.Address},
		"pod to its own node's control side": {a.Netns, n1.ControlAddress, a.Address},
		"pod to another node":                {a.Netns, n2.Address, n1.Address},
		"node to node":                       {n1.Netns, n2.Address, n1.Address},
		"node to its pod":                    {n1.Netns, a.Address, n1.ManagementAddress},
		"node to a pod on another node":      {n1.Netns, c.Address, n1.ManagementAddress},
		"node to outside":                    {n1.Netns, OutsideAddress, n1.Address},
		"node to node on the control side":   {n1.Netns, n2.ControlAddress, n1.ControlAddress},
		"outside to node":                    {topology.OutsideNetns(), n2.Address, OutsideAddress},
	}
	twins := twins(topology, pods)
	for name, test := range tests {
		wanted := inBoth(test.want, twins)
		for i, to := range inBoth(test.to, twins) {
			for _, protocol := range []string{"tcp", "udp"} {
				t.Run(fmt.Sprintf("%s %s to %s", name, protocol, to), func(t *testing.T) {
					got, err := ask(t.Context(), test.from, protocol, netip.AddrPortFrom(to, port))
					if err != nil || got != wanted[i] {
						t.Errorf("%s at %s: source %v (%v), want %v", test.from, to, got, err, wanted[i])
					}
				})
			}
		}
	}
}

// testNeighbors asks for MAC addresses afresh: the datapath answers, not the kernel beside it.
func testNeighbors(t *testing.T, topology *Topology, pods map[string]Pod) {
	n1 := topology.Nodes()[0]
	a, b := pods["a"], pods["b"]
	tests := map[string]struct {
		from, device string
		to           netip.Addr
		want         net.HardwareAddr
	}{
		"tor to node":         {topology.RouterNetns(), routerBridge, n1.Address, n1.UplinkMAC},
		"pod to its node":     {a.Netns, podDevice, n1.ManagementAddress, n1.ManagementMAC},
		"pod to its neighbor": {a.Netns, podDevice, b.Address, b.MAC()},
	}
	twins := twins(topology, pods)
	for name, test := range tests {
		for _, to := range inBoth(test.to, twins) {
			t.Run(name+" "+to.String(), func(t *testing.T) { checkNeighbor(t, test.from, test.device, to, test.want) })
		}
	}
}

func checkNeighbor(t *testing.T, from, device string, to netip.Addr, want net.HardwareAddr) {
	if err := ipBatch(t.Context(), from, "neigh flush dev "+device); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), from, "tcp", netip.AddrPortFrom(to, port)); err != nil {
		t.Fatal(err)
	}
	output, err := run(t.Context(), "", "ip", "-n", from, "-j", "neigh", "show", to.String())
	if err != nil {
		t.Fatal(err)
	}
	var neighbors []struct {
		Address string `json:"lladdr"`
	}
	if err := json.Unmarshal(output, &neighbors); err != nil {
		t.Fatal(err)
	}
	if len(neighbors) != 1 || neighbors[0].Address != want.String() {
		t.Errorf("%s has %v, want %v", to, neighbors, want)
	}
}

// testBulk sends more than fits in a packet or a window, both ways: segmentation offload and the tunnels' room are right.
func testBulk(t *testing.T, topology *Topology, pods map[string]Pod) {
	n1, n2 := topology.Nodes()[0], topology.Nodes()[1]
	a, c := pods["a"], pods["c"]
	tests := map[string]struct {
		from, to string
		server   netip.Addr
	}{
		"pod to pod on another node":  {a.Netns, c.Netns, c.Address},
		"pod to outside":              {a.Netns, topology.OutsideNetns(), OutsideAddress},
		"pod to its own node":         {a.Netns, n1.Netns, n1.Address},
		"pod to another node":         {a.Netns, n2.Netns, n2.Address},
		"node to pod on another node": {n1.Netns, c.Netns, c.Address},
		"outside to node":             {topology.OutsideNetns(), n1.Netns, n1.Address},
	}
	twins := twins(topology, pods)
	for name, test := range tests {
		for _, server := range inBoth(test.server, twins) {
			t.Run(name+" "+server.String(), func(t *testing.T) { checkBulk(t, test.from, test.to, netip.AddrPortFrom(server, 9000).String()) })
		}
	}
}

func checkBulk(t *testing.T, from, to, server string) {
	const size = 4 << 20
	listener, err := Listen(to, "tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	deadline, _ := ctx.Deadline()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		defer func() { _ = connection.Close() }()
		return errors.Join(connection.SetDeadline(deadline), exchange(connection, size))
	})
	connection, err := DialContext(from)(ctx, "tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	if err := errors.Join(connection.SetDeadline(deadline), exchange(connection, size), group.Wait()); err != nil {
		t.Error(err)
	}
}

// exchange sends and receives so many bytes at the same time.
func exchange(connection net.Conn, size int64) error {
	var group errgroup.Group
	group.Go(func() error {
		_, err := connection.Write(make([]byte, size))
		return err
	})
	_, err := io.CopyN(io.Discard, connection, size)
	return errors.Join(err, group.Wait())
}

// testCounters uses n3, which no other test before it sends from.
func testCounters(t *testing.T, topology *Topology) {
	n2, n3 := topology.Nodes()[1], topology.Nodes()[2]
	t.Run("IPv4", func(t *testing.T) { checkCounters(t, topology, n2, n3, n3.Address, OutsideAddress) })
	t.Run("IPv6", func(t *testing.T) { checkCounters(t, topology, n2, n3, n3.Address6, OutsideAddress6) })
}

func checkCounters(t *testing.T, topology *Topology, n2, n3 Node, address, outside netip.Addr) {
	read := func(node Node) (all, ofN3 Counters) {
		t.Helper()
		all, err := topology.UplinkCounters(t.Context(), node.Name)
		if err != nil {
			t.Fatal(err)
		}
		ofN3, err = topology.AddressCounters(t.Context(), node.Name, address)
		if err != nil {
			t.Fatal(err)
		}
		return all, ofN3
	}
	allBefore, before := read(n3)
	if _, err := ask(t.Context(), n3.Netns, "udp", netip.AddrPortFrom(outside, port)); err != nil {
		t.Fatal(err)
	}
	allAfter, after := read(n3)
	if want := (Counters{before.FromNode + 1, before.ToNode + 1}); after != want {
		t.Errorf("n3: %+v, want %+v", after, want)
	}
	if allAfter.FromNode <= allBefore.FromNode || allAfter.ToNode <= allBefore.ToNode {
		t.Errorf("uplink of n3: %+v after %+v", allAfter, allBefore)
	}
	if _, other := read(n2); other != (Counters{}) {
		t.Errorf("n3's address on the uplink of n2: %+v", other)
	}
}
