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
	retries  map[types.NamespacedName]retry  // of writes of MetalLB's objects that failed
	mutex    sync.Mutex                      // guards reasons and retries
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
	memory     lifecycle.Memory // after the decision
	reports    map[string]v1alpha1.EgressNodeService
	errs       []error
	unwritten  bool          // the decision did not reach the API server: nothing may follow from it
	labeled    error         // why the primary's label could not be set
	advertised error         // why the advertisement is not as it should be
	again      time.Duration // when to try the advertisement again, 0: it is as it should be
}

// advertises is true when the service takes an advertisement of ours.
func advertises(egress *egressv1.EgressService, service *corev1.Service) bool {
	return egress != nil && service != nil && egress.Spec.SourceIPBy != egressv1.SourceIPNetwork
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

	// First the decisions, which everything else follows, then the labels, which are the
	// permission to announce. Only then MetalLB's objects: its webhook may be away, and no move
	// waits for it.
	c.each(ctx, works, c.writeAssignment)
	errs := []error{c.writeNodeLabels(ctx, s, works)}
	c.each(ctx, works, c.writeAdvertisement)
	errs = append(errs, c.sweep(ctx, s))
	c.each(ctx, works, c.writeStatus)
	for _, w := range works {
		errs = append(errs, w.errs...)
		again = sooner(again, w.again)
	}
	c.remember(works)
	return again, errors.Join(errs...)
}

// remember keeps what the next sync has to know. A decision that was not written is made anew,
// with the memory from before it.
func (c *Controller) remember(works []*work) {
	memories := map[types.NamespacedName]lifecycle.Memory{}
	for _, w := range works {
		memories[w.key] = w.memory
		if w.unwritten {
			memories[w.key] = c.memories[w.key]
		}
	}
	c.memories = memories
	gone := func(key types.NamespacedName) bool {
		_, known := memories[key]
		return !known
	}
	maps.DeleteFunc(c.reasons, func(key types.NamespacedName, _ string) bool { return gone(key) })
	maps.DeleteFunc(c.retries, func(key types.NamespacedName, _ retry) bool { return gone(key) })
}

// sooner is the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// decide runs the lifecycle of every EgressService, oldest first.
func (c *Controller) decide(s *snapshot) ([]*work, time.Duration) {
	if c.reasons == nil {
		c.reasons, c.retries = map[types.NamespacedName]string{}, map[types.NamespacedName]retry{}
	}
	var works []*work
	load, keys := map[string]int{}, map[string]bool{}
	for _, egress := range s.egressServices {
		if egress.DeletionTimestamp != nil {
			continue
		}
		w := &work{key: client.ObjectKeyFromObject(egress), egress: egress, service: s.services[client.ObjectKeyFromObject(egress)]}
		// One left by an EgressService of the same name that is gone counts for nothing; the
		// sweep removes it.
		if a := s.assignments[w.key]; a != nil && metav1.IsControlledBy(a, egress) {
			w.before = a
			load[busy(a.Spec)]++
			keys[a.Spec.LabelKey] = true
		}
		works = append(works, w)
	}
	var again time.Duration
	for _, w := range works {
		observed := c.observe(s, w, load, keys)
		w.reports = observed.Reports
		w.decision, w.memory = lifecycle.Decide(c.Now(), observed, c.memories[w.key])
		w.assignment = newAssignment(w.egress, w.before, w.decision.Spec)
		keys[w.decision.Spec.LabelKey] = true
		if w.before != nil {
			load[busy(w.before.Spec)]--
		}
		load[busy(w.decision.Spec)]++
		again = sooner(again, w.decision.Again)
	}
	return works, again
}

// busy is the node that has the work of a service: its primary, or who is about to be.
func busy(spec v1alpha1.EgressAssignmentSpec) string {
	if spec.Primary != "" {
		return spec.Primary
	}
	return spec.Standby
}

// observe gathers what the lifecycle has to know of one service.
func (c *Controller) observe(s *snapshot, w *work, load map[string]int, keys map[string]bool) lifecycle.Service {
	observed := lifecycle.Service{Key: w.key.String(), Assignment: w.before, Reports: s.reportsOf(w.key.String())}
	observed.Want = v1alpha1.EgressAssignmentSpec{
		SourceIPBy: string(egressv1.SourceIPLoadBalancer), Network: w.egress.Spec.Network, FailurePolicy: c.failurePolicy(w.egress),
	}
	if w.egress.Spec.SourceIPBy == egressv1.SourceIPNetwork {
		observed.Want.SourceIPBy = string(egressv1.SourceIPNetwork)
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
		observed.Blocked, observed.BlockedMessage = "NetworkNotSupported", "spec.network is not supported by this version"
		// The main table is another network than the one asked for: only that service's own
		// annotation may let its pods leave through it.
		if w.egress.Annotations[v1alpha1.FailurePolicyAnnotation] != string(v1alpha1.FailOpen) {
			observed.Want.FailurePolicy = v1alpha1.FailClosed
		}
	case w.egress.Spec.SourceIPBy == egressv1.SourceIPNetwork:
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
