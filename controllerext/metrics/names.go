// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"slices"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

// Other stands for a word that is not in the list which a label is bounded by. Seeing it means that a
// list in this package lacks a word.
const Other = "Other"

// Phases of egress_service_gate_wait_seconds.
const (
	// PhaseDataplane is from when a node is first wanted as primary until it has acknowledged that it
	// programmed the service, and is promoted.
	PhaseDataplane = "dataplane"
	// PhaseAnnounce is from the promotion until the node reports the LoadBalancer IP as sent.
	PhaseAnnounce = "announce"
)

// words is the list of values that one label can have.
type words []string

// bound returns the word itself where it is in the list, and Other where it is not.
func (w words) bound(word string) string {
	if slices.Contains(w, word) {
		return word
	}
	return Other
}

var phases = words{PhaseDataplane, PhaseAnnounce}

var conditionTypes = words{
	v1alpha1.ConditionNodeAssigned, v1alpha1.ConditionDataplaneReady, v1alpha1.ConditionAnnounced,
	v1alpha1.ConditionAdvertisementsConsistent, v1alpha1.ConditionReady, v1alpha1.ConditionRepliesDiverted,
}

// unassignedReasons are the reasons of NodeAssigned with which a service can be without a host.
var unassignedReasons = words{
	v1alpha1.ReasonMoving, v1alpha1.ReasonReplacementNotOffered, v1alpha1.ReasonMostSpeakersSilent,
	v1alpha1.ReasonWaitingForStandby, v1alpha1.ReasonStandbySilent, v1alpha1.ReasonNoEligibleNode,
	v1alpha1.ReasonNoEndpoints, v1alpha1.ReasonServiceNotFound, v1alpha1.ReasonNotLoadBalancer,
	v1alpha1.ReasonNoLoadBalancerIP, v1alpha1.ReasonInvalidNodeSelector, v1alpha1.ReasonNameCollision,
	v1alpha1.ReasonSharedAddressConflict, v1alpha1.ReasonDecisionNotWritten,
	// The node is elected, but its label could not be written.
	v1alpha1.ReasonNodeNotLabeled,
}

// electionReasons are why the election rejects a node, or moves a service away from it.
var electionReasons = words{
	string(election.NotReady), string(election.Deleting), string(election.NetworkUnavailable),
	string(election.Excluded), string(election.SelectorMismatch), string(election.NoLocalEndpoint),
	string(election.SpeakerNotReported), string(election.NetworkMissing), string(election.SharedGatewayMode),
	string(election.NodeGone), string(election.SpeakerSilent), string(election.NoBGPSession), string(election.Cordoned),
}

// moveCauses are the values of status.lastMove.cause.
var moveCauses = slices.Concat(words{v1alpha1.CauseFirstAssignment, v1alpha1.CauseUnrecorded, v1alpha1.CauseSharedAddress}, unassignedReasons, electionReasons)
