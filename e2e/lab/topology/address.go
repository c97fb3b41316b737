// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
)

// The lab's address plan, dual-stack but for the network of the control plane. The subnets are OVN-Kubernetes' defaults where it has one.
var (
	// OutsideAddress is the host behind the ToR.
	OutsideAddress  = netip.MustParseAddr("198.51.100.7")
	OutsideAddress6 = netip.MustParseAddr("2001:db8::7")
	// RouterAddress is the ToR's on the underlay: the nodes' default gateway and, in IPv4, their BGP peer.
	RouterAddress  = netip.MustParseAddr("172.18.0.100")
	RouterAddress6 = netip.MustParseAddr("fd00:18::100")
	// UnderlaySubnet joins the nodes and the ToR.
	UnderlaySubnet  = netip.MustParsePrefix("172.18.0.0/24")
	UnderlaySubnet6 = netip.MustParsePrefix("fd00:18::/64")
	// PodSubnet holds every node's pod subnet.
	PodSubnet  = netip.MustParsePrefix("10.244.0.0/16")
	PodSubnet6 = netip.MustParsePrefix("fd00:10:244::/48")
	// ServiceSubnet is for ClusterIPs.
	ServiceSubnet  = netip.MustParsePrefix("10.96.0.0/16")
	ServiceSubnet6 = netip.MustParsePrefix("fd00:10:96::/112")
	// JoinSubnet joins the cluster router and the gateway routers.
	JoinSubnet  = netip.MustParsePrefix("100.64.0.0/16")
	JoinSubnet6 = netip.MustParsePrefix("fd98::/64")
	// TransitSubnet joins the zones.
	TransitSubnet  = netip.MustParsePrefix("100.88.0.0/16")
	TransitSubnet6 = netip.MustParsePrefix("fd97::/64")
	// MasqueradeSubnet is OVN-Kubernetes' for traffic between a host and its OVN.
	MasqueradeSubnet  = netip.MustParsePrefix("169.254.0.0/17")
	MasqueradeSubnet6 = netip.MustParsePrefix("fd69::/112")
	// ControlSubnet is the network of the control plane, apart from the data path.
	ControlSubnet = netip.MustParsePrefix("10.250.0.0/24")
	// ControlAddress is the control plane's own address: the API server listens there.
	ControlAddress = netip.MustParseAddr("10.250.0.1")

	outsideGateway  = netip.MustParsePrefix("198.51.100.1/24")
	outsideGateway6 = netip.MustParsePrefix("2001:db8::1/64")
	// hairpinAddress is the source that a pod sees when it reaches itself through a load balancer (OVN-Kubernetes'
	// OVNServiceHairpinMasqueradeIP).
	hairpinAddress  = netip.MustParseAddr("169.254.0.5")
	hairpinAddress6 = netip.MustParseAddr("fd69::5")
)

const (
	// RouterASN is the ToR's autonomous system.
	RouterASN = 64512
	// NodeASN is what the ToR expects of the nodes.
	NodeASN = 64513

	// The first pod address of a node's subnet: .1 is the router's, .2 the management port's.
	firstPodHost = 3
	lastPodHost  = 254
)

// Node is one node: its namespace, its addresses, and the places of its programs' sockets. A 6 marks what is IPv6. MAC addresses derive
// from IPv4 addresses.
type Node struct {
	// Name is also the name of the OVN zone, of the chassis and of the node's logical switch.
	Name  string
	Netns string
	// Address is the node's on the underlay, on br-ex.
	Address, Address6 netip.Addr
	// UplinkMAC is that of br-ex, shared with the node's gateway router.
	UplinkMAC             net.HardwareAddr
	PodSubnet, PodSubnet6 netip.Prefix
	// ManagementAddress is that of ovn-k8s-mp0.
	ManagementAddress, ManagementAddress6 netip.Addr
	ManagementMAC                         net.HardwareAddr
	// TransitAddress is the cluster router's on the transit switch, in this node's zone.
	TransitAddress, TransitAddress6 netip.Addr
	// JoinAddress is the gateway router's on the join switch.
	JoinAddress, JoinAddress6 netip.Addr
	// ControlAddress is the node's on the control plane's network (mgmt0).
	ControlAddress netip.Addr
	// NorthboundSocket and OpenvSwitchSocket are the databases' unix sockets, without the "unix:" that OVN's tools want before it.
	NorthboundSocket, OpenvSwitchSocket string
	// RunDir holds the node's databases and sockets (OVS_RUNDIR and OVN_RUNDIR).
	RunDir string
	// Annotations are those that OVN-Kubernetes would set on the Node object.
	Annotations map[string]string

	// id is OVN-Kubernetes' node ID. They begin at 2, since the first address of the join subnet is the cluster router's.
	id int
}

// node returns the plan of the node with this number, from 1 on.
func (o Options) node(number int) Node {
	name := fmt.Sprintf("n%d", number)
	id := number + 1
	runDir := filepath.Join(o.folder(), name)
	n := Node{
		Name:              name,
		Netns:             o.namespacePrefix() + name,
		Address:           hostOf(UnderlaySubnet, 10+number),
		Address6:          hostOf(UnderlaySubnet6, 0x10+number),
		PodSubnet:         netip.PrefixFrom(hostOf(PodSubnet, number<<8), 24),
		PodSubnet6:        podSubnet6(number),
		TransitAddress:    hostOf(TransitSubnet, id),
		TransitAddress6:   hostOf(TransitSubnet6, id),
		JoinAddress:       hostOf(JoinSubnet, id),
		JoinAddress6:      hostOf(JoinSubnet6, id),
		ControlAddress:    hostOf(ControlSubnet, 10+number),
		NorthboundSocket:  filepath.Join(runDir, "nb.sock"),
		OpenvSwitchSocket: filepath.Join(runDir, "ovs.sock"),
		RunDir:            runDir,
		id:                id,
	}
	n.ManagementAddress, n.ManagementAddress6 = hostOf(n.PodSubnet, 2), hostOf(n.PodSubnet6, 2)
	n.ManagementMAC = ovnMAC(n.ManagementAddress)
	n.UplinkMAC = underlayMAC(n.Address)
	n.Annotations = annotationsOf(n, o.Gateway)
	return n
}

func (o Options) nodes() []Node {
	nodes := make([]Node, 0, o.Nodes)
	for number := 1; number <= o.Nodes; number++ {
		nodes = append(nodes, o.node(number))
	}
	return nodes
}

func (n Node) southboundSocket() string {
	return filepath.Join(n.RunDir, "sb.sock")
}

func (n Node) gatewayRouter() string {
	return "GR_" + n.Name
}

// Addresses are the node's on the underlay, IPv4 first.
func (n Node) Addresses() []netip.Addr {
	return []netip.Addr{n.Address, n.Address6}
}

// hostAddresses are all addresses of the host that others may use, which excludes the management port's (OVN-Kubernetes'
// host-cidrs).
func (n Node) hostAddresses() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(n.Address, UnderlaySubnet.Bits()), netip.PrefixFrom(n.Address6, UnderlaySubnet6.Bits()),
		netip.PrefixFrom(n.ControlAddress, ControlSubnet.Bits()),
	}
}

// stack is a node's part of the address plan in one IP version, where both are treated alike. Addresses have their subnet's length.
type stack struct {
	// ip is OVN's name of the version.
	ip string
	// host is the node's address on the underlay, router the ToR's.
	host   netip.Prefix
	router netip.Addr
	// pods is the node's pod subnet, and gateway the cluster router's address in it.
	pods, gateway, management netip.Prefix
	transit, join             netip.Prefix
	// clusterPods holds every node's pods; joinRouter is the cluster router's address in the join subnet.
	clusterPods, joinRouter, everything netip.Prefix
}

// stacks are IPv4 and IPv6.
func (n Node) stacks() []stack {
	in := func(subnet netip.Prefix, address netip.Addr) netip.Prefix {
		return netip.PrefixFrom(address, subnet.Bits())
	}
	return []stack{
		{
			ip: "ip4", host: in(UnderlaySubnet, n.Address), router: RouterAddress,
			pods: n.PodSubnet, gateway: in(n.PodSubnet, hostOf(n.PodSubnet, 1)), management: in(n.PodSubnet, n.ManagementAddress),
			transit: in(TransitSubnet, n.TransitAddress), join: in(JoinSubnet, n.JoinAddress),
			clusterPods: PodSubnet, joinRouter: in(JoinSubnet, hostOf(JoinSubnet, 1)), everything: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		},
		{
			ip: "ip6", host: in(UnderlaySubnet6, n.Address6), router: RouterAddress6,
			pods: n.PodSubnet6, gateway: in(n.PodSubnet6, hostOf(n.PodSubnet6, 1)), management: in(n.PodSubnet6, n.ManagementAddress6),
			transit: in(TransitSubnet6, n.TransitAddress6), join: in(JoinSubnet6, n.JoinAddress6),
			clusterPods: PodSubnet6, joinRouter: in(JoinSubnet6, hostOf(JoinSubnet6, 1)), everything: netip.PrefixFrom(netip.IPv6Unspecified(), 0),
		},
	}
}

// both picks something of each stack.
func (n Node) both(pick func(stack) netip.Prefix) []netip.Prefix {
	var picked []netip.Prefix
	for _, s := range n.stacks() {
		picked = append(picked, pick(s))
	}
	return picked
}

// version is the IP version of an address: "4" or "6".
func version(address netip.Addr) string {
	if address.Is4() {
		return "4"
	}
	return "6"
}

// podSubnet6 is the pod subnet of the node with this number.
func podSubnet6(number int) netip.Prefix {
	bytes := PodSubnet6.Addr().As16()
	bytes[7] = byte(number)
	return netip.PrefixFrom(netip.AddrFrom16(bytes), 64)
}

// hostOf returns the address with this number in a subnet, the subnet's own being 0.
func hostOf(subnet netip.Prefix, number int) netip.Addr {
	bytes := subnet.Masked().Addr().AsSlice()
	for i := len(bytes) - 1; i >= 0 && number > 0; i-- {
		number += int(bytes[i])
		bytes[i] = byte(number)
		number >>= 8
	}
	address, _ := netip.AddrFromSlice(bytes) // as long as it was
	return address
}

// ovnMAC is the MAC address that OVN-Kubernetes derives from an IPv4 address.
func ovnMAC(address netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, address.AsSlice()...)
}

// underlayMAC is a fixed MAC address for an interface on the underlay.
func underlayMAC(address netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x00}, address.AsSlice()...)
}
