// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

const (
	fieldOwner = client.FieldOwner("metallb-egress-controller")
	// writers bounds the writes of one loop that are under way at once.
	writers = 16
	// writeTimeout bounds one write, and lastWriteTimeout one that failed before: a webhook may hang.
	writeTimeout, lastWriteTimeout = 2 * time.Second, 10 * time.Second
)

// SyncElection decides every service and writes what differs: first the assignments, which
// everything else follows, then the nodes' labels, which are the permission to announce. It
// returns when to look again though nothing happens (0: never). A write that fails holds up only
// its own object.
func (c *Controller) SyncElection(ctx context.Context) (time.Duration, error) {
	if wait := c.electionPace.rest(c.Now()); wait > 0 {
		return wait, nil
	}
	s, err := c.read(ctx)
	if err != nil {
		return 0, err
	}
	began := c.Now()
	works, groups, counted, again := c.decide(s)
	c.electionPace.worked(began, c.Now())

	c.electing.Store(true)
	c.moving.Store(slices.ContainsFunc(works, (*work).replaces))
	defer c.electing.Store(false)
	defer c.moving.Store(false)
	again = sooner(again, c.writeAssignments(ctx, s, groups))
	again = sooner(again, c.writeNodeLabels(ctx, s, works))
	again = sooner(again, c.sweepAssignments(ctx, s))
	c.remember(groups)
	c.publish(works, counted)
	c.retries.tidy(c.Now())
	wake(c.adsWake)
	wake(c.statusWake)
	return again, nil
}

// replaces is true when the decision takes the primary from a node.
func (w *work) replaces() bool { return w.decision.Move != nil && w.decision.Move.From != "" }

// each runs a step for every item, some side by side, and returns the shortest wait.
func each[T any](items []T, limit int, step func(T) time.Duration) time.Duration {
	waits := make([]time.Duration, len(items))
	var group errgroup.Group
	group.SetLimit(limit)
	for i, item := range items {
		group.Go(func() error {
			waits[i] = step(item)
			return nil
		})
	}
	_ = group.Wait()
	var shortest time.Duration
	for _, wait := range waits {
		shortest = sooner(shortest, wait)
	}
	return shortest
}

// decide runs the lifecycle of every group of services, oldest first.
func (c *Controller) decide(s *snapshot) ([]*work, [][]*work, speakers, time.Duration) {
	nodes, verdict, again := c.candidates(s)
	live, silent := make(map[string]bool, len(nodes)), make(map[string]bool, len(nodes))
	counted := speakers{all: len(s.reports)}
	for _, node := range nodes {
		live[node.Name], silent[node.Name] = node.Ready && !node.Deleting && !node.Lost, node.Silent
		if node.Silent {
			counted.silent++
		}
	}
	electorate := election.New(nodes)
	works := c.observe(s)
	for _, w := range works {
		if w.before != nil {
			electorate.Add(busy(w.before.Spec), 1)
		}
	}
	now := c.Now()
	memories := make(map[types.NamespacedName]lifecycle.Memory, len(works))
	var groups [][]*work
	for _, members := range group(works) {
		admitted, refused := admit(electorate, members)
		groups = append(groups, admitted)
		for _, w := range refused {
			w.observed.Blocked = v1alpha1.ReasonSharedAddressConflict
			w.observed.BlockedMessage = "its nodeSelector, network or local endpoints leave no node for, or would move, " +
				admitted[0].key.String() + ", which has the same LoadBalancer IP"
			groups = append(groups, []*work{w})
		}
	}
	c.selectors.tidy(works)
	for _, members := range groups {
		wait := c.decideGroup(now, electorate, members, lifecycle.Group{
			Live: func(node string) bool { return live[node] }, Silent: func(node string) bool { return silent[node] }, MostSilent: verdict.MostSilent, Unguarded: !c.Guarded,
		}, memories)
		again = sooner(again, wait)
		for _, w := range members {
			w.silent = silent
		}
	}
	// What is not written is decided anew, with the memory from before: see remember.
	c.memories, memories = memories, c.memories
	for _, w := range works {
		w.memory = memories[w.key]
	}
	return works, groups, counted, again
}

// decideGroup decides for services that are elected together.
func (c *Controller) decideGroup(now time.Time, e *election.Electorate, members []*work, g lifecycle.Group, memories map[types.NamespacedName]lifecycle.Memory) time.Duration {
	candidate := electable(members)
	g.Elect = func(primary, standby string, avoid map[string]bool) election.Result {
		candidate.Primary, candidate.Standby, candidate.Avoid = primary, standby, avoid
		return e.Elect(candidate)
	}
	g.Rejected = func() string { return election.Count(e.Reject(candidate)) }
	for _, w := range members {
		g.Members = append(g.Members, w.observed)
	}
	leader := members[0].key
	decisions, again, memory := lifecycle.Decide(now, g, c.memories[leader])
	memories[leader] = memory
	for i, w := range members {
		w.decision = decisions[i]
		w.assignment = newAssignment(w.egress, w.before, w.decision.Spec)
		if w.before != nil {
			e.Add(busy(w.before.Spec), -1)
		}
		e.Add(busy(w.decision.Spec), 1)
	}
	return again
}

// remember takes back the memory of groups of which a decision was not written.
func (c *Controller) remember(groups [][]*work) {
	for _, members := range groups {
		if slices.ContainsFunc(members, func(w *work) bool { return w.unwritten != nil }) {
			c.memories[members[0].key] = members[0].memory
		}
	}
}

// newAssignment is the object to write: the one in force with another spec, or a new one.
func newAssignment(egress *egressv1.EgressService, before *v1alpha1.EgressAssignment, spec v1alpha1.EgressAssignmentSpec) *v1alpha1.EgressAssignment {
	if before != nil {
		if equality.Semantic.DeepEqual(before.Spec, spec) {
			return before
		}
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

// loopTime is how long one run of a loop goes on beginning to write. What is left is computed anew:
// a failover does not wait until thousands of new services have their first node.
const loopTime = 500 * time.Millisecond

// errLater is why an assignment is not written yet when an election's time is over.
var errLater = errors.New("decided anew in a moment")

// writeAssignments creates and changes assignments, changes of primary first. Services that are
// elected together are written one after the other, up to the first that can't be: on the node that
// the group leaves, and on the one that it goes to, the shared address is closed meanwhile.
func (c *Controller) writeAssignments(ctx context.Context, s *snapshot, groups [][]*work) time.Duration {
	var first, then [][]*work
	for _, members := range groups {
		var due []*work
		moves := false
		for _, w := range members {
			switch {
			case w.before == w.assignment:
			case w.before == nil && w.observed.Blocked == v1alpha1.ReasonNameCollision:
				// What is named by the digest belongs to the other service.
				w.assignment = nil
			case w.before == nil && s.assignments[w.key] != nil:
				w.refuse(errors.New("the EgressAssignment of an earlier EgressService of this name is still there"))
			default:
				due, moves = append(due, w), moves || w.decision.Move != nil
			}
		}
		switch {
		case moves:
			first = append(first, due)
		case len(due) > 0:
			then = append(then, due)
		}
	}
	end := c.Now().Add(loopTime)
	return each(append(first, then...), writers, func(members []*work) (wait time.Duration) {
		for i, w := range members {
			if i == 0 && c.Now().After(end) {
				wait, w.unwritten = time.Millisecond, errLater
			} else {
				wait = c.writeAssignment(ctx, w)
			}
			if w.unwritten == nil {
				continue
			}
			for _, other := range members[i+1:] {
				if other.unwritten = errLater; !errors.Is(w.unwritten, errLater) {
					other.refuse(fmt.Errorf("%s, which has the same LoadBalancer IP: %w", w.key, w.unwritten))
				}
			}
			break
		}
		return wait
	})
}

// writeAssignment creates or changes one assignment.
func (c *Controller) writeAssignment(ctx context.Context, w *work) time.Duration {
	wait, err := c.try(ctx, electionLoop, w.key.String(), "EgressAssignment", func(ctx context.Context) error {
		if w.before == nil {
			return c.Client.Create(ctx, w.assignment, fieldOwner)
		}
		return c.changeAssignment(ctx, w)
	})
	if err != nil {
		w.refuse(err)
		return wait
	}
	if move := w.decision.Move; move != nil {
		level.Info(c.Logger).Log("event", "primaryChanged", "msg", "a service gets another primary", "service", w.key,
			"from", move.From, "to", move.To, "epoch", move.Epoch, "cause", move.Cause)
	}
	return wait
}

// refuse says that the decision is not written: what was before is in force.
func (w *work) refuse(err error) {
	w.unwritten, w.assignment = err, w.before
	w.lost, w.decision.Move = w.decision.Move, nil
	w.decision.Assigned = metav1.Condition{
		Type: v1alpha1.ConditionNodeAssigned, Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonDecisionNotWritten,
		Message: "the EgressAssignment could not be written: " + err.Error(),
	}
}

// changeAssignment replaces the spec, if it is still the one that the decision was made from: a
// decision from a stale cache, or of a controller that no longer leads, is refused by the API
// server. The status, which another loop writes, plays no part in that. Labels and statuses follow
// the assignments, and are written again by whoever leads.
func (c *Controller) changeAssignment(ctx context.Context, w *work) error {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	body, err := json.Marshal([]operation{
		{"test", "/metadata/uid", w.before.UID},
		{"test", "/spec/epoch", w.before.Spec.Epoch},
		{"test", "/spec/primary", w.before.Spec.Primary},
		{"test", "/spec/standby", w.before.Spec.Standby},
		{"replace", "/spec", w.assignment.Spec},
	})
	if err != nil {
		return err
	}
	return c.Client.Patch(ctx, w.assignment, client.RawPatch(types.JSONPatchType, body), fieldOwner)
}

// try attempts one write of a loop, in its time, and reports a failure in the log and as a metric.
func (c *Controller) try(ctx context.Context, loop, object, what string, write func(context.Context) error) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	tried := false
	wait, err := c.retries.attempt(c.Now, what+" "+object, func(last time.Duration) error {
		tried = true
		// What needs longer than usual gets it when it is tried again.
		ctx, cancel := context.WithTimeout(ctx, min(writeTimeout+last, lastWriteTimeout))
		defer cancel()
		return write(ctx)
	})
	if tried && err != nil && ctx.Err() == nil {
		level.Error(c.Logger).Log("event", "writeFailed", "msg", "an object could not be written", "what", what, "object", object, "again", wait, "error", err)
		c.Metrics.Failed(loop, what)
	}
	return wait, err
}

// sweepAssignments removes those that belong to no EgressService any more.
func (c *Controller) sweepAssignments(ctx context.Context, s *snapshot) time.Duration {
	owners := make(map[types.NamespacedName]*egressv1.EgressService, len(s.egressServices))
	for _, egress := range s.egressServices {
		owners[client.ObjectKeyFromObject(egress)] = egress
	}
	var orphans []*v1alpha1.EgressAssignment
	for key, a := range s.assignments {
		if owner := owners[key]; owner == nil || !metav1.IsControlledBy(a, owner) {
			orphans = append(orphans, a)
		}
	}
	return each(orphans, writers, func(a *v1alpha1.EgressAssignment) time.Duration {
		wait, _ := c.try(ctx, electionLoop, client.ObjectKeyFromObject(a).String(), "EgressAssignment to be deleted", func(ctx context.Context) error {
			return client.IgnoreNotFound(c.Client.Delete(ctx, a.DeepCopy(), client.Preconditions{UID: &a.UID}))
		})
		return wait
	})
}
