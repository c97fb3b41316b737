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
	hosts := n.hostAddresses()
	nodeAddress := hosts[0].String()
	join := family(netip.PrefixFrom(n.JoinAddress, JoinSubnet.Bits()))
	return map[string]string{
		"k8s.ovn.org/zone-name":                       n.Name,
		"k8s.ovn.org/remote-zone-migrated":            n.Name,
		"k8s.ovn.org/node-id":                         strconv.Itoa(n.id),
		"k8s.ovn.org/node-chassis-id":                 n.Name,
		"k8s.ovn.org/network-ids":                     text(map[string]string{"default": "0"}),
		"k8s.ovn.org/node-encap-ips":                  text([]string{n.Address.String()}),
		"k8s.ovn.org/node-primary-ifaddr":             text(family(hosts[0])),
		"k8s.ovn.org/host-cidrs":                      text(hosts),
		"k8s.ovn.org/node-subnets":                    text(map[string][]string{"default": {n.PodSubnet.String()}}),
		"k8s.ovn.org/node-mgmt-port-mac-addresses":    text(map[string]string{"default": n.ManagementMAC.String()}),
		"k8s.ovn.org/node-transit-switch-port-ifaddr": text(family(netip.PrefixFrom(n.TransitAddress, TransitSubnet.Bits()))),
		"k8s.ovn.org/node-gateway-router-lrp-ifaddr":  text(join),
		"k8s.ovn.org/node-gateway-router-lrp-ifaddrs": text(map[string]map[string]string{"default": join}),
		"k8s.ovn.org/node-masquerade-subnet":          text(family(MasqueradeSubnet)),
		"k8s.ovn.org/l3-gateway-config": text(map[string]any{"default": map[string]any{
			"mode":             string(mode),
			"bridge-id":        externalBridge,
			"interface-id":     externalBridge + "_" + n.Name,
			"mac-address":      n.UplinkMAC.String(),
			"ip-addresses":     []string{nodeAddress},
			"ip-address":       nodeAddress,
			"next-hops":        []string{RouterAddress.String()},
			"next-hop":         RouterAddress.String(),
			"node-port-enable": "true",
			"vlan-id":          "0",
		}}),
	}
}

func family(prefix netip.Prefix) map[string]string {
	return map[string]string{"ipv4": prefix.String()}
}

// text is JSON, for values that always have one: strings, lists and maps of them.
func text(value any) string {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}
