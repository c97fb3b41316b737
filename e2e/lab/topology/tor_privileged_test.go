// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package topology

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// testRouter peers a bgpd on two nodes with the ToR, over br-ex and IPv4, for prefixes of both families.
func testRouter(t *testing.T, l lab, topology *Topology) {
	n1, n2 := topology.Nodes()[0], topology.Nodes()[1]
	prefix, prefix6 := netip.MustParsePrefix("172.19.0.100/32"), netip.MustParsePrefix("fd00:19::100/128")
	for _, p := range []netip.Prefix{prefix, prefix6} {
		if routes, err := topology.TorRoutes(t.Context(), p); err != nil || len(routes) != 0 {
			t.Errorf("routes to %s before: %v (%v), want none", p, routes, err)
		}
	}
	for _, n := range []Node{n1, n2} {
		l.announce(t, n, prefix, prefix6)
	}
	// FRR 8.4 on a node comes up without its session, or without a family of it, now and then on a busy machine.
	again := func() {
		for _, n := range []Node{n1, n2} {
			if err := l.procs.Restart(t.Context(), "speaker-"+n.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkRoutes(t, topology, prefix, n1.Address, n2.Address, again)
	checkRoutes(t, topology, prefix6, n1.Address6, n2.Address6, again)
}

// checkRoutes waits for one path by each hop, and calls again where that takes long.
func checkRoutes(t *testing.T, topology *Topology, prefix netip.Prefix, hop1, hop2 netip.Addr, again func()) {
	begun := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		routes, err := topology.TorRoutes(ctx, prefix)
		slices.SortFunc(routes, func(a, b BGPPath) int { return a.NextHop.Compare(b.NextHop) })
		hops, kernelErr := topology.kernelHops(ctx, prefix)
		if err == nil && kernelErr == nil && len(routes) == 2 && routes[0].NextHop == hop1 && routes[1].NextHop == hop2 &&
			routes[0].Valid && routes[1].Valid && routes[0].Multipath && routes[1].Multipath && routes[0].Best != routes[1].Best &&
			slices.Equal(hops, []string{hop1.String(), hop2.String()}) {
			return
		}
		if time.Since(begun) > 12*time.Second {
			again()
			begun = time.Now()
		}
		select {
		case <-ctx.Done():
			t.Fatalf("routes %+v (%v), in the kernel via %v (%v), want one path by each of %s and %s", routes, err, hops, kernelErr, hop1, hop2)
		case <-tick.C:
		}
	}
}

// kernelHops are the gateways of the ToR's route in the kernel.
func (t *Topology) kernelHops(ctx context.Context, prefix netip.Prefix) ([]string, error) {
	output, err := run(ctx, "", "ip", "-n", t.RouterNetns(), "-"+version(prefix.Addr()), "-j", "route", "show", prefix.String())
	if err != nil {
		return nil, err
	}
	var routes []struct {
		NextHops []struct {
			Gateway string `json:"gateway"`
		} `json:"nexthops"`
	}
	if err := json.Unmarshal(output, &routes); err != nil {
		return nil, err
	}
	var hops []string
	for _, route := range routes {
		for _, hop := range route.NextHops {
			hops = append(hops, hop.Gateway)
		}
	}
	slices.Sort(hops)
	return hops, nil
}

// announce runs a bgpd on a node that announces an IPv4 and an IPv6 prefix to the ToR. Without zebra it does not know the node's IPv6
// address by itself.
func (l lab) announce(t *testing.T, n Node, prefix, prefix6 netip.Prefix) {
	t.Helper()
	folder := filepath.Join(l.options.routerFolder(), n.Name)
	config := filepath.Join(folder, "bgpd.conf")
	// The route map comes first: bgpd would take one that is not there yet to deny everything.
	content := fmt.Sprintf(`route-map own-address permit 10
 set ipv6 next-hop global %s
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor %s remote-as %d
 neighbor %s timers connect 1
 address-family ipv4 unicast
  network %s
 exit-address-family
 address-family ipv6 unicast
  neighbor %s activate
  neighbor %s route-map own-address out
  network %s
 exit-address-family
`, n.Address6, NodeASN, n.Address, RouterAddress, RouterASN, RouterAddress, prefix, RouterAddress, RouterAddress, prefix6)
	if err := FRRFolder(folder, map[string]string{"bgpd.conf": content}); err != nil {
		t.Fatal(err)
	}
	spec := process.Spec{Name: "speaker-" + n.Name, Netns: n.Netns, Path: filepath.Join(frrPrograms, "bgpd"),
		Args: []string{"-n", "-Z", "-u", "frr", "-g", "frr", "-f", config, "-i", filepath.Join(folder, "bgpd.pid"), "--vty_socket", folder, "-P", "0", "-p", "0"}}
	if err := l.procs.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}
