// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// property is something that holds for every cluster.
type property struct {
	name  string
	check func(world) error
}

var properties = []property{
	{"writes come to an end, and MetalLB accepts them", settles},
	{"only the primary announces", onlyPrimary},
	{"the primary announces like an ordinary service", likeOrdinary},
	{"other services are announced as before", othersAsBefore},
	{"what was changed is restored", restored},
	{"a user's changes stay", changesStay},
	{"what is announced elsewhere is told", told},
	{"a remedy helps", remedied},
	{"a promotion writes nothing", promoted},
	{"a plan changes nothing and depends on no order", ordered},
	{"our advertisements are valid", valid},
	{"somebody announces meanwhile", meanwhile},
}

var seeds = flag.Uint64("seeds", 0, "how many random clusters to look at; 0: 2,000, in the short set 500")

// TestProperties looks at many random clusters, and shows the smallest one that breaks a property.
func TestProperties(t *testing.T) {
	count := *seeds
	if count == 0 {
		if count = 2_000; testing.Short() {
			count = 500
		}
	}
	failed := make([][]uint64, len(properties))
	for seed := range count {
		w := generate(seeded(seed))
		for i, p := range properties {
			if p.check(w) != nil {
				failed[i] = append(failed[i], seed)
			}
		}
	}
	for i, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			if len(failed[i]) == 0 {
				return
			}
			var smallest world
			for _, seed := range failed[i][:min(len(failed[i]), 50)] {
				if w := shrink(generate(seeded(seed)), p.check); smallest.Cluster == nil || len(text(w)) < len(text(smallest)) {
					smallest = w
				}
			}
			t.Errorf("%d of %d seeds (%v...): %v\n%s", len(failed[i]), count, failed[i][:min(len(failed[i]), 5)], p.check(smallest), text(smallest))
		})
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 3, 1, 1, 1, 0, 2, 2, 2, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		w := generate(throw(data))
		for _, p := range properties {
			if err := p.check(w); err != nil {
				t.Errorf("%s: %v\n%s", p.name, err, text(w))
			}
		}
	})
}

// text is a cluster as YAML, with what the advertisements were before in it.
func text(w world) string {
	body, err := yaml.Marshal(w.Cluster)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// shrink leaves out of a world what the failure does not need.
func shrink(w world, check func(world) error) world {
	for smaller := true; smaller; {
		smaller = false
		for _, leave := range []func(c *advertisement.Cluster, i int) bool{
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.Advertisements, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.EgressServices, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.L2Advertisements, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.BGPAnnouncements, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.L2Announcements, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.Services, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.Peers, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.Nodes, i) },
			func(c *advertisement.Cluster, i int) bool { return leaveOut(&c.Pools, i) },
		} {
			for i := 0; ; {
				next := world{clone(w.Cluster), clone(w.before), map[string]end{}}
				if !leave(next.Cluster, i) {
					break
				}
				leave(next.before, i)
				if check(next) == nil || lostPrimary(next) {
					i++
					continue
				}
				w, smaller = next, true
			}
		}
	}
	return w
}

func lostPrimary(w world) bool {
	return slices.ContainsFunc(w.EgressServices, func(e advertisement.EgressService) bool {
		return e.Primary != "" && nodeOf(w.Cluster, e.Primary) == nil
	})
}

// leaveOut is false when there is no such item.
func leaveOut[T any](items *[]T, i int) bool {
	if i >= len(*items) {
		return false
	}
	*items = slices.Delete(*items, i, i+1)
	return true
}

// settles: for every way to run it.
func settles(w world) error {
	for _, guarded := range []bool{false, true} {
		for _, manage := range []bool{false, true} {
			if _, _, ok := settled(w.but(func(c *advertisement.Cluster) { c.Guarded, c.Manage = guarded, manage })); !ok {
				return fmt.Errorf("guarded %v, manage %v: %w", guarded, manage, w.known[fmt.Sprint(guarded, manage, w.Features)].err)
			}
		}
	}
	return nil
}
