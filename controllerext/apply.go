// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/go-kit/log/level"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"golang.org/x/sync/errgroup"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

const (
	fieldOwner = client.FieldOwner("metallb-egress-controller")
	// writers bounds the writes under way at once.
	writers = 16
)

// each runs a step for every service whose decision stands.
func (c *Controller) each(ctx context.Context, works []*work, step func(context.Context, *work)) {
	var group errgroup.Group
	group.SetLimit(writers)
	for _, w := range works {
		if w.unwritten {
			continue
		}
		group.Go(func() error {
			step(ctx, w)
			return nil
		})
	}
	_ = group.Wait()
}

func newAssignment(egress *egressv1.EgressService, before *v1alpha1.EgressAssignment, spec v1alpha1.EgressAssignmentSpec) *v1alpha1.EgressAssignment {
	if before != nil {
		after := before.DeepCopy()
		after.Spec = spec
		return after
	}
	owner := metav1.NewControllerRef(egress, egressv1.GroupVersion.WithKind("EgressService"))
	// Blocking the owner's deletion would take a permission on its finalizers, for nothing.
	owner.BlockOwnerDeletion = nil
	return &v1alpha1.EgressAssignment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: egress.Namespace, Name: egress.Name,
			Labels:          map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue},
			OwnerReferences: []metav1.OwnerReference{*owner},
		},
		Spec: spec,
	}
}

// writeAssignment creates or updates the assignment. The update carries the resource version
// that the decision was made from: a decision from a stale cache conflicts, and is made again.
func (c *Controller) writeAssignment(ctx context.Context, w *work) {
	var err error
	switch {
	case w.before == nil:
		err = c.Client.Create(ctx, w.assignment, fieldOwner)
	case !equality.Semantic.DeepEqual(w.before.Spec, w.assignment.Spec):
		err = c.Client.Update(ctx, w.assignment, fieldOwner)
	}
	w.unwritten = err != nil
	w.fail("write EgressAssignment", err)
	if move := w.decision.Move; move != nil && err == nil {
		level.Info(c.Logger).Log("event", "primaryChanged", "msg", "a service gets another primary", "service", w.key,
			"from", move.From, "to", move.To, "epoch", move.Epoch, "cause", move.Cause)
	}
}

// retry is when a write that failed is tried again.
type retry struct {
	at   time.Time
	wait time.Duration
	err  error
}

const (
	// firstRetry and lastRetry bound the waits between tries to write a service's MetalLB objects.
	firstRetry, lastRetry = time.Second, time.Minute
	// metallbTimeout bounds one such try: MetalLB's webhook may hang.
	metallbTimeout = 2 * time.Second
)

// writeAdvertisement labels the Service, so that an advertisement can select it alone, and
// keeps that advertisement.
func (c *Controller) writeAdvertisement(ctx context.Context, w *work) {
	if !advertises(w.egress, w.service) {
		w.advertised = errors.New("there is nothing to announce")
		return
	}
	c.mutex.Lock()
	last := c.retries[w.key]
	c.mutex.Unlock()
	if left := last.at.Sub(c.Now()); left > 0 {
		w.advertised, w.again = last.err, left
		return
	}
	tryCtx, cancel := context.WithTimeout(ctx, metallbTimeout)
	defer cancel()
	tried, err := c.tryAdvertisement(tryCtx, w)
	w.advertised = err
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.retries, w.key)
	if tried && err != nil {
		w.again = min(max(2*last.wait, firstRetry), lastRetry)
		c.retries[w.key] = retry{at: c.Now().Add(w.again), wait: w.again, err: err}
		level.Warn(c.Logger).Log("event", "advertisementNotWritten", "msg", "a write of MetalLB's objects failed", "service", w.key, "again", w.again, "error", err)
	}
}

// tryAdvertisement returns why the advertisement is not as it should be, and whether that is
// because a write failed: otherwise an event will tell when it is time.
func (c *Controller) tryAdvertisement(ctx context.Context, w *work) (tried bool, err error) {
	digest := lifecycle.Digest(w.key.Namespace, w.key.Name)
	if w.service.Labels[v1alpha1.ServiceLabel] != digest {
		apply := applycorev1.Service(w.key.Name, w.key.Namespace).WithUID(w.service.UID).
			WithLabels(map[string]string{v1alpha1.ServiceLabel: digest})
		if err := c.Client.Apply(ctx, apply, fieldOwner, client.ForceOwnership); err != nil {
			return true, fmt.Errorf("label the Service: %w", err)
		}
	}
	pool := advertisement.Pool(w.service.Annotations)
	if pool == "" {
		return false, errors.New("MetalLB has not said yet which IPAddressPool the address is from")
	}
	want := advertisement.Owned(w.assignment, pool, c.MetalLBNamespace)
	if err := c.keepAdvertisement(ctx, want); err != nil {
		return true, fmt.Errorf("write BGPAdvertisement %s: %w", want.Name, err)
	}
	return false, nil
}

// keepAdvertisement creates or updates one advertisement of ours.
func (c *Controller) keepAdvertisement(ctx context.Context, want *metallbv1beta1.BGPAdvertisement) error {
	var have metallbv1beta1.BGPAdvertisement
	err := c.Client.Get(ctx, client.ObjectKeyFromObject(want), &have)
	if apierrors.IsNotFound(err) {
		return c.Client.Create(ctx, want, fieldOwner)
	}
	if err != nil {
		return err
	}
	after := have.DeepCopy()
	after.Spec = want.Spec
	// The CRD's own defaults.
	after.Spec.AggregationLength, after.Spec.AggregationLengthV6 = have.Spec.AggregationLength, have.Spec.AggregationLengthV6
	if equality.Semantic.DeepEqual(have.Spec, after.Spec) && sameLabels(have.Labels, want.Labels) && sameLabels(have.Annotations, want.Annotations) {
		return nil
	}
	after.Labels, after.Annotations = want.Labels, want.Annotations
	return c.Client.Patch(ctx, after, client.MergeFrom(&have), fieldOwner)
}

// writeNodeLabels brings the public and the standby labels of every node to what the
// assignments say: one patch per node that differs.
func (c *Controller) writeNodeLabels(ctx context.Context, s *snapshot, works []*work) error {
	want := map[string]map[string]bool{}
	add := func(node, key string) {
		if want[node] == nil {
			want[node] = map[string]bool{}
		}
		want[node][key] = true
	}
	for _, w := range works {
		spec := w.assignment.Spec
		if w.unwritten {
			// What is in force is what it was before.
			spec = v1alpha1.EgressAssignmentSpec{}
			if w.before != nil {
				spec = w.before.Spec
			}
		}
		if spec.Primary != "" {
			add(spec.Primary, spec.LabelKey)
		}
		if spec.Standby != "" {
			add(spec.Standby, spec.StandbyLabelKey())
		}
	}
	errs := make([]error, len(s.nodes))
	var group errgroup.Group
	group.SetLimit(writers)
	for i, node := range s.nodes {
		if patch := labelPatch(node, want[node.Name]); len(patch) > 0 {
			group.Go(func() error {
				errs[i] = c.labelNode(ctx, node.Name, patch)
				return nil
			})
		}
	}
	_ = group.Wait()
	for i, node := range s.nodes {
		for _, w := range works {
			if errs[i] != nil && w.assignment.Spec.Primary == node.Name {
				w.labeled = errs[i]
			}
		}
	}
	return errors.Join(errs...)
}

func (c *Controller) labelNode(ctx context.Context, name string, patch map[string]any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": patch}})
	if err == nil {
		target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		err = client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner))
	}
	if err != nil {
		return fmt.Errorf("label node %s: %w", name, err)
	}
	return nil
}

// labelPatch is a merge patch of the node's labels: "" sets, nil removes.
func labelPatch(node *corev1.Node, want map[string]bool) map[string]any {
	patch := map[string]any{}
	for key := range want {
		if value, ok := node.Labels[key]; !ok || value != "" {
			patch[key] = ""
		}
	}
	for key := range node.Labels {
		ours := strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix)
		if ours && !want[key] {
			patch[key] = nil
		}
	}
	return patch
}

// sweep removes what belongs to no EgressService any more: assignments, advertisements and
// Service labels.
func (c *Controller) sweep(ctx context.Context, s *snapshot) error {
	owners := map[types.NamespacedName]*egressv1.EgressService{}
	for _, egress := range s.egressServices {
		if egress.DeletionTimestamp == nil {
			owners[client.ObjectKeyFromObject(egress)] = egress
		}
	}
	var errs []error
	for key, a := range s.assignments {
		if owner := owners[key]; owner != nil && metav1.IsControlledBy(a, owner) {
			continue
		}
		err := c.Client.Delete(ctx, a.DeepCopy(), client.Preconditions{UID: &a.UID})
		if client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("%s: delete EgressAssignment: %w", key, err))
		}
	}
	wanted := func(key types.NamespacedName) bool { return advertises(owners[key], s.services[key]) }
	for name, a := range s.advertisements {
		namespace, service, _ := strings.Cut(a.Annotations[v1alpha1.OwnerAnnotation], "/")
		// A label alone, which anybody may have put there, does not make it ours.
		ours := name == advertisement.Name(namespace, service)
		if !ours || wanted(types.NamespacedName{Namespace: namespace, Name: service}) {
			continue
		}
		deleteCtx, cancel := context.WithTimeout(ctx, metallbTimeout)
		err := c.Client.Delete(deleteCtx, a.DeepCopy(), client.Preconditions{UID: &a.UID})
		cancel()
		if client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("%s/%s: delete BGPAdvertisement %s: %w", namespace, service, name, err))
		}
	}
	for key, service := range s.services {
		if _, labelled := service.Labels[v1alpha1.ServiceLabel]; !labelled || wanted(key) {
			continue
		}
		body := []byte(`{"metadata":{"labels":{"` + v1alpha1.ServiceLabel + `":null}}}`)
		target := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
		if err := client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner)); err != nil {
			errs = append(errs, fmt.Errorf("%s: unlabel Service: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// sameLabels is true when have contains want.
func sameLabels(have, want map[string]string) bool {
	merged := maps.Clone(have)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, want)
	return maps.Equal(have, merged)
}
