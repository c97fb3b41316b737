// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// takeover is a scene of which some services become egress services, on n2, and cease to be so. want is what it is like before and after.
type takeover struct {
	scene
	// egress are those services, and whether they say that their advertisements are right: with which reason.
	egress map[string]string
	// taken are the announcements meanwhile, reportedThen what ServiceBGPStatuses say where that is not the same.
	taken, reportedThen map[string]offers
	// general are the announcements when an advertisement without any selector is there too.
	general map[string]offers
	// gap is true where nobody announced the service before, or its primary did not.
	gap bool
}

const generalCommunity = "64512:9"

// plain is what the general advertisement adds to those without attributes.
var plain = []string{"tor1 " + generalCommunity, "tor2 " + generalCommunity}

// takeovers are the kinds of advertisements that users have.
func takeovers() []takeover {
	right := v1alpha1.ReasonConfigured
	return []takeover{{
		scene: scene{
			name: "for one pool", ads: ads{"default": {}}, services: map[string]service{"default": {}, "default-beside": {}},
			want: map[string]offers{"default": everywhere(), "default-beside": everywhere()},
		},
		egress:  map[string]string{"default": right},
		taken:   map[string]offers{"default": at("n2"), "default-beside": everywhere()},
		general: map[string]offers{"default": at("n2", plain...), "default-beside": everywhere(plain...)},
	}, {
		scene: scene{
			name: "for a list of pools", pools: map[string]map[string]string{"listed": nil},
			ads:      ads{"list": {IPAddressPools: []string{"for-a-list-of-pools", "listed"}}},
			services: map[string]service{"listed": {pool: "listed"}, "listed-own": {}},
			want:     map[string]offers{"listed": everywhere(), "listed-own": everywhere()},
		},
		egress:  map[string]string{"listed": right},
		taken:   map[string]offers{"listed": at("n2"), "listed-own": everywhere()},
		general: map[string]offers{"listed": at("n2", plain...), "listed-own": everywhere(plain...)},
	}, {
		scene: scene{
			name: "for one peer", ads: ads{"limited": with(toPeers(tor1))}, services: map[string]service{"limited": {}, "limited-beside": {}},
			want: map[string]offers{"limited": everywhere(tor1), "limited-beside": everywhere(tor1)},
		},
		egress:  map[string]string{"limited": right},
		taken:   map[string]offers{"limited": at("n2", tor1), "limited-beside": everywhere(tor1)},
		general: map[string]offers{"limited": at("n2", plain...), "limited-beside": everywhere(plain...)},
	}, {
		scene: scene{
			name:     "with localPref for each peer",
			ads:      ads{"high": with(toPeers(tor1), localPref(200)), "low": with(toPeers(tor2), localPref(50))},
			services: map[string]service{"split": {}, "split-beside": {}},
			want: map[string]offers{
				"split":        everywhere("tor1 localPref=200", "tor2 localPref=50"),
				"split-beside": everywhere("tor1 localPref=200", "tor2 localPref=50"),
			},
		},
		egress: map[string]string{"split": right},
		taken: map[string]offers{
			"split": at("n2", "tor1 localPref=200", "tor2 localPref=50"), "split-beside": everywhere("tor1 localPref=200", "tor2 localPref=50"),
		},
		// Those that contradict each other silence an ordinary service.
		general: map[string]offers{"split": at("n2", plain...), "split-beside": nowhere},
	}, {
		scene: scene{
			name: "with communities", ads: ads{"colored": with(communities("64512:1", "64512:2"))}, services: map[string]service{"colored": {}, "colored-beside": {}},
			want: map[string]offers{
				"colored":        everywhere("tor1 64512:1 64512:2", "tor2 64512:1 64512:2"),
				"colored-beside": everywhere("tor1 64512:1 64512:2", "tor2 64512:1 64512:2"),
			},
		},
		egress: map[string]string{"colored": right},
		taken:  map[string]offers{"colored": at("n2", "tor1 64512:1 64512:2", "tor2 64512:1 64512:2")},
		general: map[string]offers{
			"colored":        at("n2", "tor1 64512:1 64512:2 64512:9", "tor2 64512:1 64512:2 64512:9"),
			"colored-beside": everywhere("tor1 64512:1 64512:2 64512:9", "tor2 64512:1 64512:2 64512:9"),
		},
	}, {
		scene: scene{
			name: "for another node", ads: ads{"limited-to-n1": with(func(s *spec) { s.NodeSelectors = having(corev1.LabelHostname, "n1") })},
			services: map[string]service{"nodes": {}, "nodes-beside": {}},
			want:     map[string]offers{"nodes": at("n1"), "nodes-beside": at("n1")},
		},
		// Two speakers change their minds, each in its time.
		gap:     true,
		egress:  map[string]string{"nodes": right},
		taken:   map[string]offers{"nodes": at("n2"), "nodes-beside": at("n1")},
		general: map[string]offers{"nodes": at("n2", plain...), "nodes-beside": everywhere(plain...)},
	}, {
		scene: scene{
			name: "by hand", ads: ads{"hand": with(func(s *spec) { s.NodeSelectors = having(egressv1.LabelPrefix+"example-hand", "") })},
			services: map[string]service{"hand": {}},
			want:     map[string]offers{"hand": nowhere},
		},
		gap:    true,
		egress: map[string]string{"hand": right},
		taken:  map[string]offers{"hand": at("n2")},
		// Nothing of ours is added: what the general one has, too, is the user's to repeat.
		general: map[string]offers{"hand": at("n2")},
	}, {
		scene: scene{
			name: "for two egress services with one address", ads: ads{"pair": {}},
			services: map[string]service{"pair-a": {sharing: "key", port: 80}, "pair-b": {sharing: "key", port: 81}},
			want:     map[string]offers{"pair-a": everywhere(), "pair-b": everywhere()},
		},
		egress:  map[string]string{"pair-a": right, "pair-b": right},
		taken:   map[string]offers{"pair-a": at("n2"), "pair-b": at("n2")},
		general: map[string]offers{"pair-a": at("n2", plain...), "pair-b": at("n2", plain...)},
	}, {
		scene: scene{
			name: "for an ordinary service with the same address", ads: ads{"mixed": {}},
			services: map[string]service{"mixed-egress": {sharing: "key", port: 80}, "mixed-ordinary": {sharing: "key", port: 81}},
			want:     map[string]offers{"mixed-egress": everywhere(), "mixed-ordinary": everywhere()},
		},
		egress:       map[string]string{"mixed-egress": v1alpha1.ReasonSharedWithOrdinaryService},
		taken:        map[string]offers{"mixed-egress": everywhere(), "mixed-ordinary": everywhere()},
		reportedThen: map[string]offers{"mixed-egress": at("n2")},
		general:      map[string]offers{"mixed-ordinary": everywhere(plain...)},
	}, {
		scene: scene{
			name: "of an aggregate", ads: ads{"sum": {AggregationLength: new(int32(30)), AggregationLengthV6: new(int32(128))}},
			services: map[string]service{"summed": {}, "summed-beside": {}},
			want:     map[string]offers{"summed": nowhere, "summed-beside": nowhere},
			reported: map[string]offers{"summed": everywhere(), "summed-beside": everywhere()},
		},
		gap:          true,
		egress:       map[string]string{"summed": v1alpha1.ReasonAggregateAdvertised},
		taken:        map[string]offers{"summed": at("n2"), "summed-beside": nowhere},
		reportedThen: map[string]offers{"summed": everywhere(), "summed-beside": everywhere()},
		general:      map[string]offers{"summed": at("n2", plain...), "summed-beside": everywhere(plain...)},
	}}
}

// TestTakeover turns ordinary services into egress services, with the real controller, which may exclude them from others' advertisements,
// and MetalLB announcing by itself (back end external); then an advertisement without any selector comes; then everything goes.
func TestTakeover(t *testing.T) { inEach(t, testTakeover) }

func testTakeover(t *testing.T, w *world) {
	ctx, all, begin := t.Context(), takeovers(), time.Now()
	var services []string
	for i, one := range all {
		must(t, one.set(ctx, w, i))
		services = slices.AppendSeq(services, maps.Keys(one.services))
	}
	w.allocated(t, services...)
	before, err := w.advertisements(ctx)
	must(t, err)
	w.startController(t, "-bgp-backend=external", "-manage-advertisements")
	w.settled(t)
	for _, one := range all {
		t.Run(one.name+", ordinary", func(t *testing.T) { one.check(t, w, one.want, one.reported) })
	}

	t.Logf("made after %.1f s", time.Since(begin).Seconds())
	r := w.record(t)
	for _, one := range all {
		for _, name := range slices.Sorted(maps.Keys(one.egress)) {
			must(t, w.createEgress(ctx, name, map[string]string{corev1.LabelHostname: "n2"}))
		}
	}
	for _, one := range all {
		t.Run(one.name, func(t *testing.T) {
			one.right(t, w)
			one.check(t, w, one.taken, one.reportedThen)
			if !one.gap {
				for name := range one.egress {
					w.neverMissing(t, r, name)
				}
			}
		})
	}
	t.Run("by hand, nothing is added", func(t *testing.T) {
		owned, err := w.owned(ctx, "hand")
		if must(t, err); len(owned) > 0 {
			t.Errorf("%+v", owned)
		}
	})

	t.Logf("taken over after %.1f s", time.Since(begin).Seconds())
	must(t, w.client.Create(ctx, newAdvertisement("general", with(communities(generalCommunity)))))
	for _, one := range all {
		t.Run(one.name+", beside a general one", func(t *testing.T) { one.check(t, w, one.general, one.reportedThen) })
	}

	t.Logf("general one at %.1f s", time.Since(begin).Seconds())
	must(t, w.client.Delete(ctx, newAdvertisement("general", spec{})))
	for _, one := range all {
		for name := range one.egress {
			must(t, w.client.Delete(ctx, &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: name}}))
		}
	}
	for _, one := range all {
		t.Run(one.name+", ordinary again", func(t *testing.T) { one.check(t, w, one.want, one.reported) })
	}
	must(t, poll(ctx, "advertisements as before", func(ctx context.Context) error {
		after, err := w.advertisements(ctx)
		if diff := cmp.Diff(before, after); diff != "" {
			err = errors.Join(err, fmt.Errorf("-before +after:\n%s", diff))
		}
		return err
	}))
	t.Logf("all over after %.1f s", time.Since(begin).Seconds())
}

// right waits until every egress service says what it should of its advertisements.
func (o takeover) right(t *testing.T, w *world) {
	for name, reason := range o.egress {
		status := metav1.ConditionTrue
		if reason == v1alpha1.ReasonSharedWithOrdinaryService {
			status = metav1.ConditionFalse
		}
		w.consistent(t, name, status, reason)
	}
}

// advertisementText is what a user sees of one.
type advertisementText struct {
	Name                string
	Labels, Annotations map[string]string
	Spec                spec
}

// advertisements are all of them, in the order of their names.
func (w *world) advertisements(ctx context.Context) ([]advertisementText, error) {
	list := &metallbv1beta1.BGPAdvertisementList{}
	if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
		return nil, err
	}
	var all []advertisementText
	for _, a := range list.Items {
		if a.Name != canary {
			all = append(all, advertisementText{a.Name, a.Labels, a.Annotations, a.Spec})
		}
	}
	return all, nil
}

// owned are the names of a service's own.
func (w *world) owned(ctx context.Context, name string) ([]string, error) {
	all, err := w.advertisements(ctx)
	var names []string
	for _, a := range all {
		if a.Annotations[v1alpha1.OwnerAnnotation] == exampleNamespace+"/"+name {
			names = append(names, a.Name)
		}
	}
	return names, err
}
