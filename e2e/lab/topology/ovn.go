// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

const (
	clusterRouter = "ovn_cluster_router"
	joinSwitch    = "join"
	transitSwitch = "transit_switch"
	// transitKey is the tunnel key of the transit switch, which has to be the same in all zones. OVN keeps the keys from
	// 16711680 on, ((1<<24)-1) less 65535, for such switches; OVN-Kubernetes takes this one for the default network.
	transitKey = 16711683
)

// buildZone fills a node's OVN databases, waits until the flows are installed, and lets the external bridge pass.
func buildZone(ctx context.Context, n Node, all []Node) error {
	var chassis [][]string
	for _, other := range all {
		if other.Name != n.Name {
			chassis = append(chassis, remoteChassis(other)...)
		}
	}
	if len(chassis) > 0 {
		if _, err := n.southbound(ctx, oneTransaction(chassis)...); err != nil {
			return err
		}
	}
	commands := append([][]string{{"--wait=sb", "set", "NB_Global", ".", "name=" + n.Name, "options:name=" + n.Name, "options:northd_probe_interval=0"}},
		zoneCommands(n)...)
	for _, other := range all {
		if other.Name != n.Name {
			commands = append(commands, remoteZoneCommands(other)...)
		}
	}
	if _, err := n.northbound(ctx, oneTransaction(commands)...); err != nil {
		return err
	}
	var bindings [][]string
	for _, other := range all {
		if other.Name != n.Name {
			bindings = append(bindings, []string{"lsp-bind", "tstor-" + other.Name, other.Name})
		}
	}
	if len(bindings) > 0 {
		if _, err := n.southbound(ctx, oneTransaction(bindings)...); err != nil {
			return err
		}
	}
	if _, err := n.northbound(ctx, "--wait=hv", "sync"); err != nil {
		return err
	}
	if err := n.openExternalBridge(ctx); err != nil {
		return err
	}
	if err := n.trustSequenceNumbers(ctx); err != nil {
		return err
	}
	return n.knowTunnelPeers(ctx, all)
}

// remoteChassis are ovn-sbctl(8) commands that tell a zone of another zone's chassis; OVN-Kubernetes' zone interconnect handler
// does so too.
func remoteChassis(other Node) [][]string {
	return [][]string{
		{"chassis-add", other.Name, "geneve", other.Address.String()},
		{"set", "Chassis", other.Name, "other_config:is-remote=true", "hostname=" + other.Name},
	}
}

// zoneCommands are ovn-nbctl(8) commands for a zone's own routers, switches, routes and policies, in OVN-Kubernetes' shape for the
// local gateway mode.
func zoneCommands(n Node) [][]string {
	commands := [][]string{
		{"lr-add", clusterRouter}, {"set", "Logical_Router", clusterRouter, "external_ids:k8s-cluster-router=yes"},
		{"ls-add", joinSwitch},
	}
	commands = append(commands, routerPort(clusterRouter, joinSwitch, "rtoj-"+clusterRouter, "jtor-"+clusterRouter, ovnMAC(hostOf(JoinSubnet, 1)), n.both(func(s stack) netip.Prefix { return s.joinRouter }))...)
	commands = append(commands, []string{"ls-add", n.Name},
		[]string{"set", "Logical_Switch", n.Name, "other_config:subnet=" + n.PodSubnet.String(), fmt.Sprintf("other_config:ipv6_prefix=%q", n.PodSubnet6.Addr())})
	commands = append(commands, routerPort(clusterRouter, n.Name, "rtos-"+n.Name, "stor-"+n.Name, ovnMAC(hostOf(n.PodSubnet, 1)), n.both(func(s stack) netip.Prefix { return s.gateway }))...)
	commands = append(commands, []string{"lsp-add", n.Name, "k8s-" + n.Name},
		[]string{"lsp-set-addresses", "k8s-" + n.Name, fmt.Sprintf("%s %s %s", n.ManagementMAC, n.ManagementAddress, n.ManagementAddress6)})
	commands = append(commands, gatewayCommands(n)...)
	commands = append(commands, []string{"ls-add", transitSwitch},
		[]string{"set", "Logical_Switch", transitSwitch, "other_config:interconn-ts=" + transitSwitch, fmt.Sprintf("other_config:requested-tnl-key=%d", transitKey)})
	commands = append(commands, routerPort(clusterRouter, transitSwitch, "rtots-"+n.Name, "tstor-"+n.Name, ovnMAC(n.TransitAddress), n.both(func(s stack) netip.Prefix { return s.transit }))...)
	commands = append(commands, []string{"lsp-set-options", "tstor-" + n.Name, "router-port=rtots-" + n.Name, fmt.Sprintf("requested-tnl-key=%d", n.id)})
	return append(commands, routingCommands(n)...)
}

// gatewayCommands make the gateway router and the switch to the external bridge. In local gateway mode pods do not pass here, but
// OVN-Kubernetes has them all the same.
func gatewayCommands(n Node) [][]string {
	router, external := n.gatewayRouter(), "ext_"+n.Name
	localnet := externalBridge + "_" + n.Name
	commands := [][]string{
		{"lr-add", router},
		{
			"set", "Logical_Router", router, "options:chassis=" + n.Name, "options:lb_force_snat_ip=router_ip", "options:snat-ct-zone=0",
			"options:dynamic_neigh_routers=true", "options:always_learn_from_arp_request=false",
			"external_ids:physical_ip=" + n.Address.String(), fmt.Sprintf("external_ids:physical_ips=\"%s,%s\"", n.Address, n.Address6),
		},
	}
	commands = append(commands, routerPort(router, joinSwitch, "rtoj-"+router, "jtor-"+router, ovnMAC(n.JoinAddress), n.both(func(s stack) netip.Prefix { return s.join }))...)
	commands = append(commands, []string{"ls-add", external})
	commands = append(commands, routerPort(router, external, "rtoe-"+router, "etor-"+router, n.UplinkMAC, n.both(func(s stack) netip.Prefix { return s.host }))...)
	commands = append(commands,
		[]string{"lsp-add", external, localnet},
		[]string{"lsp-set-type", localnet, "localnet"},
		[]string{"lsp-set-addresses", localnet, "unknown"},
		[]string{"lsp-set-options", localnet, "network_name=" + physicalNetwork})
	for _, s := range n.stacks() {
		commands = append(commands,
			[]string{"lr-route-add", router, s.clusterPods.String(), s.joinRouter.Addr().String()},
			[]string{"lr-route-add", router, s.everything.String(), s.router.String(), "rtoe-" + router},
			[]string{"lr-nat-add", router, "snat", s.host.Addr().String(), s.clusterPods.String()})
	}
	return commands
}

// routingCommands make the cluster router's routes and policies of the own zone. The src-ip route is the local gateway mode's way
// out.
func routingCommands(n Node) [][]string {
	var commands [][]string
	for _, s := range n.stacks() {
		management, join := s.management.Addr().String(), s.join.Addr().String()
		hairpin := fmt.Sprintf("%s.src == %s && %s.dst == %s /* %s */", s.ip, management, s.ip, s.host.Addr(), n.Name)
		commands = append(commands,
			[]string{"--policy=src-ip", "lr-route-add", clusterRouter, s.pods.String(), management},
			[]string{"lr-route-add", clusterRouter, join, join},
			// A host that reaches itself through a load balancer (OVN-Kubernetes' MGMTPortPolicyPriority).
			[]string{"lr-policy-add", clusterRouter, "1005", hairpin, "reroute", management})
		for _, host := range n.hostAddresses() {
			if host.Addr().Is4() != s.host.Addr().Is4() {
				continue
			}
			// A pod that reaches its own node keeps its address (NodeSubnetPolicyPriority).
			match := fmt.Sprintf("inport == \"rtos-%s\" && %s.dst == %s /* %s */", n.Name, s.ip, host.Addr(), n.Name)
			commands = append(commands, []string{"lr-policy-add", clusterRouter, "1004", match, "reroute", management})
		}
	}
	return commands
}

// remoteZoneCommands are ovn-nbctl(8) commands that tell a zone of another node behind the transit switch.
func remoteZoneCommands(other Node) [][]string {
	port := "tstor-" + other.Name
	transit := other.both(func(s stack) netip.Prefix { return s.transit })
	commands := [][]string{
		{"lsp-add", transitSwitch, port},
		{"lsp-set-type", port, "remote"},
		{"lsp-set-addresses", port, fmt.Sprintf("%s %s %s", ovnMAC(other.TransitAddress), transit[0], transit[1])},
		{"lsp-set-options", port, fmt.Sprintf("requested-tnl-key=%d", other.id), "requested-chassis=" + other.Name},
	}
	for _, s := range other.stacks() {
		commands = append(commands,
			[]string{"lr-route-add", clusterRouter, s.pods.String(), s.transit.Addr().String()},
			[]string{"lr-route-add", clusterRouter, s.join.Addr().String(), s.transit.Addr().String()})
	}
	return commands
}

// routerPort joins a logical router and a logical switch. The router's addresses there are an IPv4 and an IPv6 one.
func routerPort(router, logicalSwitch, routerSide, switchSide string, mac net.HardwareAddr, addresses []netip.Prefix) [][]string {
	return [][]string{
		{"lrp-add", router, routerSide, mac.String(), addresses[0].String(), addresses[1].String()},
		{"lsp-add", logicalSwitch, switchSide},
		{"lsp-set-type", switchSide, "router"},
		{"lsp-set-addresses", switchSide, "router"},
		{"lsp-set-options", switchSide, "router-port=" + routerSide},
	}
}
