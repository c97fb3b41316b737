// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package topology

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testPods(t *testing.T, topology *Topology, pods map[string]Pod) {
	again, err := topology.AddPod(t.Context(), "n1", "a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pods["a"], again, compareAddresses); diff != "" {
		t.Errorf("second AddPod (-first +second):\n%s", diff)
	}
	if _, err := topology.AddPod(t.Context(), "n2", "a"); err == nil {
		t.Error("pod a on another node: no error")
	}
	// One that was cut short between its record and its end.
	name := "example-namespace_client-with-a-very-long-name"
	pod, err := topology.AddPod(t.Context(), "n3", name)
	if err != nil {
		t.Fatal(err)
	}
	pod.Ready = false
	if err := topology.options.writePod(pod); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		repaired, err := topology.AddPod(t.Context(), "n3", name)
		if err != nil || repaired.Address != pod.Address {
			t.Fatalf("%v (%v), want address %v", repaired, err, pod.Address)
		}
		for outside, want := range map[netip.Addr]netip.Addr{OutsideAddress: topology.Nodes()[2].Address, OutsideAddress6: topology.Nodes()[2].Address6} {
			source, err := ask(t.Context(), repaired.Netns, "tcp", netip.AddrPortFrom(outside, port))
			if err != nil || source != want {
				t.Errorf("source %v (%v), want %v", source, err, want)
			}
		}
		if err := topology.RemovePod(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := topology.RemovePod(t.Context(), name); err != nil {
		t.Errorf("second RemovePod: %v", err)
	}
	remaining, err := topology.Pods()
	if err != nil || len(remaining) != len(pods) {
		t.Errorf("pods %v (%v), want %d", remaining, err, len(pods))
	}
}

func testLoadBalancers(t *testing.T, topology *Topology, pods map[string]Pod) {
	t.Run("IPv4", func(t *testing.T) {
		checkLoadBalancers(t, topology, pods, netip.MustParseAddrPort("10.96.0.10:53"), hairpinAddress, func(p Pod) netip.Addr { return p.Address })
	})
	t.Run("IPv6", func(t *testing.T) {
		checkLoadBalancers(t, topology, pods, netip.MustParseAddrPort("[fd00:10:96::a]:53"), hairpinAddress6, func(p Pod) netip.Addr { return p.Address6 })
	})
}

func checkLoadBalancers(t *testing.T, topology *Topology, pods map[string]Pod, vip netip.AddrPort, hairpin netip.Addr, address func(Pod) netip.Addr) {
	a, b, c := pods["a"], pods["b"], pods["c"]
	balancer := func(protocol string, backends ...Pod) LoadBalancer {
		result := LoadBalancer{Name: "example", Protocol: protocol, VIP: vip}
		for _, backend := range backends {
			result.Backends = append(result.Backends, netip.AddrPortFrom(address(backend), port))
		}
		return result
	}
	set := func(balancers ...LoadBalancer) {
		t.Helper()
		if err := topology.SetLoadBalancers(t.Context(), balancers); err != nil {
			t.Fatal(err)
		}
	}
	answers := func(protocol string, from Pod, want netip.Addr) {
		t.Helper()
		got, err := ask(t.Context(), from.Netns, protocol, vip)
		if err != nil || got != want {
			t.Errorf("%s from %s: source %v (%v), want %v", protocol, from.Name, got, err, want)
		}
	}
	for _, protocol := range []string{"tcp", "udp"} {
		// Twice the same, then a change in place, from every side.
		for _, backend := range []Pod{b, b, c} {
			set(balancer("tcp", backend), balancer("udp", backend))
			answers(protocol, a, address(a))
		}
		answers(protocol, b, address(b))
		answers(protocol, c, hairpin)
	}
	set(balancer("tcp", b))
	answers("tcp", a, address(a))
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if got, err := ask(short, a.Netns, "udp", vip); err == nil {
		t.Errorf("the load balancer taken away answers still, source %v", got)
	}
	set(balancer("tcp"))
	if got, err := ask(t.Context(), a.Netns, "tcp", vip); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no backends: source %v (%v), want refused", got, err)
	}
	set()
	if err := topology.SetLoadBalancers(t.Context(), []LoadBalancer{{Name: "bad", Protocol: "sctp", VIP: vip}}); err == nil {
		t.Error("sctp: no error")
	}
}
