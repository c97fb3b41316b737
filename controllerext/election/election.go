// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"hash/fnv"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Node is what the election knows of one node.
type Node struct {
	Name   string
	Labels labels.Set
	// Zone is the value of topology.kubernetes.io/zone, or empty.
	Zone string
	// Ready is the node's Ready condition.
	Ready bool
	// Deleting is true once the Node object has a deletion timestamp.
	Deleting bool
	// NetworkUnavailable is the node's NetworkUnavailable condition.
	NetworkUnavailable bool
	// Excluded is true with the label node.kubernetes.io/exclude-from-external-load-balancers:
	// MetalLB announces nothing from such a node.
	Excluded bool
	// Cordoned is spec.unschedulable.
	Cordoned bool
	// Reporting is true when the node's egress-speaker has reported an EgressNode.
	Reporting bool
	// SharedGateway is true when the node reports OVN-Kubernetes' shared gateway mode, in which
	// it can't serve.
	SharedGateway bool
	// SessionEstablished is true while one of the node's BGP sessions is.
	SessionEstablished bool
}

// Service is what the election knows of one service.
type Service struct {
	// Key is <namespace>/<name>.
	Key string
	// Selector is spec.nodeSelector of the EgressService; nil matches every node.
	Selector labels.Selector
	// LocalNodes, when not nil, are the nodes with a serving endpoint of a service whose
	// externalTrafficPolicy is Local: no other node may be elected.
	LocalNodes map[string]bool
	// Primary and Standby are the nodes in force, or empty.
	Primary, Standby string
	// Avoid are nodes to take only when there is no other: they did not acknowledge lately.
	Avoid map[string]bool
}

// Reason says why a node is not eligible, as a CamelCase word.
type Reason string

// The reasons, in the order in which they are looked at.
const (
	NotReady           Reason = "NotReady"
	Deleting           Reason = "Deleting"
	NetworkUnavailable Reason = "NetworkUnavailable"
	Excluded           Reason = "ExcludedFromLoadBalancers"
	SelectorMismatch   Reason = "NodeSelectorMismatch"
	NoLocalEndpoint    Reason = "NoLocalEndpoint"
	SpeakerNotReported Reason = "SpeakerNotReporting"
	SharedGatewayMode  Reason = "SharedGatewayMode"
)

// Rejection is one node that is not eligible.
type Rejection struct {
	Node   string
	Reason Reason
}

// Result is the outcome: empty names where no node fits.
type Result struct {
	Primary, Standby string
	// Rejected are the nodes that are not eligible, ordered by name.
	Rejected []Rejection
}

// Elect chooses for one service. Load counts the services of which a node is primary; the
// service itself may be counted or not. The current primary stays while it is eligible;
// else the standby follows it; else the eligible node with the best preference.
func Elect(nodes []Node, load map[string]int, service Service) Result {
	var result Result
	var eligible []Node
	for _, node := range nodes {
		if reason := reject(node, service); reason != "" {
			result.Rejected = append(result.Rejected, Rejection{node.Name, reason})
			continue
		}
		eligible = append(eligible, node)
	}
	slices.SortFunc(result.Rejected, func(a, b Rejection) int { return cmp.Compare(a.Node, b.Node) })
	if len(eligible) == 0 {
		return result
	}

	primary := pick(eligible, service.Primary)
	allAvoided := !slices.ContainsFunc(eligible, func(n Node) bool { return !service.Avoid[n.Name] })
	if primary == nil && (allAvoided || !service.Avoid[service.Standby]) {
		primary = pick(eligible, service.Standby)
	}
	if primary == nil {
		primary = best(eligible, load, service, "")
	}
	result.Primary = primary.Name

	others := slices.DeleteFunc(eligible, func(n Node) bool { return n.Name == result.Primary })
	if len(others) == 0 {
		return result
	}
	standby := pick(others, service.Standby)
	if standby == nil || service.Avoid[standby.Name] {
		standby = best(others, load, service, primary.Zone)
	}
	result.Standby = standby.Name
	return result
}

func reject(node Node, service Service) Reason {
	switch {
	case !node.Ready:
		return NotReady
	case node.Deleting:
		return Deleting
	case node.NetworkUnavailable:
		return NetworkUnavailable
	case node.Excluded:
		return Excluded
	case service.Selector != nil && !service.Selector.Matches(node.Labels):
		return SelectorMismatch
	case service.LocalNodes != nil && !service.LocalNodes[node.Name]:
		return NoLocalEndpoint
	case !node.Reporting:
		return SpeakerNotReported
	case node.SharedGateway:
		return SharedGatewayMode
	}
	return ""
}

func pick(nodes []Node, name string) *Node {
	if i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name }); name != "" && i >= 0 {
		node := nodes[i]
		return &node
	}
	return nil
}

// best orders by: not to be avoided, BGP session established, not cordoned, in another zone
// than otherThan (when given), fewest primaries, rendezvous hash.
func best(nodes []Node, load map[string]int, service Service, otherThan string) *Node {
	node := slices.MinFunc(nodes, func(a, b Node) int {
		return cmp.Or(
			falseFirst(service.Avoid[a.Name], service.Avoid[b.Name]),
			falseFirst(!a.SessionEstablished, !b.SessionEstablished),
			falseFirst(a.Cordoned, b.Cordoned),
			falseFirst(otherThan != "" && a.Zone == otherThan, otherThan != "" && b.Zone == otherThan),
			cmp.Compare(load[a.Name], load[b.Name]),
			cmp.Compare(weight(service.Key, b.Name), weight(service.Key, a.Name)),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return &node
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// weight is the rendezvous (highest random weight) hash of a service on a node: ties break
// alike everywhere, and a node that comes or goes moves only its own services.
func weight(service, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(service))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(node))
	x := h.Sum64()
	// FNV alone mixes the last bytes badly; the finalizer of MurmurHash3 spreads them.
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
