// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"fmt"
	"hash/fnv"
	"iter"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// The properties here are about what a user does, and is told.

// reportOnly may change nothing of others'.
func reportOnly(c *advertisement.Cluster) { c.Manage, c.Guarded = false, false }

// told: what is announced from elsewhere is a finding, and where nothing is there is none.
func told(w world) error {
	after, all, ok := settled(w.but(reportOnly))
	if !ok {
		return nil
	}
	for _, one := range all {
		found := strays(after, one)
		for _, s := range found {
			if !one.tells(s, func(f advertisement.Finding) bool { return !f.Harmless }) {
				return fmt.Errorf("%v is announced by %v, which is not told: %+v", one.Key, s, one.plan.Findings)
			}
		}
		primary := nodeOf(after, one.Primary)
		if len(found) == 0 && !silenced(after, one) && primary != nil && len(hostRoutes(announced(after, one.service, primary))) > 0 &&
			one.has(v1alpha1.ReasonOtherAdvertisement, v1alpha1.ReasonNodeSelectorsMisspelt, v1alpha1.ReasonSharedWithOrdinaryService) {
			return fmt.Errorf("%v is announced by its primary only: %+v", one.Key, one.plan.Findings)
		}
	}
	return nil
}

// silenced is true when nothing but a conflict keeps another node from announcing.
func silenced(c *advertisement.Cluster, one confined) bool {
	return slices.ContainsFunc(c.Nodes, func(n advertisement.Node) bool {
		return n.Name != one.Primary && slices.ContainsFunc(c.Services, func(s advertisement.Service) bool {
			return s.Pool == one.service.Pool && conflicting(announcers(c, &s, &n), poolOf(c, &s))
		})
	})
}

// remedied: the command of a finding does what it says.
func remedied(w world) error {
	after, all, ok := settled(w.but(reportOnly))
	if !ok {
		return nil
	}
	for _, one := range all {
		for _, f := range one.plan.Findings {
			_, rest, found := strings.Cut(f.Message, "kubectl -n "+namespace+" patch bgpadvertisement ")
			name, body, alsoFound := strings.Cut(rest, " --type=json -p='")
			if f.Reason != v1alpha1.ReasonOtherAdvertisement || !found || !alsoFound || !one.plan.Label {
				continue
			}
			next := clone(after)
			if err := patch(next, name, []byte(strings.TrimSuffix(body, "'"))); err != nil {
				return fmt.Errorf("%s: %w", f.Message, err)
			}
			if err := refused(next); err != nil {
				return fmt.Errorf("%s: %w", f.Message, err)
			}
			if a := next.Advertisements[index(next, name)]; anyMatches(a.Spec.ServiceSelectors, one.service.Labels) {
				return fmt.Errorf("%s: it matches %v of %v still", f.Message, one.service.Labels, one.Key)
			}
		}
	}
	return nil
}

// promoted: with the guard, two nodes have the route already.
func promoted(w world) error {
	after, all, ok := settled(w.but(func(c *advertisement.Cluster) { c.Guarded = true }))
	if !ok {
		return nil
	}
	for _, one := range all {
		for _, a := range one.plan.Owned {
			for _, key := range []string{one.LabelKey, one.StandbyLabelKey} {
				if !slices.ContainsFunc(a.Spec.NodeSelectors, func(s metav1.LabelSelector) bool { return strings.Contains(s.String(), key) }) {
					return fmt.Errorf("BGPAdvertisement %s does not select by %s", a.Name, key)
				}
			}
		}
	}
	for _, one := range all {
		moved := clone(after)
		promote(moved, one.EgressService)
		for _, s := range advertisement.Make(moved).Services {
			if s.Key == one.Key && !equality.Semantic.DeepEqual(one.plan.Owned, s.Owned) {
				return fmt.Errorf("%v: %s", one.Key, cmp.Diff(one.plan.Owned, s.Owned))
			}
		}
	}
	return nil
}

// promote makes the standby the primary, and the next node the standby.
func promote(c *advertisement.Cluster, before *advertisement.EgressService) {
	e := &c.EgressServices[slices.IndexFunc(c.EgressServices, func(e advertisement.EgressService) bool { return e.Key == before.Key })]
	standby := slices.IndexFunc(c.Nodes, func(n advertisement.Node) bool {
		_, ok := n.Labels[e.StandbyLabelKey]
		return ok && e.StandbyLabelKey != ""
	})
	if standby < 0 || nodeOf(c, e.Primary) == nil {
		return
	}
	delete(nodeOf(c, e.Primary).Labels, e.LabelKey)
	delete(c.Nodes[standby].Labels, e.StandbyLabelKey)
	c.Nodes[standby].Labels[e.LabelKey] = ""
	e.Primary = c.Nodes[standby].Name
	c.Nodes[(standby+1)%len(c.Nodes)].Labels[e.StandbyLabelKey] = ""
}

// changesStay: what a user has done to an advertisement in between is not undone with the exclusion.
func changesStay(w world) error {
	after, _, ok := settled(w.but(managed))
	if !ok {
		return nil
	}
	d := seeded(digest(after.Advertisements))
	after = clone(after)
	for _, a := range after.Advertisements {
		if _, edited := a.Annotations[v1alpha1.OriginalSelectorsAnnotation]; !edited {
			continue
		}
		original := w.before.Advertisements[index(w.before, a.Name)]
		want := original.DeepCopy()
		if d.change(a, want); refused(after) != nil {
			return nil
		}
		changed := !slices.Equal(spelt(want.Spec.ServiceSelectors), spelt(original.Spec.ServiceSelectors))
		if changed && slices.ContainsFunc(original.Spec.ServiceSelectors, hasExclusion) {
			return nil // Whose exclusion it is that is left, nobody can tell.
		}
		end := released(after)
		if d.chance(2) {
			var err error
			if after, _, err = settle(after); err != nil {
				return fmt.Errorf("after a change by the user: %w", err)
			}
			end = released(after)
		}
		end, _, err := settle(end)
		if err != nil {
			if all := clone(w.before); func() bool { all.Advertisements[index(all, a.Name)] = want; return refused(all) != nil }() {
				return nil // What the user has changed can't be had without the exclusion.
			}
			return fmt.Errorf("after a change by the user and the end: %w", err)
		}
		if got := end.Advertisements[index(end, a.Name)]; jsonOf(want) != jsonOf(got) {
			return fmt.Errorf("BGPAdvertisement %s is %s, want %s", a.Name, jsonOf(got), jsonOf(want))
		}
		return nil
	}
	return nil
}

// digest is a number that is another one for other advertisements.
func digest(all []*advertisement.BGPAdvertisement) uint64 {
	sum := fnv.New64a()
	for _, a := range all {
		sum.Write([]byte(jsonOf(a)))
	}
	return sum.Sum64()
}

func hasExclusion(s metav1.LabelSelector) bool {
	return slices.ContainsFunc(s.MatchExpressions, isExclusion)
}

// change is something that a user does to an advertisement that we have edited, and to what it is to be in the end.
func (d *dice) change(a, want *advertisement.BGPAdvertisement) {
	for _, one := range []*advertisement.BGPAdvertisement{a, want} {
		one.ResourceVersion = next(one.ResourceVersion)
	}
	switch d.roll(7) {
	case 0:
		a.Spec.LocalPref, want.Spec.LocalPref = 300, 300
	case 1:
		a.Spec.Communities, want.Spec.Communities = []string{"65000:9"}, []string{"65000:9"}
	case 2:
		metav1.SetMetaDataAnnotation(&a.ObjectMeta, "note", "mine")
		metav1.SetMetaDataAnnotation(&want.ObjectMeta, "note", "mine")
	case 3:
		a.Spec.NodeSelectors, want.Spec.NodeSelectors = parsed("zone=b"), parsed("zone=b")
	case 4: // another alternative
		a.Spec.ServiceSelectors = append(a.Spec.ServiceSelectors, parsed("app=cache")...)
		want.Spec.ServiceSelectors = stripped(a.Spec.ServiceSelectors)
	case 5: // the exclusion is gone
		a.Spec.ServiceSelectors = stripped(a.Spec.ServiceSelectors)
		want.Spec.ServiceSelectors = stripped(a.Spec.ServiceSelectors)
	case 6: // other selectors
		a.Spec.ServiceSelectors = parsed("app=cache", "app=db,tier=x")
		want.Spec.ServiceSelectors = stripped(a.Spec.ServiceSelectors)
	}
}

// meanwhile: in no step of a plan is a service that somebody announces, before and after, announced by nobody.
func meanwhile(w world) error {
	w = w.but(managed)
	end, all, ok := settled(w)
	if !ok {
		return nil
	}
	for c, writes := w.Cluster, 1; writes > 0; {
		plan := advertisement.Make(c)
		for what, step := range steps(c, plan) {
			for _, one := range all {
				if one.announcedIn(w.Cluster) && one.announcedIn(end) && !one.announcedIn(step) && !one.contradicted(w) {
					return fmt.Errorf("nobody announces %v after %s", one.Key, what)
				}
			}
		}
		c, writes, _ = apply(c, plan)
	}
	return nil
}

// contradicted is true when users' own advertisements would keep an ordinary service from being announced.
func (one confined) contradicted(w world) bool {
	c := ordinary(w)
	return slices.ContainsFunc(c.Nodes, func(n advertisement.Node) bool {
		return conflicting(announcers(c, serviceOf(c, one.EgressService), &n), poolOf(c, one.service))
	})
}

// steps are the cluster after each part of a plan, in the order that it asks for.
func steps(c *advertisement.Cluster, plan advertisement.Plan) iter.Seq2[string, *advertisement.Cluster] {
	owned := advertisement.Plan{Services: slices.Clone(plan.Services)}
	for i := range owned.Services {
		s := &owned.Services[i]
		service := serviceOf(c, &advertisement.EgressService{Key: s.Key})
		s.Label, s.Digest = false, ""
		if service != nil {
			s.Digest, s.Label = service.Labels[v1alpha1.ServiceLabel], service.Labels[v1alpha1.ServiceLabel] != ""
		}
	}
	labelled := advertisement.Plan{Services: plan.Services}
	edited := advertisement.Plan{Services: plan.Services, Edits: plan.Edits}
	return func(yield func(string, *advertisement.Cluster) bool) {
		for _, part := range []struct {
			what string
			plan advertisement.Plan
		}{{"our advertisements", owned}, {"the labels", labelled}, {"the exclusions", edited}, {"the orphans' end", plan}} {
			if after, writes, err := apply(c, part.plan); err != nil || writes > 0 && !yield(part.what, after) {
				return
			}
		}
	}
}

// announcedIn is true when a node announces the service's own addresses.
func (one confined) announcedIn(c *advertisement.Cluster) bool {
	s := serviceOf(c, one.EgressService)
	return slices.ContainsFunc(c.Nodes, func(n advertisement.Node) bool { return len(hostRoutes(announced(c, s, &n))) > 0 })
}
