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

// testRouter peers a bgpd on two nodes with the ToR, over br-ex.
func testRouter(t *testing.T, l lab, topology *Topology) {
	prefix := netip.MustParsePrefix("172.19.0.100/32")
	if routes, err := topology.TorRoutes(t.Context(), prefix); err != nil || len(routes) != 0 {
		t.Errorf("routes before: %v (%v), want none", routes, err)
	}
	n1, n2 := topology.Nodes()[0], topology.Nodes()[1]
	for _, n := range []Node{n1, n2} {
		l.announce(t, n, prefix)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		routes, err := topology.TorRoutes(ctx, prefix)
		slices.SortFunc(routes, func(a, b BGPPath) int { return a.NextHop.Compare(b.NextHop) })
		hops, kernelErr := topology.kernelHops(ctx, prefix)
		if err == nil && kernelErr == nil && len(routes) == 2 && routes[0].NextHop == n1.Address && routes[1].NextHop == n2.Address &&
			routes[0].Valid && routes[1].Valid && routes[0].Multipath && routes[1].Multipath && routes[0].Best != routes[1].Best &&
			slices.Equal(hops, []string{n1.Address.String(), n2.Address.String()}) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("routes %+v (%v), in the kernel via %v (%v), want one path by each of n1 and n2", routes, err, hops, kernelErr)
		case <-tick.C:
		}
	}
}

// kernelHops are the gateways of the ToR's route in the kernel.
func (t *Topology) kernelHops(ctx context.Context, prefix netip.Prefix) ([]string, error) {
	output, err := run(ctx, "", "ip", "-n", t.RouterNetns(), "-j", "route", "show", prefix.String())
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

// announce runs a bgpd on a node that announces the prefix to the ToR.
func (l lab) announce(t *testing.T, n Node, prefix netip.Prefix) {
	t.Helper()
	folder := filepath.Join(l.options.routerFolder(), n.Name)
	config := filepath.Join(folder, "bgpd.conf")
	content := fmt.Sprintf(`router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor %s remote-as %d
 neighbor %s timers connect 1
 address-family ipv4 unicast
  network %s
`, NodeASN, n.Address, RouterAddress, RouterASN, RouterAddress, prefix)
	if err := FRRFolder(folder, map[string]string{"bgpd.conf": content}); err != nil {
		t.Fatal(err)
	}
	spec := process.Spec{Name: "speaker-" + n.Name, Netns: n.Netns, Path: filepath.Join(frrPrograms, "bgpd"),
		Args: []string{"-n", "-Z", "-u", "frr", "-g", "frr", "-f", config, "-i", filepath.Join(folder, "bgpd.pid"), "--vty_socket", folder, "-P", "0", "-p", "0"}}
	if err := l.procs.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}
