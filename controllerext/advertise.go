// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-kit/log/level"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// outcome is AdvertisementsConsistent of one service, and whether MetalLB says that it announces the service from its primary.
type outcome struct {
	status          metav1.ConditionStatus
	reason, message string
	announced       bool
}

// SyncAdvertisements keeps what MetalLB needs to announce every service from its primary only: advertisements of ours, the label on the
// Service by which they select it, and, where that is allowed, exclusions in the advertisements of others. It works beside the election:
// MetalLB's webhook may be away, and no move waits for it.
//
// The order keeps every service announced by somebody: advertisements, then the label, then exclusions; on removal exclusions of the
// services that are left stay, the label goes, and the advertisements last.
func (c *Controller) SyncAdvertisements(ctx context.Context) (time.Duration, error) {
	if wait := c.adsPace.rest(c.Now()); wait > 0 {
		return wait, nil
	}
	began := c.Now()
	s, again, err := c.see(ctx)
	if err != nil {
		return 0, err
	}
	plan := advertisement.Make(&s.Cluster)
	c.adsPace.worked(began, c.Now())

	outcomes, wait := c.advertise(ctx, s, plan.Services)
	again = sooner(again, wait)
	again = sooner(again, c.unlabel(ctx, s, plan.Services))
	again = sooner(again, c.edit(ctx, plan.Edits, bare(s, outcomes)))
	again = sooner(again, c.deleteOrphans(ctx, plan.Orphans))

	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	if !maps.Equal(c.shared.advertised, outcomes) {
		wake(c.statusWake)
	}
	c.shared.advertised = outcomes
	return again, nil
}

// settleAdvertisements is how long an advertisement is there before the Service is labelled, and a Service without its label before the
// advertisement goes: MetalLB's speakers may see the changes in either order.
const settleAdvertisements = time.Second

// advertise brings every service's advertisements and label up to date.
func (c *Controller) advertise(ctx context.Context, s *seen, plans []advertisement.ServicePlan) (map[types.NamespacedName]outcome, time.Duration) {
	c.noteOwned(s)
	results := make([]outcome, len(plans))
	indices := make([]int, len(plans))
	for i := range indices {
		indices[i] = i
	}
	again := each(indices, writers, func(i int) time.Duration {
		plan, w := &plans[i], s.wanted[plans[i].Key]
		wait, err := c.keep(ctx, plan, w, s.existing)
		results[i] = c.outcome(plan, w, s, err)
		return wait
	})
	outcomes := make(map[types.NamespacedName]outcome, len(plans))
	for i := range plans {
		outcomes[plans[i].Key] = results[i]
	}
	return outcomes, again
}

// outcome is what is to be said of one service.
func (c *Controller) outcome(plan *advertisement.ServicePlan, w *advertised, s *seen, err error) outcome {
	result := outcome{status: metav1.ConditionFalse}
	if w.assignment != nil {
		result.announced = s.says[plan.Key][w.assignment.Spec.Primary] || !c.MetalLB.BGPStatuses
	}
	switch {
	case err != nil:
		result.reason, result.message = v1alpha1.ReasonWriteFailed, err.Error()
	case len(plan.Findings) > 0:
		if plan.Findings[0].Harmless {
			result.status = metav1.ConditionTrue
		}
		result.reason = plan.Findings[0].Reason
		messages := make([]string, len(plan.Findings))
		for i, f := range plan.Findings {
			messages[i] = f.Message
		}
		result.message = strings.Join(messages, "; ")
	case w.service == nil:
		result.reason, result.message = v1alpha1.ReasonNothingToAnnounce, "there is no LoadBalancer Service to announce"
	case w.assignment == nil:
		result.reason, result.message = v1alpha1.ReasonNothingToAnnounce, "the EgressAssignment is not written yet"
	default:
		result.status, result.reason = metav1.ConditionTrue, v1alpha1.ReasonConfigured
	}
	return result
}

// noteOwned remembers since when each advertisement of ours is there.
func (c *Controller) noteOwned(s *seen) {
	before := c.ownedSince
	c.ownedSince = make(map[string]time.Time, len(before))
	for name, a := range s.existing {
		if !advertisement.IsOwned(a) {
			continue
		}
		since, known := before[name]
		if !known {
			since = c.Now()
		}
		c.ownedSince[name] = since
	}
}

// keep writes one service's advertisements, and labels it once they are there.
func (c *Controller) keep(
	ctx context.Context, plan *advertisement.ServicePlan, w *advertised, existing map[string]*advertisement.BGPAdvertisement,
) (time.Duration, error) {
	for _, create := range []bool{true, false} {
		for _, want := range plan.Owned {
			if have := existing[want.Name]; (have == nil) == create {
				if wait, err := c.writeOwned(ctx, plan.Key, have, want); err != nil {
					return wait, fmt.Errorf("write BGPAdvertisement %s: %w", want.Name, err)
				}
			}
		}
	}
	if !plan.Label || w.service.Labels[v1alpha1.ServiceLabel] == plan.Digest {
		return 0, nil
	}
	if left := c.unsettled(plan); left > 0 {
		return left, nil
	}
	wait, err := c.try(ctx, advertisementLoop, plan.Key.String(), "label of Service", func(ctx context.Context) error {
		apply := applycorev1.Service(plan.Key.Name, plan.Key.Namespace).WithUID(w.service.UID).
			WithLabels(map[string]string{v1alpha1.ServiceLabel: plan.Digest})
		return c.Client.Apply(ctx, apply, fieldOwner, client.ForceOwnership)
	})
	if err != nil {
		return wait, fmt.Errorf("label the Service: %w", err)
	}
	return 0, nil
}

// unsettled is how long the Service's label has to wait for its advertisements to be known to MetalLB. The guard lets nobody else announce
// it meanwhile, so that there is nothing to wait for.
func (c *Controller) unsettled(plan *advertisement.ServicePlan) (left time.Duration) {
	if c.Guarded {
		return 0
	}
	for _, a := range plan.Owned {
		since, there := c.ownedSince[a.Name]
		if !there {
			return settleAdvertisements
		}
		left = max(left, settleAdvertisements-c.Now().Sub(since))
	}
	return left
}

// writeOwned creates or changes one advertisement of ours where it is not as it has to be.
func (c *Controller) writeOwned(ctx context.Context, key types.NamespacedName, have, want *advertisement.BGPAdvertisement) (time.Duration, error) {
	write := func(ctx context.Context) error { return c.Client.Create(ctx, want, fieldOwner) }
	if have != nil {
		after := updated(have, want)
		if after == nil {
			return 0, nil
		}
		write = func(ctx context.Context) error { return c.Client.Patch(ctx, after, client.MergeFrom(have), fieldOwner) }
	}
	return c.try(ctx, advertisementLoop, key.String(), "BGPAdvertisement "+want.Name, write)
}

// updated is have with want's content, or nil where it has that already. What others have put on it
// stays.
func updated(have, want *advertisement.BGPAdvertisement) *advertisement.BGPAdvertisement {
	if equality.Semantic.DeepEqual(have.Spec, want.Spec) && contains(have.Labels, want.Labels) && contains(have.Annotations, want.Annotations) {
		return nil
	}
	after := have.DeepCopy()
	after.Spec = want.Spec
	for key, value := range want.Labels {
		metav1.SetMetaDataLabel(&after.ObjectMeta, key, value)
	}
	for key, value := range want.Annotations {
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, key, value)
	}
	return after
}

// contains is true when have holds all of want.
func contains(have, want map[string]string) bool {
	for key, value := range want {
		if got, ok := have[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// unlabel takes our label off the Services that are not to have it.
func (c *Controller) unlabel(ctx context.Context, s *seen, plans []advertisement.ServicePlan) time.Duration {
	label := make(map[types.NamespacedName]bool, len(plans))
	for i := range plans {
		label[plans[i].Key] = plans[i].Label
	}
	var due []*corev1.Service
	for _, service := range s.services {
		if _, labelled := service.Labels[v1alpha1.ServiceLabel]; labelled && !label[client.ObjectKeyFromObject(service)] {
			due = append(due, service)
		}
	}
	var more atomic.Bool
	again := each(due, writers, func(service *corev1.Service) time.Duration {
		wait, err := c.try(ctx, advertisementLoop, client.ObjectKeyFromObject(service).String(), "label of Service", func(ctx context.Context) error {
			body := []byte(`{"metadata":{"labels":{"` + v1alpha1.ServiceLabel + `":null}}}`)
			target := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name}}
			return client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner))
		})
		if err == nil {
			more.Store(true)
		}
		return wait
	})
	if more.Load() {
		// Its node's label may go now.
		wake(c.electionWake)
	}
	return again
}

// editInterval is the shortest time between two exclusions in one advertisement: a tool may put it back each time.
const editInterval = 10 * time.Second

// bare is true while a Service has our label, by which exclusions select it, and may lack an advertisement of ours. One without the label
// is not concerned, however long its advertisement can't be written.
func bare(s *seen, outcomes map[types.NamespacedName]outcome) bool {
	for key, o := range outcomes {
		if w := s.wanted[key]; o.reason == v1alpha1.ReasonWriteFailed && w.service != nil && w.service.Labels[v1alpha1.ServiceLabel] != "" {
			return true
		}
	}
	return false
}

// edit excludes the services from advertisements of others, and undoes that. Nothing is excluded while a Service that it would concern
// is bare.
func (c *Controller) edit(ctx context.Context, edits []advertisement.Edit, incomplete bool) time.Duration {
	before := c.editedAt
	c.editedAt = map[string]time.Time{}
	for name, at := range before {
		if c.Now().Sub(at) < editInterval {
			c.editedAt[name] = at
		}
	}
	var again time.Duration
	due := slices.DeleteFunc(slices.Clone(edits), func(e advertisement.Edit) bool {
		at, recently := c.editedAt[e.Advertisement.Name]
		switch {
		case !e.Exclude:
			return false
		case incomplete:
			return true
		case recently:
			again = sooner(again, editInterval-c.Now().Sub(at))
			return true
		}
		c.editedAt[e.Advertisement.Name] = c.Now()
		return false
	})
	return sooner(again, each(due, writers, func(e advertisement.Edit) time.Duration {
		name := e.Advertisement.Name
		wait, err := c.try(ctx, advertisementLoop, name, "another's BGPAdvertisement", func(ctx context.Context) error {
			target := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: c.MetalLBNamespace, Name: name}}
			return client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.JSONPatchType, e.Patch), fieldOwner))
		})
		if err == nil {
			level.Info(c.Logger).Log("event", "advertisementEdited", "msg", "the serviceSelectors of an advertisement were changed",
				"advertisement", name, "excluded", e.Exclude)
		}
		return wait
	}))
}

// deleteOrphans deletes the advertisements of ours that nothing needs any more, a moment after they became so.
func (c *Controller) deleteOrphans(ctx context.Context, orphans []*advertisement.BGPAdvertisement) (again time.Duration) {
	before := c.orphanSince
	c.orphanSince = make(map[types.UID]time.Time, len(orphans))
	due := slices.DeleteFunc(slices.Clone(orphans), func(a *advertisement.BGPAdvertisement) bool {
		since, known := before[a.UID]
		if !known {
			since = c.Now()
		}
		c.orphanSince[a.UID] = since
		left := settleAdvertisements - c.Now().Sub(since)
		if left > 0 {
			again = sooner(again, left)
		}
		return left > 0
	})
	return sooner(again, each(due, writers, func(a *advertisement.BGPAdvertisement) time.Duration {
		wait, _ := c.try(ctx, advertisementLoop, a.Name, "BGPAdvertisement to be deleted", func(ctx context.Context) error {
			return client.IgnoreNotFound(c.Client.Delete(ctx, a.DeepCopy(), client.Preconditions{UID: &a.UID}))
		})
		return wait
	}))
}
