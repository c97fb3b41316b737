// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"net/netip"
)

const (
	routerBridge = "br0"
	// nodeUplink is the node's end of its uplink, a port of br-ex. The ToR's end is named after the node.
	nodeUplink = "eth0"
	// controlDevice is the node's interface on the control plane's network.
	controlDevice = "mgmt0"
	podDevice     = "eth0"
)

func uplinkOf(node string) string {
	return "up-" + node
}

// fabric makes all namespaces but the pods', and the wires between them.
func fabric(ctx context.Context, o Options, nodes []Node) error {
	namespaces := []string{o.routerNetns(), o.outsideNetns(), o.controlNetns()}
	for _, n := range nodes {
		namespaces = append(namespaces, n.Netns)
	}
	for _, netns := range namespaces {
		if err := addNetns(ctx, netns); err != nil {
			return err
		}
	}
	if err := routerFabric(ctx, o, nodes); err != nil {
		return err
	}
	if err := outsideFabric(ctx, o); err != nil {
		return err
	}
	return controlFabric(ctx, o, nodes)
}

func addNetns(ctx context.Context, netns string) error {
	if _, err := run(ctx, "", "ip", "netns", "add", netns); err != nil {
		return err
	}
	// Addresses are usable at once, without looking for duplicates.
	if err := settings(ctx, netns, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"); err != nil {
		return err
	}
	return ipBatch(ctx, netns, "link set lo up")
}

// routerFabric makes the ToR's bridge, with one veth for each node, so that each uplink can be watched by itself, and the leg to
// the outside host.
func routerFabric(ctx context.Context, o Options, nodes []Node) error {
	lines := bridge(routerBridge, netip.PrefixFrom(RouterAddress, UnderlaySubnet.Bits()), "address "+underlayMAC(RouterAddress).String())
	for _, n := range nodes {
		lines = append(lines, wire(routerBridge, uplinkOf(n.Name), nodeUplink, n.Netns)...)
	}
	lines = append(lines,
		fmt.Sprintf("link add out type veth peer name eth0 netns %s", o.outsideNetns()),
		fmt.Sprintf("address add %s/%d dev %s", RouterAddress6, UnderlaySubnet6.Bits(), routerBridge),
		fmt.Sprintf("address add %s dev out", outsideGateway),
		fmt.Sprintf("address add %s dev out", outsideGateway6),
		"link set out up")
	if err := ipBatch(ctx, o.routerNetns(), lines...); err != nil {
		return err
	}
	// br_netfilter, where the kernel has it, must not track what the bridge only passes on.
	if err := settings(ctx, o.routerNetns(), "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := offloadOff(ctx, o.routerNetns(), uplinkOf(n.Name)); err != nil {
			return err
		}
	}
	return countUplinks(ctx, o)
}

func outsideFabric(ctx context.Context, o Options) error {
	return ipBatch(ctx, o.outsideNetns(),
		fmt.Sprintf("address add %s/%d dev eth0", OutsideAddress, outsideGateway.Bits()),
		fmt.Sprintf("address add %s/%d dev eth0", OutsideAddress6, outsideGateway6.Bits()),
		"link set eth0 up",
		fmt.Sprintf("route add default via %s", outsideGateway.Addr()),
		fmt.Sprintf("route add default via %s", outsideGateway6.Addr()))
}

func controlFabric(ctx context.Context, o Options, nodes []Node) error {
	const device = "mgmt"
	lines := bridge(device, netip.PrefixFrom(ControlAddress, ControlSubnet.Bits()))
	for _, n := range nodes {
		lines = append(lines, wire(device, "mgmt-"+n.Name, controlDevice, n.Netns)...)
	}
	if err := ipBatch(ctx, o.controlNetns(), lines...); err != nil {
		return err
	}
	return settings(ctx, o.controlNetns(), "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
}

// bridge is the lines of ip(8) that make a bridge with an address.
func bridge(device string, address netip.Prefix, options ...string) []string {
	add := "link add " + device
	for _, option := range options {
		add += " " + option
	}
	return []string{
		add + " type bridge forward_delay 0 mcast_snooping 0",
		fmt.Sprintf("address add %s dev %s", address, device),
		fmt.Sprintf("link set %s up", device),
	}
}

// wire is the lines of ip(8) that make a veth from a bridge to an interface of another namespace.
func wire(bridge, port, peer, peerNetns string) []string {
	return []string{
		fmt.Sprintf("link add %s type veth peer name %s netns %s", port, peer, peerNetns),
		fmt.Sprintf("link set %s master %s up", port, bridge),
	}
}
