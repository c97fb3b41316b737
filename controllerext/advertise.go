// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// outcome is AdvertisementsConsistent of one service: a reason, and a message where it is not true.
type outcome struct{ reason, message string }

// advertised is what the advertisement loop works on.
type advertised struct {
	egress     *egressv1.EgressService
	service    *corev1.Service
	assignment *v1alpha1.EgressAssignment
}

// SyncAdvertisements labels the Services, so that an advertisement can select each alone, keeps
// those advertisements, and removes what belongs to no EgressService any more. It works beside the
// election: MetalLB's webhook may be away, and no move waits for it.
func (c *Controller) SyncAdvertisements(ctx context.Context) (time.Duration, error) {
	if wait := c.adsPace.rest(c.Now()); wait > 0 {
		return wait, nil
	}
	began := c.Now()
	egressServices, err := list[egressv1.EgressServiceList](ctx, c.Client, unordered)
	if err != nil {
		return 0, err
	}
	assignments, err := list[v1alpha1.EgressAssignmentList](ctx, c.Client, unordered)
	if err != nil {
		return 0, err
	}
	services, err := list[corev1.ServiceList](ctx, c.Client)
	if err != nil {
		return 0, err
	}
	existing, err := list[metallbv1beta1.BGPAdvertisementList](ctx, c.Client, client.InNamespace(c.MetalLBNamespace))
	if err != nil {
		return 0, err
	}
	refused := c.refusedNames()
	wanted := map[types.NamespacedName]*advertised{}
	for _, egress := range oldestFirst(egressServices.Items) {
		if key := client.ObjectKeyFromObject(egress); !refused[key] {
			wanted[key] = &advertised{egress: egress}
		}
	}
	for _, a := range pointers(assignments.Items) {
		if w := wanted[client.ObjectKeyFromObject(a)]; w != nil && metav1.IsControlledBy(a, w.egress) {
			w.assignment = a
		}
	}
	for _, service := range pointers(services.Items) {
		if w := wanted[client.ObjectKeyFromObject(service)]; w != nil {
			w.service = service
		}
	}
	byName := map[string]*metallbv1beta1.BGPAdvertisement{}
	for _, a := range pointers(existing.Items) {
		byName[a.Name] = a
	}
	c.adsPace.worked(began, c.Now())

	again := c.sweep(ctx, wanted, services, byName)
	return sooner(again, c.advertise(ctx, wanted, byName)), nil
}

// refusedNames are the services whose label and advertisement would be another's.
func (c *Controller) refusedNames() map[types.NamespacedName]bool {
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	refused := map[types.NamespacedName]bool{}
	for _, w := range c.shared.works {
		if w.observed.Blocked == v1alpha1.ReasonNameCollision {
			refused[w.key] = true
		}
	}
	return refused
}

// advertises is true when the service takes an advertisement of ours.
func (a *advertised) advertises() bool {
	return a != nil && a.service != nil && a.service.Spec.Type == corev1.ServiceTypeLoadBalancer && a.egress.Spec.SourceIPBy != egressv1.SourceIPNetwork
}

// advertise brings every service's label and advertisement up to date, and tells the status loop.
func (c *Controller) advertise(ctx context.Context, wanted map[types.NamespacedName]*advertised, existing map[string]*metallbv1beta1.BGPAdvertisement) time.Duration {
	type result struct {
		key types.NamespacedName
		*advertised
		outcome
	}
	results := make([]*result, 0, len(wanted))
	for key, a := range wanted {
		results = append(results, &result{key: key, advertised: a})
	}
	again := each(results, writers, func(r *result) (wait time.Duration) {
		switch {
		case !r.advertises():
			r.outcome = outcome{v1alpha1.ReasonNothingToAnnounce, "there is no LoadBalancer Service to announce"}
		case r.assignment == nil:
			r.outcome = outcome{v1alpha1.ReasonNothingToAnnounce, "the EgressAssignment is not written yet"}
		default:
			var err error
			wait, err = c.keep(ctx, r.key, r.advertised, existing)
			switch {
			case errors.Is(err, errNoPool):
				r.outcome = outcome{v1alpha1.ReasonPoolUnknown, err.Error()}
			case err != nil:
				r.outcome = outcome{v1alpha1.ReasonWriteFailed, err.Error()}
			default:
				r.outcome = outcome{v1alpha1.ReasonConfigured, ""}
			}
		}
		return wait
	})
	after := make(map[types.NamespacedName]outcome, len(results))
	for _, r := range results {
		after[r.key] = r.outcome
	}
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	if !maps.Equal(c.shared.advertised, after) {
		wake(c.statusWake)
	}
	c.shared.advertised = after
	return again
}

// errNoPool is that it can't be told which pool to advertise.
var errNoPool = errors.New("MetalLB has not said yet which IPAddressPool the address is from")

// keep labels one Service and keeps its advertisement.
func (c *Controller) keep(ctx context.Context, key types.NamespacedName, a *advertised, existing map[string]*metallbv1beta1.BGPAdvertisement) (time.Duration, error) {
	digest := lifecycle.Digest(key.Namespace, key.Name)
	if a.service.Labels[v1alpha1.ServiceLabel] != digest {
		wait, err := c.try(ctx, advertisementLoop, key.String(), "label of Service", func(ctx context.Context) error {
			apply := applycorev1.Service(key.Name, key.Namespace).WithUID(a.service.UID).
				WithLabels(map[string]string{v1alpha1.ServiceLabel: digest})
			return c.Client.Apply(ctx, apply, fieldOwner, client.ForceOwnership)
		})
		if err != nil {
			return wait, fmt.Errorf("label the Service: %w", err)
		}
	}
	pool := advertisement.Pool(a.service.Annotations)
	if pool == "" {
		return 0, errNoPool
	}
	want := advertisement.Owned(a.assignment, pool, c.MetalLBNamespace)
	write := func(ctx context.Context) error { return c.Client.Create(ctx, want, fieldOwner) }
	if have := existing[want.Name]; have != nil {
		after := updated(have, want)
		if after == nil {
			return 0, nil
		}
		write = func(ctx context.Context) error { return c.Client.Patch(ctx, after, client.MergeFrom(have), fieldOwner) }
	}
	wait, err := c.try(ctx, advertisementLoop, key.String(), "BGPAdvertisement", write)
	if err != nil {
		return wait, fmt.Errorf("write BGPAdvertisement %s: %w", want.Name, err)
	}
	return 0, nil
}

// updated is have with want's content, or nil where it has that already. What others have put on it
// stays.
func updated(have, want *metallbv1beta1.BGPAdvertisement) *metallbv1beta1.BGPAdvertisement {
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

// sweep removes advertisements and Service labels that belong to no EgressService any more.
func (c *Controller) sweep(ctx context.Context, wanted map[types.NamespacedName]*advertised, services *corev1.ServiceList, existing map[string]*metallbv1beta1.BGPAdvertisement) time.Duration {
	var orphans []client.Object
	for name, a := range existing {
		namespace, service, _ := strings.Cut(a.Annotations[v1alpha1.OwnerAnnotation], "/")
		// A label alone, which anybody may have put there, does not make it ours.
		if name == advertisement.Name(namespace, service) && !wanted[types.NamespacedName{Namespace: namespace, Name: service}].advertises() {
			orphans = append(orphans, a)
		}
	}
	for _, service := range pointers(services.Items) {
		if _, labelled := service.Labels[v1alpha1.ServiceLabel]; labelled && !wanted[client.ObjectKeyFromObject(service)].advertises() {
			orphans = append(orphans, service)
		}
	}
	return each(orphans, writers, func(object client.Object) time.Duration {
		wait, _ := c.try(ctx, advertisementLoop, client.ObjectKeyFromObject(object).String(), "orphan", func(ctx context.Context) error { return c.release(ctx, object) })
		return wait
	})
}

// release deletes an advertisement of ours, or takes our label off a Service.
func (c *Controller) release(ctx context.Context, object client.Object) error {
	switch o := object.(type) {
	case *metallbv1beta1.BGPAdvertisement:
		uid := o.UID
		return client.IgnoreNotFound(c.Client.Delete(ctx, o.DeepCopy(), client.Preconditions{UID: &uid}))
	case *corev1.Service:
		body := []byte(`{"metadata":{"labels":{"` + v1alpha1.ServiceLabel + `":null}}}`)
		target := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name}}
		return client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner))
	}
	return errors.New("not an object of ours")
}
