// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
)

// reset removes everything that a test may have left, and returns when MetalLB has nothing to announce any more.
func (w *world) reset(ctx context.Context) error {
	problems := []error{w.restoreNodes(ctx), w.restorePeers(ctx)}
	for _, name := range w.nodes {
		if !w.processes.Alive(controlplane.MetalLBSpeakerProcess(name)) {
			problems = append(problems, w.plane.StartMetalLBSpeaker(ctx, w.nodeProcess(name)))
		}
	}
	if !w.processes.Alive(controlplane.MetalLBControllerProcess()) {
		problems = append(problems, w.plane.StartMetalLBController(ctx))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	err := w.remove(ctx, &egressv1.EgressServiceList{}, &v1alpha1.EgressAssignmentList{}, &v1alpha1.EgressNodeList{}, &coordinationv1.LeaseList{},
		&corev1.ServiceList{}, &discoveryv1.EndpointSliceList{}, &metallbv1beta1.BGPAdvertisementList{}, &metallbv1beta1.L2AdvertisementList{},
		&metallbv1beta1.CommunityList{})
	if err != nil {
		return err
	}
	if err := poll(ctx, "nothing announced", w.silent); err != nil {
		return err
	}
	// A speaker that still announces an address of a pool refuses every configuration without the pool.
	return w.remove(ctx, &metallbv1beta1.IPAddressPoolList{})
}

// remove deletes all objects of some kinds but the permanent ones.
func (w *world) remove(ctx context.Context, lists ...client.ObjectList) error {
	return poll(ctx, "the world emptied", func(ctx context.Context) error {
		var left []client.Object
		for _, list := range lists {
			if err := w.client.List(ctx, list); err != nil {
				return err
			}
			err := meta.EachListItem(list, func(item runtime.Object) error {
				if object, ok := item.(client.Object); ok && !permanent(object) {
					left = append(left, object)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if len(left) == 0 {
			return nil
		}
		err := parallel(ctx, len(left), func(ctx context.Context, i int) error {
			return client.IgnoreNotFound(w.client.Delete(ctx, left[i], client.GracePeriodSeconds(0)))
		})
		return errors.Join(err, fmt.Errorf("still there: %d objects, the first is %T %s", len(left), left[0], client.ObjectKeyFromObject(left[0])))
	})
}

// permanent is true for what is there in every test.
func permanent(object client.Object) bool {
	switch object.GetNamespace() {
	case metav1.NamespaceDefault:
		return object.GetName() == "kubernetes"
	case metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease:
		return true
	}
	return slices.Contains([]string{canary, pool, pool6}, object.GetName())
}

// silent is nil when MetalLB offers nothing but the canary, and says so.
func (w *world) silent(ctx context.Context) error {
	all, err := w.offered(ctx)
	if err != nil {
		return err
	}
	delete(all, canaryPrefix)
	statuses := &metallbv1beta1.ServiceBGPStatusList{}
	if err := w.client.List(ctx, statuses); err != nil {
		return err
	}
	said := slices.DeleteFunc(statuses.Items, func(s metallbv1beta1.ServiceBGPStatus) bool { return s.Status.ServiceName == canary })
	if len(all) > 0 || len(said) > 0 {
		return fmt.Errorf("offered %v, and %d ServiceBGPStatuses", all, len(said))
	}
	return nil
}

// restoreNodes takes away the labels and conditions that Nodes did not have in the beginning.
func (w *world) restoreNodes(ctx context.Context) error {
	nodes := &corev1.NodeList{}
	if err := w.client.List(ctx, nodes); err != nil {
		return err
	}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		before := node.DeepCopy()
		maps.DeleteFunc(node.Labels, func(key, _ string) bool {
			return !slices.Contains([]string{corev1.LabelHostname, corev1.LabelOSStable, canaryLabel}, key)
		})
		node.Spec.Unschedulable = false
		if err := w.client.Patch(ctx, node, client.MergeFrom(before)); err != nil {
			return err
		}
		before = node.DeepCopy()
		node.Status.Conditions = slices.DeleteFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type != corev1.NodeReady })
		for i := range node.Status.Conditions {
			node.Status.Conditions[i].Status = corev1.ConditionTrue
		}
		if err := w.client.Status().Patch(ctx, node, client.MergeFrom(before)); err != nil {
			return err
		}
	}
	return nil
}

// restorePeers makes the BGPPeers what they were in the beginning.
func (w *world) restorePeers(ctx context.Context) error {
	list := &metallbv1beta2.BGPPeerList{}
	if err := w.client.List(ctx, list); err != nil {
		return err
	}
	want := map[string]*metallbv1beta2.BGPPeer{}
	for _, peer := range w.peers() {
		want[peer.Name] = peer
	}
	for i := range list.Items {
		peer := &list.Items[i]
		original := want[peer.Name]
		delete(want, peer.Name)
		var err error
		switch {
		case original == nil:
			err = w.client.Delete(ctx, peer)
		case !equality.Semantic.DeepEqual(peer.Spec.NodeSelectors, original.Spec.NodeSelectors) || peer.Spec.VRFName != original.Spec.VRFName:
			peer.Spec = original.Spec
			err = w.client.Update(ctx, peer)
		}
		if err != nil {
			return err
		}
	}
	for _, peer := range want {
		if err := w.client.Create(ctx, peer); err != nil {
			return err
		}
	}
	return nil
}
