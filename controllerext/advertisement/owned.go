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
	nodes  []map[string]bool // of the advertisements that it is from
}

// sources are the advertisements of others that would announce the service, if it were no egress service.
func (v *view) sources(e *EgressService, s *Service) (found []*other) {
	plain := v.labelled(e, s)
	delete(plain, v1alpha1.ServiceLabel)
	for _, o := range v.others[s.Pool] {
		if o.source.match(plain) {
			found = append(found, o)
		}
	}
	return found
}

// groups are what to announce the service with: on every node exactly as others' advertisements do there, and on nodes for which there
// are none with whatever can be had of all of them. What MetalLB would take for a conflict is left out, and returned.
func (v *view) groups(e *EgressService, sources []*other) (found []*group, left []*other) {
	// Where spec.network is a VRF with peers, those are the service's.
	network := v.vrfs[e.Network]
	everywhere := false
	var covered [][]requirement
	for _, o := range sources {
		wanted := v.attributesOf(o.BGPAdvertisement)
		if len(network) > 0 {
			wanted.peers = network
		}
		items := [][]requirement{nil}
		if len(o.items) > 0 {
			items = nil
			for _, item := range o.items {
				items = append(items, without(item, e.LabelKey, e.StandbyLabelKey))
			}
		}
		clash := func(g *group) bool {
			return g.clashes(wanted) && slices.ContainsFunc(g.nodes, func(nodes map[string]bool) bool { return overlap(nodes, o.nodes) })
		}
		if slices.ContainsFunc(found, clash) {
			left = append(left, o)
			continue
		}
		covered = append(covered, items...)
		everywhere = everywhere || slices.ContainsFunc(items, func(item []requirement) bool { return len(item) == 0 })
		i := slices.IndexFunc(found, func(g *group) bool { return g.equal(wanted) })
		if i < 0 {
			i = len(found)
			found = append(found, &group{attributes: wanted, source: o.Name})
		}
		found[i].items, found[i].nodes = append(found[i].items, items...), append(found[i].nodes, o.nodes)
	}
	if len(found) == 0 {
		return []*group{{attributes: attributes{peers: network}, items: [][]requirement{nil}}}, left
	}
	if !everywhere {
		v.coverTheRest(found, covered)
	}
	return found, left
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

func overlap(a, b map[string]bool) bool {
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
