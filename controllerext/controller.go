// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// Controller holds what one sync needs. Its exported fields are set once, before the first.
type Controller struct {
	// Client reads from caches and writes to the API server.
	Client client.Client
	// Recorder writes events onto the EgressServices.
	Recorder events.EventRecorder
	Logger   log.Logger
	// MetalLBNamespace is where MetalLB's objects are, usually metallb-system.
	MetalLBNamespace string
	// DefaultFailurePolicy holds for an EgressService without the annotation.
	DefaultFailurePolicy v1alpha1.FailurePolicy
	// ServiceConditions is true where the installed EgressService CRD has status.conditions.
	ServiceConditions bool
	// Now is the clock.
	Now func() time.Time

	memories map[types.NamespacedName]lifecycle.Memory
	mutex    sync.Mutex                      // guards reasons
	reasons  map[types.NamespacedName]string // of the last event about NodeAssigned
}

// Watched are the kinds whose changes call for a sync.
func Watched() []client.Object {
	return []client.Object{
		&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &v1alpha1.EgressNode{},
		&corev1.Service{}, &corev1.Node{}, &discoveryv1.EndpointSlice{}, &metallbv1beta1.BGPAdvertisement{},
	}
}

// work is one EgressService in one sync.
type work struct {
	key        types.NamespacedName
	egress     *egressv1.EgressService
	service    *corev1.Service            // nil when there is none
	before     *v1alpha1.EgressAssignment // nil when there is none
	assignment *v1alpha1.EgressAssignment // as decided, and as the API server answered once written
	decision   lifecycle.Decision
	reports    map[string]v1alpha1.EgressNodeService
	errs       []error
	unwritten  bool  // the decision did not reach the API server: nothing may follow from it
	advertised error // why the advertisement is not as it should be
}

func (w *work) fail(what string, err error) {
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: %s: %w", w.key, what, err))
	}
}

// Sync decides every service and writes what differs. It returns when to look again though
// nothing happens (0: never), and the joined errors of the services that could not be
// brought up to date; the others are.
func (c *Controller) Sync(ctx context.Context) (time.Duration, error) {
	s, err := c.read(ctx)
	if err != nil {
		return 0, err
	}
	works, again := c.decide(s)

	// First the decisions, which everything else follows; labels are the permission to
	// announce, so they come after them and before what merely reports.
	c.each(ctx, works, c.writeAssignment)
	c.each(ctx, works, c.writeAdvertisement)
	errs := []error{c.writeNodeLabels(ctx, s, works), c.sweep(ctx, s)}
	c.each(ctx, works, c.writeStatus)
	for _, w := range works {
		errs = append(errs, w.errs...)
	}
	return again, errors.Join(errs...)
}

// decide runs the lifecycle of every EgressService, oldest first.
func (c *Controller) decide(s *snapshot) ([]*work, time.Duration) {
	if c.memories == nil {
		c.memories, c.reasons = map[types.NamespacedName]lifecycle.Memory{}, map[types.NamespacedName]string{}
	}
	load, keys := map[string]int{}, map[string]bool{}
	for _, a := range s.assignments {
		load[a.Spec.Primary]++
		keys[a.Spec.LabelKey] = true
	}
	var works []*work
	var again time.Duration
	memories := map[types.NamespacedName]lifecycle.Memory{}
	for _, egress := range s.egressServices {
		if egress.DeletionTimestamp != nil {
			continue
		}
		w := &work{key: client.ObjectKeyFromObject(egress), egress: egress}
		w.service, w.before = s.services[w.key], s.assignments[w.key]
		if w.before != nil && !metav1.IsControlledBy(w.before, egress) {
			// Left by an EgressService of the same name that is gone; the sweep removes it.
			w.before = nil
		}
		observed := c.observe(s, w, load, keys)
		w.reports = observed.Reports
		decision, memory := lifecycle.Decide(c.Now(), observed, c.memories[w.key])
		memories[w.key] = memory
		w.decision, w.assignment = decision, newAssignment(egress, w.before, decision.Spec)
		keys[decision.Spec.LabelKey] = true
		if move := decision.Move; move != nil {
			load[move.From]--
			load[move.To]++
			level.Info(c.Logger).Log("event", "primaryChanged", "msg", "a service gets a new primary", "service", w.key,
				"from", move.From, "to", move.To, "epoch", move.Epoch, "cause", move.Cause)
		}
		if decision.Again > 0 && (again == 0 || decision.Again < again) {
			again = decision.Again
		}
		works = append(works, w)
	}
	c.memories = memories
	maps.DeleteFunc(c.reasons, func(key types.NamespacedName, _ string) bool {
		_, known := memories[key]
		return !known
	})
	return works, again
}

// observe gathers what the lifecycle has to know of one service.
func (c *Controller) observe(s *snapshot, w *work, load map[string]int, keys map[string]bool) lifecycle.Service {
	observed := lifecycle.Service{Key: w.key.String(), Assignment: w.before, Reports: s.reportsOf(w.key.String())}
	observed.Want = v1alpha1.EgressAssignmentSpec{
		SourceIPBy: string(egressv1.SourceIPLoadBalancer), Network: w.egress.Spec.Network, FailurePolicy: c.failurePolicy(w.egress),
	}
	if w.before == nil {
		observed.Want.LabelKey = lifecycle.LabelKey(w.key.Namespace, w.key.Name, func(key string) bool { return keys[key] })
	}
	electable := election.Service{Key: w.key.String()}
	selector, err := metav1.LabelSelectorAsSelector(&w.egress.Spec.NodeSelector)
	if err != nil {
		observed.Blocked, observed.BlockedMessage = "InvalidNodeSelector", "spec.nodeSelector: "+err.Error()
		selector = labels.Nothing()
	}
	electable.Selector = selector

	switch {
	case w.egress.Spec.Network != "":
		// Leaving through the main table instead would be another network than the one asked for.
		observed.Blocked, observed.BlockedMessage = "NetworkNotSupported", "spec.network is not supported by this version"
	case w.egress.Spec.SourceIPBy == egressv1.SourceIPNetwork:
		observed.Want.SourceIPBy = string(egressv1.SourceIPNetwork)
	case w.service == nil:
		observed.Blocked, observed.BlockedMessage = "ServiceNotFound", "there is no Service of this name"
	case w.service.Spec.Type != corev1.ServiceTypeLoadBalancer:
		observed.Blocked, observed.BlockedMessage = "NotLoadBalancer", "the Service is not of type LoadBalancer"
	default:
		observed.Want.SourceIPs = sourceIPs(w.service)
		if len(observed.Want.SourceIPs) == 0 {
			observed.Blocked, observed.BlockedMessage = "NoLoadBalancerIP", "the Service has no LoadBalancer IP yet"
		}
	}
	some, serving := s.endpoints(w.key)
	observed.HasEndpoints = some
	if w.service != nil && w.service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && len(serving) > 0 {
		electable.LocalNodes = serving
	}
	live := map[string]bool{}
	for _, node := range s.candidates {
		live[node.Name] = node.Ready && !node.Deleting
	}
	observed.Live = func(node string) bool { return live[node] }
	observed.Elect = func(primary, standby string, avoid map[string]bool) election.Result {
		electable.Primary, electable.Standby, electable.Avoid = primary, standby, avoid
		return election.Elect(s.candidates, load, electable)
	}
	return observed
}

func (c *Controller) failurePolicy(egress *egressv1.EgressService) v1alpha1.FailurePolicy {
	switch policy := v1alpha1.FailurePolicy(egress.Annotations[v1alpha1.FailurePolicyAnnotation]); policy {
	case v1alpha1.FailOpen, v1alpha1.FailClosed:
		return policy
	}
	return c.DefaultFailurePolicy
}

// sourceIPs are the Service's LoadBalancer IPs, the first of each family.
func sourceIPs(service *corev1.Service) []string {
	var found []string
	seen := map[bool]bool{}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		address, err := netip.ParseAddr(ingress.IP)
		if err != nil || seen[address.Is4()] {
			continue
		}
		seen[address.Is4()] = true
		found = append(found, address.String())
	}
	return found
}
