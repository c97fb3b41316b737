// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// view is a Cluster with its selectors parsed and what is looked for often found.
type view struct {
	*Cluster
	services map[types.NamespacedName]*Service
	byIP     map[netip.Addr][]*Service
	nodes    map[string]*Node
	pools    map[string]*metallbv1beta1.IPAddressPool
	families map[string][]bool  // of the pools: true is IPv4
	byLabel  map[string][]*Node // by the keys of our labels
	egress   map[types.NamespacedName]*EgressService
	// labelKeys are those in use.
	labelKeys map[string]bool
	vrfs      map[string][]string        // names of BGPPeers, ordered, by VRF
	peersOn   map[string]map[string]bool // names of BGPPeers by node
	// others are the advertisements that are not ours, by pool and ordered by name; anyPool are those that take every pool.
	others  map[string][]*other
	ours    []*BGPAdvertisement
	foreign []*other            // ordered by name
	waiting map[string][]*other // by a label of ours that their nodeSelectors require
	l2      []*l2
}

// other is an advertisement that is not ours.
type other struct {
	*BGPAdvertisement
	services matchers // as it is
	source   matchers // without what keeps egress services out
	items    [][]requirement
	selects  matchers
	nodes    map[string]bool // that it selects
	from     []string        // those of them that MetalLB announces from, ordered
	edited   bool            // it has our exclusion, and our mark
	excluded bool            // it has to have the exclusion
	remedy   string          // once it was asked for
}

type l2 struct {
	*metallbv1beta1.L2Advertisement
	services, selects matchers
	pools             map[string]bool
}

// look prepares a Cluster.
func look(c *Cluster) *view {
	v := &view{
		Cluster: c, services: make(map[types.NamespacedName]*Service, len(c.Services)), byIP: make(map[netip.Addr][]*Service, len(c.Services)),
		nodes: make(map[string]*Node, len(c.Nodes)), pools: make(map[string]*metallbv1beta1.IPAddressPool, len(c.Pools)),
		byLabel: map[string][]*Node{}, egress: make(map[types.NamespacedName]*EgressService, len(c.EgressServices)),
		families: make(map[string][]bool, len(c.Pools)), labelKeys: make(map[string]bool, len(c.EgressServices)), vrfs: map[string][]string{}, peersOn: make(map[string]map[string]bool, len(c.Nodes)), others: map[string][]*other{}, waiting: map[string][]*other{},
	}
	for i := range c.Services {
		s := &c.Services[i]
		v.services[s.Key] = s
		for _, address := range s.Addresses {
			v.byIP[address] = append(v.byIP[address], s)
		}
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		v.nodes[n.Name] = n
		for key := range n.Labels {
			if ourNodeLabel(key) {
				v.byLabel[key] = append(v.byLabel[key], n)
			}
		}
	}
	for _, sharers := range v.byIP {
		slices.SortFunc(sharers, func(a, b *Service) int { return compareNames(a.Key.String(), b.Key.String()) })
	}
	for i := range c.EgressServices {
		e := &c.EgressServices[i]
		v.egress[e.Key] = e
		if !e.EveryNode {
			v.labelKeys[e.LabelKey] = true
		}
	}
	for _, p := range c.Pools {
		v.pools[p.Name], v.families[p.Name] = p, families(p)
	}
	v.lookAtPeers()
	v.lookAtAdvertisements()
	return v
}

func (v *view) lookAtAdvertisements() {
	for _, a := range v.Advertisements {
		if IsOwned(a) {
			v.ours = append(v.ours, a)
			continue
		}
		if o := v.newOther(a); o != nil {
			v.foreign = append(v.foreign, o)
		}
	}
	slices.SortFunc(v.foreign, func(a, b *other) int { return compareNames(a.Name, b.Name) })
	for _, o := range v.foreign {
		for _, key := range o.required() {
			v.waiting[key] = append(v.waiting[key], o)
		}
		for name := range v.poolsOf(o.Spec.IPAddressPools, o.Spec.IPAddressPoolSelectors) {
			v.others[name] = append(v.others[name], o)
		}
	}
	for _, a := range v.L2Advertisements {
		services, ok := parse(a.Spec.ServiceSelectors)
		selects, alsoOK := parse(a.Spec.NodeSelectors)
		if ok && alsoOK {
			v.l2 = append(v.l2, &l2{a, services, selects, v.poolsOf(a.Spec.IPAddressPools, a.Spec.IPAddressPoolSelectors)})
		}
	}
	slices.SortFunc(v.l2, func(a, b *l2) int { return compareNames(a.Name, b.Name) })
}

// newOther is nil for one that MetalLB can't read: it takes no configuration with such a one in it.
func (v *view) newOther(a *BGPAdvertisement) *other {
	o := &other{BGPAdvertisement: a}
	_, o.edited = a.Annotations[v1alpha1.OriginalSelectorsAnnotation]
	var ok [3]bool
	o.services, ok[0] = parse(a.Spec.ServiceSelectors)
	o.source, ok[1] = parse(included(a.Spec.ServiceSelectors))
	o.selects, ok[2] = parse(a.Spec.NodeSelectors)
	if slices.Contains(ok[:], false) {
		return nil
	}
	for _, item := range a.Spec.NodeSelectors {
		o.items = append(o.items, requirements(item))
	}
	o.nodes = map[string]bool{}
	for _, n := range v.candidates(a.Spec.NodeSelectors) {
		if o.selects.match(n.Labels) {
			o.nodes[n.Name] = true
			if v.announces(n.Name) && v.hasPeerOf(a, n.Name) {
				o.from = append(o.from, n.Name)
			}
		}
	}
	slices.Sort(o.from)
	return o
}

// required are the keys of our Node labels that a selector requires.
func (o *other) required() []string {
	var keys []string
	for _, item := range o.items {
		for _, r := range item {
			if ourNodeLabel(r.Key) && requires(selector(item), r.Key) {
				keys = append(keys, r.Key)
			}
		}
	}
	return ordered(keys)
}

// candidates are the nodes to look at: where every selector requires one of our labels, those that have it.
func (v *view) candidates(selectors []metav1.LabelSelector) []*Node {
	found := map[*Node]bool{}
	for _, s := range selectors {
		i := slices.IndexFunc(requirements(s), func(r requirement) bool { return ourNodeLabel(r.Key) && requires(s, r.Key) })
		if i < 0 {
			found = nil
			break
		}
		for _, n := range v.byLabel[requirements(s)[i].Key] {
			found[n] = true
		}
	}
	if len(selectors) > 0 && found != nil {
		return slices.Collect(maps.Keys(found))
	}
	all := make([]*Node, 0, len(v.Nodes))
	for i := range v.Nodes {
		all = append(all, &v.Nodes[i])
	}
	return all
}

// poolsOf are the names of the pools that an advertisement takes.
func (v *view) poolsOf(names []string, selectors []metav1.LabelSelector) map[string]bool {
	found := map[string]bool{}
	by, ok := parse(selectors)
	for _, p := range v.Pools {
		switch {
		case len(names) == 0 && len(selectors) == 0, slices.Contains(names, p.Name), ok && len(by) > 0 && by.match(p.Labels):
			found[p.Name] = true
		}
	}
	return found
}

// lookAtPeers finds the BGPPeers of each node.
func (v *view) lookAtPeers() {
	for _, p := range v.Peers {
		if selects, ok := parse(p.Spec.NodeSelectors); ok {
			for i := range v.Nodes {
				if n := &v.Nodes[i]; selects.match(n.Labels) {
					if v.peersOn[n.Name] == nil {
						v.peersOn[n.Name] = map[string]bool{}
					}
					v.peersOn[n.Name][p.Name] = true
				}
			}
		}
		if p.Spec.VRFName != "" {
			v.vrfs[p.Spec.VRFName] = append(v.vrfs[p.Spec.VRFName], p.Name)
		}
	}
	for _, names := range v.vrfs {
		slices.Sort(names)
	}
}

// hasPeerOf is true when the node has a session on which the advertisement's routes may go.
func (v *view) hasPeerOf(a *BGPAdvertisement, node string) bool {
	peers := v.peersOn[node]
	return len(a.Spec.Peers) == 0 && len(peers) > 0 || slices.ContainsFunc(a.Spec.Peers, func(p string) bool { return peers[p] })
}

// announces is true when MetalLB would not refuse to announce anything from the node.
func (v *view) announces(node string) bool {
	n := v.nodes[node]
	if n == nil {
		return false
	}
	_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
	return !excluded || v.IgnoreExclude
}

// labelled are the labels that a Service has once the plan is applied.
func (v *view) labelled(e *EgressService, s *Service) labels.Set {
	after := labels.Set(maps.Clone(s.Labels))
	if after == nil {
		after = labels.Set{}
	}
	delete(after, v1alpha1.ServiceLabel)
	if v.labels(e, s) {
		after[v1alpha1.ServiceLabel] = e.Digest
	}
	return after
}

// labels is true when the Service is to have our label: not before there is a primary, since an advertisement may exclude labelled
// Services by then and nobody would announce it; not from the guard's view, which lets nobody else announce it anyway.
func (v *view) labels(e *EgressService, s *Service) bool {
	if e == nil || e.EveryNode || e.LabelKey == "" || !v.Features.ServiceSelectors {
		return false
	}
	_, already := s.Labels[v1alpha1.ServiceLabel]
	return already || s.Pool != "" && (v.Guarded || e.Primary != "")
}

// IsOwned is true for an advertisement that this project has made: it has the name that follows from its owner.
func IsOwned(a *BGPAdvertisement) bool {
	owner, ok := OwnerOf(a)
	if !ok {
		return false
	}
	name := Name(owner.Namespace, owner.Name)
	return a.Name == name || len(a.Name) == len(name)+1+sourceDigits && a.Name[:len(name)+1] == name+"-"
}

// OwnerOf is the EgressService that an advertisement says it is for. A label alone, which anybody may have put there, does not make it
// ours, see IsOwned.
func OwnerOf(a *BGPAdvertisement) (types.NamespacedName, bool) {
	namespace, name, ok := strings.Cut(a.Annotations[v1alpha1.OwnerAnnotation], "/")
	return types.NamespacedName{Namespace: namespace, Name: name}, ok
}
