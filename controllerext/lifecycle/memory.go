// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"maps"
	"time"
)

// Memory is what Decide remembers of one group between two decisions. It may be lost: then the
// waits start again.
type Memory struct {
	waitingFor     string
	waitingSince   time.Time
	unofferedSince time.Time
	standby        string               // that has not acknowledged since standbySince, while the primary stays
	standbySince   time.Time            //
	wantedSince    map[string]time.Time // by member: since when it is to have another primary
	rests          map[string]rest      // by node
}

type rest struct {
	until  time.Time
	last   time.Duration
	silent bool // the node's speaker was silent when the rest began
}

func (m Memory) copy() Memory {
	m.wantedSince, m.rests = maps.Clone(m.wantedSince), maps.Clone(m.rests)
	if m.wantedSince == nil {
		m.wantedSince = map[string]time.Time{}
	}
	if m.rests == nil {
		m.rests = map[string]rest{}
	}
	return m
}

func (m *Memory) beginWait(node string, now time.Time) {
	m.waitingFor, m.waitingSince, m.unofferedSince = node, now, time.Time{}
}

func (m *Memory) endWait() {
	m.waitingFor, m.waitingSince, m.unofferedSince = "", time.Time{}, time.Time{}
}

// forgive forgets the rests of a node that has acknowledged.
func (m *Memory) forgive(node string) { delete(m.rests, node) }

// want is since when a member is to have another primary.
func (s *step) want(key string) time.Time {
	if _, known := s.memory.wantedSince[key]; !known {
		s.memory.wantedSince[key] = s.now
	}
	return s.memory.wantedSince[key]
}

// giveRest avoids a node for RestMin, and twice as long each further time, up to RestMax.
func (s *step) giveRest(node string) {
	if s.resting(node) {
		return
	}
	length := min(max(2*s.memory.rests[node].last, RestMin), RestMax)
	s.memory.rests[node] = rest{until: s.now.Add(length), last: length, silent: s.Silent(node)}
}

// resting is true while a node is avoided.
func (s *step) resting(node string) bool { return s.now.Before(s.memory.rests[node].until) }

// avoid are the nodes that rest now.
func (s *step) avoid() map[string]bool {
	avoid := map[string]bool{}
	for node := range s.memory.rests {
		if s.resting(node) {
			avoid[node] = true
		}
	}
	return avoid
}

// firstRestEnds is the time until the first rest that goes on now ends, or 0.
func (s *step) firstRestEnds() time.Duration {
	var first time.Duration
	for _, r := range s.memory.rests {
		if left := r.until.Sub(s.now); left > 0 && (first == 0 || left < first) {
			first = left
		}
	}
	return first
}

// endRests forgets the rests that no longer matter: those of a speaker that came back to life,
// and a back-off RestMax after it ended.
func (s *step) endRests() {
	maps.DeleteFunc(s.memory.rests, func(node string, r rest) bool {
		return s.now.Sub(r.until) > RestMax || r.silent && !s.Silent(node)
	})
}
