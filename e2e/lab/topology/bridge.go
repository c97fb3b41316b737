// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// externalFlows are the flows of br-ex, which gateway router and host share with one MAC and one IP address: who opened a
// connection is remembered in conntrack zone 64000, and gets the replies (OVN-Kubernetes' bridge flows). What nobody opened is the
// host's, as tunnels are. Both have to hear a neighbor's answer (IPv6's neighbor discovery has no connections). The gateway router's port is given by its OpenFlow number: OpenFlow cuts names after 15 characters.
func externalFlows(n Node, router int) string {
	const fromRouter, fromHost = "0x1", "0x2"
	mac := n.UplinkMAC.String()
	flows := []string{
		"priority=0,actions=NORMAL",
		fmt.Sprintf("priority=10,in_port=%s,dl_dst=%s,actions=output:%d,LOCAL", nodeUplink, mac, router),
		fmt.Sprintf("priority=210,in_port=%s,dl_dst=%s,icmp6,icmp_type=136,actions=output:%d,LOCAL", nodeUplink, mac, router),
		"priority=200,icmp6,icmp_type=135,actions=NORMAL",
		"priority=200,icmp6,icmp_type=136,actions=NORMAL",
		fmt.Sprintf("priority=500,in_port=%s,udp,tp_dst=6081,nw_dst=%s,actions=LOCAL", nodeUplink, n.Address),
		fmt.Sprintf("table=1,priority=10,dl_dst=%s,actions=LOCAL", mac),
		"table=1,priority=0,actions=NORMAL",
	}
	for _, ip := range []string{"ip", "ipv6"} {
		flows = append(flows,
			fmt.Sprintf("priority=100,in_port=%d,%s,actions=ct(commit,zone=64000,exec(set_field:%s->ct_mark)),output:%s", router, ip, fromRouter, nodeUplink),
			fmt.Sprintf("priority=100,in_port=LOCAL,%s,actions=ct(commit,zone=64000,exec(set_field:%s->ct_mark)),output:%s", ip, fromHost, nodeUplink),
			fmt.Sprintf("priority=50,in_port=%s,%s,actions=ct(zone=64000,table=1)", nodeUplink, ip),
			fmt.Sprintf("table=1,priority=100,ct_state=+trk+est,ct_mark=%s,%s,actions=output:%d", fromRouter, ip, router),
			fmt.Sprintf("table=1,priority=100,ct_state=+trk+est,ct_mark=%s,%s,actions=LOCAL", fromHost, ip))
	}
	return strings.Join(flows, "\n") + "\n"
}

// patchPort is the port of br-ex that ovn-controller makes for the localnet port.
func patchPort(n Node) string {
	return fmt.Sprintf("patch-%s_%s-to-%s", externalBridge, n.Name, integrationBridge)
}

// openExternalBridge installs the flows of br-ex, once the patch port exists.
func (n Node) openExternalBridge(ctx context.Context) error {
	output, err := n.openvswitch(ctx, "wait-until", "Interface", patchPort(n), "ofport>0", "--", "get", "Interface", patchPort(n), "ofport")
	if err != nil {
		return err
	}
	router, err := strconv.Atoi(strings.TrimSpace(string(output)))
	if err != nil {
		return fmt.Errorf("port %s: %w", patchPort(n), err)
	}
	_, err = run(ctx, externalFlows(n, router), "ovs-ofctl", "--bundle", "replace-flows", "unix:"+filepath.Join(n.RunDir, externalBridge+".mgmt"), "-")
	return err
}

// knowTunnelPeers tells Open vSwitch the other nodes' MAC addresses. In userspace it resolves them itself, and loses the packet that
// made it ask.
func (n Node) knowTunnelPeers(ctx context.Context, all []Node) error {
	control := n.switchControl()
	// An hour is the longest that it allows.
	if _, err := run(ctx, "", "ovs-appctl", "-t", control, "tnl/neigh/aging", "3600"); err != nil {
		return err
	}
	for _, other := range all {
		if other.Name == n.Name {
			continue
		}
		if _, err := run(ctx, "", "ovs-appctl", "-t", control, "tnl/neigh/set", externalBridge, other.Address.String(), other.UplinkMAC.String()); err != nil {
			return err
		}
	}
	return nil
}

// trustSequenceNumbers has Open vSwitch's userspace connection tracking pass TCP packets outside of the window that it knows. In the
// kernel's the speaker does so for the connections of a service that comes to its node (package conntrack, Loosen).
func (n Node) trustSequenceNumbers(ctx context.Context) error {
	_, err := run(ctx, "", "ovs-appctl", "-t", n.switchControl(), "dpctl/ct-disable-tcp-seq-chk")
	return err
}
