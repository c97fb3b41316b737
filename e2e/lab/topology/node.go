// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"golang.org/x/sync/errgroup"
)

const (
	externalBridge    = "br-ex"
	integrationBridge = "br-int"
	managementPort    = "ovn-k8s-mp0"
	physicalNetwork   = "physnet"
	// podMTU leaves room for geneve's headers on the underlay (OVN-Kubernetes' default).
	podMTU = 1400
)

// The schemas of Debian's packages openvswitch-common and ovn-common.
const (
	openvswitchSchema = "/usr/share/openvswitch/vswitch.ovsschema"
	northboundSchema  = "/usr/share/ovn/ovn-nb.ovsschema"
	southboundSchema  = "/usr/share/ovn/ovn-sb.ovsschema"
)

// startNode starts a node's programs and gives its host addresses, routes and the masquerade. OVN has no logical topology yet.
func startNode(ctx context.Context, n Node, procs *process.Set) error {
	if err := os.MkdirAll(n.RunDir, 0o755); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.startDatabase(groupCtx, procs, "ovs", openvswitchSchema, n.OpenvSwitchSocket) })
	group.Go(func() error { return n.startDatabase(groupCtx, procs, "nb", northboundSchema, n.NorthboundSocket) })
	group.Go(func() error { return n.startDatabase(groupCtx, procs, "sb", southboundSchema, n.southboundSocket()) })
	group.Go(func() error {
		return settings(groupCtx, n.Netns, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
			"net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
	})
	group.Go(func() error {
		if err := leaveToDatapath(groupCtx, n.Netns, nodeUplink); err != nil {
			return err
		}
		return ipBatch(groupCtx, n.Netns, wiredNetwork(n)...)
	})
	group.Go(func() error {
		_, err := run(groupCtx, masquerade(n), inNetns(n.Netns, "nft", "-f", "-")...)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := n.initDatabases(ctx); err != nil {
		return err
	}
	if err := n.startDaemons(ctx, procs); err != nil {
		return err
	}
	return ipBatch(ctx, n.Netns, datapathNetwork(n)...)
}

// startDatabase makes a database and starts its server.
func (n Node) startDatabase(ctx context.Context, procs *process.Set, database, schema, socket string) error {
	file := filepath.Join(n.RunDir, database+".db")
	if _, err := run(ctx, "", "ovsdb-tool", "create", file, schema); err != nil {
		return err
	}
	return n.start(ctx, procs, "ovsdb-"+database, socket, "ovsdb-server", "--remote=punix:"+socket,
		"--unixctl="+filepath.Join(n.RunDir, database+".ctl"), file)
}

// start starts one of the node's programs and, where it has a socket to wait for, waits for that.
func (n Node) start(ctx context.Context, procs *process.Set, name, socket, program string, args ...string) error {
	spec := process.Spec{
		Name:  n.Name + "." + name,
		Netns: n.Netns,
		Path:  program,
		// Log to the output, which is the program's log file: informative, and with dates.
		Args: append([]string{"-vsyslog:off", "-vconsole:info", "-vPATTERN:console:%D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c|%p|%m"}, args...),
		Env:  []string{"OVS_RUNDIR=" + n.RunDir, "OVN_RUNDIR=" + n.RunDir},
		Dir:  n.RunDir,
	}
	if err := procs.Start(ctx, spec); err != nil {
		return err
	}
	if socket == "" {
		return nil
	}
	return waitSocket(ctx, procs, spec.Name, socket)
}

// initDatabases makes the one row that each program looks for when it starts, and says what Open vSwitch has to build.
func (n Node) initDatabases(ctx context.Context) error {
	if _, err := n.northbound(ctx, "init"); err != nil {
		return err
	}
	if _, err := n.southbound(ctx, "init"); err != nil {
		return err
	}
	if _, err := n.openvswitch(ctx, "--no-wait", "init"); err != nil {
		return err
	}
	_, err := n.openvswitch(ctx, append([]string{"--no-wait"}, oneTransaction(switchCommands(n))...)...)
	return err
}

// switchCommands are ovs-vsctl(8) commands: the bridges, the uplink and the management port, and ovn-controller's settings.
func switchCommands(n Node) [][]string {
	return [][]string{
		{
			"set", "Open_vSwitch", ".",
			// Threads beyond one cost memory and wake-ups, and gain nothing in the lab.
			"other_config:n-handler-threads=1", "other_config:n-revalidator-threads=1",
			"external_ids:system-id=" + n.Name, "external_ids:hostname=" + n.Name,
			"external_ids:ovn-remote=\"unix:" + n.southboundSocket() + "\"",
			"external_ids:ovn-encap-type=geneve", "external_ids:ovn-encap-ip=" + n.Address.String(),
			"external_ids:ovn-bridge-mappings=" + physicalNetwork + ":" + externalBridge,
			"external_ids:ovn-bridge-datapath-type=netdev", "external_ids:ovn-monitor-all=true", "external_ids:ovn-is-interconn=true",
			// A busy machine must not make the programs lose each other.
			"external_ids:ovn-remote-probe-interval=0", "external_ids:ovn-openflow-probe-interval=0",
		},
		{"add-br", externalBridge},
		{"set", "Bridge", externalBridge, "datapath_type=netdev", "fail-mode=standalone", "other_config:hwaddr=\"" + n.UplinkMAC.String() + "\""},
		{"add-port", externalBridge, nodeUplink},
		{"add-br", integrationBridge},
		{"set", "Bridge", integrationBridge, "datapath_type=netdev", "fail-mode=secure"},
		{"add-port", integrationBridge, managementPort},
		{
			"set", "Interface", managementPort, "type=internal", "mac=\"" + n.ManagementMAC.String() + "\"",
			"mtu_request=" + fmt.Sprint(podMTU), "external_ids:iface-id=k8s-" + n.Name,
		},
	}
}

// startDaemons starts what works on the databases.
func (n Node) startDaemons(ctx context.Context, procs *process.Set) error {
	if err := n.start(ctx, procs, "ovn-northd", "", "ovn-northd", "--unixctl="+filepath.Join(n.RunDir, "northd.ctl"),
		"--ovnnb-db=unix:"+n.NorthboundSocket, "--ovnsb-db=unix:"+n.southboundSocket()); err != nil {
		return err
	}
	control := n.switchControl()
	if err := n.start(ctx, procs, "ovs-vswitchd", control, "ovs-vswitchd", "--unixctl="+control, "unix:"+n.OpenvSwitchSocket); err != nil {
		return err
	}
	// It makes the bridges some time after it has started. ovn-controller, where it comes earlier, waits a second before it looks again.
	if _, err := n.openvswitch(ctx, "wait-until", "Interface", managementPort, "ofport>0", "--",
		"wait-until", "Interface", externalBridge, "ofport>0"); err != nil {
		return err
	}
	// ovn-controller has no long option for its control socket (OVN 23.03): it goes to OVN_RUNDIR.
	return n.start(ctx, procs, "ovn-controller", "", "ovn-controller", "unix:"+n.OpenvSwitchSocket)
}

// switchControl is ovs-vswitchd's socket for ovs-appctl(8).
func (n Node) switchControl() string {
	return filepath.Join(n.RunDir, "ovs-vswitchd.ctl")
}

// wiredNetwork is the lines of ip(8) for the interfaces that fabric has made.
func wiredNetwork(n Node) []string {
	return []string{
		fmt.Sprintf("link set %s up", nodeUplink),
		fmt.Sprintf("address add %s/%d dev %s", n.ControlAddress, ControlSubnet.Bits(), controlDevice),
		fmt.Sprintf("link set %s up", controlDevice),
	}
}

// datapathNetwork is the lines of ip(8) for the interfaces that Open vSwitch has made. The tunnels' address has to be on a bridge of
// the same datapath, since Open vSwitch encapsulates by itself in userspace.
func datapathNetwork(n Node) []string {
	lines := []string{fmt.Sprintf("link set %s up", externalBridge), fmt.Sprintf("link set %s up", managementPort)}
	for _, s := range n.stacks() {
		lines = append(lines,
			fmt.Sprintf("address add %s dev %s", s.host, externalBridge),
			fmt.Sprintf("route add default via %s", s.router),
			fmt.Sprintf("address add %s dev %s", s.management, managementPort),
			fmt.Sprintf("route add %s via %s", s.clusterPods, s.gateway.Addr()),
			fmt.Sprintf("route add %s via %s", s.join.Masked(), s.gateway.Addr()))
	}
	return lines
}

// masquerade is OVN-Kubernetes' local gateway masquerade, by its names and at its priority: the node's own pods leave with the
// node's address.
func masquerade(n Node) string {
	return fmt.Sprintf(`table inet ovn-kubernetes {
	chain ovn-kube-local-gw-masq {
		type nat hook postrouting priority 101; policy accept;
		oifname != "%s" jump ovn-kube-pod-subnet-masq
	}
	chain ovn-kube-pod-subnet-masq {
		ip saddr %s masquerade
		ip6 saddr %s masquerade
	}
}
`, managementPort, n.PodSubnet, n.PodSubnet6)
}
