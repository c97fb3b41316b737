// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// egressServices are all of them; none while everything is withdrawn. Everything else follows from that, in the order in which it follows
// from an EgressService that is deleted: somebody announces its Service at any time.
func (c *Controller) egressServices(ctx context.Context) (*egressv1.EgressServiceList, error) {
	if c.Withdraw {
		return &egressv1.EgressServiceList{}, nil
	}
	return list[egressv1.EgressServiceList](ctx, c.Client, unordered)
}

// clearStatuses makes the EgressServices' statuses what they were before there was a controller.
func (c *Controller) clearStatuses(ctx context.Context) (time.Duration, error) {
	all, err := list[egressv1.EgressServiceList](ctx, c.Client)
	if err != nil {
		return 0, err
	}
	var due []*egressv1.EgressService
	for _, egress := range pointers(all.Items) {
		if !equality.Semantic.DeepEqual(egress.Status, egressv1.EgressServiceStatus{}) {
			due = append(due, egress)
		}
	}
	return each(due, statusWriters, func(egress *egressv1.EgressService) time.Duration {
		wait, _ := c.try(ctx, statusLoop, client.ObjectKeyFromObject(egress).String(), "status", func(ctx context.Context) error {
			target := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: egress.Namespace, Name: egress.Name}}
			body := []byte(`{"status":{"host":"","standby":null,"conditions":null}}`)
			return client.IgnoreNotFound(c.Client.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner))
		})
		return wait
	}), nil
}

// Left counts, in words, what is still there of what a controller has made: nothing once everything is withdrawn. What the speakers
// write, EgressNodes and Leases, is theirs.
func (c *Controller) Left(ctx context.Context) (string, error) {
	assignments, err := list[v1alpha1.EgressAssignmentList](ctx, c.Client)
	if err != nil {
		return "", err
	}
	egressServices, err := list[egressv1.EgressServiceList](ctx, c.Client)
	if err != nil {
		return "", err
	}
	services, err := list[corev1.ServiceList](ctx, c.Client)
	if err != nil {
		return "", err
	}
	nodes, err := list[corev1.NodeList](ctx, c.Client)
	if err != nil {
		return "", err
	}
	advertisements, err := list[advertisement.BGPAdvertisementList](ctx, c.Client, client.InNamespace(c.MetalLBNamespace))
	if err != nil {
		return "", err
	}
	var left []string
	count := func(what string, n int) {
		if n > 0 {
			left = append(left, fmt.Sprintf("%s: %d", what, n))
		}
	}
	count("EgressAssignments", len(assignments.Items))
	count("statuses of EgressServices", number(egressServices.Items, func(e *egressv1.EgressService) bool {
		return !equality.Semantic.DeepEqual(e.Status, egressv1.EgressServiceStatus{})
	}))
	count("labels of Services", number(services.Items, func(s *corev1.Service) bool { _, has := s.Labels[v1alpha1.ServiceLabel]; return has }))
	count("Nodes with labels", number(nodes.Items, func(n *corev1.Node) bool { return len(labelPatch(n, nil, nil)) > 0 }))
	count("BGPAdvertisements", number(advertisements.Items, advertisement.IsOwned))
	count("exclusions in BGPAdvertisements of others", number(advertisements.Items, func(a *advertisement.BGPAdvertisement) bool {
		_, edited := a.Annotations[v1alpha1.OriginalSelectorsAnnotation]
		return edited
	}))
	return strings.Join(left, ", "), nil
}

func number[T any](items []T, is func(*T) bool) (n int) {
	for _, item := range pointers(items) {
		if is(item) {
			n++
		}
	}
	return n
}
