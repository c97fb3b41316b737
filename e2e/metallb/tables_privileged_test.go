// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// poolScenes say of which pools an advertisement is, and of which prefix.
func poolScenes() []scene {
	pools := func(names ...string) func(*spec) { return func(s *spec) { s.IPAddressPools = names } }
	return []scene{{
		name:     "pools by name",
		pools:    map[string]map[string]string{"named": nil, "unnamed": nil},
		ads:      ads{"named": with(pools("named", "pools-by-name", "no-such-pool"))},
		services: map[string]service{"named": {pool: "named"}, "named-own": {}, "unnamed": {pool: "unnamed"}},
		want:     map[string]offers{"named": everywhere(), "named-own": everywhere(), "unnamed": nowhere},
		then:     changed("named", map[string]any{"ipAddressPools": []string{"no-such-pool"}}),
		// A list of which nothing is there is not an empty one.
		thenWant: map[string]offers{"named": nowhere, "named-own": nowhere, "unnamed": nowhere},
	}, {
		name:  "pools by label or name",
		pools: map[string]map[string]string{"gold": {"tier": "gold"}, "silver": {"tier": "silver"}},
		ads: ads{"tiers": with(pools("pools-by-label-or-name"), func(s *spec) {
			s.IPAddressPoolSelectors = having("tier", "gold")
		})},
		services: map[string]service{"gold": {pool: "gold"}, "silver": {pool: "silver"}, "tiers-own": {}},
		want:     map[string]offers{"gold": everywhere(), "silver": nowhere, "tiers-own": everywhere()},
	}, {
		name: "an aggregate",
		ads:  ads{"aggregate": {AggregationLength: new(int32(30)), AggregationLengthV6: new(int32(128))}, "aggregate-ours": ours()},
		// Less specific than ours, the aggregate may come from everywhere.
		services: map[string]service{"aggregated": egress, "aggregated-other": {}},
		want:     map[string]offers{"aggregated": at("n2"), "aggregated-other": nowhere},
		// MetalLB names a service's peers, not its prefixes.
		reported: map[string]offers{"aggregated": everywhere(), "aggregated-other": everywhere()},
		more:     func(t *testing.T, w *world) { w.announcesAggregate(t, "aggregated", 30, everywhere()) },
	}, {
		name:     "dual stack",
		ads:      ads{"dual": others(), "dual-ours": ours()},
		services: map[string]service{"dual": {labels: egress.labels, dualStack: true}, "dual-other": {dualStack: true}},
		want:     map[string]offers{"dual": at("n2"), "dual-other": everywhere()},
	}}
}

// sharingScenes are about Services with one address. Each is judged by itself, and the address is announced for any of them.
func sharingScenes() []scene {
	// They ask for no address: MetalLB gives both the first one of the pool.
	shared := func(labels map[string]string, port int32) service {
		return service{labels: labels, port: port, sharing: "key"}
	}
	labelled := func(value string) map[string]string { return map[string]string{"member": value} }
	member := func(value string, change ...func(*spec)) spec {
		s := with(change...)
		s.ServiceSelectors = having("member", value)
		return s
	}
	return []scene{{
		name:     "shared with an ordinary service",
		ads:      ads{"shared": others(), "shared-ours": ours()},
		services: map[string]service{"shared-egress": shared(egress.labels, 80), "shared-other": shared(nil, 81)},
		want:     map[string]offers{"shared-egress": everywhere(), "shared-other": everywhere()},
		reported: map[string]offers{"shared-egress": at("n2")},
		then: func(ctx context.Context, w *world) error {
			return w.labelService(ctx, "shared-other", map[string]*string{v1alpha1.ServiceLabel: new("x")})
		},
		thenWant: map[string]offers{"shared-egress": at("n2"), "shared-other": at("n2")},
		always:   map[string]string{"shared-egress": "n1 n2 n3"},
	}, {
		name:     "shared and different peers",
		ads:      ads{"peer-a": member("a", toPeers(tor1)), "peer-b": member("b", toPeers(tor2))},
		services: map[string]service{"peer-a": shared(labelled("a"), 80), "peer-b": shared(labelled("b"), 81)},
		want:     map[string]offers{"peer-a": everywhere(), "peer-b": everywhere()},
	}, {
		name:     "shared and different localPref",
		ads:      ads{"pref-a": member("a", localPref(100)), "pref-b": member("b", localPref(200))},
		services: map[string]service{"pref-a": shared(labelled("a"), 80), "pref-b": shared(labelled("b"), 81)},
		// Conflicts are looked for within one service only: the speaker is handed a contradiction.
		want: map[string]offers{"pref-a": everywhere("tor1 localPref=100 localPref=200", "tor2 localPref=100 localPref=200")},
	}}
}

// endpointScenes say which endpoints a service needs.
func endpointScenes() []scene {
	move := func(name string, s service) func(context.Context, *world) error {
		return func(ctx context.Context, w *world) error { return w.setEndpoints(ctx, name, s) }
	}
	notReady := &discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false)}
	return []scene{{
		name:     "no endpoint on the egress node",
		ads:      ads{"remote": ours()},
		services: map[string]service{"remote": {labels: egress.labels, endpoints: []string{"n1"}}},
		want:     map[string]offers{"remote": at("n2")},
	}, {
		name:     "no endpoint at all",
		ads:      ads{"bare": ours()},
		services: map[string]service{"bare": {labels: egress.labels, endpoints: []string{}}},
		want:     map[string]offers{"bare": nowhere},
		then:     move("bare", service{endpoints: []string{"n3"}}),
		thenWant: map[string]offers{"bare": at("n2")},
	}, {
		name:     "no endpoint ready",
		ads:      ads{"unready": ours()},
		services: map[string]service{"unready": {labels: egress.labels, conditions: notReady}},
		want:     map[string]offers{"unready": nowhere},
		// Serving is enough, as on the way out of a pod.
		then: move("unready", service{conditions: &discoveryv1.EndpointConditions{
			Ready: new(false), Serving: new(true), Terminating: new(true),
		}}),
		thenWant: map[string]offers{"unready": at("n2")},
	}, {
		name: "local traffic policy",
		ads:  ads{"local": others(), "local-ours": ours()},
		services: map[string]service{
			"local":       {labels: egress.labels, local: true, endpoints: []string{"n1", "n3"}},
			"local-other": {local: true, endpoints: []string{"n1", "n3"}},
		},
		want:     map[string]offers{"local": nowhere, "local-other": at("n1 n3")},
		then:     move("local", service{endpoints: []string{"n2"}}),
		thenWant: map[string]offers{"local": at("n2")},
	}}
}
