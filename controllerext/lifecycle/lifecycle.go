// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

const (
	// AcknowledgeTimeout is how long a standby may take to acknowledge before another node
	// is tried.
	AcknowledgeTimeout = 10 * time.Second
	// OfferTimeout is how long a replacement is waited for silently until MetalLB offers it
	// the route; then the wait goes on and the condition says so.
	OfferTimeout = 10 * time.Second
	// RestMin is how long a node that did not acknowledge is avoided; twice as long each
	// further time, up to RestMax.
	RestMin = 30 * time.Second
	// RestMax is the longest rest.
	RestMax = 10 * time.Minute
)

// ReasonEveryNode is the NodeAssigned reason of a service that needs no election.
const ReasonEveryNode = "EveryNode"

// Service is one service as observed.
type Service struct {
	// Key is <namespace>/<name>.
	Key string
	// Want is the assignment's spec but for epoch, primary and standby, which are ignored.
	Want v1alpha1.EgressAssignmentSpec
	// Blocked, when not empty, is the CamelCase reason why no node can serve it at all;
	// BlockedMessage is the sentence.
	Blocked, BlockedMessage string
	// HasEndpoints is true with at least one endpoint on the pod network. A service that has
	// none is not assigned for the first time; one that has a primary keeps it.
	HasEndpoints bool
	// Assignment is the object in force, or nil.
	Assignment *v1alpha1.EgressAssignment
	// Reports are the entries of this service in the EgressNodes, by node.
	Reports map[string]v1alpha1.EgressNodeService
	// Live says whether a node can be expected to still announce.
	Live func(node string) bool
	// Elect runs the election for this service.
	Elect func(primary, standby string, avoid map[string]bool) election.Result
}

// Memory is what Decide remembers of one service between two decisions. It may be lost: then
// the waits start again.
type Memory struct {
	waitingFor     string
	waitingSince   time.Time
	unofferedSince time.Time
	wantedSince    time.Time
	rests          map[string]rest
}

type rest struct {
	until time.Time
	last  time.Duration
}

// Decision is the outcome.
type Decision struct {
	// Spec is what the assignment's spec has to be.
	Spec v1alpha1.EgressAssignmentSpec
	// Move is set when Spec begins a new epoch.
	Move *v1alpha1.Move
	// Assigned is the NodeAssigned condition (type, status, reason, message).
	Assigned metav1.Condition
	// Again is when to decide again though nothing happened; 0 is never.
	Again time.Duration
}

// Decide is one step of the sequence: write the standby, wait for its acknowledgement,
// promote it.
func Decide(now time.Time, service Service, memory Memory) (Decision, Memory) {
	s := step{now: now, Service: service, memory: memory}
	s.memory.rests = s.currentRests()
	s.decision.Spec = service.Want
	if a := service.Assignment; a != nil {
		s.decision.Spec.Epoch, s.decision.Spec.Primary, s.decision.Spec.Standby = a.Spec.Epoch, a.Spec.Primary, a.Spec.Standby
		s.decision.Spec.LabelKey = a.Spec.LabelKey
	}
	s.decide()
	return s.decision, s.memory
}

// step holds one call of Decide.
type step struct {
	now time.Time
	Service
	memory   Memory
	decision Decision
}

func (s *step) decide() {
	spec := &s.decision.Spec
	switch {
	case s.Blocked != "":
		s.release(s.Blocked, s.BlockedMessage)
		return
	case spec.SourceIPBy == "Network":
		s.release(ReasonEveryNode, "sourceIPBy is Network: every node handles its own endpoints")
		return
	case spec.Primary == "" && !s.HasEndpoints:
		s.release("NoEndpoints", "the Service has no endpoint on the pod network yet")
		return
	}

	elected := s.Elect(spec.Primary, spec.Standby, s.avoid())
	switch elected.Primary {
	case "":
		s.release("NoEligibleNode", "no node is eligible: "+countReasons(elected.Rejected))
		return
	case spec.Primary:
		spec.Standby = elected.Standby
		s.forgetWait()
		s.assigned(metav1.ConditionTrue, "Assigned", "node "+spec.Primary)
		return
	}
	if s.memory.wantedSince.IsZero() {
		s.memory.wantedSince = s.now
	}
	candidate := s.waitFor(elected.Primary)
	spec.Standby = candidate
	if !s.acknowledged(candidate) {
		return
	}
	if s.mustBeOffered(candidate) {
		return
	}
	s.promote(candidate, s.cause(elected.Rejected))
}

// waitFor returns the node to wait for: the elected one, or after AcknowledgeTimeout another.
func (s *step) waitFor(elected string) string {
	if s.memory.waitingFor != elected {
		s.memory.waitingFor, s.memory.waitingSince, s.memory.unofferedSince = elected, s.now, time.Time{}
	}
	if s.acknowledged(elected) {
		return elected
	}
	s.assigned(metav1.ConditionFalse, "WaitingForStandby", "waiting for node "+elected+" to program the service")
	if left := AcknowledgeTimeout - s.now.Sub(s.memory.waitingSince); left > 0 {
		s.decision.Again = left
		return elected
	}
	s.giveRest(elected)
	other := s.Elect(s.decision.Spec.Primary, s.decision.Spec.Standby, s.avoid()).Primary
	if other == elected || other == s.decision.Spec.Primary {
		s.assigned(metav1.ConditionFalse, "StandbySilent", "node "+elected+" has not acknowledged, and there is no other node: still waiting")
		// A node that has rested is worth another try, though it has nothing to report till then.
		s.decision.Again = s.firstRestEnds()
		return elected
	}
	s.memory.waitingFor, s.memory.waitingSince = other, s.now
	s.decision.Again = AcknowledgeTimeout
	s.assigned(metav1.ConditionFalse, "WaitingForStandby", "node "+elected+" did not acknowledge in time; waiting for node "+other+" instead")
	return other
}

// acknowledged is true when the node, as standby of the assignment as it stands, has
// programmed every source IP that is wanted now.
func (s *step) acknowledged(node string) bool {
	a := s.Assignment
	return a != nil && a.Spec.Standby == node && Programmed(a, s.Reports[node]) &&
		slices.Equal(a.Spec.SourceIPs, s.decision.Spec.SourceIPs)
}

// Answers is true when the report is about this very object in its newest generation.
func Answers(a *v1alpha1.EgressAssignment, report v1alpha1.EgressNodeService) bool {
	return report.UID == a.UID && report.ObservedGeneration >= a.Generation
}

// Programmed is true when the report says that the node has programmed the assignment as it
// stands, with every source IP.
func Programmed(a *v1alpha1.EgressAssignment, report v1alpha1.EgressNodeService) bool {
	return Answers(a, report) && report.Programmed &&
		!slices.ContainsFunc(a.Spec.SourceIPs, func(ip string) bool { return !slices.Contains(report.Addresses, ip) })
}

// mustBeOffered is true while the primary to be replaced still announces and MetalLB has not
// yet handed the candidate the route: moving now would take the route away.
func (s *step) mustBeOffered(candidate string) bool {
	current := s.decision.Spec.Primary
	if current == "" || !s.Live(current) || !s.Reports[current].Announced || s.Reports[candidate].Offered {
		return false
	}
	if s.memory.unofferedSince.IsZero() {
		s.memory.unofferedSince = s.now
	}
	if left := OfferTimeout - s.now.Sub(s.memory.unofferedSince); left > 0 {
		s.decision.Again = left
		s.assigned(metav1.ConditionTrue, "Moving", "node "+current+"; node "+candidate+" takes over once MetalLB offers it the route")
		return true
	}
	s.assigned(metav1.ConditionTrue, "ReplacementNotOffered",
		"node "+current+" should be replaced by node "+candidate+", to which MetalLB offers no route: staying, so that the address stays reachable")
	return true
}

func (s *step) promote(node, cause string) {
	spec := &s.decision.Spec
	s.begin(node, cause)
	spec.Standby = s.Elect(node, "", s.avoid()).Standby
	s.forgetWait()
	delete(s.memory.rests, node)
	s.assigned(metav1.ConditionTrue, "Assigned", "node "+node)
}

// release leaves the service without a node.
func (s *step) release(reason, message string) {
	spec := &s.decision.Spec
	if spec.Primary != "" {
		if s.memory.wantedSince.IsZero() {
			s.memory.wantedSince = s.now
		}
		s.begin("", reason)
	}
	spec.Standby = ""
	s.forgetWait()
	status := metav1.ConditionFalse
	if reason == ReasonEveryNode {
		status = metav1.ConditionTrue
	}
	s.assigned(status, reason, message)
}

// begin starts a new epoch.
func (s *step) begin(primary, cause string) {
	spec := &s.decision.Spec
	spec.Epoch++
	s.decision.Move = &v1alpha1.Move{
		Epoch: spec.Epoch, Cause: cause, From: spec.Primary, To: primary,
		StartedAt: metav1.NewMicroTime(s.memory.wantedSince),
	}
	spec.Primary = primary
}

// cause names why the primary is replaced.
func (s *step) cause(rejected []election.Rejection) string {
	current := s.decision.Spec.Primary
	if current == "" {
		return "NoPrimary"
	}
	if i := slices.IndexFunc(rejected, func(r election.Rejection) bool { return r.Node == current }); i >= 0 {
		return string(rejected[i].Reason)
	}
	return "NodeGone"
}

// assigned sets the condition: true while the service has a primary, whatever is under way.
func (s *step) assigned(status metav1.ConditionStatus, reason, message string) {
	if s.decision.Spec.Primary != "" {
		status = metav1.ConditionTrue
	}
	s.decision.Assigned = metav1.Condition{Type: v1alpha1.ConditionNodeAssigned, Status: status, Reason: reason, Message: message}
}
