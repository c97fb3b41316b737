// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
)

// endpoints are the endpoints of one Service on the pod network. Those of host-networked pods
// never count: their traffic is the node's own and is not steered.
type endpoints struct {
	addresses []netip.Addr
	on        map[string]bool // nodes with an endpoint
	serving   map[string]bool // nodes with one that serves
	served    bool            // some endpoint serves, whether or not its node is known
}

// endpoints reads the Service's EndpointSlices. Nodes are told by nodeName alone: a hostname
// label may be something else.
func (s *snapshot) endpoints(service types.NamespacedName) endpoints {
	e := endpoints{on: map[string]bool{}, serving: map[string]bool{}}
	for _, slice := range s.slices[service] {
		for _, endpoint := range slice.Endpoints {
			serves := endpoint.Conditions.Serving == nil || *endpoint.Conditions.Serving
			for _, text := range endpoint.Addresses {
				address, err := netip.ParseAddr(text)
				if err != nil || !s.pods.contain(address) {
					continue
				}
				e.addresses = append(e.addresses, address)
				e.served = e.served || serves
				if endpoint.NodeName != nil {
					e.on[*endpoint.NodeName] = true
					if serves {
						e.serving[*endpoint.NodeName] = true
					}
				}
			}
		}
	}
	return e
}

// owners tells, within one namespace, which EgressService an endpoint address belongs to: the
// oldest one. A pod is never an endpoint of another namespace's Service; slices that claim so are
// left out by the speakers.
type owners map[string]map[netip.Addr]types.NamespacedName

// claim takes the addresses for a service, and returns the older ones that have some already.
func (o owners) claim(service types.NamespacedName, addresses []netip.Addr) []types.NamespacedName {
	taken := o[service.Namespace]
	if taken == nil {
		taken = map[netip.Addr]types.NamespacedName{}
		o[service.Namespace] = taken
	}
	var others []types.NamespacedName
	for _, address := range addresses {
		switch other, known := taken[address]; {
		case !known:
			taken[address] = service
		case other != service && !slices.Contains(others, other):
			others = append(others, other)
		}
	}
	return others
}

// diverted finds, for each EgressService, the other Services whose clients get their replies
// through its primary: externalTrafficPolicy Local leaves the client's address on the packets, so
// nothing else tells replies to it from what the pods send by themselves.
func (s *snapshot) diverted(owned owners) map[types.NamespacedName][]string {
	found := map[types.NamespacedName]map[string]bool{}
	for key, service := range s.services {
		exposed := service.Spec.Type == corev1.ServiceTypeNodePort || service.Spec.Type == corev1.ServiceTypeLoadBalancer
		if !exposed || service.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || len(owned[key.Namespace]) == 0 {
			continue
		}
		for _, address := range s.endpoints(key).addresses {
			owner, known := owned[key.Namespace][address]
			if !known || owner == key {
				continue
			}
			if found[owner] == nil {
				found[owner] = map[string]bool{}
			}
			found[owner][key.Name] = true
		}
	}
	sorted := make(map[types.NamespacedName][]string, len(found))
	for owner, others := range found {
		sorted[owner] = slices.Sorted(maps.Keys(others))
	}
	return sorted
}

// prefixes are disjoint prefixes, ordered.
type prefixes []netip.Prefix

// subnetReader reads the nodes' annotations, each text once.
type subnetReader map[string][]netip.Prefix

// read returns the nodes' pod subnets. A malformed annotation is the speaker's to report; here
// its subnets are just missing.
func (r *subnetReader) read(nodes []*corev1.Node) prefixes {
	before := *r
	*r = make(subnetReader, len(nodes))
	var all []netip.Prefix
	for _, node := range nodes {
		text := node.Annotations[ovnkubernetes.NodeSubnets]
		subnets, known := before[text]
		if !known {
			facts, _ := ovnkubernetes.Parse(map[string]string{ovnkubernetes.NodeSubnets: text})
			subnets = facts.PodSubnets
		}
		(*r)[text] = subnets
		all = append(all, subnets...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	var disjoint prefixes
	for _, p := range all {
		if last := len(disjoint) - 1; last < 0 || !disjoint[last].Overlaps(p) {
			disjoint = append(disjoint, p)
		}
	}
	return disjoint
}

// contain says whether one of the prefixes contains the address.
func (p prefixes) contain(address netip.Addr) bool {
	after, found := slices.BinarySearchFunc(p, address, func(q netip.Prefix, a netip.Addr) int { return q.Addr().Compare(a) })
	if found {
		return true
	}
	return after > 0 && p[after-1].Contains(address)
}

// names joins at most some names for a message.
func names(all []string) string {
	const most = 5
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return strings.Join(all[:most], ", ") + ", ..."
}
