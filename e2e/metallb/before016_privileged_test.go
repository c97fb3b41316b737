// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"math"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// TestBefore016 follows the procedure that is documented for MetalLB before v0.16, with MetalLB v0.15: a pool and an advertisement for one
// service. The controller adds and edits nothing, and says what is missing until it is there.
func TestBefore016(t *testing.T) {
	w, ctx := enter(t, before016), t.Context()
	must(t, w.client.Create(ctx, newPool("own", "198.18.0.0/30")),
		w.client.Create(ctx, newAdvertisement("general", spec{IPAddressPools: []string{pool}})),
		w.createService(ctx, "example", service{pool: "own"}), w.createService(ctx, "beside", service{}))
	w.allocated(t, "example", "beside")
	w.startController(t, "-bgp-backend=external", "-manage-advertisements")
	on := func(node string) map[string]string { return map[string]string{corev1.LabelHostname: node} }
	before, err := w.advertisements(ctx)
	must(t, err, w.createEgress(ctx, "example", on("n2")), w.createEgress(ctx, "beside", on("n2")))
	w.host(t, "example", "n2")
	w.host(t, "beside", "n2")

	t.Run("without an advertisement", func(t *testing.T) {
		w.consistent(t, "example", metav1.ConditionFalse, v1alpha1.ReasonServiceSelectorsMissing, "before v0.16", egressv1.LabelPrefix+"example-example")
		w.announces(t, "example", nowhere)
	})
	t.Run("in a pool of others", func(t *testing.T) {
		w.consistent(t, "beside", metav1.ConditionFalse, v1alpha1.ReasonOtherAdvertisement, "BGPAdvertisement general", "take the pool pool out of it")
		w.announces(t, "beside", everywhere())
	})
	t.Run("with the advertisement", func(t *testing.T) {
		must(t, w.client.Create(ctx, newAdvertisement("own", spec{
			IPAddressPools: []string{"own"}, NodeSelectors: having(egressv1.LabelPrefix+"example-example", ""),
		})))
		w.consistent(t, "example", metav1.ConditionTrue, v1alpha1.ReasonServiceSelectorsMissing)
		w.announces(t, "example", at("n2"))
	})
	t.Run("moved", func(t *testing.T) {
		must(t, w.changeEgress(ctx, "example", on("n3")))
		w.host(t, "example", "n3")
		w.announces(t, "example", at("n3"))
	})
	t.Run("nothing is added or edited", func(t *testing.T) {
		after, err := w.advertisements(ctx)
		must(t, err)
		if len(after) != len(before)+1 {
			t.Errorf("advertisements: %+v", after)
		}
		for _, name := range []string{"example", "beside"} {
			object := &corev1.Service{}
			must(t, w.client.Get(ctx, serviceKey(name), object))
			if len(object.Labels) > 0 {
				t.Errorf("Service %s has the labels %v", name, object.Labels)
			}
		}
	})
	t.Run("no egress service any more", func(t *testing.T) {
		for _, name := range []string{"example", "beside"} {
			must(t, client.IgnoreNotFound(w.client.Delete(ctx, &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: name}})))
		}
		w.announces(t, "example", nowhere)
		w.announces(t, "beside", everywhere())
	})
}

// mendNumbers lets the API server take objects with AS numbers: the CRDs of v0.15 say of those that they are of 32 bits with a sign, and
// that the greatest one is 4294967295, which API servers of today refuse altogether.
func (w *world) mendNumbers(ctx context.Context) error {
	for _, name := range []string{"bgppeers.metallb.io", "frrconfigurations.frrk8s.metallb.io"} {
		crd := &unstructured.Unstructured{}
		crd.SetAPIVersion("apiextensions.k8s.io/v1")
		crd.SetKind("CustomResourceDefinition")
		if err := w.client.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
			return err
		}
		mend(crd.Object)
		if err := w.client.Update(ctx, crd); err != nil {
			return err
		}
	}
	// The API server takes some time to see it.
	return poll(ctx, "BGPPeers can be made", func(ctx context.Context) error {
		return w.client.Create(ctx, w.peers()[0], client.DryRunAll)
	})
}

func mend(schema any) {
	switch s := schema.(type) {
	case []any:
		for _, one := range s {
			mend(one)
		}
	case map[string]any:
		if most, ok := s["maximum"].(int64); ok && most > math.MaxInt32 {
			delete(s, "format")
		}
		for _, one := range s {
			mend(one)
		}
	}
}
