// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"encoding/json"
	"net/netip"
	"strconv"
)

// annotationsOf returns what OVN-Kubernetes would write on the Node object: the names and shapes are those of its go-controller's
// pkg/util (node_annotations.go, ovn.go).
func annotationsOf(n Node, mode GatewayMode) map[string]string {
	addresses := n.both(func(s stack) netip.Prefix { return s.host })
	join := byVersion(n.both(func(s stack) netip.Prefix { return s.join }))
	return map[string]string{
		"k8s.ovn.org/zone-name":                       n.Name,
		"k8s.ovn.org/remote-zone-migrated":            n.Name,
		"k8s.ovn.org/node-id":                         strconv.Itoa(n.id),
		"k8s.ovn.org/node-chassis-id":                 n.Name,
		"k8s.ovn.org/network-ids":                     text(map[string]string{"default": "0"}),
		"k8s.ovn.org/node-encap-ips":                  text([]string{n.Address.String()}),
		"k8s.ovn.org/node-primary-ifaddr":             text(byVersion(addresses)),
		"k8s.ovn.org/host-cidrs":                      text(n.hostAddresses()),
		"k8s.ovn.org/node-subnets":                    text(map[string][]netip.Prefix{"default": {n.PodSubnet, n.PodSubnet6}}),
		"k8s.ovn.org/node-mgmt-port-mac-addresses":    text(map[string]string{"default": n.ManagementMAC.String()}),
		"k8s.ovn.org/node-transit-switch-port-ifaddr": text(byVersion(n.both(func(s stack) netip.Prefix { return s.transit }))),
		"k8s.ovn.org/node-gateway-router-lrp-ifaddr":  text(join),
		"k8s.ovn.org/node-gateway-router-lrp-ifaddrs": text(map[string]any{"default": join}),
		"k8s.ovn.org/node-masquerade-subnet":          text(byVersion([]netip.Prefix{MasqueradeSubnet, MasqueradeSubnet6})),
		"k8s.ovn.org/l3-gateway-config": text(map[string]any{"default": map[string]any{
			"mode":             string(mode),
			"bridge-id":        externalBridge,
			"interface-id":     externalBridge + "_" + n.Name,
			"mac-address":      n.UplinkMAC.String(),
			"ip-addresses":     addresses,
			"next-hops":        []netip.Addr{RouterAddress, RouterAddress6},
			"node-port-enable": "true",
			"vlan-id":          "0",
		}}),
	}
}

// byVersion names an IPv4 and an IPv6 prefix.
func byVersion(prefixes []netip.Prefix) map[string]netip.Prefix {
	return map[string]netip.Prefix{"ipv4": prefixes[0], "ipv6": prefixes[1]}
}

// text is JSON, for values that always have one: strings, lists and maps of them.
func text(value any) string {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}
