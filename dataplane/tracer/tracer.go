// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Node is one node with its plan.
type Node struct {
	Facts dataplane.NodeFacts
	Plan  dataplane.Plan
}

// Cluster is all nodes by name.
type Cluster map[string]Node

// Fate is where a packet ended.
type Fate string

const (
	// Outside packets left the cluster from Outcome.Node with Outcome.Source.
	Outside Fate = "outside"
	// Inside packets reached a destination in the cluster.
	Inside Fate = "inside"
	// Dropped packets ended on Outcome.Node because of Outcome.Reason.
	Dropped Fate = "dropped"
)

// Outcome is what became of a packet.
type Outcome struct {
	Fate   Fate
	Node   string
	Source netip.Addr
	// Reason is why a packet was dropped: "hold for" a service, "stray", or an OVN policy's row.
	Reason string
}

// String is the outcome in words, for example "outside from n2 as 172.19.0.100".
func (o Outcome) String() string {
	if o.Fate == Dropped {
		return fmt.Sprintf("dropped on %s: %s", o.Node, o.Reason)
	}
	return fmt.Sprintf("%s from %s as %s", o.Fate, o.Node, o.Source)
}

// Send follows a packet that a pod on the node opens a connection with. A source that the host
// does not translate stays the pod's own; the masquerade of ordinary pods is not modeled.
func (c Cluster) Send(node string, src, dst netip.Addr) (Outcome, error) {
	return c.route(node, "rtos-"+node, src, dst, len(c)+1)
}

// route is the cluster router of one zone.
func (c Cluster) route(node, inport string, src, dst netip.Addr, hops int) (Outcome, error) {
	if hops == 0 {
		return Outcome{}, fmt.Errorf("packet from %s to %s circles between zones", src, dst)
	}
	n := c[node]
	policy, err := Lookup(n.Plan.OVN, inport, src, dst)
	if err != nil {
		return Outcome{}, fmt.Errorf("node %s: %w", node, err)
	}
	if policy == nil || policy.Action == dataplane.ActionAllow {
		if pod := c.nodeOfPod(dst); pod == node {
			return Outcome{Fate: Inside, Node: node, Source: src}, nil
		} else if pod != "" {
			return c.route(pod, dataplane.TransitPort(pod), src, dst, hops-1)
		}
		return host(node, n, src, dst), nil
	}
	if policy.Action == dataplane.ActionDrop {
		return Outcome{Fate: Dropped, Node: node, Source: src, Reason: policy.ID.Row + " for " + policy.ID.Service}, nil
	}
	if slices.Contains(n.Facts.ManagementAddresses, policy.NextHop) {
		return host(node, n, src, dst), nil
	}
	for name, other := range c {
		if name != node && slices.Contains(other.Facts.TransitAddresses, policy.NextHop) {
			return c.route(name, dataplane.TransitPort(name), src, dst, hops-1)
		}
	}
	return Outcome{}, fmt.Errorf("node %s: next hop %s of %s leads nowhere", node, policy.NextHop, policy.ID)
}

func (c Cluster) nodeOfPod(a netip.Addr) string {
	for name, n := range c {
		for _, p := range n.Facts.PodSubnets {
			if p.Contains(a) {
				return name
			}
		}
	}
	return ""
}

// host is the node's nftables table: internal destinations, then the chains hold, postrouting and
// leave of package nft.
func host(name string, n Node, src, dst netip.Addr) Outcome {
	plan := n.Plan.Host
	if within(plan.Internal, dst) {
		return Outcome{Fate: Inside, Node: name, Source: src}
	}
	for _, h := range plan.Holds {
		if h.Pod == src {
			return Outcome{Fate: Dropped, Node: name, Source: src, Reason: "hold for " + h.Service}
		}
	}
	for _, t := range plan.Translations {
		if t.Pod == src {
			return Outcome{Fate: Outside, Node: name, Source: t.Source}
		}
	}
	if within(plan.Pods, src) && !within(plan.OwnPods, src) {
		return Outcome{Fate: Dropped, Node: name, Source: src, Reason: "stray"}
	}
	return Outcome{Fate: Outside, Node: name, Source: src}
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Lookup finds the policy that a packet meets, or nil. Two of the same priority that both match
// are an error: OVN would take either.
func Lookup(rows dataplane.OVN, inport string, src, dst netip.Addr) (*dataplane.Policy, error) {
	var found *dataplane.Policy
	for i := range rows.Policies {
		p := &rows.Policies[i]
		ok, err := matches(rows, p.Match, inport, src, dst)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", p.ID, err)
		}
		switch {
		case !ok || found != nil && found.Priority > p.Priority:
		case found != nil && found.Priority == p.Priority:
			return nil, fmt.Errorf("packet from %s to %s meets both %s and %s", src, dst, found.ID, p.ID)
		default:
			found = p
		}
	}
	return found, nil
}

func matches(rows dataplane.OVN, match, inport string, src, dst netip.Addr) (bool, error) {
	result := true
	for _, term := range strings.Split(match, " && ") {
		field, value, ok := strings.Cut(term, " == ")
		if !ok {
			return false, fmt.Errorf("cannot read %q", term)
		}
		var hit bool
		var err error
		switch field {
		case "inport":
			hit = value == fmt.Sprintf("%q", inport)
		case "ip4.src":
			hit, err = inSet(rows, value, src)
			hit = hit && src.Is4()
		case "ip6.src":
			hit, err = inSet(rows, value, src)
			hit = hit && src.Is6()
		case "ip4.dst":
			hit, err = inSet(rows, value, dst)
			hit = hit && dst.Is4()
		case "ip6.dst":
			hit, err = inSet(rows, value, dst)
			hit = hit && dst.Is6()
		default:
			return false, fmt.Errorf("cannot read %q", term)
		}
		if err != nil {
			return false, err
		}
		result = result && hit
	}
	return result, nil
}

func inSet(rows dataplane.OVN, reference string, a netip.Addr) (bool, error) {
	name, ok := strings.CutPrefix(reference, "$")
	if !ok {
		return false, fmt.Errorf("%q is no address set", reference)
	}
	i := slices.IndexFunc(rows.AddressSets, func(s dataplane.AddressSet) bool { return s.Name == name })
	if i < 0 {
		return false, fmt.Errorf("no address set %q", name)
	}
	for _, s := range rows.AddressSets[i].Addresses {
		if strings.Contains(s, "/") {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return false, fmt.Errorf("address set %s: %w", name, err)
			}
			if p.Contains(a) {
				return true, nil
			}
		} else if s == a.String() {
			return true, nil
		}
	}
	return false, nil
}
