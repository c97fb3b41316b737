// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"fmt"
	"testing"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
)

// TestFindings is what the condition AdvertisementsConsistent says of things that are wrong with a real MetalLB, which itself says some of
// them, and that it says them no more when they are mended.
func TestFindings(t *testing.T) {
	w, ctx := enter(t, frrK8s), t.Context()
	must(t, w.client.Create(ctx, newAdvertisement("default", others())), w.createService(ctx, "example", service{}))
	w.allocated(t, "example")
	w.startController(t, "-bgp-backend=external")
	must(t, w.createEgress(ctx, "example", map[string]string{corev1.LabelHostname: "n2"}))
	right := func(t *testing.T) {
		t.Helper()
		w.consistent(t, "example", metav1.ConditionTrue, v1alpha1.ReasonConfigured)
	}
	wrong := func(t *testing.T, reason string, words ...string) {
		t.Helper()
		w.consistent(t, "example", metav1.ConditionFalse, reason, words...)
	}
	right(t)
	w.announces(t, "example", at("n2"))

	t.Run("announced by layer 2 too", func(t *testing.T) {
		l2 := &metallbv1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: "l2"}}
		l2.Spec.IPAddressPools = []string{pool}
		must(t, w.client.Create(ctx, l2))
		wrong(t, v1alpha1.ReasonL2Advertisement)
		must(t, w.client.Delete(ctx, l2))
		right(t)
	})
	t.Run("announced by layer 2 from another node", func(t *testing.T) {
		l2 := &metallbv1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: "l2"}}
		l2.Spec.IPAddressPools, l2.Spec.NodeSelectors = []string{pool}, having(corev1.LabelHostname, "n1")
		must(t, w.client.Create(ctx, l2), poll(ctx, "ServiceL2Status", func(ctx context.Context) error { return w.sayL2(ctx, "example", "n1") }))
		wrong(t, v1alpha1.ReasonL2Advertisement, "ServiceL2Status", "node n1")
		must(t, w.client.Delete(ctx, l2))
		right(t)
	})
	t.Run("a configuration that the primary's speaker refuses", func(t *testing.T) {
		of6 := func(change ...func(*spec)) spec {
			return with(append(change, func(s *spec) { s.IPAddressPools = []string{pool6} })...)
		}
		must(t, w.client.Create(ctx, newAdvertisement("clash-1", of6(localPref(100)))), w.client.Create(ctx, newAdvertisement("clash-2", of6(localPref(200)))))
		wrong(t, v1alpha1.ReasonConfigurationInvalid, "node n2", "invalid local preference")
		must(t, w.client.Delete(ctx, newAdvertisement("clash-1", spec{})), w.client.Delete(ctx, newAdvertisement("clash-2", spec{})))
		right(t)
	})
	t.Run("an advertisement written with nodeSelector", func(t *testing.T) {
		misspelt := newAdvertisement("misspelt", with())
		misspelt.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: `{"spec":{"nodeSelector":{}}}`}
		must(t, w.client.Create(ctx, misspelt))
		wrong(t, v1alpha1.ReasonNodeSelectorsMisspelt)
		w.announces(t, "example", everywhere())
		must(t, w.client.Delete(ctx, misspelt))
		right(t)
	})
	t.Run("a dead speaker still announces", func(t *testing.T) {
		must(t, w.processes.Stop(ctx, controlplane.MetalLBSpeakerProcess("n2")), w.changeEgress(ctx, "example", map[string]string{corev1.LabelHostname: "n3"}))
		w.host(t, "example", "n3")
		wrong(t, v1alpha1.ReasonAnnouncedElsewhere, "node n2")
		must(t, w.plane.StartMetalLBSpeaker(ctx, w.nodeProcess("n2")))
		right(t)
		w.announces(t, "example", at("n3"))
	})
}

// sayL2 is nil when a node's speaker says that it announces a service by layer 2.
func (w *world) sayL2(ctx context.Context, name, node string) error {
	list := &metallbv1beta1.ServiceL2StatusList{}
	if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
		return err
	}
	for _, item := range list.Items {
		if item.Status.ServiceName == name && item.Status.Node == node {
			return nil
		}
	}
	return fmt.Errorf("node %s does not say so of service %s", node, name)
}
