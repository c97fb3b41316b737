// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// advertisement says that MetalLB is told to announce the service from the labelled nodes, or is
// told nothing.
func (w *world) advertisement(ctx context.Context, args ...string) error {
	if len(args) < 2 {
		return errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return err
	}
	found, err := w.owned(ctx, key)
	if err != nil {
		return err
	}
	service := &corev1.Service{}
	if err := w.client.Get(ctx, key, service); client.IgnoreNotFound(err) != nil {
		return err
	}
	label, labelled := service.Labels[v1alpha1.ServiceLabel]
	switch {
	case args[1] == "absent" && (len(found) > 0 || labelled):
		return fmt.Errorf("%d advertisements, label on the Service: %v", len(found), labelled)
	case args[1] == "absent":
		return nil
	case len(found) != 1 || !labelled:
		return fmt.Errorf("%d advertisements, label on the Service: %v", len(found), labelled)
	}
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	pool := "pool"
	for _, word := range args[2:] {
		pool = strings.TrimPrefix(word, "pool=")
	}
	return w.selects(ctx, found[0], pool, a.Spec, label)
}

// selects compares what MetalLB is told with what it has to be told, and sees that no other Service
// has the label.
func (w *world) selects(
	ctx context.Context, got advertisement.BGPAdvertisement, pool string, spec v1alpha1.EgressAssignmentSpec, label string,
) error {
	onLabel := func(key, value string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	want := metallbv1beta1.BGPAdvertisementSpec{
		IPAddressPools:   []string{pool},
		NodeSelectors:    []metav1.LabelSelector{onLabel(spec.LabelKey, ""), onLabel(spec.StandbyLabelKey(), "")},
		ServiceSelectors: []metav1.LabelSelector{onLabel(v1alpha1.ServiceLabel, label)},
		// The CRD's own defaults.
		AggregationLength: got.Spec.AggregationLength, AggregationLengthV6: got.Spec.AggregationLengthV6,
	}
	if diff := cmp.Diff(advertisement.BGPAdvertisementSpec{BGPAdvertisementSpec: want}, got.Spec); diff != "" {
		return fmt.Errorf("-want +got:\n%s", diff)
	}
	services := &corev1.ServiceList{}
	if err := w.client.List(ctx, services, client.MatchingLabels{v1alpha1.ServiceLabel: label}); err != nil {
		return err
	}
	if len(services.Items) != 1 {
		return errors.New("the Service's label is not its own: " + label)
	}
	return nil
}

// selectors compares the serviceSelectors of somebody's advertisement, and sees whether it bears the mark of an exclusion.
func (w *world) selectors(ctx context.Context, args ...string) error {
	if len(args) < 2 {
		return errUsage
	}
	a := &advertisement.BGPAdvertisement{}
	if err := w.client.Get(ctx, client.ObjectKey{Namespace: metallbNamespace, Name: args[0]}, a); err != nil {
		return err
	}
	var want []metav1.LabelSelector
	if args[1] != "-" {
		if err := json.Unmarshal([]byte(args[1]), &want); err != nil {
			return err
		}
	}
	if diff := cmp.Diff(want, a.Spec.ServiceSelectors); diff != "" {
		return fmt.Errorf("-want +got:\n%s", diff)
	}
	if _, marked := a.Annotations[v1alpha1.OriginalSelectorsAnnotation]; marked != slices.Contains(args[2:], "marked") {
		return fmt.Errorf("marked is %v", marked)
	}
	return nil
}
