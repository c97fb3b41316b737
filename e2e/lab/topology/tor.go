// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// frrPrograms is where Debian's package frr puts the daemons, outside of PATH.
const frrPrograms = "/usr/lib/frr"

const (
	zebraProcess = "tor.zebra"
	bgpdProcess  = "tor.bgpd"
)

// bgpdConfig lets every host of the underlay be a peer. Multipath stands for a ToR that would spread traffic over all announcers:
// one path only is then the product's doing. IPv6 prefixes come over the IPv4 sessions.
func bgpdConfig() string {
	return fmt.Sprintf(`hostname tor
log stdout informational
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 bgp graceful-restart
 timers bgp 1 3
 neighbor NODES peer-group
 neighbor NODES remote-as %d
 neighbor NODES passive
 bgp listen range %s peer-group NODES
 address-family ipv4 unicast
  maximum-paths 8
 exit-address-family
 address-family ipv6 unicast
  neighbor NODES activate
  maximum-paths 8
 exit-address-family
`, RouterASN, RouterAddress, NodeASN, UnderlaySubnet)
}

// startRouter starts FRR in the ToR's namespace. zebra puts the routes that bgpd learns into the kernel's table.
func startRouter(ctx context.Context, o Options, procs *process.Set) error {
	folder := o.routerFolder()
	files := map[string]string{"zebra.conf": "hostname tor\nlog stdout informational\n", "bgpd.conf": bgpdConfig(), "vtysh.conf": ""}
	if err := FRRFolder(folder, files); err != nil {
		return fmt.Errorf("tor: %w", err)
	}
	common := []string{"-u", "frr", "-g", "frr", "-z", filepath.Join(folder, "zserv.api"), "--vty_socket", folder, "-P", "0"}
	daemons := []struct{ process, program, socket string }{
		{zebraProcess, "zebra", "zserv.api"},
		{bgpdProcess, "bgpd", "bgpd.vty"},
	}
	for _, daemon := range daemons {
		spec := process.Spec{
			Name:  daemon.process,
			Netns: o.routerNetns(),
			Path:  filepath.Join(frrPrograms, daemon.program),
			Args: append([]string{"-f", filepath.Join(folder, daemon.program+".conf"), "-i", filepath.Join(folder, daemon.program+".pid")},
				common...),
		}
		if err := procs.Start(ctx, spec); err != nil {
			return err
		}
		if err := waitSocket(ctx, procs, daemon.process, filepath.Join(folder, daemon.socket)); err != nil {
			return err
		}
	}
	return nil
}

// FRRFolder makes a folder for FRR's daemons, with files by name. FRR gives up root and then refuses to work in a folder that is not its
// user's.
func FRRFolder(folder string, files map[string]string) error {
	owner, err := user.Lookup("frr")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(owner.Gid)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			return err
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return os.Chown(folder, uid, gid)
}

// VtyshCommand is the command line of the ToR's vtysh(1), to which "-c" and commands can be added.
func (t *Topology) VtyshCommand() []string {
	folder := t.options.routerFolder()
	return []string{"vtysh", "--vty_socket", folder, "--config_dir", folder}
}

// Vtysh runs commands in the ToR's vtysh(1), one after the other, and returns what they print.
func (t *Topology) Vtysh(ctx context.Context, commands ...string) ([]byte, error) {
	argv := t.VtyshCommand()
	for _, command := range commands {
		argv = append(argv, "-c", command)
	}
	return run(ctx, "", argv...)
}

// BGPPath is one path that the ToR knows for a prefix.
type BGPPath struct {
	NextHop netip.Addr
	Valid   bool
	Best    bool
	// Multipath tells that the ToR uses the path beside the best one.
	Multipath bool
	// Stale tells that the peer is restarting and the path is kept (RFC 4724).
	Stale bool
}

// TorRoutes returns the ToR's paths for exactly this prefix, none where it has no route.
func (t *Topology) TorRoutes(ctx context.Context, prefix netip.Prefix) ([]BGPPath, error) {
	output, err := t.Vtysh(ctx, fmt.Sprintf("show bgp ipv%s unicast %s json", version(prefix.Addr()), prefix))
	if err != nil {
		return nil, err
	}
	paths, err := parsePaths(output)
	if err != nil {
		return nil, fmt.Errorf("paths of %s: %w", prefix, err)
	}
	return paths, nil
}

// parsePaths reads the output of FRR's "show bgp ipv4|ipv6 unicast PREFIX json". The first next hop of an IPv6 path is the global one.
func parsePaths(output []byte) ([]BGPPath, error) {
	var document struct {
		Paths []struct {
			Valid     bool `json:"valid"`
			Stale     bool `json:"stale"`
			Multipath bool `json:"multipath"`
			BestPath  struct {
				Overall bool `json:"overall"`
			} `json:"bestpath"`
			NextHops []struct {
				IP netip.Addr `json:"ip"`
			} `json:"nexthops"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(output, &document); err != nil {
		return nil, err
	}
	paths := make([]BGPPath, 0, len(document.Paths))
	for _, path := range document.Paths {
		if len(path.NextHops) == 0 {
			return nil, fmt.Errorf("path without a next hop")
		}
		paths = append(paths, BGPPath{NextHop: path.NextHops[0].IP, Valid: path.Valid, Best: path.BestPath.Overall,
			Multipath: path.Multipath, Stale: path.Stale})
	}
	return paths, nil
}
