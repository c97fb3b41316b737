// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
)

// canary is the name of a Service, its pool and its BGPAdvertisement, by which a test tells that MetalLB's speakers have worked through
// everything: see settled.
const (
	canary      = "canary"
	canaryLabel = "example.com/canary"
)

var canaryPrefix = netip.MustParsePrefix("198.51.100.1/32")

// canaryAdvertisement announces the canary, once it has the value, from the Nodes that have it.
func canaryAdvertisement(value string) metallbv1beta1.BGPAdvertisementSpec {
	return metallbv1beta1.BGPAdvertisementSpec{
		IPAddressPools: []string{canary}, Communities: []string{canaryCommunity(value)},
		NodeSelectors: having(canaryLabel, value), ServiceSelectors: having(canaryLabel, value),
	}
}

func canaryCommunity(value string) string { return "64999:" + value }

// settled returns when the speakers have worked through everything that happened before, and have written what follows from it. It gives
// the Nodes, the Service and the BGPAdvertisement of the canary a new value. A speaker offers the new one when it has seen all three; it
// sees changes of one kind in their order, and reads all kinds anew when one of them changes. Only speakers that run are waited for.
func (w *world) settled(t *testing.T) {
	t.Helper()
	begin := time.Now()
	w.settlings++
	value := strconv.Itoa(w.settlings)
	for _, node := range w.nodes {
		must(t, w.labelNode(t.Context(), node, map[string]*string{canaryLabel: &value}))
	}
	spec := canaryAdvertisement(value)
	must(t,
		w.labelService(t.Context(), canary, map[string]*string{canaryLabel: &value}),
		w.changeAdvertisement(t.Context(), canary, map[string]any{
			"communities": spec.Communities, "nodeSelectors": spec.NodeSelectors, "serviceSelectors": spec.ServiceSelectors,
		}),
		poll(t.Context(), "MetalLB's speakers work through everything", func(ctx context.Context) error {
			var problems []error
			for _, node := range w.nodes {
				if w.processes.Alive(controlplane.MetalLBSpeakerProcess(node)) {
					problems = append(problems, w.sings(ctx, node, value))
				}
			}
			return errors.Join(problems...)
		}))
	t.Logf("settled after %.1f s", time.Since(begin).Seconds())
}

// sings is nil when a node offers the canary with that value to its peers, as far as it has any.
func (w *world) sings(ctx context.Context, node, value string) error {
	if w.routers != nil {
		return w.singsTo(ctx, node, value)
	}
	configuration := &frrk8sv1beta1.FRRConfiguration{}
	if err := w.client.Get(ctx, client.ObjectKey{Namespace: metallbNamespace, Name: "metallb-" + node}, configuration); err != nil {
		return err
	}
	for _, router := range configuration.Spec.BGP.Routers {
		for _, neighbor := range router.Neighbors {
			same := func(c frrk8sv1beta1.CommunityPrefixes) bool {
				return c.Community == canaryCommunity(value) && slices.Contains(c.Prefixes, canaryPrefix.String())
			}
			if !slices.ContainsFunc(neighbor.ToAdvertise.PrefixesWithCommunity, same) {
				return fmt.Errorf("node %s has not seen the canary's value %s", node, value)
			}
		}
	}
	return nil
}

// singsTo is nil when both routers have heard the canary with that value from a node.
func (w *world) singsTo(ctx context.Context, node, value string) error {
	all, err := w.routers.offered(ctx)
	if err != nil {
		return err
	}
	heard := slices.DeleteFunc(all[canaryPrefix][node], func(text string) bool { return !slices.Contains(strings.Fields(text), canaryCommunity(value)) })
	if len(heard) < len(peerNames) {
		return fmt.Errorf("node %s sings the canary's value %s to %v", node, value, heard)
	}
	return nil
}
