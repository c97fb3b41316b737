// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// external is a cluster in which MetalLB announces, with somebody's general advertisement.
func external(t *testing.T) *cluster {
	t.Helper()
	general := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "general"}}
	c := newCluster(t, append(slices.Concat(node("a"), node("b"), service("s", "192.0.2.1")), general)...)
	c.controller.Guarded, c.controller.ManageAdvertisements = false, true
	return c
}

func (c *cluster) labelled() bool {
	c.Helper()
	return get(c, "ns", "s", &corev1.Service{}).Labels[v1alpha1.ServiceLabel] != ""
}

// Somebody announces the service at every moment: advertisements, a primary, then the label; on removal the label first.
func TestOrderOfAdvertisements(t *testing.T) {
	c := external(t)
	c.sync()
	if !slices.ContainsFunc(c.writes, func(w string) bool { return strings.HasPrefix(w, "create egress-ns-s") }) || c.labelled() {
		t.Errorf("at first: wrote %v, label %v; want the advertisement, and no label without a primary", c.writes, c.labelled())
	}
	c.report(c.assignment("s").Spec.Standby, "s", true, true, false)
	c.sync()
	if c.assignment("s").Spec.Primary == "" || c.labelled() {
		t.Errorf("primary %q, label %v; want a primary, and no label before MetalLB can know the advertisement", c.assignment("s").Spec.Primary, c.labelled())
	}
	c.now = c.now.Add(settleAdvertisements)
	c.sync()
	if !c.labelled() {
		t.Error("no label though there is a primary")
	}
	if labels := c.ourLabels(); len(labels) != 1 {
		t.Errorf("labels of nodes: %v; want no standby's where MetalLB announces", labels)
	}
	if err := c.client.Delete(t.Context(), c.egress("s")); err != nil {
		t.Fatal(err)
	}
	c.sync()
	owned := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: advertisement.Name("ns", "s")}}
	key := client.ObjectKeyFromObject(owned)
	if err := c.client.Get(t.Context(), key, owned); err != nil || c.labelled() || len(c.ourLabels()) != 1 {
		t.Errorf("the Service's label goes first: label %v, advertisement %v, labels of nodes %v", c.labelled(), err, c.ourLabels())
	}
	c.now = c.now.Add(settleAdvertisements)
	c.sync()
	c.sync()
	if err := c.client.Get(t.Context(), key, owned); !apierrors.IsNotFound(err) || len(c.ourLabels()) > 0 {
		t.Errorf("left: advertisement %v, labels of nodes %v", err, c.ourLabels())
	}
}

// A tool that puts an advertisement back as it was is answered now and then, not each time.
func TestRevertedExclusion(t *testing.T) {
	c := external(t)
	c.settle("s")
	c.now = c.now.Add(settleAdvertisements)
	c.sync()
	general := func() *advertisement.BGPAdvertisement {
		return get(c, "metallb-system", "general", &advertisement.BGPAdvertisement{})
	}
	if len(general().Spec.ServiceSelectors) != 1 {
		t.Fatalf("serviceSelectors %v", general().Spec.ServiceSelectors)
	}
	edit(c, general(), func(a *advertisement.BGPAdvertisement) { a.Spec.ServiceSelectors, a.Annotations = nil, nil })
	if again := c.sync(); len(general().Spec.ServiceSelectors) > 0 || again == 0 || again > editInterval {
		t.Errorf("answered at once, or never: %v, again in %v", general().Spec.ServiceSelectors, again)
	}
	c.now = c.now.Add(editInterval)
	c.sync()
	if len(general().Spec.ServiceSelectors) != 1 {
		t.Error("not answered")
	}
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionAdvertisementsConsistent); got != "True/Configured" {
		t.Errorf("AdvertisementsConsistent is %s", got)
	}
	c.quiet()
}

// A service whose advertisement can't be written holds up nobody else's exclusion.
func TestOneBadAdvertisementHoldsUpNoExclusion(t *testing.T) {
	general := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "general"}}
	c := newCluster(t, append(slices.Concat(node("a"), node("b"), service("good", "192.0.2.1"), service("bad", "192.0.2.2")), general)...)
	c.controller.ManageAdvertisements = true
	c.refuse = func(what string) error {
		if strings.HasPrefix(what, "create egress-ns-bad") {
			return errors.New("webhook says no")
		}
		return nil
	}
	c.settle("good")
	if got := get(c, "metallb-system", "general", &advertisement.BGPAdvertisement{}).Spec.ServiceSelectors; len(got) != 1 {
		t.Errorf("serviceSelectors %v", got)
	}
	if get(c, "ns", "bad", &corev1.Service{}).Labels[v1alpha1.ServiceLabel] != "" {
		t.Error("the bad one is labelled: nobody announces it")
	}
}

// The label of a live service moves, whatever Service of an ambiguous name still has our label.
func TestReleasedKeyOfALiveService(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	primary, _ := c.settle("s")
	key := c.assignment("s").Spec.LabelKey
	keys := released([]*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s", Labels: map[string]string{v1alpha1.ServiceLabel: "x"}}}},
		func(types.NamespacedName) bool { return false })
	if !slices.Contains(keys, key) {
		t.Fatalf("%v does not hold %s", keys, key)
	}
	other := "a"
	if primary == "a" {
		other = "b"
	}
	edit(c, get(c, "", other, &corev1.Node{}), func(n *corev1.Node) { n.Labels[key] = "" })
	s, err := c.controller.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.released = keys
	works, _, _, _ := c.controller.decide(s)
	c.controller.writeNodeLabels(t.Context(), s, works)
	if _, has := get(c, "", other, &corev1.Node{}).Labels[key]; has {
		t.Errorf("node %s keeps the label of a service whose primary is %s", other, primary)
	}
}
