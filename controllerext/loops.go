// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// Loop is one of the controller's loops: what to call, the kinds whose changes call for it, which
// of those changes do, and the channel that does.
type Loop struct {
	Name    string
	Sync    func(context.Context) (time.Duration, error)
	Watched []client.Object
	// Relevant says whether a change matters. Before is nil for an object that is new to the
	// watcher, after for one that is gone.
	Relevant func(before, after client.Object) bool
	Wake     <-chan struct{}
}

// The loops' names.
const (
	electionLoop      = "election"
	advertisementLoop = "advertisements"
	statusLoop        = "status"
)

// Loops are the controller's three.
func (c *Controller) Loops() []Loop {
	return []Loop{
		{
			Name: electionLoop, Sync: c.SyncElection, Relevant: c.changesElection, Wake: c.electionWake,
			Watched: []client.Object{
				&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &v1alpha1.EgressNode{},
				&corev1.Service{}, &corev1.Node{}, &discoveryv1.EndpointSlice{},
			},
		},
		{
			Name: advertisementLoop, Sync: c.SyncAdvertisements, Relevant: c.changesAdvertisements, Wake: c.adsWake,
			Watched: append([]client.Object{&corev1.Service{}}, c.MetalLB.Kinds()...),
		},
		{
			Name: statusLoop, Sync: c.SyncStatus, Wake: c.statusWake, Relevant: always,
			Watched: []client.Object{&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}},
		},
	}
}

// SeeLease takes note of a speaker's Lease as it is now.
func (c *Controller) SeeLease(lease *coordinationv1.Lease) {
	if lease.Spec.HolderIdentity == nil || lease.Spec.RenewTime == nil || lease.Spec.LeaseDurationSeconds == nil {
		return
	}
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	duration := time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second
	if c.shared.tracker.Renewed(c.Now(), *lease.Spec.HolderIdentity, lease.Spec.RenewTime.Time, duration) {
		wake(c.electionWake)
	}
}

func always(_, _ client.Object) bool { return true }

// changesElection is false for what no decision depends on: statuses that the controller itself
// writes, Services and EndpointSlices of namespaces without an EgressService, and what a kubelet
// reports while all is well.
func (c *Controller) changesElection(before, after client.Object) bool {
	object := after
	if object == nil {
		object = before
	}
	changed := before == nil || after == nil
	switch object.(type) {
	case *corev1.Service, *discoveryv1.EndpointSlice:
		c.shared.mutex.Lock()
		defer c.shared.mutex.Unlock()
		return c.shared.namespaces[object.GetNamespace()]
	case *corev1.Node:
		return changed || nodeChanged(before.(*corev1.Node), after.(*corev1.Node))
	case *egressv1.EgressService, *v1alpha1.EgressAssignment:
		return changed || before.GetGeneration() != after.GetGeneration() || before.GetUID() != after.GetUID() ||
			!equality.Semantic.DeepEqual(before.GetAnnotations(), after.GetAnnotations()) ||
			!equality.Semantic.DeepEqual(before.GetOwnerReferences(), after.GetOwnerReferences()) ||
			(before.GetDeletionTimestamp() == nil) != (after.GetDeletionTimestamp() == nil)
	}
	return true
}

func serviceChanged(before, after *corev1.Service) bool {
	return before.UID != after.UID || !equality.Semantic.DeepEqual(before.Labels, after.Labels) ||
		!equality.Semantic.DeepEqual(before.Annotations, after.Annotations) ||
		!equality.Semantic.DeepEqual(before.Spec, after.Spec) || !equality.Semantic.DeepEqual(before.Status, after.Status)
}

func nodeChanged(before, after *corev1.Node) bool {
	return before.Spec.Unschedulable != after.Spec.Unschedulable || (before.DeletionTimestamp == nil) != (after.DeletionTimestamp == nil) ||
		readiness(before) != readiness(after) ||
		condition(before, corev1.NodeNetworkUnavailable) != condition(after, corev1.NodeNetworkUnavailable) ||
		!equality.Semantic.DeepEqual(before.Labels, after.Labels) || !equality.Semantic.DeepEqual(before.Annotations, after.Annotations)
}

// changesAdvertisements is false for Services that have nothing to do with us. The election wakes
// this loop for everything else.
func (c *Controller) changesAdvertisements(before, after client.Object) bool {
	object := after
	if object == nil {
		object = before
	}
	if _, is := object.(*corev1.Service); !is {
		return true
	}
	_, labelled := object.GetLabels()[v1alpha1.ServiceLabel]
	service := object.(*corev1.Service)
	// Any Service may come to share an address.
	if labelled || len(service.Status.LoadBalancer.Ingress) > 0 {
		return before == nil || after == nil || serviceChanged(before.(*corev1.Service), after.(*corev1.Service))
	}
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	return c.shared.concerned[client.ObjectKeyFromObject(service)]
}
