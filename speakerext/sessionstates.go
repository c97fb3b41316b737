// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

// SessionStateNodeLabel has the node's name as value. It and the two labels below are frr-k8s', by
// which its users look for BGPSessionStates.
const (
	SessionStateNodeLabel = "frrk8s.metallb.io/node"
	sessionStatePeerLabel = "frrk8s.metallb.io/peer"
	sessionStateVRFLabel  = "frrk8s.metallb.io/vrf"
)

const (
	// sessionStatesInterval is the shortest time from one writing of BGPSessionStates to the next: a
	// session that flaps must not keep the API server busy. While writes fail it doubles, up to
	// longestStatesInterval.
	sessionStatesInterval = time.Second
	longestStatesInterval = time.Minute
	// noBFD is frr-k8s' word.
	noBFD = "N/A"
)

// syncSessionStates brings the node's BGPSessionStates up to date: one per session, as frr-k8s has
// them. They go with the speaker's pod, or without one with the EgressNode. Those that frr-k8s itself has
// made are left alone. Writes that fail are a problem of the node's, and hold up nothing.
func (s *Speaker) syncSessionStates(ctx context.Context, report *v1alpha1.EgressNode) (again time.Duration, err error) {
	owner, err := s.sessionStateOwner(ctx, report)
	if err != nil {
		return 0, err
	}
	var there frrk8sv1beta1.BGPSessionStateList
	if err := s.list(ctx, &there, client.InNamespace(s.FRRNamespace), client.MatchingLabels{SessionStateNodeLabel: s.Node}); err != nil {
		return 0, err
	}
	wanted := map[string]*frrk8sv1beta1.BGPSessionState{}
	for _, session := range s.BGP.Sessions() {
		state := s.sessionState(session, owner)
		wanted[state.Name] = state
	}
	var writes []func() error
	write := func(verb, name string, call func() error) {
		writes = append(writes, func() error {
			if err := call(); err != nil {
				return fmt.Errorf("%s BGPSessionState %s: %w", verb, name, err)
			}
			return nil
		})
	}
	for i := range there.Items {
		old := &there.Items[i]
		want, ok := wanted[old.Name]
		if !ok && !s.ownState(old.Name) {
			continue
		}
		if !ok {
			write("delete", old.Name, func() error { return client.IgnoreNotFound(s.Client.Delete(ctx, old.DeepCopy())) })
			continue
		}
		delete(wanted, old.Name)
		next := old.DeepCopy()
		next.Labels, next.OwnerReferences = want.Labels, want.OwnerReferences
		if !equality.Semantic.DeepEqual(old.ObjectMeta, next.ObjectMeta) {
			write("patch", old.Name, func() error { return s.Client.Patch(ctx, next.DeepCopy(), client.MergeFrom(old)) })
		}
		if old.Status != want.Status {
			write("patch the status of", old.Name, func() error { return s.writeState(ctx, old.DeepCopy(), want.Status) })
		}
	}
	for name, want := range wanted {
		write("create", name, func() error {
			made := want.DeepCopy()
			if err := s.Client.Create(ctx, made); err != nil {
				// What the cache does not have yet will be there next time.
				return client.IgnoreAlreadyExists(err)
			}
			return s.writeState(ctx, made, want.Status)
		})
	}
	if len(writes) == 0 {
		return 0, nil
	}
	if wait := s.statesAfter.Sub(s.Now()); wait > 0 {
		return wait, nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	var errs []error
	for _, call := range writes {
		errs = append(errs, call())
	}
	err = errors.Join(errs...)
	if err == nil {
		s.statesInterval = sessionStatesInterval
	} else {
		s.statesInterval = min(max(2*s.statesInterval, sessionStatesInterval), longestStatesInterval)
		again = s.statesInterval
	}
	s.statesAfter = s.Now().Add(s.statesInterval)
	s.ledger.setFailure("BGPSessionStates", err)
	return again, nil
}

// writeState writes the status of an object, whose own is what the API server has.
func (s *Speaker) writeState(ctx context.Context, object *frrk8sv1beta1.BGPSessionState, status frrk8sv1beta1.BGPSessionStateStatus) error {
	before := object.DeepCopy()
	object.Status = status
	return s.Client.Status().Patch(ctx, object, client.MergeFrom(before))
}

// ownState tells the names of our objects from those of frr-k8s, whose suffix is shorter.
func (s *Speaker) ownState(name string) bool {
	suffix, ok := strings.CutPrefix(name, fmt.Sprintf("%.236s-", s.Node))
	return ok && len(suffix) == 16
}

// sessionStateOwner is the speaker's pod, or without one the report.
func (s *Speaker) sessionStateOwner(ctx context.Context, report *v1alpha1.EgressNode) (metav1.OwnerReference, error) {
	if s.Pod != "" {
		pod, err := get(ctx, s.Client, types.NamespacedName{Namespace: s.FRRNamespace, Name: s.Pod}, &corev1.Pod{})
		if err != nil {
			return metav1.OwnerReference{}, err
		}
		if pod != nil {
			return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}, nil
		}
	}
	return metav1.OwnerReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "EgressNode", Name: report.Name, UID: report.UID}, nil
}

// sessionState is the object of a session. Its name is the same after a restart.
func (s *Speaker) sessionState(session bgp.Session, owner metav1.OwnerReference) *frrk8sv1beta1.BGPSessionState {
	peer := session.Peer.String()
	if session.Peer.Is6() {
		// A label's value has no colons, and ends with a letter or a digit.
		peer = strings.ReplaceAll(session.Peer.StringExpanded(), ":", "-")
	}
	hash := fnv.New64a()                                         // 16 digits, see ownState
	_, _ = fmt.Fprintf(hash, "%s/%s", session.VRF, session.Peer) // never fails
	bfd := string(session.BFD)
	switch session.BFD {
	case bgp.NoBFD:
		bfd = noBFD
	case bgp.BFDSuspended: // a word that frr-k8s does not have
		bfd = string(bgp.BFDDown)
	}
	return &frrk8sv1beta1.BGPSessionState{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.FRRNamespace, Name: fmt.Sprintf("%.236s-%016x", s.Node, hash.Sum64()),
			Labels:          map[string]string{SessionStateNodeLabel: s.Node, sessionStatePeerLabel: peer, sessionStateVRFLabel: session.VRF},
			OwnerReferences: []metav1.OwnerReference{owner},
		},
		Status: frrk8sv1beta1.BGPSessionStateStatus{Node: s.Node, Peer: peer, VRF: session.VRF, BGPStatus: string(session.State), BFDStatus: bfd},
	}
}

// sessionProblems are what sessions have to say beside their errors.
func sessionProblems(sessions []bgp.Session) []string {
	var problems []string
	for _, session := range sessions {
		if session.BFD == bgp.BFDSuspended {
			problems = append(problems, fmt.Sprintf("bgp: BFD ended the session with %s again and again; it is switched off for some minutes, and the session runs without", peerName(session.VRF, session.Peer)))
		}
	}
	return problems
}

func peerName(vrf string, peer netip.Addr) string {
	if vrf == "" {
		return peer.String()
	}
	return peer.String() + " of VRF " + vrf
}
