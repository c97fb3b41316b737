// SPDX-License-Identifier: Apache-2.0

// Package ovnkubernetes reads what OVN-Kubernetes writes on Node objects. Both programs
// learn the cluster's shape from these annotations; nothing here ever writes one.
package ovnkubernetes

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Annotation keys on Node objects (OVN-Kubernetes, go-controller/pkg/util/node_annotations.go).
const (
	// NodeSubnets: {"default": ["10.244.1.0/24", "fd00:10:244:2::/64"]}, or one string
	// instead of the list in older releases.
	NodeSubnets = "k8s.ovn.org/node-subnets"
	// TransitSwitchPort: {"ipv4": "100.88.0.2/16", "ipv6": "fd97::2/64"}.
	TransitSwitchPort = "k8s.ovn.org/node-transit-switch-port-ifaddr"
	// HostCIDRs: ["172.18.0.11/24", "fc00::11/64"], every address of the host.
	HostCIDRs = "k8s.ovn.org/host-cidrs"
	// L3GatewayConfig: {"default": {"mode": "local", …}}.
	L3GatewayConfig = "k8s.ovn.org/l3-gateway-config"
)

// Node is what the annotations of one Node say.
type Node struct {
	// PodSubnets are the node's subnets of the default network.
	PodSubnets []netip.Prefix
	// TransitAddresses are the node's addresses on the transit switch.
	TransitAddresses []netip.Addr
	// HostAddresses are the host's addresses, with their prefix lengths.
	HostAddresses []netip.Prefix
	// GatewayMode is "local", "shared" or empty when unknown.
	GatewayMode string
}

// ManagementAddresses are the node's addresses on ovn-k8s-mp0: the second host address of
// each pod subnet.
func (n Node) ManagementAddresses() []netip.Addr {
	var addresses []netip.Addr
	for _, subnet := range n.PodSubnets {
		addresses = append(addresses, subnet.Masked().Addr().Next().Next())
	}
	return addresses
}

// Parse reads the annotations of a Node. An absent annotation leaves its field empty; a
// malformed one is an error that names it, and the other fields are read all the same.
func Parse(annotations map[string]string) (Node, error) {
	var node Node
	var firstError error
	read := func(key string, into any, then func() error) {
		text, ok := annotations[key]
		if !ok {
			return
		}
		err := json.Unmarshal([]byte(text), into)
		if err == nil {
			err = then()
		}
		if err != nil && firstError == nil {
			firstError = fmt.Errorf("annotation %s: %w", key, err)
		}
	}

	var subnets map[string]json.RawMessage
	read(NodeSubnets, &subnets, func() (err error) {
		texts, err := stringOrList(subnets["default"])
		if err == nil {
			node.PodSubnets, err = parseAll(texts, netip.ParsePrefix)
		}
		return err
	})
	var transit map[string]string
	read(TransitSwitchPort, &transit, func() error {
		for _, family := range []string{"ipv4", "ipv6"} {
			if text, ok := transit[family]; ok {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return err
				}
				node.TransitAddresses = append(node.TransitAddresses, prefix.Addr())
			}
		}
		return nil
	})
	var hosts []string
	read(HostCIDRs, &hosts, func() (err error) {
		node.HostAddresses, err = parseAll(hosts, netip.ParsePrefix)
		return err
	})
	var gateway map[string]struct {
		Mode string `json:"mode"`
	}
	read(L3GatewayConfig, &gateway, func() error {
		node.GatewayMode = gateway["default"].Mode
		return nil
	})
	return node, firstError
}

func stringOrList(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var list []string
	return list, json.Unmarshal(raw, &list)
}

func parseAll[T any](texts []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, text := range texts {
		value, err := parse(text)
		if err != nil {
			return nil, err
		}
		out = append(out, value)
	}
	return out, nil
}
