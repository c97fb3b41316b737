// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"cmp"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
	"github.com/metallb-egress/metallb-egress/controllerext/liveness"
	"github.com/metallb-egress/metallb-egress/controllerext/metrics"
)

// Options are what a Controller is made of.
type Options struct {
	// Client reads from caches, its own writes included, and writes to the API server.
	Client client.Client
	// Recorder writes events onto the EgressServices and their Services.
	Recorder events.EventRecorder
	// Metrics may be nil.
	Metrics *metrics.Metrics
	Logger  log.Logger
	// MetalLBNamespace is where MetalLB's objects and the speakers' Leases are, usually
	// metallb-system.
	MetalLBNamespace string
	// DefaultFailurePolicy holds for an EgressService without the annotation.
	DefaultFailurePolicy v1alpha1.FailurePolicy
	// IgnoreExclude mirrors the flag of MetalLB's speakers to announce from nodes labelled
	// node.kubernetes.io/exclude-from-external-load-balancers too.
	IgnoreExclude bool
	// MetalLB is what the installed one has.
	MetalLB MetalLB
	// Guarded is true with the back end gobgp: the speakers announce, and withhold the addresses on every node but the primary. Otherwise
	// MetalLB announces, and advertisements are all that keeps them there.
	Guarded bool
	// ManageAdvertisements allows to exclude the services from BGPAdvertisements that are not ours.
	ManageAdvertisements bool
	// ServiceConditions is true where the installed EgressService CRD is this project's, which has
	// status.conditions and status.standby.
	ServiceConditions bool
	// Withdraw removes everything that a controller has made, as if there were no EgressService: see Left.
	Withdraw bool
	// Now is the clock.
	Now func() time.Time
}

// Controller holds the three loops' state. Each Sync method is called by one goroutine.
type Controller struct {
	Options

	shared                            shared
	electionWake, adsWake, statusWake chan struct{}
	retries                           backoff
	electionPace, adsPace, statusPace pace

	// Of the election loop.
	memories  map[types.NamespacedName]lifecycle.Memory // by a group's oldest member
	subnets   subnetReader
	selectors selectors
	outage    outage
	lost      map[types.NamespacedName]*v1alpha1.Move // whose write seemed to fail: maybe only the answer was lost
	labelled  map[string]time.Time                    // when each node's labels were last patched

	// Of the advertisement loop: since when MetalLB announces from wrong nodes, advertisements of ours are there, and they are not needed.
	strays      map[stray]time.Time
	ownedSince  map[string]time.Time
	orphanSince map[types.UID]time.Time
	editedAt    map[string]time.Time // when advertisements of others were edited, by name

	// electing is true while an election writes, moving while it writes moves: statuses give way to the one, and wait for the other.
	electing, moving atomic.Bool

	// Of the status loop. serviceConditions is false once the installed CRD turned out to have none.
	serviceConditions atomic.Bool
	unwritten         map[types.NamespacedName]settling
	settleTime        time.Duration
}

// New makes a Controller that has done nothing yet.
func New(o Options) *Controller {
	wake := func() chan struct{} { return make(chan struct{}, 1) }
	c := &Controller{
		Options: o, selectors: selectors{}, settleTime: settleTime, lost: map[types.NamespacedName]*v1alpha1.Move{}, labelled: map[string]time.Time{}, electionWake: wake(), adsWake: wake(), statusWake: wake(),
		// A failover waits for the election alone.
		electionPace: pace{times: 1}, adsPace: pace{times: 3}, statusPace: pace{times: 3},
		shared: shared{
			tracker: liveness.New(), advertised: map[types.NamespacedName]outcome{},
			moves: map[types.NamespacedName]*move{}, concerned: map[types.NamespacedName]bool{}, namespaces: map[string]bool{},
		},
	}
	c.serviceConditions.Store(o.ServiceConditions)
	return c
}

// shared is what the loops know of one another.
type shared struct {
	mutex      sync.Mutex
	elected    bool                             // once there was an election
	works      []*work                          // of the newest election, oldest service first; not changed any more
	speakers   speakers                         // as judged by it
	advertised map[types.NamespacedName]outcome // of the advertisement loop
	moves      map[types.NamespacedName]*move   // that are not in the assignment's status yet
	concerned  map[types.NamespacedName]bool    // the EgressServices' keys
	namespaces map[string]bool                  // and namespaces
	tracker    *liveness.Tracker
}

// speakers counts those that report, and those whose lease has expired.
type speakers struct{ all, silent int }

// move is a change of primary on its way into the status.
type move struct {
	v1alpha1.Move
	promotedAt time.Time
}

// work is one EgressService in one election.
type work struct {
	key        types.NamespacedName
	digest     string
	selector   labels.Selector // nil where it can't be parsed
	egress     *egressv1.EgressService
	service    *corev1.Service            // nil when there is none
	before     *v1alpha1.EgressAssignment // nil when there is none
	assignment *v1alpha1.EgressAssignment // as decided, and as the API server answered once written
	observed   lifecycle.Service
	decision   lifecycle.Decision
	memory     lifecycle.Memory // of before the decision, where the service leads its group

	endpoints endpoints
	conflicts []types.NamespacedName // older EgressServices with some of the same pods
	diverted  []string               // other Services whose replies go through this primary
	behind    []string               // nodes with endpoints that could not follow
	incapable []string               // sourceIPBy Network: nodes with endpoints that lack what it needs, each with the reason
	silent    map[string]bool        // nodes whose speaker is

	unwritten error          // why the decision did not reach the API server: nothing may follow from it
	lost      *v1alpha1.Move // that was part of it
	labeled   error          // why the primary's label is not set
}

// inForce is the assignment's spec that the API server has.
func (w *work) inForce() v1alpha1.EgressAssignmentSpec {
	switch {
	case w.unwritten == nil && w.assignment != nil:
		return w.assignment.Spec
	case w.before != nil:
		return w.before.Spec
	}
	return v1alpha1.EgressAssignmentSpec{}
}

// publish hands an election's result to the other loops.
func (c *Controller) publish(works []*work, counted speakers) {
	now := c.Now()
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	c.shared.works, c.shared.speakers, c.shared.elected = works, counted, true
	for _, w := range works {
		begun := w.decision.Move
		if lost := c.lost[w.key]; lost != nil && w.before != nil && w.before.Spec.Epoch == lost.Epoch {
			// It was written after all.
			begun = cmp.Or(begun, lost)
		}
		delete(c.lost, w.key)
		if begun != nil && w.unwritten == nil {
			c.shared.moves[w.key] = &move{Move: *begun, promotedAt: now}
		}
		if w.lost != nil {
			c.lost[w.key] = w.lost
		}
	}
	gone := func(key types.NamespacedName) bool { return !c.shared.concerned[key] }
	maps.DeleteFunc(c.shared.moves, func(key types.NamespacedName, _ *move) bool { return gone(key) })
	maps.DeleteFunc(c.lost, func(key types.NamespacedName, _ *v1alpha1.Move) bool { return gone(key) })
}

// concern sets whose Services and EndpointSlices matter from now on. Those kinds are read after it:
// what comes later is not overlooked.
func (c *Controller) concern(egressServices []*egressv1.EgressService) map[string]bool {
	concerned, namespaces := make(map[types.NamespacedName]bool, len(egressServices)), map[string]bool{}
	for _, egress := range egressServices {
		concerned[client.ObjectKeyFromObject(egress)], namespaces[egress.Namespace] = true, true
	}
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	c.shared.concerned, c.shared.namespaces = concerned, namespaces
	return namespaces
}

// wake asks a loop to run once more.
func wake(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// pace keeps a loop that works through everything at each event from taking a whole core: it rests as
// long as it has computed, or several times that. Writing is not computing.
type pace struct {
	times int
	until time.Time
}

// rest is how long to wait before the next run, or 0.
func (p *pace) rest(now time.Time) time.Duration { return max(p.until.Sub(now), 0) }

// worked ends a piece of work that began at a time.
func (p *pace) worked(began, now time.Time) {
	p.until = now.Add(time.Duration(p.times) * now.Sub(began))
}

// sooner is the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
