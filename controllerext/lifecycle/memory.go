// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

func (s *step) forgetWait() {
	s.memory.waitingFor, s.memory.waitingSince = "", time.Time{}
	s.memory.unofferedSince, s.memory.wantedSince = time.Time{}, time.Time{}
}

// giveRest avoids a node for RestMin, and twice as long each further time, up to RestMax.
func (s *step) giveRest(node string) {
	if s.now.Before(s.memory.rests[node].until) {
		return
	}
	length := min(max(2*s.memory.rests[node].last, RestMin), RestMax)
	s.memory.rests[node] = rest{until: s.now.Add(length), last: length}
}

// avoid are the nodes that rest now.
func (s *step) avoid() map[string]bool {
	avoid := map[string]bool{}
	for node, r := range s.memory.rests {
		if s.now.Before(r.until) {
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

// currentRests copies the rests that still matter: a node's back-off is forgotten RestMax
// after it ended.
func (s *step) currentRests() map[string]rest {
	rests := maps.Clone(s.memory.rests)
	if rests == nil {
		rests = map[string]rest{}
	}
	maps.DeleteFunc(rests, func(_ string, r rest) bool { return s.now.Sub(r.until) > RestMax })
	return rests
}

// countReasons spells "2 NodeSelectorMismatch, 1 NotReady": how many nodes were rejected for
// which reason.
func countReasons(rejected []election.Rejection) string {
	if len(rejected) == 0 {
		return "the cluster has no nodes"
	}
	count := map[election.Reason]int{}
	for _, r := range rejected {
		count[r.Reason]++
	}
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[reason], reason))
	}
	return strings.Join(words, ", ")
}
