// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-kit/log/level"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/metrics"
)

const (
	// settleTime is how long a state must last to be written, unless the host changed or the
	// service became ready: what passes in a moment costs no writes. Where the API server is slow, a moment is longer: settleShare times
	// what a write took, up to longestSettleTime.
	settleTime        = 500 * time.Millisecond
	settleShare       = 20
	longestSettleTime = 2 * time.Second
	// statusWriters is less than writers: elections and MetalLB go first.
	statusWriters = 4
	// giveWayTime is when to try again what waits for a move to be written.
	giveWayTime = 50 * time.Millisecond
)

// settling is a status that is not written yet.
type settling struct {
	reasons string
	since   time.Time
}

// statusWork is one service's status as it is and as it has to be.
type statusWork struct {
	*work
	conditions []metav1.Condition
	egress     *egressv1.EgressService    // newer than the election's
	assignment *v1alpha1.EgressAssignment // nil when there is none yet
	wantEgress egressv1.EgressServiceStatus
	want       v1alpha1.EgressAssignmentStatus
	pending    *move
}

// SyncStatus reports what the newest election and the nodes' answers amount to: on the
// EgressAssignments and the EgressServices, in events, and in the metrics.
func (c *Controller) SyncStatus(ctx context.Context) (time.Duration, error) {
	if wait := c.statusPace.rest(c.Now()); wait > 0 {
		return wait, nil
	}
	if c.Withdraw {
		return c.clearStatuses(ctx)
	}
	began := c.Now()
	all, err := c.statuses(ctx)
	if err != nil {
		return 0, err
	}
	var again time.Duration
	var due []*statusWork
	before := c.unwritten
	c.unwritten = map[types.NamespacedName]settling{}
	for _, w := range all {
		if wait := c.settled(w, before[w.key]); wait > 0 {
			again = sooner(again, wait)
			continue
		}
		if w.differs() {
			due = append(due, w)
		}
	}
	c.statusPace.worked(began, c.Now())
	// Whose host changed goes first. The rest waits for the next run when this one has lasted long.
	slices.SortStableFunc(due, func(a, b *statusWork) int { return cmp.Compare(a.urgency(), b.urgency()) })
	writing := c.Now()
	end := writing.Add(loopTime)
	limit := statusWriters
	if c.electing.Load() {
		limit = 1
	}
	var wrote atomic.Int64
	again = sooner(again, each(due, limit, func(w *statusWork) time.Duration {
		switch {
		case c.moving.Load():
			return giveWayTime
		case c.Now().After(end):
			return time.Millisecond
		}
		wrote.Add(1)
		return c.writeStatus(ctx, w)
	}))
	if n := wrote.Load(); n > 0 {
		took := c.Now().Sub(writing) * time.Duration(min(limit, len(due))) / time.Duration(n)
		c.settleTime = min(max(settleTime, settleShare*took), longestSettleTime)
	}
	return again, nil
}

// statuses pairs the works of the newest election with the objects as they are, and puts the metrics
// up to date.
func (c *Controller) statuses(ctx context.Context) ([]*statusWork, error) {
	egressServices, err := list[egressv1.EgressServiceList](ctx, c.Client)
	if err != nil {
		return nil, err
	}
	assignments, err := list[v1alpha1.EgressAssignmentList](ctx, c.Client)
	if err != nil {
		return nil, err
	}
	byUID := make(map[types.UID]*egressv1.EgressService, len(egressServices.Items))
	for _, egress := range pointers(egressServices.Items) {
		byUID[egress.UID] = egress
	}
	owned := make(map[types.UID]*v1alpha1.EgressAssignment, len(assignments.Items))
	for _, a := range pointers(assignments.Items) {
		if owner := metav1.GetControllerOfNoCopy(a); owner != nil {
			owned[owner.UID] = a
		}
	}

	c.shared.mutex.Lock()
	elected := c.shared.elected
	works, counted := c.shared.works, c.shared.speakers
	advertised, moves := c.shared.advertised, maps.Clone(c.shared.moves)
	c.shared.mutex.Unlock()
	if !elected {
		return nil, nil
	}
	all := make([]*statusWork, 0, len(works))
	shown := metrics.Snapshot{Speakers: counted.all, SilentSpeakers: counted.silent}
	for _, w := range works {
		egress := byUID[w.egress.UID]
		if egress == nil {
			continue
		}
		if errors.Is(w.unwritten, errLater) || errors.Is(w.labeled, errLater) {
			shown.Services = append(shown.Services, measured(w, egress.Status, egress.Status.Conditions))
			continue
		}
		s := &statusWork{work: w, egress: egress, assignment: owned[egress.UID], pending: moves[w.key]}
		result, known := advertised[w.key]
		if !known {
			result = s.advertisedBefore()
		}
		s.conditions = w.conditions(result, c.Guarded)
		c.want(s)
		all = append(all, s)
		shown.Services = append(shown.Services, measured(w, s.wantEgress, s.conditions))
	}
	c.Metrics.Set(shown)
	return all, nil
}

// before are the conditions in force.
func (s *statusWork) before() []metav1.Condition {
	if s.assignment != nil {
		return s.assignment.Status.Conditions
	}
	return s.egress.Status.Conditions
}

// advertisedBefore is what was said of the advertisement last: the other loop has not come to it since
// the start.
func (s *statusWork) advertisedBefore() outcome {
	if last := meta.FindStatusCondition(s.before(), v1alpha1.ConditionAdvertisementsConsistent); last != nil {
		return outcome{status: last.Status, reason: last.Reason, message: last.Message, announced: meta.IsStatusConditionTrue(s.before(), v1alpha1.ConditionAnnounced)}
	}
	return outcome{status: metav1.ConditionFalse, reason: v1alpha1.ReasonNothingToAnnounce, message: "not looked at yet"}
}

// want computes both objects' statuses.
func (c *Controller) want(s *statusWork) {
	s.wantEgress = *s.egress.Status.DeepCopy()
	s.wantEgress.Host = ""
	switch primary := s.inForce().Primary; {
	case !s.exclusive():
		s.wantEgress.Host = egressv1.HostAll
	case primary != "" && s.labeled == nil:
		s.wantEgress.Host = primary
	}
	if c.serviceConditions.Load() {
		s.wantEgress.Standby = s.inForce().Standby
		setConditions(&s.wantEgress.Conditions, s.conditions, s.egress.Generation)
	}
	if s.assignment == nil {
		return
	}
	s.want = *s.assignment.Status.DeepCopy()
	setConditions(&s.want.Conditions, s.conditions, s.observedGeneration())
	if s.pending != nil {
		s.want.LastMove = s.pending.DeepCopy()
	} else {
		s.want.LastMove = s.untold(s.want.LastMove, c.Now())
	}
	if last := s.want.LastMove; last != nil && last.Epoch == s.inForce().Epoch && last.Duration == nil &&
		last.Cause != v1alpha1.CauseUnrecorded && s.is(v1alpha1.ConditionAnnounced) {
		last.Duration = &metav1.Duration{Duration: c.Now().Sub(last.StartedAt.Time).Round(time.Millisecond)}
		if s.pending != nil {
			// Known from now on, whenever it is written.
			s.pending.Duration = last.Duration
		}
	}
}

// untold is the last move, or the one after it that a controller wrote and did not live to tell. When that began is not known, so it
// never gets a duration.
func (s *statusWork) untold(last *v1alpha1.Move, now time.Time) *v1alpha1.Move {
	spec, from := s.inForce(), ""
	if last != nil {
		from = last.To
	}
	if spec.Epoch == 0 || last != nil && last.Epoch >= spec.Epoch {
		return last
	}
	return &v1alpha1.Move{Epoch: spec.Epoch, Cause: v1alpha1.CauseUnrecorded, From: from, To: spec.Primary, StartedAt: metav1.NewMicroTime(now)}
}

// observedGeneration is the assignment's that the conditions are about.
func (s *statusWork) observedGeneration() int64 {
	if s.work.assignment == nil {
		return s.assignment.Generation
	}
	return s.work.assignment.Generation
}

func (s *statusWork) is(kind string) bool { return meta.IsStatusConditionTrue(s.conditions, kind) }

// mostOfEvent is how much of a message fits into an event, which may hold 1,024 bytes. mostOfCondition leaves room for commands to paste.
const mostOfEvent, mostOfCondition = 1000, 4000

// short cuts a message: it may have a user's text in it.
func short(message string, most int) string {
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most], "") + " ..."
}

// setConditions sets those given, and removes those of ours that no longer apply.
func setConditions(list *[]metav1.Condition, conditions []metav1.Condition, generation int64) {
	for _, kind := range conditionTypes {
		i := slices.IndexFunc(conditions, func(c metav1.Condition) bool { return c.Type == kind })
		if i < 0 {
			meta.RemoveStatusCondition(list, kind)
			continue
		}
		condition := conditions[i]
		condition.Message = short(condition.Message, mostOfCondition)
		condition.ObservedGeneration = generation
		meta.SetStatusCondition(list, condition)
	}
}

// urgency is less for what is to be written first.
func (s *statusWork) urgency() int {
	if s.egress.Status.Host != s.wantEgress.Host {
		return 0
	}
	return 1
}

func (s *statusWork) differs() bool {
	return !equality.Semantic.DeepEqual(s.egress.Status, s.wantEgress) ||
		s.assignment != nil && !equality.Semantic.DeepEqual(s.assignment.Status, s.want)
}

// settled returns how long to wait until the status is written: not at all where nothing is to be
// written, either.
func (c *Controller) settled(s *statusWork, last settling) time.Duration {
	if !s.differs() || s.egress.Status.Host != s.wantEgress.Host || s.is(v1alpha1.ConditionReady) {
		return 0
	}
	now := settling{since: c.Now()}
	for _, condition := range s.conditions {
		now.reasons += condition.Reason + " "
	}
	now.reasons += s.inForce().Standby
	if now.reasons == last.reasons {
		now.since = last.since
	}
	c.unwritten[s.key] = now
	return max(c.settleTime-c.Now().Sub(now.since), 0)
}

// writeStatus writes one service's statuses, and tells the events in them.
func (c *Controller) writeStatus(ctx context.Context, s *statusWork) time.Duration {
	wait, err := c.try(ctx, statusLoop, s.key.String(), "status", func(ctx context.Context) error {
		if s.assignment != nil && !equality.Semantic.DeepEqual(s.assignment.Status, s.want) {
			after := s.assignment.DeepCopy()
			after.Status = s.want
			if err := c.Client.Status().Patch(ctx, after, client.MergeFrom(s.assignment), fieldOwner); err != nil {
				return fmt.Errorf("EgressAssignment: %w", err)
			}
			// At once: a second try would find nothing new in it.
			c.tell(s)
		}
		if equality.Semantic.DeepEqual(s.egress.Status, s.wantEgress) {
			return nil
		}
		body, err := s.egressPatch()
		answer := s.egress.DeepCopy()
		if err == nil {
			err = c.Client.Status().Patch(ctx, answer, client.RawPatch(types.MergePatchType, body), fieldOwner)
		}
		if err != nil {
			return fmt.Errorf("EgressService: %w", err)
		}
		if len(s.wantEgress.Conditions) > 0 && len(answer.Status.Conditions) == 0 {
			level.Warn(c.Logger).Log("event", "noConditions", "msg", "the installed EgressService CRD has no conditions: they are on the EgressAssignments only")
			c.serviceConditions.Store(false)
		}
		if s.assignment == nil {
			c.tell(s)
		}
		return nil
	})
	if err == nil && s.pending != nil {
		c.shared.mutex.Lock()
		defer c.shared.mutex.Unlock()
		if c.shared.moves[s.key] == s.pending {
			delete(c.shared.moves, s.key)
		}
	}
	return wait
}

// egressPatch is a merge patch of the EgressService's status. It names every field, not the
// difference: the schema requires the host, even where it is empty and was so before, and a field
// that is left out stays as it was.
func (s *statusWork) egressPatch() ([]byte, error) {
	status := map[string]any{"host": s.wantEgress.Host}
	if s.wantEgress.Standby != s.egress.Status.Standby {
		status["standby"] = s.wantEgress.Standby
	}
	if len(s.wantEgress.Conditions) > 0 {
		status["conditions"] = s.wantEgress.Conditions
	}
	return json.Marshal(map[string]any{"status": status})
}

// tell writes the events: each condition that is not as it should be when it comes to be so, each
// first assignment, each completed move.
func (c *Controller) tell(s *statusWork) {
	for _, condition := range s.conditions {
		old := meta.FindStatusCondition(s.before(), condition.Type)
		if told(condition) && (old == nil || old.Reason != condition.Reason || old.Status != condition.Status) {
			c.event(s, eventType(condition), condition.Reason, condition.Message)
		}
	}
	move := s.want.LastMove
	if move == nil || move.To == "" {
		return
	}
	last := s.assignment.Status.LastMove
	isNew := last == nil || last.Epoch != move.Epoch
	complete := move.Duration != nil && (isNew || last.Duration == nil)
	switch {
	case isNew && move.From == "":
		c.event(s, corev1.EventTypeNormal, v1alpha1.EventAssigned, fmt.Sprintf("node %s is primary (%s)", move.To, move.Cause))
	case isNew && move.Cause == v1alpha1.CauseUnrecorded:
		c.event(s, corev1.EventTypeNormal, v1alpha1.EventMoved, fmt.Sprintf("moved from node %s to node %s (%s)", move.From, move.To, move.Cause))
		c.Metrics.Moved(move.Cause, false, 0)
	}
	if complete && move.From != "" {
		c.event(s, corev1.EventTypeNormal, v1alpha1.EventMoved,
			fmt.Sprintf("moved from node %s to node %s (%s) within %v", move.From, move.To, move.Cause, move.Duration.Duration))
	}
	if complete {
		c.Metrics.Moved(move.Cause, move.From == "", move.Duration.Duration)
	}
	if complete && s.pending != nil {
		gate := s.pending.promotedAt.Sub(move.StartedAt.Time)
		c.Metrics.Waited("dataplane", gate)
		c.Metrics.Waited("announce", move.Duration.Duration-gate)
	}
}

// told is true for conditions that are worth an event. What is only waited for, and what follows
// from another condition, is not; nor is what concerns all services at once.
func told(c metav1.Condition) bool {
	switch c.Type {
	case v1alpha1.ConditionNodeAssigned:
		return c.Reason == v1alpha1.ReasonReplacementNotOffered || c.Status != metav1.ConditionTrue && c.Reason != v1alpha1.ReasonWaitingForStandby
	case v1alpha1.ConditionDataplaneReady:
		return c.Reason == v1alpha1.ReasonEndpointConflict || c.Reason == v1alpha1.ReasonNodesBehind || c.Reason == v1alpha1.ReasonNodesNotCapable
	case v1alpha1.ConditionAnnounced:
		return c.Reason == v1alpha1.ReasonNoServingEndpoints || c.Reason == v1alpha1.ReasonNodeNotLabeled
	case v1alpha1.ConditionAdvertisementsConsistent:
		return c.Status != metav1.ConditionTrue && c.Reason != v1alpha1.ReasonNothingToAnnounce && c.Reason != v1alpha1.ReasonPoolUnknown
	case v1alpha1.ConditionRepliesDiverted:
		return true
	}
	return false
}

// event writes one onto the EgressService and one onto the Service.
func (c *Controller) event(s *statusWork, kind, reason, message string) {
	message = short(message, mostOfEvent)
	c.Recorder.Eventf(s.egress, nil, kind, reason, "Elect", "%s", message)
	if s.service != nil {
		c.Recorder.Eventf(s.service, s.egress, kind, reason, "Elect", "%s", message)
	}
}

// measured is what the metrics show of one service.
func measured(w *work, status egressv1.EgressServiceStatus, conditions []metav1.Condition) metrics.Service {
	service := metrics.Service{
		Namespace: w.key.Namespace, Name: w.key.Name, Node: status.Host, Network: w.egress.Spec.Network,
		Mode: w.decision.Spec.SourceIPBy, Conditions: conditions,
	}
	switch {
	case status.Host != "":
	case w.labeled != nil:
		service.Unassigned = v1alpha1.ReasonNodeNotLabeled
	default:
		service.Unassigned = w.decision.Assigned.Reason
	}
	return service
}
