// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"slices"
	"testing"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	// egressLabel is on n2, nobodyLabel on no node.
	egressLabel = egressv1.LabelPrefix + "example-service"
	nobodyLabel = egressv1.LabelPrefix + "example-nobody"
)

// spec is what the tables are made of.
type spec = metallbv1beta1.BGPAdvertisementSpec

// ours is what an advertisement of this project's says: from the node with the label, for the Service with the label, and nothing else.
func ours(change ...func(*spec)) spec {
	s := spec{NodeSelectors: having(egressLabel, ""), ServiceSelectors: having(v1alpha1.ServiceLabel, "x")}
	for _, f := range change {
		f(&s)
	}
	return s
}

// others is an advertisement of a user's with the egress services excluded.
func others(change ...func(*spec)) spec {
	s := spec{ServiceSelectors: lacking(v1alpha1.ServiceLabel)}
	for _, f := range change {
		f(&s)
	}
	return s
}

func localPref(value uint32) func(*spec) { return func(s *spec) { s.LocalPref = value } }

func communities(values ...string) func(*spec) { return func(s *spec) { s.Communities = values } }

func toPeers(names ...string) func(*spec) { return func(s *spec) { s.Peers = names } }

// with changes a user's advertisement that excludes nothing.
func with(change ...func(*spec)) spec {
	s := spec{}
	for _, f := range change {
		f(&s)
	}
	return s
}

// egress is a service with our label.
var egress = service{labels: map[string]string{v1alpha1.ServiceLabel: "x"}}

// TestAdvertisements is what stock MetalLB makes of advertisements, in tables.
func TestAdvertisements(t *testing.T) {
	w := enter(t, frrK8s)
	must(t, w.labelNode(t.Context(), "n2", map[string]*string{egressLabel: new("")}))
	play(t, w, slices.Concat(nodeScenes(), attributeScenes(), poolScenes(), sharingScenes(), endpointScenes()))
}

// nodeScenes say which nodes announce.
func nodeScenes() []scene {
	return []scene{{
		name:     "no advertisement",
		services: map[string]service{"unadvertised": {}},
		want:     map[string]offers{"unadvertised": nowhere},
	}, {
		name:     "default alone",
		ads:      ads{"alone": {}},
		services: map[string]service{"alone": egress},
		want:     map[string]offers{"alone": everywhere()},
		then:     deleted("alone"),
		thenWant: map[string]offers{"alone": nowhere},
	}, {
		name:     "default beside ours",
		ads:      ads{"union": {}, "union-ours": ours()},
		services: map[string]service{"union": egress, "union-other": {}},
		// Advertisements add up: ours confines nothing until the default excludes the service.
		want:     map[string]offers{"union": everywhere(), "union-other": everywhere()},
		then:     changed("union", map[string]any{"serviceSelectors": lacking(v1alpha1.ServiceLabel)}),
		thenWant: map[string]offers{"union": at("n2"), "union-other": everywhere()},
		always:   map[string]string{"union": "n1 n2 n3", "union-other": "n1 n2 n3"},
	}, {
		name:     "default that excludes",
		ads:      ads{"excluding": others(), "excluding-ours": ours()},
		services: map[string]service{"excluded": egress, "excluded-other": {}},
		want:     map[string]offers{"excluded": at("n2"), "excluded-other": everywhere()},
		// Whoever takes the label off the Service undoes the exclusion.
		then: func(ctx context.Context, w *world) error {
			return w.labelService(ctx, "excluded", map[string]*string{v1alpha1.ServiceLabel: nil})
		},
		thenWant: map[string]offers{"excluded": everywhere(), "excluded-other": everywhere()},
		always:   map[string]string{"excluded": "n1 n2 n3"},
	}, {
		name:     "label on no node",
		ads:      ads{"nobody": others(), "nobody-ours": ours(func(s *spec) { s.NodeSelectors = having(nobodyLabel, "") })},
		services: map[string]service{"nobody": egress, "nobody-other": {}},
		want:     map[string]offers{"nobody": nowhere, "nobody-other": everywhere()},
		then:     changed("nobody-ours", map[string]any{"nodeSelectors": having(egressLabel, "")}),
		thenWant: map[string]offers{"nobody": at("n2"), "nobody-other": everywhere()},
		always:   map[string]string{"nobody-other": "n1 n2 n3"},
	}, {
		name:     "either of two node selectors",
		ads:      ads{"either": ours(func(s *spec) { s.NodeSelectors = slices.Concat(having(nobodyLabel, ""), s.NodeSelectors) })},
		services: map[string]service{"either": egress, "either-other": {}},
		want:     map[string]offers{"either": at("n2"), "either-other": nowhere},
		// The order of the selectors, as of everything else, means nothing.
		then:     changed("either", map[string]any{"nodeSelectors": slices.Concat(having(egressLabel, ""), having(nobodyLabel, ""))}),
		thenWant: map[string]offers{"either": at("n2")},
		always:   map[string]string{"either": "n2"},
	}, {
		name:     "selectors that are empty",
		ads:      ads{"empty": {NodeSelectors: []metav1.LabelSelector{{}}, ServiceSelectors: []metav1.LabelSelector{{}}}},
		services: map[string]service{"empty": {}},
		want:     map[string]offers{"empty": everywhere()},
	}, {
		name: "nodeSelectors misspelt",
		// The API server drops the field, for which most clients show a warning at best.
		also: []client.Object{&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "metallb.io/v1beta1", "kind": "BGPAdvertisement",
			"metadata": map[string]any{"namespace": metallbNamespace, "name": "misspelt"},
			"spec": map[string]any{
				"ipAddressPools": []any{"nodeselectors-misspelt"},
				"nodeSelector":   []any{map[string]any{"matchLabels": map[string]any{egressLabel: ""}}},
			},
		}}},
		services: map[string]service{"misspelt": {}},
		want:     map[string]offers{"misspelt": everywhere()},
	}}
}

// attributeScenes say what comes with an announcement, and whether that prevents it.
func attributeScenes() []scene {
	return []scene{{
		name:     "localPref of a default that excludes nothing",
		ads:      ads{"clash": {}, "clash-ours": ours(localPref(200))},
		services: map[string]service{"clash": egress, "clash-other": {}},
		// The labelled node is silent, those that should be announce.
		want:     map[string]offers{"clash": at("n1 n3"), "clash-other": everywhere()},
		then:     changed("clash", map[string]any{"localPref": 200}),
		thenWant: map[string]offers{"clash": everywhere("tor1 localPref=200", "tor2 localPref=200")},
		always:   map[string]string{"clash": "n1 n2 n3", "clash-other": "n1 n2 n3"},
	}, {
		name:     "localPref of a default that excludes",
		ads:      ads{"preferred": others(localPref(100)), "preferred-ours": ours(localPref(200))},
		services: map[string]service{"preferred": egress, "preferred-other": {}},
		want: map[string]offers{
			"preferred":       at("n2", "tor1 localPref=200", "tor2 localPref=200"),
			"preferred-other": everywhere("tor1 localPref=100", "tor2 localPref=100"),
		},
		then:     changed("preferred-ours", map[string]any{"localPref": 300}),
		thenWant: map[string]offers{"preferred": at("n2", "tor1 localPref=300", "tor2 localPref=300")},
		always:   map[string]string{"preferred": "n2"},
	}, {
		name:     "localPref for another peer",
		ads:      ads{"split": with(toPeers(tor1)), "split-ours": ours(localPref(200), toPeers(tor2))},
		services: map[string]service{"split": egress},
		want:     map[string]offers{"split": {"n1": {tor1}, "n2": {tor1, "tor2 localPref=200"}, "n3": {tor1}}},
	}, {
		name:     "one peer",
		ads:      ads{"limited": others(toPeers(tor1)), "limited-ours": ours(toPeers(tor2))},
		services: map[string]service{"limited": egress, "limited-other": {}},
		want:     map[string]offers{"limited": at("n2", tor2), "limited-other": everywhere(tor1)},
		then:     changed("limited-ours", map[string]any{"peers": []string{tor1, tor2}}),
		thenWant: map[string]offers{"limited": at("n2")},
		always:   map[string]string{"limited": "n2"},
	}, {
		name:     "a peer that is not there",
		ads:      ads{"peerless": ours(toPeers("no-such-peer"))},
		services: map[string]service{"peerless": egress},
		want:     map[string]offers{"peerless": nowhere},
	}, {
		name: "communities",
		ads: ads{
			"colored": others(communities("64512:1")), "colored-ours": ours(communities("64512:2", "large:64512:1:2", "red")),
		},
		also:     []client.Object{newCommunity("colors", "red", "64512:3")},
		services: map[string]service{"colored": egress, "colored-other": {}},
		want: map[string]offers{
			"colored":       at("n2", "tor1 64512:2 64512:3 large:64512:1:2", "tor2 64512:2 64512:3 large:64512:1:2"),
			"colored-other": everywhere("tor1 64512:1", "tor2 64512:1"),
		},
		then:     changed("colored-ours", map[string]any{"communities": nil}),
		thenWant: map[string]offers{"colored": at("n2")},
		always:   map[string]string{"colored": "n2"},
	}, {
		name:     "communities of two advertisements",
		ads:      ads{"mixed": with(communities("64512:1")), "mixed-ours": ours(communities("64512:2"), toPeers(tor1))},
		services: map[string]service{"mixed": egress},
		want: map[string]offers{"mixed": {
			"n1": {"tor1 64512:1", "tor2 64512:1"}, "n2": {"tor1 64512:1 64512:2", "tor2 64512:1"}, "n3": {"tor1 64512:1", "tor2 64512:1"},
		}},
	}}
}

func newCommunity(name, alias, value string) *metallbv1beta1.Community {
	return &metallbv1beta1.Community{
		ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: name},
		Spec:       metallbv1beta1.CommunitySpec{Communities: []metallbv1beta1.CommunityAlias{{Name: alias, Value: value}}},
	}
}
