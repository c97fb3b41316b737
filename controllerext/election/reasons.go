// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Reason says why a node is not eligible, or was replaced, as a CamelCase word.
type Reason string

// The reasons why a node is not eligible, in the order in which they are looked at.
const (
	NotReady           Reason = "NotReady"
	Deleting           Reason = "Deleting"
	NetworkUnavailable Reason = "NetworkUnavailable"
	Excluded           Reason = "ExcludedFromLoadBalancers"
	SelectorMismatch   Reason = "NodeSelectorMismatch"
	NoLocalEndpoint    Reason = "NoLocalEndpoint"
	SpeakerNotReported Reason = "SpeakerNotReporting"
	NetworkMissing     Reason = "NetworkMissing"
	SharedGatewayMode  Reason = "SharedGatewayMode"
)

// The reasons why a primary was replaced, beside those: it is not in the snapshot any more, or it is
// eligible and another node is better, in this order.
const (
	NodeGone      Reason = "NodeGone"
	SpeakerSilent Reason = "SpeakerSilent"
	NoBGPSession  Reason = "NoBGPSession"
	Cordoned      Reason = "Cordoned"
)

// Rejection is one node that is not eligible.
type Rejection struct {
	Node   string
	Reason Reason
}

// Reject lists the nodes that may not be the service's primary, ordered by name: all of them exactly
// when Elect finds none.
func (e *Electorate) Reject(s Service) []Rejection {
	var rejected []Rejection
	for i := range e.all {
		n := &e.all[i]
		if reason := n.reject(&s, n.Name == s.Primary); reason != "" {
			rejected = append(rejected, Rejection{n.Name, reason})
		}
	}
	return rejected
}

// Count spells how many nodes were rejected for which reason, as in "2 NodeSelectorMismatch, 1 NotReady".
// It is for services that no node is eligible for: if none was rejected, there is none.
func Count(rejected []Rejection) string {
	if len(rejected) == 0 {
		return "the cluster has no nodes"
	}
	count := map[Reason]int{}
	for _, r := range rejected {
		count[r.Reason]++
	}
	words := make([]string, 0, len(count))
	for _, reason := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[reason], reason))
	}
	return strings.Join(words, ", ")
}

// broken says why a node can serve no service.
func broken(n Node) Reason {
	switch {
	case !n.Ready:
		return NotReady
	case n.Deleting:
		return Deleting
	case n.NetworkUnavailable:
		return NetworkUnavailable
	case n.Excluded:
		return Excluded
	}
	return ""
}

// reject says why a node may not have a place, or is empty. One that has it already may lack a
// report: if somebody deletes the EgressNodes, everything stays where it is.
func (n *candidate) reject(s *Service, incumbent bool) Reason {
	if n.broken != "" {
		return n.broken
	}
	for _, selector := range s.Selectors {
		if selector != nil && !selector.Matches(n.Labels) {
			return SelectorMismatch
		}
	}
	if s.LocalNodes != nil && !s.LocalNodes[n.Name] {
		return NoLocalEndpoint
	}
	if !n.Reporting {
		if incumbent {
			return ""
		}
		return SpeakerNotReported
	}
	for _, network := range s.Networks {
		if !slices.Contains(n.Networks, network) {
			return NetworkMissing
		}
	}
	if n.SharedGateway {
		return SharedGatewayMode
	}
	return ""
}
