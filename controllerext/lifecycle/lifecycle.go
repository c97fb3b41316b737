// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
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
}

// Idle says why a service takes part in no election now, or is empty.
func Idle(s Service) (reason, message string) {
	switch {
	case s.Blocked != "":
		return s.Blocked, s.BlockedMessage
	case s.Want.SourceIPBy == "Network":
		return v1alpha1.ReasonEveryNode, "sourceIPBy is Network: every node handles its own endpoints"
	case !s.HasEndpoints && (s.Assignment == nil || s.Assignment.Spec.Primary == ""):
		return v1alpha1.ReasonNoEndpoints, "the Service has no endpoint on the pod network yet"
	}
	return "", ""
}

// Group is what is decided as one: a service that is Idle, alone, or services that are not and
// share LoadBalancer IPs, which can be announced from one node only.
type Group struct {
	// Members, oldest first, at least one.
	Members []Service
	// Live says whether a node can be expected to still announce.
	Live func(node string) bool
	// Silent says whether a node's speaker has stopped renewing its lease.
	Silent func(node string) bool
	// MostSilent is true while most speakers are, which is not held against them.
	MostSilent bool
	// Unguarded is true where MetalLB announces by itself: it offers a node nothing before the public label is there, which the promotion
	// sets.
	Unguarded bool
	// Elect runs the election for the members together.
	Elect func(primary, standby string, avoid map[string]bool) election.Result
	// Rejected says how many nodes are not eligible for which reasons.
	Rejected func() string
}

// Decision is the outcome for one member.
type Decision struct {
	// Spec is what the assignment's spec has to be.
	Spec v1alpha1.EgressAssignmentSpec
	// Move is set when Spec begins a new epoch.
	Move *v1alpha1.Move
	// Assigned is the NodeAssigned condition (type, status, reason, message).
	Assigned metav1.Condition
}

// Decide is one step of the sequence: write the standby, wait for its acknowledgement, promote
// it. The decisions are in the members' order; again is when to decide again though nothing
// happened, 0 is never.
func Decide(now time.Time, group Group, memory Memory) (decisions []Decision, again time.Duration, after Memory) {
	s := &step{now: now, Group: group, memory: memory.copy(), decisions: make([]Decision, len(group.Members))}
	for i, m := range group.Members {
		spec := m.Want
		if a := m.Assignment; a != nil {
			spec.Epoch, spec.Primary, spec.Standby, spec.LabelKey = a.Spec.Epoch, a.Spec.Primary, a.Spec.Standby, a.Spec.LabelKey
		}
		s.decisions[i].Spec = spec
	}
	s.endRests()
	s.decide()
	return s.decisions, s.again, s.memory
}

// step holds one call of Decide.
type step struct {
	Group
	now       time.Time
	memory    Memory
	decisions []Decision
	again     time.Duration
}

func (s *step) decide() {
	if reason, message := Idle(s.Members[0]); reason != "" {
		s.releaseAll(reason, message)
		return
	}
	primary, standby := s.inForce()
	elected := s.Elect(primary, standby, s.avoid())
	switch elected.Primary {
	case "":
		s.releaseAll(v1alpha1.ReasonNoEligibleNode, "no node is eligible: "+s.Rejected())
	case primary:
		s.stay(primary, elected.Standby)
	default:
		s.replace(primary, standby, elected)
	}
}

// inForce are the nodes that serve the group: those of the oldest member that has a primary,
// else of the oldest that has a standby.
func (s *step) inForce() (primary, standby string) {
	for _, d := range s.decisions {
		if d.Spec.Primary != "" {
			return d.Spec.Primary, d.Spec.Standby
		}
		if standby == "" {
			standby = d.Spec.Standby
		}
	}
	return "", standby
}

// stay keeps the primary. Members that are not there yet follow.
func (s *step) stay(primary, standby string) {
	s.memory.endWait()
	standby = s.watchStandby(primary, standby)
	for i := range s.decisions {
		if s.decisions[i].Spec.Primary == primary {
			s.settle(i, standby)
		} else {
			s.follow(i, primary, standby)
		}
	}
}

// watchStandby gives a standby that does not acknowledge in time a rest, and returns the next one:
// a failover must not find out that the standby is unfit.
func (s *step) watchStandby(primary, standby string) string {
	if standby == "" || s.allAcknowledged(primary, standby) {
		s.memory.standby = ""
		return standby
	}
	if s.memory.standby != standby {
		s.memory.standby, s.memory.standbySince = standby, s.now
	}
	if left := AcknowledgeTimeout - s.now.Sub(s.memory.standbySince); left > 0 {
		s.lookAgain(left)
		return standby
	}
	s.giveRest(standby)
	s.memory.standby = ""
	s.lookAgain(s.firstRestEnds())
	return s.Elect(primary, standby, s.avoid()).Standby
}

// follow brings a member to the node that the group is on: it becomes the standby there, and
// primary once it is acknowledged. A primary elsewhere is given up beforehand only where it holds an
// address of another member's, which would be announced from nowhere else meanwhile.
func (s *step) follow(i int, primary, standby string) {
	since := s.want(s.Members[i].Key)
	spec := &s.decisions[i].Spec
	if s.acknowledged(i, primary) {
		s.begin(i, primary, v1alpha1.CauseSharedAddress)
		s.settle(i, standby)
		return
	}
	if spec.Primary != "" && s.claimedElsewhere(i) {
		s.begin(i, "", v1alpha1.CauseSharedAddress)
	}
	spec.Standby = primary
	// No other node will do: it is asked for a while, let go for a while, and asked again.
	asked := s.now.Sub(since) % (AcknowledgeTimeout + RestMin)
	if asked < AcknowledgeTimeout {
		s.lookAgain(AcknowledgeTimeout - asked)
		s.assigned(i, v1alpha1.ReasonWaitingForStandby, "waiting for node "+primary+", which has the shared address, to program the service")
		return
	}
	s.lookAgain(AcknowledgeTimeout + RestMin - asked)
	s.letGo(i)
	s.assigned(i, v1alpha1.ReasonStandbySilent, "node "+primary+", which has the shared address, has not acknowledged in time: it will be asked again")
}

// claimedElsewhere is true when a member on another node has one of the member's addresses.
func (s *step) claimedElsewhere(i int) bool {
	own := s.decisions[i].Spec
	return slices.ContainsFunc(s.decisions, func(d Decision) bool {
		return d.Spec.Primary != "" && d.Spec.Primary != own.Primary &&
			slices.ContainsFunc(d.Spec.SourceIPs, func(ip string) bool { return slices.Contains(own.SourceIPs, ip) })
	})
}

// replace moves the group to the elected node once that has acknowledged every member that is on the
// old one. The others follow the group wherever it is.
func (s *step) replace(primary, standby string, elected election.Result) {
	for i := range s.decisions {
		s.want(s.Members[i].Key)
	}
	chosen, ready := s.waitFor(primary, standby, elected)
	if !ready || s.mustBeOffered(primary, chosen.Primary) {
		for i := range s.decisions {
			if primary != "" && s.decisions[i].Spec.Primary != primary {
				s.follow(i, primary, chosen.Primary)
			}
		}
		return
	}
	s.memory.forgive(chosen.Primary)
	s.memory.endWait()
	next := s.Elect(chosen.Primary, "", s.avoid()).Standby
	cause := string(chosen.Cause)
	if primary == "" {
		cause = v1alpha1.CauseFirstAssignment
	}
	for i := range s.decisions {
		switch s.decisions[i].Spec.Primary {
		case chosen.Primary:
		case primary:
			s.begin(i, chosen.Primary, cause)
		default:
			s.follow(i, chosen.Primary, next)
			continue
		}
		s.settle(i, next)
	}
}

// waitFor makes a node the standby of all members and says whether it has been acknowledged. After
// AcknowledgeTimeout it is another node's turn.
func (s *step) waitFor(primary, standby string, elected election.Result) (chosen election.Result, ready bool) {
	if s.memory.waitingFor != elected.Primary {
		s.memory.beginWait(elected.Primary, s.now)
	}
	if s.offerStandby(primary, elected.Primary) {
		return elected, true
	}
	if s.resting(elected.Primary) {
		s.memory.endWait()
		s.keepAsking(elected.Primary)
		return elected, false
	}
	if left := AcknowledgeTimeout - s.now.Sub(s.memory.waitingSince); left > 0 {
		s.lookAgain(left)
		s.assignedAll(v1alpha1.ReasonWaitingForStandby, "waiting for node "+elected.Primary+" to program the service")
		return elected, false
	}
	s.giveRest(elected.Primary)
	s.memory.endWait()
	other := s.Elect(primary, standby, s.avoid())
	if other.Primary == elected.Primary || other.Primary == primary {
		s.keepAsking(elected.Primary)
		return elected, false
	}
	s.memory.beginWait(other.Primary, s.now)
	s.lookAgain(AcknowledgeTimeout)
	ready = s.offerStandby(primary, other.Primary)
	s.assignedAll(v1alpha1.ReasonWaitingForStandby,
		"node "+elected.Primary+" did not acknowledge in time; waiting for node "+other.Primary+" instead")
	return other, ready
}

// offerStandby makes a node the standby of every member that is not there already, and says
// whether all that are on the old primary have been acknowledged.
func (s *step) offerStandby(primary, node string) bool {
	for i := range s.decisions {
		if spec := &s.decisions[i].Spec; spec.Primary != node {
			spec.Standby = node
		}
	}
	return s.allAcknowledged(primary, node)
}

// allAcknowledged is true when a node has acknowledged every member that is on the primary.
func (s *step) allAcknowledged(primary, node string) bool {
	for i := range s.decisions {
		if s.decisions[i].Spec.Primary == primary && !s.acknowledged(i, node) {
			return false
		}
	}
	return true
}

// keepAsking is what happens while no node acknowledges: it is asked again when the rest is over.
func (s *step) keepAsking(node string) {
	for i := range s.decisions {
		s.letGo(i)
	}
	s.lookAgain(s.firstRestEnds())
	s.assignedAll(v1alpha1.ReasonStandbySilent, "node "+node+" has not acknowledged in time, and there is no other node to try: it will be asked again")
}

// letGo takes the standby from a service without a primary, under the policy Open: its pods' traffic
// is not dropped meanwhile.
func (s *step) letGo(i int) {
	if spec := &s.decisions[i].Spec; spec.Primary == "" && spec.FailurePolicy == v1alpha1.FailOpen {
		spec.Standby = ""
	}
}

// acknowledged is true when the node, as standby of the assignment as it stands, has
// programmed what is wanted now.
func (s *step) acknowledged(i int, node string) bool {
	a, want := s.Members[i].Assignment, s.decisions[i].Spec
	return a != nil && a.Spec.Standby == node && Programmed(a, s.Members[i].Reports[node]) &&
		slices.Equal(a.Spec.SourceIPs, want.SourceIPs) && a.Spec.Network == want.Network && a.Spec.SourceIPBy == want.SourceIPBy
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
func (s *step) mustBeOffered(current, candidate string) bool {
	if s.Unguarded || current == "" || !s.Live(current) || !slices.ContainsFunc(s.Members, func(m Service) bool {
		return m.Reports[current].Announced && !m.Reports[candidate].Offered
	}) {
		return false
	}
	if s.memory.unofferedSince.IsZero() {
		s.memory.unofferedSince = s.now
		if s.saidBefore(v1alpha1.ReasonReplacementNotOffered) {
			s.memory.unofferedSince = s.now.Add(-OfferTimeout)
		}
	}
	if left := OfferTimeout - s.now.Sub(s.memory.unofferedSince); left > 0 {
		s.lookAgain(left)
		s.assignedAll(v1alpha1.ReasonMoving, "node "+current+"; node "+candidate+" takes over once MetalLB offers it the route")
		return true
	}
	s.assignedAll(v1alpha1.ReasonReplacementNotOffered,
		"node "+current+" should be replaced by node "+candidate+", to which MetalLB offers no route: staying, so that the address stays reachable")
	return true
}

// saidBefore is true when the condition in force has the reason: after a restart of the controller
// the wait that led to it is not waited again.
func (s *step) saidBefore(reason string) bool {
	return slices.ContainsFunc(s.Members, func(m Service) bool {
		if m.Assignment == nil {
			return false
		}
		condition := meta.FindStatusCondition(m.Assignment.Status.Conditions, v1alpha1.ConditionNodeAssigned)
		return condition != nil && condition.Reason == reason
	})
}

// releaseAll leaves every member without a node.
func (s *step) releaseAll(reason, message string) {
	s.memory.endWait()
	for i := range s.decisions {
		spec := &s.decisions[i].Spec
		if spec.Primary != "" {
			s.begin(i, "", reason)
		}
		spec.Standby = ""
		delete(s.memory.wantedSince, s.Members[i].Key)
		s.assigned(i, reason, message)
		if reason == v1alpha1.ReasonEveryNode {
			s.decisions[i].Assigned.Status = metav1.ConditionTrue
		}
	}
}

// begin starts a new epoch.
func (s *step) begin(i int, primary, cause string) {
	spec := &s.decisions[i].Spec
	spec.Epoch++
	s.decisions[i].Move = &v1alpha1.Move{
		Epoch: spec.Epoch, Cause: cause, From: spec.Primary, To: primary,
		StartedAt: metav1.NewMicroTime(s.want(s.Members[i].Key)),
	}
	spec.Primary = primary
}

// settle is the end of a member's way: it has its primary.
func (s *step) settle(i int, standby string) {
	delete(s.memory.wantedSince, s.Members[i].Key)
	spec := &s.decisions[i].Spec
	spec.Standby = standby
	if s.MostSilent {
		s.assigned(i, v1alpha1.ReasonMostSpeakersSilent, "node "+spec.Primary+"; most speakers have stopped renewing their leases at once: nothing is moved for that")
		return
	}
	message := "node " + spec.Primary
	if standby != "" && s.resting(standby) {
		message += "; standby " + standby + " has not acknowledged in time"
	}
	s.assigned(i, v1alpha1.ReasonAssigned, message)
}

func (s *step) assignedAll(reason, message string) {
	for i := range s.decisions {
		s.assigned(i, reason, message)
	}
}

// assigned sets the condition: true while the service has a primary, whatever is under way.
func (s *step) assigned(i int, reason, message string) {
	status := metav1.ConditionFalse
	if primary := s.decisions[i].Spec.Primary; primary != "" {
		status = metav1.ConditionTrue
		if reason == v1alpha1.ReasonWaitingForStandby || reason == v1alpha1.ReasonStandbySilent {
			reason, message = v1alpha1.ReasonMoving, "node "+primary+", to be replaced: "+message
		}
	}
	s.decisions[i].Assigned = metav1.Condition{Type: v1alpha1.ConditionNodeAssigned, Status: status, Reason: reason, Message: message}
}

func (s *step) lookAgain(after time.Duration) {
	if after > 0 && (s.again == 0 || after < s.again) {
		s.again = after
	}
}
