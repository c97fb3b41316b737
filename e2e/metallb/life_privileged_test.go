// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// An ordinary service, announced from everywhere by the user's one advertisement, becomes an egress service and then an ordinary one
// again. MetalLB announces by itself (back end external) and may be told to exclude it. Somebody announces the service all the time, and
// with the user's attributes; the service beside it notices nothing.
func TestLifeOfAnEgressService(t *testing.T) { inEach(t, testLife) }

func testLife(t *testing.T, w *world) {
	ctx := t.Context()
	const attributes = " localPref=200 64512:1"
	tors := []string{"tor1" + attributes, "tor2" + attributes}
	general := metallbv1beta1.BGPAdvertisementSpec{IPAddressPools: []string{"pool"}, LocalPref: 200, Communities: []string{"64512:1"}}
	must(t, w.client.Create(ctx, newAdvertisement("general", general)),
		w.createService(ctx, "example", service{}), w.createService(ctx, "beside", service{}))
	w.allocated(t, "example", "beside")
	w.announces(t, "example", everywhere(tors...))
	w.announces(t, "beside", everywhere(tors...))
	w.startController(t, "-bgp-backend=external", "-manage-advertisements")
	on := map[string]string{corev1.LabelHostname: "n2"}

	t.Run("becomes one while MetalLB's webhook is away", func(t *testing.T) {
		r := w.record(t)
		hook := deadWebhook()
		must(t, w.client.Create(ctx, hook))
		t.Cleanup(func() { must(t, client.IgnoreNotFound(w.client.Delete(context.WithoutCancel(ctx), hook))) })
		must(t, w.createEgress(ctx, "example", on))
		w.consistent(t, "example", metav1.ConditionFalse, v1alpha1.ReasonWriteFailed)
		w.host(t, "example", "n2")
		w.announces(t, "example", everywhere(tors...))
		must(t, w.client.Delete(ctx, hook))
		w.announces(t, "example", at("n2", tors...))
		w.reports(t, "example", at("n2"))
		w.consistent(t, "example", metav1.ConditionTrue, v1alpha1.ReasonConfigured)
		w.neverMissing(t, r, "example")
	})
	t.Run("its label is stripped", func(t *testing.T) {
		r := w.record(t)
		must(t, w.labelService(ctx, "example", map[string]*string{v1alpha1.ServiceLabel: nil}))
		w.settled(t)
		w.announces(t, "example", at("n2", tors...))
		w.neverMissing(t, r, "example")
	})
	t.Run("is one no more", func(t *testing.T) {
		r := w.record(t)
		must(t, w.client.Delete(ctx, &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: "example"}}))
		w.announces(t, "example", everywhere(tors...))
		w.neverMissing(t, r, "example")
		w.announces(t, "beside", everywhere(tors...))
		w.neverMissing(t, r, "beside")
		must(t, w.onlyAsBefore(ctx, "general", general))
	})
}

// deadWebhook is one that refuses everything, as one does whose server is away.
func deadWebhook() *admissionv1.ValidatingWebhookConfiguration {
	return &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "away"},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "bgpadvertisements.example.com", AdmissionReviewVersions: []string{"v1"}, FailurePolicy: new(admissionv1.Fail),
			SideEffects:  new(admissionv1.SideEffectClassNone),
			ClientConfig: admissionv1.WebhookClientConfig{URL: new("https://127.0.0.1:9/validate")},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.OperationAll},
				Rule:       admissionv1.Rule{APIGroups: []string{"metallb.io"}, APIVersions: []string{"*"}, Resources: []string{"bgpadvertisements"}},
			}},
		}},
	}
}

// consistent waits until the condition AdvertisementsConsistent is as given, with the words in its message.
func (w *world) consistent(t *testing.T, name string, status metav1.ConditionStatus, reason string, words ...string) {
	t.Helper()
	err := poll(t.Context(), "AdvertisementsConsistent of "+name, func(ctx context.Context) error {
		a := &v1alpha1.EgressAssignment{}
		if err := w.client.Get(ctx, serviceKey(name), a); err != nil {
			return err
		}
		got := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionAdvertisementsConsistent)
		missing := func(word string) bool { return !strings.Contains(got.Message, word) }
		if got == nil || got.Status != status || got.Reason != reason || slices.ContainsFunc(words, missing) {
			return fmt.Errorf("it is %+v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// onlyAsBefore waits until there is one advertisement, and it is as it was made.
func (w *world) onlyAsBefore(ctx context.Context, name string, before metallbv1beta1.BGPAdvertisementSpec) error {
	return poll(ctx, "everything as before", func(ctx context.Context) error {
		left := &metallbv1beta1.BGPAdvertisementList{}
		if err := w.client.List(ctx, left, client.InNamespace(metallbNamespace)); err != nil {
			return err
		}
		for _, a := range left.Items {
			// The CRD's own defaults.
			a.Spec.AggregationLength, a.Spec.AggregationLengthV6 = before.AggregationLength, before.AggregationLengthV6
			if diff := cmp.Diff(before, a.Spec); a.Name == name && (diff != "" || len(a.Annotations) > 0) {
				return fmt.Errorf("annotations %v, -want +got:\n%s", a.Annotations, diff)
			}
			if a.Labels[v1alpha1.ManagedByLabel] != "" {
				return fmt.Errorf("%s is left", a.Name)
			}
		}
		return nil
	})
}
