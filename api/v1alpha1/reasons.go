// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types of an EgressAssignment, which an EgressService has too where this project's CRD is
// installed.
const (
	// ConditionNodeAssigned is true while the service has a primary, or needs none.
	ConditionNodeAssigned = "NodeAssigned"
	// ConditionDataplaneReady is true while the primary, and every node with endpoints, has
	// programmed the service.
	ConditionDataplaneReady = "DataplaneReady"
	// ConditionAnnounced is true while the primary reports the LoadBalancer IP as sent.
	ConditionAnnounced = "Announced"
	// ConditionAdvertisementsConsistent is true while the BGPAdvertisements of ours are in
	// place, the Service has the label that they select, and nothing else makes MetalLB announce the service from another node.
	ConditionAdvertisementsConsistent = "AdvertisementsConsistent"
	// ConditionReady is true while all of the above are. Its reason is the first one's that is not.
	ConditionReady = "Ready"
	// ConditionRepliesDiverted is there, and true, only while another Service of type NodePort or
	// LoadBalancer with externalTrafficPolicy Local has the same pods: their replies to its clients
	// leave through this service's primary. It does not count for Ready.
	ConditionRepliesDiverted = "RepliesDiverted"
)

// Reasons of NodeAssigned. Those that say why no node is assigned are the reasons of the event about
// it, too.
const (
	// ReasonAssigned: the service has a primary.
	ReasonAssigned = "Assigned"
	// ReasonEveryNode: sourceIPBy is Network, no node is elected.
	ReasonEveryNode = "EveryNode"
	// ReasonMoving: another node is to take over, and is waited for; the primary goes on meanwhile.
	ReasonMoving = "Moving"
	// ReasonReplacementNotOffered: another node is to take over, but MetalLB offers it no route:
	// the primary stays.
	ReasonReplacementNotOffered = "ReplacementNotOffered"
	// ReasonMostSpeakersSilent: more than half of the speakers stopped renewing their leases at
	// once, which is not taken for the nodes' failure: primaries stay.
	ReasonMostSpeakersSilent = "MostSpeakersSilent"
	// ReasonWaitingForStandby: no primary yet; the standby has not acknowledged.
	ReasonWaitingForStandby = "WaitingForStandby"
	// ReasonStandbySilent: no primary; the standby did not acknowledge in time, and no other node
	// can be tried before the back-off ends.
	ReasonStandbySilent = "StandbySilent"
	// ReasonNoEligibleNode: no node meets the criteria; the message counts them per reason.
	ReasonNoEligibleNode = "NoEligibleNode"
	// ReasonNoEndpoints: a first assignment waits for an endpoint on the pod network.
	ReasonNoEndpoints = "NoEndpoints"
	// ReasonServiceNotFound: there is no Service of this name.
	ReasonServiceNotFound = "ServiceNotFound"
	// ReasonNotLoadBalancer: the Service is not of type LoadBalancer.
	ReasonNotLoadBalancer = "NotLoadBalancer"
	// ReasonNoLoadBalancerIP: the Service has no LoadBalancer IP.
	ReasonNoLoadBalancerIP = "NoLoadBalancerIP"
	// ReasonInvalidNodeSelector: spec.nodeSelector can't be parsed.
	ReasonInvalidNodeSelector = "InvalidNodeSelector"
	// ReasonSharedAddressConflict: what it demands leaves no node for older services that share its
	// LoadBalancer IP, or would move them.
	ReasonSharedAddressConflict = "SharedAddressConflict"
	// ReasonDecisionNotWritten, with status Unknown: the EgressAssignment could not be written; the
	// decision before it, if any, is in force.
	ReasonDecisionNotWritten = "DecisionNotWritten"
	// ReasonNameCollision: the digest of the service's name equals another service's.
	ReasonNameCollision = "NameCollision"
)

// Reasons of a move: of status.lastMove.cause, of the event, and of the metric about it. The reasons
// of NodeAssigned that leave a service without a node, and the election's reasons for rejecting one,
// are causes too.
const (
	// CauseFirstAssignment: the service had no primary.
	CauseFirstAssignment = "FirstAssignment"
	// CauseUnrecorded: the controller that made the move ended before it could tell why. Such a move has no duration, and startedAt is
	// when the next controller found it.
	CauseUnrecorded = "Unrecorded"
	// CauseSharedAddress: another service with the same LoadBalancer IP has its primary elsewhere.
	CauseSharedAddress = "SharedAddress"
)

// Reasons of DataplaneReady.
const (
	// ReasonProgrammed: the primary has programmed this generation, and no node with endpoints
	// reports a failure. With sourceIPBy Network: every node with endpoints has what it needs.
	ReasonProgrammed = "Programmed"
	// ReasonNoPrimary: there is no primary. Also of Announced.
	ReasonNoPrimary = "NoPrimary"
	// ReasonWaitingForPrimary: the primary has not reported this generation as programmed.
	ReasonWaitingForPrimary = "WaitingForPrimary"
	// ReasonNodesBehind: nodes with endpoints report that they could not follow; the message names them.
	ReasonNodesBehind = "NodesBehind"
	// ReasonSpeakerSilent, with status Unknown: the primary's speaker has stopped renewing its lease.
	// Also of Announced.
	ReasonSpeakerSilent = "SpeakerSilent"
	// ReasonEndpointConflict: pods belong to an older EgressService too, which keeps them.
	ReasonEndpointConflict = "EndpointConflict"
	// ReasonNodesNotCapable: sourceIPBy is Network, and nodes with endpoints lack what it needs; the
	// message names them.
	ReasonNodesNotCapable = "NodesNotCapable"
)

// Reasons of Announced.
const (
	// ReasonAnnounced: the primary has sent the route.
	ReasonAnnounced = "Announced"
	// ReasonNodeNotLabeled: the primary's label could not be written.
	ReasonNodeNotLabeled = "NodeNotLabeled"
	// ReasonNotOffered: MetalLB has not handed the primary the route.
	ReasonNotOffered = "NotOffered"
	// ReasonNotAnnounced: no established session of the primary has been sent the route.
	ReasonNotAnnounced = "NotAnnounced"
	// ReasonNoServingEndpoints: no endpoint is serving, so MetalLB withdraws the address, and replies
	// have no way back.
	ReasonNoServingEndpoints = "NoServingEndpoints"
)

// Reasons of AdvertisementsConsistent.
const (
	// ReasonConfigured: the advertisement is in place.
	ReasonConfigured = "Configured"
	// ReasonNothingToAnnounce: the Service has no address to announce.
	ReasonNothingToAnnounce = "NothingToAnnounce"
	// ReasonPoolUnknown: MetalLB has not said which IPAddressPool the address is from.
	ReasonPoolUnknown = "PoolUnknown"
	// ReasonWriteFailed: MetalLB's objects or the Service's label could not be written.
	ReasonWriteFailed = "WriteFailed"
	// ReasonServiceSelectorsMissing: the installed MetalLB is older than v0.16 and can't confine an advertisement to one service.
	ReasonServiceSelectorsMissing = "ServiceSelectorsMissing"
	// ReasonAddressNotInPool: MetalLB does not announce the address, which is not of the pool that it is said to be from.
	ReasonAddressNotInPool = "AddressNotInPool"
	// ReasonPoolLacksFamily: the Service is dual-stack, its pool is not.
	ReasonPoolLacksFamily = "PoolLacksFamily"
	// ReasonOtherAdvertisement: another BGPAdvertisement announces the service from other nodes.
	ReasonOtherAdvertisement = "OtherAdvertisement"
	// ReasonNodeSelectorsMisspelt: another BGPAdvertisement was written with nodeSelector, which was dropped, and announces it from every node.
	ReasonNodeSelectorsMisspelt = "NodeSelectorsMisspelt"
	// ReasonL2Advertisement: an L2Advertisement announces the service too.
	ReasonL2Advertisement = "L2Advertisement"
	// ReasonAggregateAdvertised: other nodes announce a prefix with the address in it.
	ReasonAggregateAdvertised = "AggregateAdvertised"
	// ReasonSharedWithOrdinaryService: a Service that is no egress service has the address too, and is announced from other nodes.
	ReasonSharedWithOrdinaryService = "SharedWithOrdinaryService"
	// ReasonNoBGPPeer: the primary has no BGPPeer to announce the service to.
	ReasonNoBGPPeer = "NoBGPPeer"
	// ReasonNodeExcluded: the primary is excluded from external load balancers.
	ReasonNodeExcluded = "NodeExcluded"
	// ReasonNotAdvertised: no BGPAdvertisement announces the service from the primary.
	ReasonNotAdvertised = "NotAdvertised"
	// ReasonConflictingAttributes: BGPAdvertisements of others contradict one another for the same peers.
	ReasonConflictingAttributes = "ConflictingAttributes"
	// ReasonPeersNotInNetwork: spec.network is a VRF that no BGPPeer is in.
	ReasonPeersNotInNetwork = "PeersNotInNetwork"
	// ReasonSelectsMissingLabel: a BGPAdvertisement waits for a Node label that a service of sourceIPBy Network never gets.
	ReasonSelectsMissingLabel = "SelectsMissingLabel"
	// ReasonAnnouncedElsewhere: MetalLB says that it announces the service by BGP from another node.
	ReasonAnnouncedElsewhere = "AnnouncedElsewhere"
	// ReasonL2AnnouncedElsewhere: MetalLB says that it announces the service by layer 2 from another node.
	ReasonL2AnnouncedElsewhere = "L2AnnouncedElsewhere"
	// ReasonConfigurationInvalid: MetalLB's speaker on the primary has found its configuration not valid.
	ReasonConfigurationInvalid = "ConfigurationInvalid"
)

// ReasonReady is the reason of Ready.
const ReasonReady = "Ready"

// ReasonSharedEndpoints is the reason of RepliesDiverted.
const ReasonSharedEndpoints = "SharedEndpoints"

// Reasons of events, on both the EgressService and the Service, beside those of conditions that are
// not true.
const (
	// EventAssigned: a service without a primary got one.
	EventAssigned = "EgressNodeAssigned"
	// EventMoved: a move is complete: the new primary announces.
	EventMoved = "EgressNodeMoved"
)
