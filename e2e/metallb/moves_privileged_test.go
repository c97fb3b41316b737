// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

// TestMoves is what MetalLB makes of a label that moves, and of nodes that may not announce.
func TestMoves(t *testing.T) {
	w := enter(t, frrK8s)
	must(t, w.client.Create(t.Context(), newAdvertisement("default", others())),
		w.client.Create(t.Context(), newAdvertisement("ours", ours())),
		w.createService(t.Context(), "moving", egress), w.createService(t.Context(), "staying", service{}),
		w.labelNode(t.Context(), "n1", map[string]*string{egressLabel: new("")}))
	w.allocated(t, "moving", "staying")
	w.announces(t, "moving", at("n1"))
	w.announces(t, "staying", everywhere())

	t.Run("to the new node before it leaves the old one", func(t *testing.T) {
		r := w.record(t)
		must(t, w.labelNode(t.Context(), "n2", map[string]*string{egressLabel: new("")}))
		w.announces(t, "moving", at("n1 n2"))
		must(t, w.labelNode(t.Context(), "n1", map[string]*string{egressLabel: nil}))
		w.announces(t, "moving", at("n2"))
		w.neverMissing(t, r, "moving")
		w.neverElsewhere(t, r, "moving", "n1 n2")
		w.neverMissing(t, r, "staying")
	})
	t.Run("off the old node before it comes to the new one", func(t *testing.T) {
		r := w.record(t)
		must(t, w.labelNode(t.Context(), "n2", map[string]*string{egressLabel: nil}))
		w.announces(t, "moving", nowhere)
		must(t, w.labelNode(t.Context(), "n1", map[string]*string{egressLabel: new("")}))
		w.announces(t, "moving", at("n1"))
		var history [][]string
		for _, m := range w.moments(t, r, "moving") {
			history = append(history, m.nodes)
		}
		if diff := cmp.Diff([][]string{{"n2"}, nil, {"n1"}}, history); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		w.neverMissing(t, r, "staying")
	})
	t.Run("to a node that may announce nothing", func(t *testing.T) { testForbidden(t, w) })
	t.Run("away from a node whose speaker is dead", func(t *testing.T) { testDeadSpeaker(t, w) })
}

// testForbidden begins with the label on n1, and ends with it on n2.
func testForbidden(t *testing.T, w *world) {
	unavailable := func(status corev1.ConditionStatus) error {
		return w.client.Status().Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}},
			client.RawPatch("application/strategic-merge-patch+json",
				fmt.Appendf(nil, `{"status":{"conditions":[{"type":"NetworkUnavailable","status":%q}]}}`, status)))
	}
	must(t, unavailable(corev1.ConditionTrue),
		w.labelNode(t.Context(), "n2", map[string]*string{corev1.LabelNodeExcludeBalancers: new(""), egressLabel: new("")}),
		w.labelNode(t.Context(), "n1", map[string]*string{egressLabel: nil}))
	// The canary is withdrawn there too: nothing tells but the wait for what is expected.
	w.announces(t, "moving", nowhere)
	w.announces(t, "staying", at("n1"))
	w.reports(t, "moving", nowhere)
	must(t, w.labelNode(t.Context(), "n2", map[string]*string{corev1.LabelNodeExcludeBalancers: nil}), unavailable(corev1.ConditionFalse))
	w.announces(t, "moving", at("n2"))
	w.announces(t, "staying", everywhere())
}

// testDeadSpeaker begins with the label on n2. What a speaker has written stays until one runs there again.
func testDeadSpeaker(t *testing.T, w *world) {
	must(t, w.processes.Stop(t.Context(), controlplane.MetalLBSpeakerProcess("n2")),
		w.labelNode(t.Context(), "n2", map[string]*string{egressLabel: nil}),
		w.labelNode(t.Context(), "n3", map[string]*string{egressLabel: new("")}))
	w.settled(t)
	w.announces(t, "moving", at("n2 n3"))
	w.reports(t, "moving", at("n2 n3"))
	must(t, w.plane.StartMetalLBSpeaker(t.Context(), w.nodeProcess("n2")))
	w.announces(t, "moving", at("n3"))
	w.reports(t, "moving", at("n3"))
	w.announces(t, "staying", everywhere())
}

// TestFrozenConfiguration is what one contradiction among advertisements without serviceSelectors does: the speakers that it concerns keep
// the configuration that they had, for all services. Others don't read it.
func TestFrozenConfiguration(t *testing.T) {
	w := enter(t, frrK8s)
	must(t, w.client.Create(t.Context(), newAdvertisement("default", spec{})), w.createService(t.Context(), "older", service{}))
	w.allocated(t, "older")
	w.announces(t, "older", everywhere())

	clash := with(localPref(100), func(s *spec) { s.NodeSelectors = having(corev1.LabelHostname, "n3") })
	must(t, w.client.Create(t.Context(), newAdvertisement("clash", clash)))
	w.valid(t, "n1", true)
	w.valid(t, "n3", false)
	r := w.record(t)
	must(t, w.changeAdvertisement(t.Context(), "default", map[string]any{"communities": []string{"64512:1"}}),
		w.createService(t.Context(), "newer", service{}))
	w.allocated(t, "newer")
	was, is := []string{tor1, tor2}, []string{"tor1 64512:1", "tor2 64512:1"}
	// Services that come later are announced by the old configuration.
	w.announces(t, "older", offers{"n1": is, "n2": is, "n3": was})
	w.announces(t, "newer", offers{"n1": is, "n2": is, "n3": was})
	must(t, w.client.Delete(t.Context(), newAdvertisement("clash", spec{})))
	w.valid(t, "n3", true)
	w.announces(t, "older", everywhere(is...))
	w.neverMissing(t, r, "older")
}

// valid waits until a speaker says whether its configuration is valid.
func (w *world) valid(t *testing.T, node string, want bool) {
	t.Helper()
	result := metallbv1beta1.ConfigurationResultValid
	if !want {
		result = metallbv1beta1.ConfigurationResultInvalid
	}
	must(t, poll(t.Context(), "ConfigurationState of node "+node, func(ctx context.Context) error {
		state := &metallbv1beta1.ConfigurationState{}
		err := w.client.Get(ctx, client.ObjectKey{Namespace: metallbNamespace, Name: "speaker-" + node}, state)
		if err == nil && state.Status.Result != result {
			err = fmt.Errorf("result %q: %s", state.Status.Result, state.Status.ErrorSummary)
		}
		return err
	}))
}

// TestEgressService is MetalLB beside this project's own controller.
func TestEgressService(t *testing.T) {
	w := enter(t, frrK8s)
	fleet := w.startController(t)
	on := func(node string) map[string]string { return map[string]string{corev1.LabelHostname: node} }
	must(t, w.createService(t.Context(), "example", service{}), w.createEgress(t.Context(), "example", on("n1")))
	w.allocated(t, "example")
	w.host(t, "example", "n1")
	w.announces(t, "example", at("n1"))
	w.reports(t, "example", at("n1"))

	t.Run("a move", func(t *testing.T) {
		r := w.record(t)
		// A speaker on n2 would not see the route before MetalLB has written it.
		fleet.Set("n2", speakers.Behaviour{NotOffered: true})
		must(t, w.changeEgress(t.Context(), "example", on("n2")))
		w.announces(t, "example", at("n1 n2"))
		fleet.Set("n2", speakers.Behaviour{})
		w.host(t, "example", "n2")
		w.announces(t, "example", at("n2"))
		w.neverMissing(t, r, "example")
		w.neverElsewhere(t, r, "example", "n1 n2")
	})
}
