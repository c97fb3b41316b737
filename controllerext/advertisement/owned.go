// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// attributes are what an advertisement says beside where and for whom.
type attributes struct {
	localPref     uint32
	asPathPrepend int32
	communities   []string // ordered
	peers         []string // ordered; empty: all
}

func (a attributes) equal(b attributes) bool {
	return !a.clashes(b) && a.localPref == b.localPref && a.asPathPrepend == b.asPathPrepend &&
		slices.Equal(a.communities, b.communities) && slices.Equal(a.peers, b.peers)
}

// clashes is true when MetalLB, asked for both on one node, announces neither: a common peer would get two different updates.
func (a attributes) clashes(b attributes) bool {
	if a.localPref == b.localPref && a.asPathPrepend == b.asPathPrepend {
		return false
	}
	return len(a.peers) == 0 || len(b.peers) == 0 || slices.ContainsFunc(a.peers, func(p string) bool { return slices.Contains(b.peers, p) })
}

// attributesOf are an advertisement's.
func (v *view) attributesOf(a *BGPAdvertisement) attributes {
	found := attributes{localPref: a.Spec.LocalPref, communities: ordered(a.Spec.Communities), peers: ordered(a.Spec.Peers)}
	if v.Features.ASPathPrepend {
		found.asPathPrepend = a.Spec.ASPathPrepend
	}
	return found
}

func ordered(items []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(items)))
}

// group becomes one advertisement of ours: attributes, and the nodes for which others use them, as alternatives of requirements; one
// without requirements is every node.
type group struct {
	attributes
	source string // the name of the first advertisement that it is from, or empty
	items  [][]requirement
	nodes  []map[string]bool // that the advertisements it is from select; nil: every node
}

// sources are the advertisements of others that would announce the service, if it were no egress service. Those that only aggregate
// count where there are no others. Of a pool of both families one counts that aggregates those of one: MetalLB looks for conflicts between two that
// have one of the lengths in common, whatever the service's addresses are.
func (v *view) sources(e *EgressService, s *Service) (found []*other) {
	plain := v.labelled(e, s)
	delete(plain, v1alpha1.ServiceLabel)
	var coarse []*other
	for _, o := range v.others[s.Pool] {
		switch {
		case !o.source.match(plain):
		case !slices.ContainsFunc(v.families[s.Pool], func(ipv4 bool) bool { return hostRoute(o.BGPAdvertisement, ipv4) }):
			coarse = append(coarse, o)
		default:
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return coarse
	}
	return found
}

// groups are what to announce the service with: on every node exactly as others' advertisements do there, and on nodes for which there
// are none with whatever can be had of all of them. What MetalLB would take for a conflict is left out, and returned.
func (v *view) groups(e *EgressService, sources []*other) (found []*group, left []*other) {
	// Where spec.network is a VRF with peers, those are the service's.
	network := v.vrfs[e.Network]
	if among := inNetwork(sources, network); len(network) > 0 && len(among) > 0 {
		sources = among
	}
	everywhere := false
	var covered [][]requirement
	for _, o := range sources {
		wanted := v.attributesOf(o.BGPAdvertisement)
		if len(network) > 0 {
			wanted.peers = network
		}
		items, nodes := v.nodesFor(o, e)
		wants := items
		var taken [][]requirement
		for _, g := range found {
			if g.clashes(wanted) && slices.ContainsFunc(g.nodes, func(others map[string]bool) bool { return overlap(others, nodes) }) {
				taken, nodes = append(taken, g.items...), v.minus(nodes, g.nodes)
			}
		}
		if len(taken) > 0 {
			left = append(left, o)
			if items = except(items, taken); len(items) == 0 || len(nodes) == 0 {
				continue
			}
		}
		covered = append(covered, wants...)
		everywhere = everywhere || slices.ContainsFunc(wants, func(item []requirement) bool { return len(item) == 0 })
		i := slices.IndexFunc(found, func(g *group) bool { return g.equal(wanted) })
		if i < 0 {
			i = len(found)
			found = append(found, &group{attributes: wanted, source: o.Name})
		}
		found[i].items, found[i].nodes = append(found[i].items, items...), append(found[i].nodes, nodes)
	}
	if len(found) == 0 {
		return []*group{{attributes: attributes{peers: network}, items: [][]requirement{nil}}}, left
	}
	if !everywhere {
		v.coverTheRest(found, covered)
	}
	return found, left
}

// minus are the nodes of a set that none of the others has.
func (v *view) minus(nodes map[string]bool, others []map[string]bool) map[string]bool {
	left := map[string]bool{}
	for i := range v.Nodes {
		name := v.Nodes[i].Name
		if (nodes == nil || nodes[name]) && !slices.ContainsFunc(others, func(o map[string]bool) bool { return o == nil || o[name] }) {
			left[name] = true
		}
	}
	return left
}

// except are the alternatives without the nodes of others; none where that can't be said in few words.
func except(items, others [][]requirement) (left [][]requirement) {
	rest, ok := complement(others)
	if !ok || len(items)*len(rest) > maxComplement {
		return nil
	}
	for _, item := range items {
		for _, r := range rest {
			left = append(left, slices.Concat(item, r))
		}
	}
	return left
}

// inNetwork are those that are for one of the network's peers.
func inNetwork(sources []*other, network []string) (found []*other) {
	for _, o := range sources {
		if len(o.Spec.Peers) == 0 || slices.ContainsFunc(o.Spec.Peers, func(p string) bool { return slices.Contains(network, p) }) {
			found = append(found, o)
		}
	}
	return found
}

// coverTheRest lets the groups hold for the nodes of none of them too, as far as they don't clash.
func (v *view) coverTheRest(groups []*group, covered [][]requirement) {
	rest, ok := complement(covered)
	if !ok {
		// Too many selectors to say it exactly. Where nodes are covered already, the groups that clash with none may hold for them too.
		rest = [][]requirement{nil}
	}
	for i, g := range groups {
		before := groups[:i]
		if !ok {
			before = slices.DeleteFunc(slices.Clone(groups), func(other *group) bool { return other == g })
		}
		if !slices.ContainsFunc(before, func(other *group) bool { return other.clashes(g.attributes) }) {
			g.items = append(g.items, rest...)
		}
	}
}

// nodesFor are the nodes that an advertisement selects, wherever the service's labels are: as alternatives, and by name, nil being every
// node.
func (v *view) nodesFor(o *other, e *EgressService) (items [][]requirement, nodes map[string]bool) {
	if len(o.items) == 0 {
		return [][]requirement{nil}, nil
	}
	stripped := false
	for _, item := range o.items {
		rest := without(item, e.LabelKey, e.StandbyLabelKey)
		stripped = stripped || len(rest) < len(item)
		items = append(items, rest)
	}
	if !stripped {
		return items, o.nodes
	}
	selectors := make([]metav1.LabelSelector, 0, len(items))
	for _, item := range items {
		if len(item) == 0 {
			return items, nil
		}
		selectors = append(selectors, selector(item))
	}
	nodes = map[string]bool{}
	if matches, ok := parse(selectors); ok {
		for i := range v.Nodes {
			if matches.match(v.Nodes[i].Labels) {
				nodes[v.Nodes[i].Name] = true
			}
		}
	}
	return items, nodes
}

// overlap is true when two sets of nodes have one in common; nil is every node.
func overlap(a, b map[string]bool) bool {
	switch {
	case a == nil:
		return b == nil || len(b) > 0
	case b == nil:
		return len(a) > 0
	}
	for name := range a {
		if b[name] {
			return true
		}
	}
	return false
}

// owned are our advertisements of one service, ordered by name.
func (v *view) owned(e *EgressService, s *Service, groups []*group) []*BGPAdvertisement {
	var all []*BGPAdvertisement
	for i, g := range groups {
		name := Name(e.Key.Namespace, e.Key.Name)
		if i > 0 {
			name += "-" + sourceDigest(g.source)
		}
		all = append(all, v.ownedOf(e, s, g, name))
	}
	slices.SortFunc(all, func(a, b *BGPAdvertisement) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// ownedOf is one advertisement of ours. Its nodeSelectors are the public label and, where the guard decides which of the two nodes sends
// it, the standby's: MetalLB hands both nodes the route beforehand, and a promotion makes it rewrite nothing.
func (v *view) ownedOf(e *EgressService, s *Service, g *group, name string) *BGPAdvertisement {
	keys := []string{e.LabelKey}
	if v.Guarded {
		keys = append(keys, e.StandbyLabelKey)
	}
	var onNodes []metav1.LabelSelector
	for _, item := range g.items {
		for _, key := range keys {
			onNodes = append(onNodes, selector(append([]requirement{has(key)}, item...)))
		}
	}
	return &BGPAdvertisement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   v.Namespace,
			Name:        name,
			Labels:      map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue, v1alpha1.ServiceLabel: e.Digest},
			Annotations: map[string]string{v1alpha1.OwnerAnnotation: e.Key.String()},
		},
		Spec: BGPAdvertisementSpec{
			BGPAdvertisementSpec: metallbv1beta1.BGPAdvertisementSpec{
				IPAddressPools: []string{s.Pool},
				// The CRD's defaults, and what serviceSelectors allow.
				AggregationLength: new(int32(32)), AggregationLengthV6: new(int32(128)),
				LocalPref: g.localPref, Communities: g.communities, Peers: g.peers,
				NodeSelectors:    distinct(onNodes),
				ServiceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{v1alpha1.ServiceLabel: e.Digest}}},
			},
			ASPathPrepend: g.asPathPrepend,
		},
	}
}

// sourceDigits is the length of sourceDigest.
const sourceDigits = 8

// sourceDigest tells the advertisements of one service apart, by those that they are from.
func sourceDigest(source string) string {
	sum := sha256.Sum256([]byte(source))
	return hex.EncodeToString(sum[:])[:sourceDigits]
}
