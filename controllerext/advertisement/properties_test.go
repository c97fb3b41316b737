// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// confined is an egress service whose address only its primary may announce.
type confined struct {
	*advertisement.EgressService
	service *advertisement.Service
	plan    *advertisement.ServicePlan
}

// confinedOf are those that have a Service with a pool, and an assignment.
func confinedOf(c *advertisement.Cluster, plan advertisement.Plan) []confined {
	var all []confined
	for i := range c.EgressServices {
		e := &c.EgressServices[i]
		if s := serviceOf(c, e); s != nil && poolOf(c, s) != nil && !e.EveryNode && e.LabelKey != "" {
			all = append(all, confined{e, s, &plan.Services[i]})
		}
	}
	return all
}

func serviceOf(c *advertisement.Cluster, e *advertisement.EgressService) *advertisement.Service {
	if i := slices.IndexFunc(c.Services, func(s advertisement.Service) bool { return s.Key == e.Key }); i >= 0 {
		return &c.Services[i]
	}
	return nil
}

func nodeOf(c *advertisement.Cluster, name string) *advertisement.Node {
	if i := slices.IndexFunc(c.Nodes, func(n advertisement.Node) bool { return n.Name == name }); i >= 0 {
		return &c.Nodes[i]
	}
	return nil
}

// managed has MetalLB's serviceSelectors and may use them, without a guard.
func managed(c *advertisement.Cluster) {
	c.Features.ServiceSelectors, c.Manage, c.Guarded = true, true, false
}

// settled is false where that fails, which is another property's matter. What it returns must not be changed.
func settled(w world) (*advertisement.Cluster, []confined, bool) {
	mode := fmt.Sprint(w.Guarded, w.Manage, w.Features)
	if _, known := w.known[mode]; !known {
		after, plan, err := settle(w.Cluster)
		w.known[mode] = end{after, plan, err}
	}
	known := w.known[mode]
	if known.err != nil {
		return nil, nil, false
	}
	return known.Cluster, confinedOf(known.Cluster, known.plan), true
}

// onlyPrimary: nobody but the primary announces, unless that can't be helped, and is told.
func onlyPrimary(w world) error {
	after, all, ok := settled(w.but(managed))
	if !ok {
		return nil
	}
	for _, one := range all {
		if one.Primary == "" {
			continue
		}
		for _, s := range strays(after, one) {
			if s.by != nil && (len(s.by.Spec.ServiceSelectors) > 0 || lengthOf(s.by, true) == 32 && lengthOf(s.by, false) == 128) {
				return fmt.Errorf("%v is announced by %v, which could exclude it", one.Key, s)
			}
			if !one.tells(s, func(f advertisement.Finding) bool {
				return !f.Harmless || f.Reason == v1alpha1.ReasonAggregateAdvertised
			}) {
				return fmt.Errorf("%v is announced by %v, which is not told: %+v", one.Key, s, one.plan.Findings)
			}
		}
		primary := nodeOf(after, one.Primary)
		if primary != nil && able(after, one.service, primary) && len(hostRoutes(announced(after, one.service, primary))) == 0 &&
			!one.has(unannounced...) {
			return fmt.Errorf("%v is not announced by its primary %s: %+v", one.Key, one.Primary, one.plan.Findings)
		}
	}
	return nil
}

// unannounced are the reasons that say why the primary does not announce, although it is able to.
var unannounced = []string{v1alpha1.ReasonNoBGPPeer, v1alpha1.ReasonNotAdvertised, v1alpha1.ReasonConflictingAttributes}

// able is true when nothing but advertisements keeps the node from announcing.
func able(c *advertisement.Cluster, s *advertisement.Service, n *advertisement.Node) bool {
	alone := *c
	alone.Advertisements = []*advertisement.BGPAdvertisement{named("any")}
	return len(announced(&alone, s, n)) > 0
}

// stray is an announcement of an address of a service from a node that is not its primary.
type stray struct {
	node   string
	by     *advertisement.BGPAdvertisement // nil where it is for another service
	sharer *advertisement.Service
}

func (s stray) String() string {
	if s.by != nil {
		return "BGPAdvertisement " + s.by.Name + " from node " + s.node
	}
	return "Service " + s.sharer.Key.String() + " from node " + s.node
}

// strays are all of them. Those of confined services with the same address are theirs.
func strays(c *advertisement.Cluster, one confined) []stray {
	var found []stray
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.Name == one.Primary {
			continue
		}
		for to := range hostRoutes(announced(c, one.service, n)) {
			for _, a := range announcers(c, one.service, n) {
				if lengthOf(a, to.Prefix.Addr().Is4()) == to.Prefix.Bits() && slices.Contains(sessions(c, a, n), to.Peer) {
					found = append(found, stray{node: n.Name, by: a})
				}
			}
		}
		for j := range c.Services {
			s := &c.Services[j]
			shares := func(a netip.Addr) bool { return slices.Contains(one.service.Addresses, a) }
			if s.Key != one.Key && !isConfined(c, s) && slices.ContainsFunc(s.Addresses, shares) && len(hostRoutes(announced(c, s, n))) > 0 {
				found = append(found, stray{node: n.Name, sharer: s})
			}
		}
	}
	return found
}

func isConfined(c *advertisement.Cluster, s *advertisement.Service) bool {
	return slices.ContainsFunc(c.EgressServices, func(e advertisement.EgressService) bool { return e.Key == s.Key && !e.EveryNode && e.LabelKey != "" })
}

// tells is true when a finding that qualifies names what announces the address.
func (one confined) tells(s stray, qualifies func(advertisement.Finding) bool) bool {
	return slices.ContainsFunc(one.plan.Findings, func(f advertisement.Finding) bool {
		if s.by != nil {
			return qualifies(f) && strings.Contains(f.Message, "BGPAdvertisement "+s.by.Name+" ")
		}
		return qualifies(f) && strings.Contains(f.Message, "Service "+s.sharer.Key.String()+",")
	})
}

// has is true when there is a finding that is not harmless, for one of the reasons.
func (one confined) has(reasons ...string) bool {
	return slices.ContainsFunc(one.plan.Findings, func(f advertisement.Finding) bool { return !f.Harmless && slices.Contains(reasons, f.Reason) })
}

// likeOrdinary: the primary, and with a guard the standby, announce what they would if the service were an ordinary one.
func likeOrdinary(w world) error {
	w = w.but(func(c *advertisement.Cluster) { c.Features.ServiceSelectors = true })
	after, all, ok := settled(w)
	if !ok {
		return nil
	}
	for _, one := range all {
		for i := range after.Nodes {
			n := &after.Nodes[i]
			_, standby := n.Labels[one.StandbyLabelKey]
			if n.Name != one.Primary && !(w.Guarded && standby) || inVRF(w, one) {
				continue
			}
			if err := one.likeOrdinary(w, after, n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (one confined) likeOrdinary(w world, after *advertisement.Cluster, n *advertisement.Node) error {
	promoted := &advertisement.Node{Name: n.Name, Labels: maps.Clone(n.Labels)}
	promoted.Labels[one.LabelKey] = ""
	ordinary := ordinaryFor(w, one, promoted)
	before := serviceOf(ordinary, one.EgressService)
	if conflicting(announcers(ordinary, before, promoted), poolOf(after, before)) {
		return nil
	}
	want, got := hostRoutes(announced(ordinary, before, promoted)), hostRoutes(announced(after, one.service, n))
	switch {
	case len(want) > 0 && !slices.ContainsFunc(w.before.Advertisements, mixed) && !maps.Equal(want, got):
		return fmt.Errorf("%v is announced from %s with %v, want %v", one.Key, n.Name, got, want)
	case len(want) == 0 && len(got) == 0 && able(after, one.service, n) && n.Name == one.Primary && !one.has(unannounced...):
		return fmt.Errorf("%v is not announced from %s: %+v", one.Key, n.Name, one.plan.Findings)
	}
	return nil
}

// mixed is true for one that announces single addresses of one family and aggregates of the other: nothing can be excluded from it, and ours
// are the same for both families.
func mixed(a *advertisement.BGPAdvertisement) bool {
	return (lengthOf(a, true) == 32) != (lengthOf(a, false) == 128)
}

// ordinary is the cluster without anything that makes services egress services.
func ordinary(w world) *advertisement.Cluster {
	c := clone(w.before)
	for _, a := range c.Advertisements {
		a.Spec.ServiceSelectors = stripped(a.Spec.ServiceSelectors)
	}
	return c
}

// ordinaryFor is that for one service. Where users have made advertisements for its label, and nothing of ours is needed, those are what they
// want for it, and it is excluded from others if that is allowed.
func ordinaryFor(w world, one confined, n *advertisement.Node) *advertisement.Cluster {
	c := ordinary(w)
	if len(one.plan.Owned) > 0 {
		return c
	}
	unlabelled := maps.Clone(n.Labels)
	delete(unlabelled, one.LabelKey)
	c.Advertisements = slices.DeleteFunc(c.Advertisements, func(a *advertisement.BGPAdvertisement) bool {
		as := w.before.Advertisements[index(w.before, a.Name)]
		return w.Manage && anyMatches(a.Spec.NodeSelectors, unlabelled) || !anyMatches(as.Spec.ServiceSelectors, one.service.Labels)
	})
	return c
}

// stripped are selectors without exclusions. No selectors and one of everything are the same.
func stripped(selectors []metav1.LabelSelector) []metav1.LabelSelector {
	var after []metav1.LabelSelector
	for _, s := range selectors {
		one := s.DeepCopy()
		one.MatchExpressions = slices.DeleteFunc(one.MatchExpressions, isExclusion)
		if len(one.MatchLabels)+len(one.MatchExpressions) == 0 && len(selectors) == 1 {
			return nil
		}
		after = append(after, *one)
	}
	return after
}

func inVRF(w world, one confined) bool {
	for _, p := range w.Peers {
		if one.Network != "" && p.Spec.VRFName == one.Network {
			return true
		}
	}
	return false
}

// othersAsBefore: services that are not confined notice nothing.
func othersAsBefore(w world) error {
	after, _, ok := settled(w)
	if !ok {
		return nil
	}
	for i := range after.Services {
		for j := range after.Nodes {
			s, n := &after.Services[i], &after.Nodes[j]
			want, got := announced(w.before, &w.before.Services[i], n), announced(after, s, n)
			if !isConfined(after, s) && !maps.Equal(want, got) {
				return fmt.Errorf("%v is announced from %s with %v, want %v", s.Key, n.Name, got, want)
			}
		}
	}
	return nil
}

// restored: without egress services, or leave to manage, everything is as it was, to the byte.
func restored(w world) error {
	after, _, ok := settled(w)
	if !ok {
		return nil
	}
	unmanaged := clone(after)
	unmanaged.Manage = false
	for _, c := range []*advertisement.Cluster{released(after), unmanaged} {
		end, _, err := settle(c)
		if err != nil {
			return err
		}
		for _, want := range w.before.Advertisements {
			if got := end.Advertisements[index(end, want.Name)]; jsonOf(want) != jsonOf(got) {
				return fmt.Errorf("BGPAdvertisement %s is %s, was %s", want.Name, jsonOf(got), jsonOf(want))
			}
		}
		if len(c.EgressServices) == 0 && len(end.Advertisements) != len(w.before.Advertisements) {
			return fmt.Errorf("advertisements of ours are left: %s", end.Advertisements[len(end.Advertisements)-1].Name)
		}
		for _, s := range end.Services {
			if _, labelled := s.Labels[v1alpha1.ServiceLabel]; labelled && len(c.EgressServices) == 0 {
				return fmt.Errorf("Service %v has our label", s.Key)
			}
		}
	}
	return nil
}

// released is a cluster whose egress services are all deleted.
func released(before *advertisement.Cluster) *advertisement.Cluster {
	c := clone(before)
	c.EgressServices = nil
	for _, n := range c.Nodes {
		maps.DeleteFunc(n.Labels, func(key, _ string) bool {
			return strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix)
		})
	}
	return c
}

// jsonOf is what of an advertisement has to be restored.
func jsonOf(a *advertisement.BGPAdvertisement) string {
	body, err := json.Marshal([]any{a.Annotations, a.Spec})
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// valid: our advertisements are what the API server and MetalLB accept; that the others are is seen to whenever a plan is applied.
func valid(w world) error {
	for _, s := range advertisement.Make(w.Cluster).Services {
		for _, a := range s.Owned {
			if err := malformed(a); err != nil {
				return err
			}
			if wrong := validation.IsDNS1123Subdomain(a.Name); len(wrong) > 0 || lengthOf(a, true) != 32 || lengthOf(a, false) != 128 {
				return fmt.Errorf("BGPAdvertisement %s: %v, lengths %d and %d", a.Name, wrong, lengthOf(a, true), lengthOf(a, false))
			}
		}
	}
	return nil
}

// ordered: the plan is the same for the same content.
func ordered(w world) error {
	c := clone(w.Cluster)
	want := advertisement.Make(c)
	if !reflect.DeepEqual(c, w.Cluster) {
		return fmt.Errorf("the cluster is another one: %s", cmp.Diff(text(w), text(world{Cluster: c})))
	}
	dice := rand.New(rand.NewPCG(1, 1))
	mix(dice, c.Nodes)
	mix(dice, c.Services)
	mix(dice, c.Pools)
	mix(dice, c.Peers)
	mix(dice, c.Advertisements)
	mix(dice, c.L2Advertisements)
	mix(dice, c.BGPAnnouncements)
	if got := advertisement.Make(c); !reflect.DeepEqual(want, got) {
		return fmt.Errorf("in another order: %s", cmp.Diff(want, got))
	}
	return nil
}

func mix[T any](dice *rand.Rand, items []T) {
	dice.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
}
