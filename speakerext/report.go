// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

const (
	// reportInterval is the shortest time between two writes of the EgressNode; reportShare and longestInterval stretch it where the API
	// server is slow to answer, which it is when many speakers have something to say at once: what comes meanwhile goes into one report,
	// and costs the API server one write instead of many.
	reportInterval  = 200 * time.Millisecond
	reportShare     = 20
	longestInterval = 2 * time.Second
	// maxProblems and maxBehind are the EgressNode CRD's limits.
	maxProblems, maxBehind = 50, 50
)

// SyncReport brings the node's EgressNode up to date, never when it is equal.
func (s *Speaker) SyncReport(ctx context.Context) (time.Duration, error) {
	defer s.loops.enter(reportName, s.Now)()
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if wait := s.reportAfter.Sub(s.Now()); wait > 0 {
		return wait, nil
	}
	all, err := s.follow(ctx)
	if err != nil {
		return 0, err
	}
	report, err := s.ownReport(ctx)
	if err != nil {
		return 0, err
	}
	again := time.Duration(0)
	if err = s.writeReport(ctx, report, all); err == nil && s.BGP != nil && s.ledger.hasSessions() {
		// What says that a service is programmed does not wait for these.
		again, err = s.syncSessionStates(context.WithoutCancel(ctx), report)
	}
	if left := returnTime - s.Now().Sub(s.reportingSince); !s.returned && (again == 0 || left < again) {
		again = max(left, reportInterval)
	}
	return again, err
}

// writeReport writes the EgressNode, unless it is equal.
func (s *Speaker) writeReport(ctx context.Context, report *v1alpha1.EgressNode, all []*followed) error {
	after := report.DeepCopy()
	after.Status = s.status(all)
	after.Status.BGPSessions = s.stillUp(report.Status.BGPSessions, after.Status.BGPSessions)
	if equality.Semantic.DeepEqual(report.Status, after.Status) {
		return nil
	}
	began := s.Now()
	if err := s.Client.Status().Patch(ctx, after, client.MergeFrom(report)); err != nil {
		return fmt.Errorf("write EgressNode %s: %w", s.Node, err)
	}
	s.reportAfter = s.Now().Add(restAfter(s.Now().Sub(began)))
	return nil
}

// returnTime is how long after its start a speaker says of a session that it is as the speaker before it
// left it: with graceful restart the peer keeps the routes, and nothing has to move.
const returnTime = 10 * time.Second

// stillUp are the sessions as they are now, but for those that were up with graceful restart before this
// program began and have not had the time to come back.
func (s *Speaker) stillUp(before, now []v1alpha1.BGPSession) []v1alpha1.BGPSession {
	if s.reportingSince.IsZero() {
		s.reportingSince = s.Now()
	}
	if s.BGP == nil || s.returned || s.Now().Sub(s.reportingSince) >= returnTime {
		s.returned = true
		return now
	}
	waiting := false
	for _, b := range before {
		if b.State != string(bgp.Established) || !b.GracefulRestart {
			continue
		}
		i := slices.IndexFunc(now, func(n v1alpha1.BGPSession) bool { return n.Peer == b.Peer && n.VRF == b.VRF })
		switch {
		case i < 0:
			now = append(now, b)
		case now[i].State == string(bgp.Established):
			continue
		default:
			now[i] = b
		}
		waiting = true
	}
	s.returned = !waiting
	slices.SortFunc(now, func(a, b v1alpha1.BGPSession) int {
		return cmp.Or(cmp.Compare(a.VRF, b.VRF), cmp.Compare(a.Peer, b.Peer))
	})
	return now
}

// restAfter is the time from one report to the next, of which the API server took so long to write the one.
func restAfter(took time.Duration) time.Duration {
	return min(max(reportInterval, reportShare*took), longestInterval)
}

// ownReport reads the node's EgressNode, or makes it.
func (s *Speaker) ownReport(ctx context.Context) (*v1alpha1.EgressNode, error) {
	key := types.NamespacedName{Name: s.Node}
	report, err := get(ctx, s.Client, key, &v1alpha1.EgressNode{})
	if err != nil || report != nil {
		return report, err
	}
	node, err := get(ctx, s.Client, key, &corev1.Node{})
	if err != nil {
		return nil, err
	}
	if node == nil {
		return nil, fmt.Errorf("node %s does not exist", s.Node)
	}
	report = &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: s.Node, OwnerReferences: []metav1.OwnerReference{ownedBy(node)}}}
	if err := s.Client.Create(ctx, report); err != nil {
		return nil, fmt.Errorf("create EgressNode %s: %w", s.Node, err)
	}
	return report, nil
}

// ownedBy makes an object go with the Node.
func ownedBy(node *corev1.Node) metav1.OwnerReference {
	owner := metav1.NewControllerRef(node, corev1.SchemeGroupVersion.WithKind("Node"))
	// Blocking the Node's deletion would take a permission on its finalizers, for nothing.
	owner.BlockOwnerDeletion = nil
	return *owner
}

// status is what this node has to say.
func (s *Speaker) status(all []*followed) v1alpha1.EgressNodeStatus {
	sessions := s.sessions()
	status := v1alpha1.EgressNodeStatus{Version: s.Version, GatewayMode: s.gatewayMode(), Problems: append(s.ledger.allProblems(), sessionProblems(sessions)...)}
	if len(status.Problems) > maxProblems {
		more := len(status.Problems) - maxProblems + 1
		status.Problems = append(status.Problems[:maxProblems-1], fmt.Sprintf("and %d more", more))
	}
	behind := s.ledger.allBehind()
	status.Behind, status.BehindCount = behind[:min(len(behind), maxBehind)], int32(len(behind))
	for _, session := range sessions {
		status.BGPSessions = append(status.BGPSessions, v1alpha1.BGPSession{
			Peer: session.Peer.String(), VRF: session.VRF, State: string(session.State), BFD: string(session.BFD),
			GracefulRestart: session.GracefulRestart, LastError: session.LastError,
		})
	}
	o := s.ledger.offers()
	for _, f := range all {
		if !f.exclusive() {
			continue
		}
		if entry, concerned := s.answer(f, o); concerned {
			status.Services = append(status.Services, entry)
		}
	}
	return status
}

// sessions are the speaker's, none where MetalLB announces itself.
func (s *Speaker) sessions() []bgp.Session {
	if s.BGP == nil {
		return nil
	}
	return s.BGP.Sessions()
}

// answer is this node's entry for one service, when it has a role in it.
func (s *Speaker) answer(f *followed, o offers) (v1alpha1.EgressNodeService, bool) {
	role := f.role(s.Node)
	p, ok := s.ledger.isProgrammed(f.key.String())
	confirmed := ok && f.assignment != nil && p.uid == f.assignment.UID
	if role == "" && confirmed && p.role == v1alpha1.RolePrevious {
		role = v1alpha1.RolePrevious
	}
	if role == "" {
		return v1alpha1.EgressNodeService{}, false
	}
	entry := v1alpha1.EgressNodeService{Key: f.key.String(), UID: f.assignment.UID, ObservedGeneration: f.assignment.Generation, Role: role}
	if confirmed {
		entry.Programmed, entry.ObservedGeneration = true, p.generation
		for _, a := range p.addresses {
			entry.Addresses = append(entry.Addresses, a.String())
		}
	}
	sources := f.sourceIPs()
	every := func(is func(netip.Addr) bool) bool {
		return len(sources) > 0 && !slices.ContainsFunc(sources, func(a netip.Addr) bool { return !is(a) })
	}
	entry.Offered = every(func(a netip.Addr) bool { return o.offered[a] })
	entry.Announced = role == v1alpha1.RolePrimary && s.BGP != nil && every(func(a netip.Addr) bool {
		return o.open[a] && s.BGP.Announced(netip.PrefixFrom(a, a.BitLen()))
	})
	refusal := s.ledger.refusal(entry.Key)
	switch {
	case refusal != "":
		entry.Reason = refusal
	case !entry.Programmed:
		entry.Reason = "the dataplane is not programmed yet"
	case s.BGP == nil:
	case role == v1alpha1.RolePrimary && !entry.Offered:
		entry.Reason = "MetalLB has not handed this node the route yet"
	case role == v1alpha1.RolePrimary && !entry.Announced:
		entry.Reason = "no established BGP session has been sent the route yet"
	}
	return entry, true
}
