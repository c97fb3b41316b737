// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Node is what the election knows of one node.
type Node struct {
	Name   string
	Labels labels.Set
	// Zone is the value of topology.kubernetes.io/zone, or empty.
	Zone string
	// Networks are the tables and VRFs that the node reports.
	Networks []string
	// Ready is the node's Ready condition.
	Ready bool
	// Deleting is true once the Node object has a deletion timestamp.
	Deleting bool
	// NetworkUnavailable is the node's NetworkUnavailable condition.
	NetworkUnavailable bool
	// Excluded is true with the label node.kubernetes.io/exclude-from-external-load-balancers:
	// MetalLB announces nothing from such a node.
	Excluded bool
	// Cordoned is spec.unschedulable.
	Cordoned bool
	// Reporting is true when the node's egress-speaker has reported an EgressNode. Without one
	// nothing is known of Networks and SharedGateway.
	Reporting bool
	// SharedGateway is true when the node reports OVN-Kubernetes' shared gateway mode, in which
	// it can't serve.
	SharedGateway bool
	// Silent is true once the lease of the node's speaker has expired: it is not chosen while
	// another can be.
	Silent bool
	// Lost is true once the speaker is silent for so long that its routes are gone as well (its
	// graceful restart is over): it is replaced.
	Lost bool
	// SessionEstablished is true while one of the node's BGP sessions is. It only breaks ties
	// between nodes to be chosen.
	SessionEstablished bool
	// SessionHeld is SessionEstablished with hold-downs applied. Its loss moves services.
	SessionHeld bool
}

// Service is what the election knows of one service, or of services that are elected as one.
type Service struct {
	// Key is <namespace>/<name>, of a group that of its oldest member. It breaks ties.
	Key string
	// Selectors must all match, one for each member that has one. None matches every node.
	Selectors []labels.Selector
	// LocalNodes, when not nil, are the nodes (by node name) with a serving endpoint of services
	// whose externalTrafficPolicy is Local: no other node may be elected.
	LocalNodes map[string]bool
	// Networks are spec.network of the members: the node must have them all.
	Networks []string
	// Primary and Standby are the nodes in force, or empty.
	Primary, Standby string
	// Avoid are nodes to take only when there is no other: they did not acknowledge lately.
	Avoid map[string]bool
}

// Result is the outcome: empty names where no node fits.
type Result struct {
	Primary, Standby string
	// Cause says why Primary differs from a Service.Primary that is not empty.
	Cause Reason
}

// Electorate is one snapshot of the nodes, prepared for many elections. It is not for concurrent use.
type Electorate struct {
	all   []candidate // ordered by name
	named map[string]*candidate
	// open are those whom nothing but a service's own wishes can keep from being chosen, best
	// first as far as no service is concerned.
	open []*candidate
}

// New prepares a snapshot of nodes, whose names differ. Their load is 0.
func New(nodes []Node) *Electorate {
	e := &Electorate{all: make([]candidate, len(nodes)), named: make(map[string]*candidate, len(nodes))}
	for i, node := range nodes {
		e.all[i] = candidate{Node: node, broken: broken(node), order: orderOf(node), hash: hash(node.Name)}
	}
	slices.SortFunc(e.all, func(a, b candidate) int { return cmp.Compare(a.Name, b.Name) })
	for i := range e.all {
		node := &e.all[i]
		e.named[node.Name] = node
		if node.broken == "" && node.Reporting && !node.SharedGateway {
			e.open = append(e.open, node)
		}
	}
	slices.SortStableFunc(e.open, func(a, b *candidate) int { return cmp.Compare(a.order, b.order) })
	return e
}

// Add counts services of which a node is, or is about to be, primary. A negative number takes them
// away again. A node that is not in the snapshot is ignored.
func (e *Electorate) Add(node string, services int) {
	if n := e.named[node]; n != nil {
		n.load += services
	}
}

// Elect chooses for one service. It leaves the load as it is.
func (e *Electorate) Elect(s Service) Result {
	primary, cause := e.primary(&s)
	if primary == nil {
		return Result{Cause: cause}
	}
	result := Result{Primary: primary.Name, Cause: cause}
	if standby := e.standby(&s, primary); standby != nil {
		result.Standby = standby.Name
	}
	return result
}

// primary is the node to serve, or nil, and why it is not the one in force.
func (e *Electorate) primary(s *Service) (*candidate, Reason) {
	follows := seat{Service: s, below: anyRank, evenAvoided: true}
	if standby := e.named[s.Standby]; standby != nil && standby.reject(s, false) == "" {
		follows.claimed = standby
	}
	if s.Primary == "" {
		return e.fill(follows), ""
	}
	old := e.named[s.Primary]
	if old == nil {
		return e.fill(follows), NodeGone
	}
	if reason := old.reject(s, true); reason != "" {
		return e.fill(follows), reason
	}
	own := old.servingRank()
	follows.below, follows.evenAvoided = own, false
	if better := e.fill(follows); better != nil {
		return better, advantage(better.rank(), own)
	}
	return old, ""
}

// standby is the node to be ready beside a primary, or nil.
func (e *Electorate) standby(s *Service, primary *candidate) *candidate {
	beside := seat{Service: s, below: anyRank, evenAvoided: true, beside: primary}
	if held := e.named[s.Standby]; held != nil && held != primary && held.reject(s, true) == "" {
		beside.claimed = held
	}
	return e.fill(beside)
}
