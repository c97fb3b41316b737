// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// routers are what MetalLB's speakers of a native world have sessions with: two of FRR's bgpd, tor1 and tor2, both on the bridge that
// the nodes are on.
type routers struct {
	dir       string
	processes *process.Set
	nodes     map[netip.Addr]string // by address
}

const (
	bgpdProgram = "/usr/lib/frr/bgpd"
	bridge      = "br0"
	// speakersASN is the routers' too: only then MetalLB sends them localPref.
	speakersASN = 64512
)

// underlay is the bridge's network: the routers have the first addresses, the nodes 11 and so on.
var underlay = netip.MustParsePrefix("203.0.113.0/24")

func nodeAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(11 + i)}) }

// connectNodes gives every node a network namespace of its own, on a bridge in the world's.
func (w *world) connectNodes(ctx context.Context, nodes int) error {
	in := func(netns string, args ...string) error { return ip(ctx, append([]string{"-n", netns}, args...)...) }
	errs := []error{in(w.netns, "link", "add", bridge, "type", "bridge"), in(w.netns, "link", "set", bridge, "up")}
	for address := range peerNames {
		errs = append(errs, in(w.netns, "address", "add", address+"/24", "dev", bridge))
	}
	for i := range nodes {
		name := nodeName(i)
		netns := w.netns + "-" + name
		if err := ip(ctx, "netns", "add", netns); err != nil {
			return errors.Join(append(errs, err)...)
		}
		w.nodeNetns[name] = netns
		errs = append(errs,
			in(w.netns, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", netns),
			in(w.netns, "link", "set", name, "master", bridge, "up"),
			in(netns, "link", "set", "lo", "up"), in(netns, "link", "set", "eth0", "up"),
			in(netns, "address", "add", nodeAddress(i).String()+"/24", "dev", "eth0"),
			in(netns, "route", "add", controlAddress.String(), "via", "203.0.113.1"))
	}
	return errors.Join(errs...)
}

// startRouters starts both, without zebra: nothing goes into a kernel.
func (w *world) startRouters(ctx context.Context, nodes int) error {
	w.routers = &routers{dir: filepath.Join(w.dir, "routers"), processes: w.processes, nodes: map[netip.Addr]string{}}
	for i := range nodes {
		w.routers.nodes[nodeAddress(i)] = nodeName(i)
	}
	// FRR gives up root, and must reach its folder.
	if err := errors.Join(os.Chmod(w.dir, 0o711), os.Mkdir(w.routers.dir, 0o755)); err != nil {
		return err
	}
	for address, name := range peerNames {
		if err := w.routers.start(ctx, w.netns, name, address); err != nil {
			return fmt.Errorf("router %s: %w", name, err)
		}
	}
	return nil
}

func (r *routers) start(ctx context.Context, netns, name, address string) error {
	folder := filepath.Join(r.dir, name)
	config := fmt.Sprintf(`router bgp %[1]d
 bgp router-id %[2]s
 timers bgp 1 3
 neighbor NODES peer-group
 neighbor NODES remote-as %[1]d
 neighbor NODES passive
 bgp listen range %[3]s peer-group NODES
`, speakersASN, address, underlay)
	if err := topology.FRRFolder(folder, map[string]string{"bgpd.conf": config, "vtysh.conf": ""}); err != nil {
		return err
	}
	err := r.processes.Start(ctx, process.Spec{
		Name: name, Netns: netns, Path: bgpdProgram,
		Args: []string{"-u", "frr", "-g", "frr", "-Z", "-l", address, "-f", filepath.Join(folder, "bgpd.conf"),
			"-i", filepath.Join(folder, "bgpd.pid"), "--vty_socket", folder, "-P", "0"},
	})
	if err != nil {
		return err
	}
	return poll(ctx, "it answers", func(ctx context.Context) error {
		_, err := r.routes(ctx, name)
		return err
	})
}

// route is one path that a router has to a prefix.
type route struct {
	LocalPref uint32 `json:"locPrf"`
	Peer      struct {
		Address netip.Addr `json:"peerId"`
	} `json:"peer"`
	Community struct {
		List []string `json:"list"`
	} `json:"community"`
}

// routes are everything that a router has learned.
func (r *routers) routes(ctx context.Context, name string) (map[netip.Prefix][]route, error) {
	folder := filepath.Join(r.dir, name)
	output, err := exec.CommandContext(ctx, "vtysh", "--vty_socket", folder, "--config_dir", folder, "-c", "show bgp ipv4 unicast json detail").Output()
	if err != nil {
		return nil, fmt.Errorf("vtysh of %s: %w", name, err)
	}
	var document struct {
		Routes map[netip.Prefix][]route `json:"routes"`
	}
	if err := json.Unmarshal(output, &document); err != nil {
		return nil, fmt.Errorf("vtysh of %s: %w", name, err)
	}
	return document.Routes, nil
}

// offered is what each node announces, by prefix.
func (r *routers) offered(ctx context.Context) (map[netip.Prefix]offers, error) {
	all := map[netip.Prefix]offers{}
	for _, name := range slices.Sorted(maps.Values(peerNames)) {
		routes, err := r.routes(ctx, name)
		if err != nil {
			return nil, err
		}
		for prefix, paths := range routes {
			if all[prefix] == nil {
				all[prefix] = offers{}
			}
			for _, path := range paths {
				if !path.Peer.Address.IsValid() {
					continue // FRR lists, before the paths, an object about all of them
				}
				node, known := r.nodes[path.Peer.Address]
				if !known {
					return nil, fmt.Errorf("router %s has %s from %s, which is no node", name, prefix, path.Peer.Address)
				}
				all[prefix][node] = append(all[prefix][node], path.describe(name))
			}
		}
	}
	return all, nil
}

// describe is the text of offers.
func (p route) describe(router string) string {
	words := []string{router}
	if p.LocalPref != 0 {
		words = append(words, "localPref="+strconv.Itoa(int(p.LocalPref)))
	}
	return strings.Join(append(words, slices.Sorted(slices.Values(p.Community.List))...), " ")
}
