// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// scene is a case of a table whose cases are played at the same time. So that they don't touch one another, each has a pool of its own, with
// the name of the scene, and none changes Nodes.
type scene struct {
	name string
	// pools are more pools, with labels. The scene's own has none.
	pools map[string]map[string]string
	// ads are of the scene's own pool where they say nothing of pools. Their names must be unique in the table.
	ads ads
	// services get their address from the scene's own pool where they say nothing of pools. Their names must be unique in the table.
	services map[string]service
	// also are other objects.
	also []client.Object
	want map[string]offers
	// reported, by service, is what the ServiceBGPStatuses say where that is not the same.
	reported map[string]offers
	// more, when set, checks what want can't say.
	more func(t *testing.T, w *world)
	// then, when set, changes something, after which want and reported are thenWant and thenReported.
	then                   func(ctx context.Context, w *world) error
	thenWant, thenReported map[string]offers
	// always is what the recorder has to confirm of services while then is carried out: nodes of which one offered it at every moment, and
	// no other.
	always map[string]string
}

// play makes everything of the scenes, and checks them one by one; then it carries out all changes and checks those.
func play(t *testing.T, w *world, scenes []scene) {
	begin := time.Now()
	must(t, parallel(t.Context(), len(scenes), func(ctx context.Context, i int) error { return scenes[i].set(ctx, w, i) }))
	t.Logf("%d scenes made after %.1f s", len(scenes), time.Since(begin).Seconds())
	for _, s := range scenes {
		w.allocated(t, slices.Sorted(maps.Keys(s.services))...)
	}
	t.Logf("addresses allocated after %.1f s", time.Since(begin).Seconds())
	w.settled(t)
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			s.check(t, w, s.want, s.reported)
			if s.more != nil {
				s.more(t, w)
			}
		})
	}
	r := w.record(t)
	for _, s := range scenes {
		if s.then != nil {
			must(t, s.then(t.Context(), w))
		}
	}
	w.settled(t)
	for _, s := range scenes {
		if s.then == nil {
			continue
		}
		t.Run(s.name+", then", func(t *testing.T) {
			s.check(t, w, s.thenWant, s.thenReported)
			for service, nodes := range s.always {
				w.neverMissing(t, r, service)
				w.neverElsewhere(t, r, service, nodes)
			}
		})
	}
}

// pool is the name of the scene's own pool.
func (s scene) pool() string { return strings.ToLower(strings.ReplaceAll(s.name, " ", "-")) }

// set makes the scene's objects.
func (s scene) set(ctx context.Context, w *world, number int) error {
	ranges := []string{fmt.Sprintf("198.18.%d.0/29", number)}
	if w.backend != native {
		ranges = append(ranges, fmt.Sprintf("2001:db8:%x::/125", number+1))
	}
	own := newPool(s.pool(), ranges...)
	errs := []error{w.client.Create(ctx, own)}
	for i, name := range slices.Sorted(maps.Keys(s.pools)) {
		other := newPool(name, fmt.Sprintf("198.19.%d.%d/29", number, 8*i))
		other.Labels = s.pools[name]
		errs = append(errs, w.client.Create(ctx, other))
	}
	for _, object := range s.also {
		errs = append(errs, w.client.Create(ctx, object))
	}
	for name, spec := range s.ads {
		if len(spec.IPAddressPools)+len(spec.IPAddressPoolSelectors) == 0 {
			spec.IPAddressPools = []string{s.pool()}
		}
		errs = append(errs, w.client.Create(ctx, newAdvertisement(name, spec)))
	}
	// In their order: of those who share an address, the first one decides which.
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		service := s.services[name]
		if service.pool == "" {
			service.pool = s.pool()
		}
		errs = append(errs, w.createService(ctx, name, service))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("scene %s: %w", s.name, err)
	}
	return nil
}

func (s scene) check(t *testing.T, w *world, want, reported map[string]offers) {
	for _, service := range slices.Sorted(maps.Keys(want)) {
		w.announces(t, service, want[service])
		said, different := reported[service]
		if !different {
			said = want[service]
		}
		w.reports(t, service, said)
	}
}

// changed is a scene's change of one BGPAdvertisement.
func changed(name string, fields map[string]any) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.changeAdvertisement(ctx, name, fields) }
}

// deleted is the deletion of one BGPAdvertisement.
func deleted(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		return w.client.Delete(ctx, newAdvertisement(name, metallbv1beta1.BGPAdvertisementSpec{}))
	}
}
