// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// findings are gathered.
type findings []Finding

func (f *findings) add(reason, message string) {
	*f = append(*f, Finding{Reason: reason, Message: message})
}

// tell adds one that is harmless, or not.
func (f *findings) tell(harmless bool, reason, message string) {
	*f = append(*f, Finding{Reason: reason, Message: message, Harmless: harmless})
}

// sorted has what is wrong first.
func (f findings) sorted() []Finding {
	slices.SortStableFunc(f, func(a, b Finding) int {
		switch {
		case a.Harmless == b.Harmless:
			return 0
		case a.Harmless:
			return 1
		}
		return -1
	})
	return f
}

// find finds everything about one service. left are advertisements whose attributes ours can't have.
func (v *view) find(e *EgressService, s *Service, one *ServicePlan, left []*other, announced announcements, found *findings) {
	v.findPool(s, found)
	if !v.Features.ServiceSelectors {
		found.tell(v.advertised(e, s, one), v1alpha1.ReasonServiceSelectorsMissing,
			"the installed MetalLB (before v0.16) can't confine an advertisement to one service: give the service an IPAddressPool of its own and a "+
				"BGPAdvertisement for that pool with nodeSelectors "+text([]metav1.LabelSelector{{MatchLabels: map[string]string{e.LabelKey: ""}}}))
	}
	for _, o := range left {
		found.add(v1alpha1.ReasonConflictingAttributes, "BGPAdvertisement "+o.Name+
			" asks for another localPref or asPathPrepend than others do for the same peers and nodes: there it is left out")
	}
	v.findOthers(e, s, found)
	v.findL2(s, found)
	v.findShared(e, s, found)
	if e.VRF && len(v.vrfs[e.Network]) == 0 {
		found.add(v1alpha1.ReasonPeersNotInNetwork, "no BGPPeer has vrf "+e.Network+": the address is announced to the peers of another network than "+
			"the one that its pods leave through")
	}
	// The election will notice that a primary's Node is gone.
	if v.nodes[e.Primary] != nil {
		v.findPrimary(e, s, one, found)
		v.findAnnounced(e, s, announced, found)
	}
}

// findPool looks whether the pool can have the addresses.
func (v *view) findPool(s *Service, found *findings) {
	pool := v.pools[s.Pool]
	if pool == nil {
		found.add(v1alpha1.ReasonPoolUnknown, "there is no IPAddressPool "+s.Pool+", from which the address is said to be")
		return
	}
	for _, address := range s.Addresses {
		if !holds(pool, address) {
			found.add(v1alpha1.ReasonAddressNotInPool, fmt.Sprintf("%v is not of IPAddressPool %s: MetalLB does not announce it", address, s.Pool))
		}
	}
	if s.DualStack && len(v.families[s.Pool]) == 1 {
		found.tell(true, v1alpha1.ReasonPoolLacksFamily, "the Service is dual-stack, and IPAddressPool "+s.Pool+" has addresses of one family only")
	}
}

// advertised is true when some advertisement announces the service from its primary.
func (v *view) advertised(e *EgressService, s *Service, one *ServicePlan) bool {
	labels := v.labelled(e, s)
	return one.Label && slices.ContainsFunc(one.Owned, func(a *BGPAdvertisement) bool { return v.onPrimary(a, e) }) || slices.ContainsFunc(v.others[s.Pool], func(o *other) bool {
		return o.nodes[e.Primary] && o.services.match(labels) && hostRoutes(o.BGPAdvertisement, s)
	})
}

// findOthers looks for advertisements that announce the service from other nodes than its primary.
func (v *view) findOthers(e *EgressService, s *Service, found *findings) {
	labels := v.labelled(e, s)
	for _, o := range v.others[s.Pool] {
		if !o.services.match(labels) {
			continue
		}
		wrong := nodeNames(o.from, e.Primary)
		if wrong == "" || v.Guarded && v.onlyLabelled(o, e) {
			continue
		}
		what := fmt.Sprintf("BGPAdvertisement %s announces the service too, from %s", o.Name, wrong)
		switch {
		case aggregates(o.BGPAdvertisement, s):
			found.tell(true, v1alpha1.ReasonAggregateAdvertised, fmt.Sprintf("BGPAdvertisement %s announces an aggregate with the address in it, from %s: "+
				"traffic goes there while no node announces the address itself", o.Name, wrong))
		case misspelt(o):
			found.tell(v.Guarded, v1alpha1.ReasonNodeSelectorsMisspelt, what+": it was written with nodeSelector, a field that does not exist and was "+
				"dropped; the field's name is nodeSelectors"+v.guardedNote())
		case v.Guarded:
			found.tell(true, v1alpha1.ReasonOtherAdvertisement, what+v.guardedNote())
		case !v.Features.ServiceSelectors:
			found.add(v1alpha1.ReasonOtherAdvertisement, what+": take the pool "+s.Pool+" out of it")
		case v.Manage && canExclude(o.BGPAdvertisement):
			found.add(v1alpha1.ReasonOtherAdvertisement, what+", until the service is excluded from it")
		case !canExclude(o.BGPAdvertisement):
			found.add(v1alpha1.ReasonOtherAdvertisement, what+": no service can be excluded from it, since it aggregates addresses of the other family; "+
				"take the pool "+s.Pool+" out of it")
		default:
			found.add(v1alpha1.ReasonOtherAdvertisement, what+"; this excludes egress services from it: "+
				v.remedy(o))
		}
	}
}

// remedy is the command that excludes the egress services.
func (v *view) remedy(o *other) string {
	if o.remedy == "" {
		o.remedy = remedy("bgpadvertisement", v.Namespace, o.Name, o.Spec.ServiceSelectors)
	}
	return o.remedy
}

func (v *view) guardedNote() string {
	if v.Guarded {
		return "; the guard withholds it there"
	}
	return ""
}

// misspelt is true where the object was applied with nodeSelector, as many published examples have it: the API server drops what it does not
// know, and only kubectl's annotation remembers.
func misspelt(o *other) bool {
	return len(o.Spec.NodeSelectors) == 0 && strings.Contains(o.Annotations[corev1.LastAppliedConfigAnnotation], `"nodeSelector":`)
}

// findL2 looks for advertisements by ARP and NDP.
func (v *view) findL2(s *Service, found *findings) {
	for _, a := range v.l2 {
		if !a.pools[s.Pool] || !a.services.match(v.labelled(v.egress[s.Key], s)) {
			continue
		}
		message := "L2Advertisement " + a.Name + " announces the service too, from whichever node MetalLB chooses"
		if v.Features.ServiceSelectors {
			message += "; this excludes egress services from it: " + remedy("l2advertisement", v.Namespace, a.Name, a.Spec.ServiceSelectors)
		}
		found.add(v1alpha1.ReasonL2Advertisement, message)
	}
}

// findShared looks for ordinary services with the same address, which nothing keeps on the primary.
func (v *view) findShared(e *EgressService, s *Service, found *findings) {
	for _, address := range s.Addresses {
		for _, sharer := range v.byIP[address] {
			if other := v.egress[sharer.Key]; other != nil && !other.EveryNode || sharer.Key == s.Key {
				continue
			}
			for _, o := range v.others[sharer.Pool] {
				wrong := nodeNames(o.from, e.Primary)
				if wrong == "" || !o.services.match(sharer.Labels) || v.onlyLabelled(o, e) || aggregates(o.BGPAdvertisement, sharer) {
					continue
				}
				found.tell(v.Guarded, v1alpha1.ReasonSharedWithOrdinaryService, fmt.Sprintf("Service %s, which is no egress service, has %v too, and "+
					"BGPAdvertisement %s announces that from %s%s", sharer.Key, address, o.Name, wrong, v.guardedNote()))
				break
			}
		}
	}
}

// findPrimary looks whether MetalLB can announce the service from its primary.
func (v *view) findPrimary(e *EgressService, s *Service, one *ServicePlan, found *findings) {
	switch {
	case !v.announces(e.Primary):
		found.add(v1alpha1.ReasonNodeExcluded, "node "+e.Primary+" has the label "+corev1.LabelNodeExcludeBalancers+": MetalLB announces nothing from it")
	case len(v.peersOn[e.Primary]) == 0:
		found.add(v1alpha1.ReasonNoBGPPeer, "no BGPPeer selects node "+e.Primary)
	case !v.advertised(e, s, one):
		found.add(v1alpha1.ReasonNotAdvertised, "no BGPAdvertisement announces the service from node "+e.Primary)
	case !v.hasPeer(e, s, one):
		found.add(v1alpha1.ReasonNoBGPPeer, "none of the BGPPeers of the advertisements of IPAddressPool "+s.Pool+" selects node "+e.Primary)
	}
	v.findConflict(e, s, one, found)
	if wrong := v.Invalid[e.Primary]; wrong != "" {
		found.add(v1alpha1.ReasonConfigurationInvalid, "MetalLB on node "+e.Primary+" keeps its old configuration, since the new one is not valid: "+wrong)
	}
}

// findConflict looks for two advertisements that make MetalLB announce nothing from the primary.
func (v *view) findConflict(e *EgressService, s *Service, one *ServicePlan, found *findings) {
	labels := v.labelled(e, s)
	var there []*BGPAdvertisement
	for _, o := range v.others[s.Pool] {
		single := slices.ContainsFunc(v.families[s.Pool], func(ipv4 bool) bool { return hostRoute(o.BGPAdvertisement, ipv4) })
		if single && o.nodes[e.Primary] && o.services.match(labels) && !(v.Manage && o.excluded) {
			there = append(there, o.BGPAdvertisement)
		}
	}
	if len(there) == 0 {
		return
	}
	for _, a := range one.Owned {
		if v.onPrimary(a, e) {
			there = append(there, a)
		}
	}
	for i, a := range there {
		for _, b := range there[i+1:] {
			if v.attributesOf(a).clashes(v.attributesOf(b)) {
				found.add(v1alpha1.ReasonConflictingAttributes, fmt.Sprintf("MetalLB announces nothing from node %s: BGPAdvertisements %s and %s ask for different "+
					"localPref or asPathPrepend", e.Primary, a.Name, b.Name))
				return
			}
		}
	}
}

// onPrimary is true when an advertisement of ours selects the primary, which has the service's label or is about to get it.
func (v *view) onPrimary(a *BGPAdvertisement, e *EgressService) bool {
	n := v.nodes[e.Primary]
	if n == nil {
		return false
	}
	for _, s := range a.Spec.NodeSelectors {
		if len(s.MatchLabels) == 1 && len(s.MatchExpressions) == 0 && requires(s, e.LabelKey) {
			return true
		}
	}
	after := maps.Clone(n.Labels)
	after[e.LabelKey] = ""
	for i := range a.Spec.NodeSelectors {
		if one, err := metav1.LabelSelectorAsSelector(&a.Spec.NodeSelectors[i]); err == nil && one.Matches(labels.Set(after)) {
			return true
		}
	}
	return false
}

// hasPeer is true when some advertisement that announces the service from its primary is for a peer of its.
func (v *view) hasPeer(e *EgressService, s *Service, one *ServicePlan) bool {
	labels := v.labelled(e, s)
	return slices.ContainsFunc(one.Owned, func(a *BGPAdvertisement) bool { return v.hasPeerOf(a, e.Primary) && v.onPrimary(a, e) }) || slices.ContainsFunc(v.others[s.Pool], func(o *other) bool {
		return o.nodes[e.Primary] && o.services.match(labels) && !aggregates(o.BGPAdvertisement, s) && v.hasPeerOf(o.BGPAdvertisement, e.Primary)
	})
}

// findAnnounced compares with what MetalLB says it does.
func (v *view) findAnnounced(e *EgressService, s *Service, announced announcements, found *findings) {
	// MetalLB says it of nodes that announce an aggregate, too.
	labels := v.labelled(e, s)
	elsewhere := slices.DeleteFunc(slices.Clone(announced.bgp[e.Key]), func(node string) bool {
		return slices.ContainsFunc(v.others[s.Pool], func(o *other) bool {
			return o.nodes[node] && aggregates(o.BGPAdvertisement, s) && o.services.match(labels)
		})
	})
	// With the guard MetalLB means to announce the service wherever it may.
	if nodes := nodeNames(elsewhere, e.Primary); nodes != "" && !v.Guarded {
		found.add(v1alpha1.ReasonAnnouncedElsewhere, "MetalLB says (ServiceBGPStatus) that it announces the service from "+nodes)
	}
	if nodes := nodeNames(announced.l2[e.Key], e.Primary); nodes != "" {
		found.add(v1alpha1.ReasonL2AnnouncedElsewhere, "MetalLB says (ServiceL2Status) that it announces the service by layer 2 from "+nodes)
	}
}

// namedNodes is how many nodes a message names.
const namedNodes = 3

// nodeNames are the first few of an ordered list, and how many there are, but for one of them; empty when there is no other.
func nodeNames(names []string, but string) string {
	count := len(names)
	if _, there := slices.BinarySearch(names, but); there {
		count--
	}
	few := make([]string, 0, namedNodes)
	for _, name := range names {
		if len(few) == namedNodes {
			break
		}
		if name != but {
			few = append(few, name)
		}
	}
	switch {
	case count == 0:
		return ""
	case count == 1:
		return "node " + few[0]
	case count <= namedNodes:
		return "nodes " + strings.Join(few, ", ")
	}
	return fmt.Sprintf("%d nodes (%s, ...)", count, strings.Join(few, ", "))
}
