// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// maxBehind is the EgressNode CRD's limit.
const maxBehind = 50

// Values that every fake reports.
const (
	fakeVersion = "fake"
	fakePeer    = "192.0.2.1" // RFC 5737
)

// status is an EgressNode's status as JSON, by field: with thousands of services, only what changed is made anew.
type status map[string]json.RawMessage

// entry is what a node says about one service, and its JSON.
type entry struct {
	assignment *v1alpha1.EgressAssignment
	says       answer
	text       json.RawMessage
}

// answer is what an entry says beside the assignment's own facts.
type answer struct {
	programmed, offered, announced bool
	reason                         string
}

// status is what the node has to say.
func (s *speaker) status(b Behaviour) (status, error) {
	session := v1alpha1.BGPSession{Peer: fakePeer, State: "Established", GracefulRestart: !b.NoGracefulRestart}
	if b.NoSession {
		session.State, session.GracefulRestart = "Active", false
	}
	mode := b.GatewayMode
	if mode == "" {
		mode = "local"
	}
	services, err := s.services(b)
	if err != nil {
		return nil, err
	}
	now := status{"services": services}
	for field, value := range map[string]any{
		"version": fakeVersion, "gatewayMode": mode, "networks": b.Networks, "bgpSessions": []v1alpha1.BGPSession{session},
		"behind": b.Behind[:min(len(b.Behind), maxBehind)], "behindCount": len(b.Behind),
	} {
		if now[field], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return now, nil
}

// patch is a JSON merge patch from what was written before, or nil when there is nothing to write.
func (now status) patch(before status) ([]byte, error) {
	changed := status{}
	for field, text := range now {
		if !bytes.Equal(text, before[field]) {
			changed[field] = text
		}
	}
	if len(changed) == 0 {
		return nil, nil
	}
	return json.Marshal(map[string]status{"status": changed})
}

// services are the entries, ordered by key.
func (s *speaker) services(b Behaviour) (json.RawMessage, error) {
	entries := make(map[string]*entry, len(s.assignments))
	list := []byte{'['}
	for i, key := range slices.Sorted(maps.Keys(s.assignments)) {
		assignment := s.assignments[key]
		says := s.answer(assignment, b)
		e := s.entries[key]
		if e == nil || e.assignment != assignment || e.says != says {
			var err error
			if e, err = s.newEntry(key, assignment, says); err != nil {
				return nil, err
			}
		}
		entries[key] = e
		if i > 0 {
			list = append(list, ',')
		}
		list = append(list, e.text...)
	}
	s.entries = entries
	return append(list, ']'), nil
}

func (s *speaker) newEntry(key string, a *v1alpha1.EgressAssignment, says answer) (*entry, error) {
	service := v1alpha1.EgressNodeService{
		Key: key, UID: a.UID, ObservedGeneration: a.Generation, Role: roleOf(a, s.node),
		Programmed: says.programmed, Offered: says.offered, Announced: says.announced, Reason: says.reason,
	}
	if says.programmed {
		service.Addresses = a.Spec.SourceIPs
	}
	text, err := json.Marshal(service)
	return &entry{assignment: a, says: says, text: text}, err
}

// answer says what a speaker would: MetalLB offers the route once the Node has one of the service's labels, and the guard opens for a
// labelled primary that has programmed the service.
func (s *speaker) answer(a *v1alpha1.EgressAssignment, b Behaviour) answer {
	_, public := s.labels[a.Spec.LabelKey]
	_, standby := s.labels[a.Spec.StandbyLabelKey()]
	primary := a.Spec.Primary == s.node
	says := answer{programmed: b.Refuse == "", offered: (public || standby) && !b.NotOffered, reason: b.Refuse}
	says.announced = primary && public && says.programmed && says.offered && !b.NoSession && !b.NotAnnounced
	switch {
	case says.reason != "" || !primary:
	case !says.offered:
		says.reason = "MetalLB has not handed this node the route yet"
	case !says.announced:
		says.reason = "no established BGP session has been sent the route yet"
	}
	return says
}

// roleOf is a node's in an assignment.
func roleOf(a *v1alpha1.EgressAssignment, node string) v1alpha1.Role {
	switch node {
	case a.Spec.Primary:
		return v1alpha1.RolePrimary
	case a.Spec.Standby:
		return v1alpha1.RoleStandby
	}
	return ""
}
