// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// Plan is what there should be.
type Plan struct {
	// Services are the EgressServices', in their order.
	Services []ServicePlan
	// Edits are the changes of others' advertisements, to be made when everything of Services is done: until then somebody has to announce
	// those services.
	Edits []Edit
	// Orphans are advertisements of ours that no service needs any more. They are deleted last, when MetalLB has seen everything else.
	Orphans []*BGPAdvertisement
}

// ServicePlan is what one EgressService takes.
type ServicePlan struct {
	Key types.NamespacedName
	// Digest is the value of the label.
	Digest string
	// Owned are its advertisements, ordered by name, to be written before the Service is labelled: once it is, others may not announce it.
	Owned []*BGPAdvertisement
	// Label is true when the Service has to have our label; otherwise it has to have none.
	Label bool
	// Findings are what is, or could be, wrong with the announcement of its addresses; what is wrong comes first.
	Findings []Finding
}

// Finding is one thing that somebody should know.
type Finding struct {
	// Reason is one of the reasons of the condition AdvertisementsConsistent.
	Reason string
	// Message names the objects concerned, and the remedy where there is one.
	Message string
	// Harmless findings are told and nothing else.
	Harmless bool
}

// Make compares what there is with what should be. It is the same for the same cluster, whatever the order of its lists (but for that of
// EgressServices).
func Make(c *Cluster) Plan {
	v := look(c)
	plan := Plan{Services: make([]ServicePlan, 0, len(c.EgressServices))}
	needed, announced := map[string]bool{}, v.announcements()
	for i := range c.EgressServices {
		v.exclude(&c.EgressServices[i])
	}
	for i := range c.EgressServices {
		e := &c.EgressServices[i]
		one := ServicePlan{Key: e.Key, Digest: e.Digest}
		switch s := v.services[e.Key]; {
		case e.EveryNode:
			one.Findings = v.neverLabelled(e)
		case s == nil, e.LabelKey == "":
			// Nothing to announce.
		default:
			v.plan(e, s, &one, announced)
		}
		for _, a := range one.Owned {
			needed[a.Name] = true
		}
		plan.Services = append(plan.Services, one)
	}
	plan.Edits = v.edits()
	for _, a := range v.ours {
		if !needed[a.Name] {
			plan.Orphans = append(plan.Orphans, a)
		}
	}
	slices.SortFunc(plan.Orphans, func(a, b *BGPAdvertisement) int { return strings.Compare(a.Name, b.Name) })
	return plan
}

// plan plans for a service that is announced from its primary only.
func (v *view) plan(e *EgressService, s *Service, one *ServicePlan, announced announcements) {
	one.Label = v.labels(e, s)
	found := findings{}
	if s.Pool == "" {
		found.add(v1alpha1.ReasonPoolUnknown, "MetalLB has not said yet which IPAddressPool the address is from")
		one.Findings = found.sorted()
		return
	}
	var left []*other
	sources := v.sources(e, s)
	if v.Features.ServiceSelectors {
		var groups []*group
		if groups, left = v.groups(e, sources); !v.byHand(e, s, sources) {
			one.Owned = v.owned(e, s, groups)
		}
	}
	v.find(e, s, one, left, announced, &found)
	one.Findings = found.sorted()
	one.Label = one.Label && (len(one.Owned) > 0 || slices.ContainsFunc(sources, func(o *other) bool { return v.excludable(o, e) }))
}

// exclude marks the advertisements that the service is to be excluded from. Whether it is already plays no part: an exclusion that is
// needed must stay.
func (v *view) exclude(e *EgressService) {
	s := v.services[e.Key]
	if s == nil || s.Pool == "" || !v.labels(e, s) {
		return
	}
	for _, o := range v.sources(e, s) {
		o.excluded = o.excluded || v.excludable(o, e)
	}
}

// excludable is true for an advertisement that announces the service from other nodes than its own and can be told not to.
func (v *view) excludable(o *other, e *EgressService) bool {
	return canExclude(o.BGPAdvertisement) && !v.onlyLabelled(o, e)
}

// byHand is true when the documented procedure was followed: an advertisement of the user's announces the service from the labelled node,
// and nothing of ours is needed. With the guard, ours hands the route to the standby.
func (v *view) byHand(e *EgressService, s *Service, sources []*other) bool {
	return !v.Guarded && slices.ContainsFunc(sources, func(o *other) bool {
		everyLabelled := slices.ContainsFunc(o.items, func(item []requirement) bool { return len(without(item, e.LabelKey)) == 0 })
		return everyLabelled && v.onlyLabelled(o, e) && !(v.Manage && o.excluded) && hostRoutes(o.BGPAdvertisement, s) && o.services.match(v.labelled(e, s))
	})
}

// hostRoutes is true when the advertisement announces each of the service's addresses by itself.
func hostRoutes(a *BGPAdvertisement, s *Service) bool {
	return !slices.ContainsFunc(s.Addresses, func(address netip.Addr) bool { return !hostRoute(a, address.Is4()) })
}

// aggregates is true when the advertisement announces none of the service's addresses by itself.
func aggregates(a *BGPAdvertisement, s *Service) bool {
	return !slices.ContainsFunc(s.Addresses, func(address netip.Addr) bool { return hostRoute(a, address.Is4()) })
}

// onlyLabelled is true when the advertisement's nodeSelectors take none but nodes with a label of the service's.
func (v *view) onlyLabelled(o *other, e *EgressService) bool {
	for _, s := range o.Spec.NodeSelectors {
		if !requires(s, e.LabelKey) && !(v.Guarded && requires(s, e.StandbyLabelKey)) {
			return false
		}
	}
	return len(o.Spec.NodeSelectors) > 0
}

// neverLabelled finds advertisements that wait for a label which a service of sourceIPBy Network never gets.
func (v *view) neverLabelled(e *EgressService) []Finding {
	key := egressv1.LabelPrefix + e.Key.Namespace + "-" + e.Key.Name
	if v.labelKeys[key] {
		return nil
	}
	found := findings{}
	for _, o := range v.waiting[key] {
		found.add(v1alpha1.ReasonSelectsMissingLabel, "BGPAdvertisement "+o.Name+" selects nodes by the label "+key+
			", which no node gets: with sourceIPBy Network every node may announce the service")
	}
	return found.sorted()
}

// announcements are what MetalLB's speakers say they announce, as nodes by Service.
type announcements struct {
	bgp, l2 map[types.NamespacedName][]string
}

func (v *view) announcements() announcements {
	index := func(all []Announcement) map[types.NamespacedName][]string {
		found := map[types.NamespacedName][]string{}
		for _, a := range all {
			found[a.Service] = append(found[a.Service], a.Node)
		}
		for service, nodes := range found {
			slices.Sort(nodes)
			found[service] = slices.Compact(nodes)
		}
		return found
	}
	return announcements{index(v.BGPAnnouncements), index(v.L2Announcements)}
}

func compareNames(a, b string) int { return strings.Compare(a, b) }

func ourNodeLabel(key string) bool {
	return strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix)
}
