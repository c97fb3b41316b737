// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// world has speakers that renew their leases, an API server that can be away, and a controller that
// asks for a verdict when it was told to: when a renewal woke it, when a report changed, and when
// Again is over. It records how verdicts change.
type world struct {
	*testing.T
	*Tracker
	now      time.Time
	random   *rand.Rand
	speakers []*speaker
	away     bool // the API server
	verdict  Verdict
	judgeAt  time.Time // zero: never
	log      []string
}

type speaker struct {
	name               string
	interval, duration time.Duration
	clock              time.Duration // how far the node's is off
	next               time.Time
	dead               bool
	renewal            time.Time // as written last
	seen               time.Time // when the controller saw it
}

const tick = 50 * time.Millisecond

// newWorld has so many speakers, n1 first, as they are in a small cluster, at the controller's start.
func newWorld(t *testing.T, speakers int, seed uint64) *world {
	w := &world{T: t, Tracker: New(), now: time.Unix(1_000_000, 0), random: rand.New(rand.NewPCG(seed, 1))}
	for i := range speakers {
		s := &speaker{name: fmt.Sprintf("n%d", i+1), interval: 2500 * time.Millisecond, duration: 10 * time.Second}
		s.next = w.now.Add(w.within(s.interval))
		s.renewal = w.now.Add(-w.within(time.Hour))
		w.speakers = append(w.speakers, s)
	}
	return w
}

// within is a random time below d, in ticks.
func (w *world) within(d time.Duration) time.Duration {
	return time.Duration(w.random.Int64N(int64(d))).Truncate(tick)
}

// start hands the controller what it lists at its start: all Leases, and EgressNodes with a session.
func (w *world) start(gracefulRestart bool) {
	for _, s := range w.speakers {
		w.report(s.name, true, gracefulRestart)
		w.see(s)
	}
}

// settled is a world in which all sessions have been held up.
func settled(t *testing.T, speakers int, seed uint64, gracefulRestart bool) *world {
	w := newWorld(t, speakers, seed)
	w.start(gracefulRestart)
	w.run(40 * time.Second)
	w.log = nil
	return w
}

func (w *world) speaker(name string) *speaker {
	return w.speakers[slices.IndexFunc(w.speakers, func(s *speaker) bool { return s.name == name })]
}

// kill stops speakers just after they have renewed their leases.
func (w *world) kill(names ...string) {
	for _, name := range names {
		s := w.speaker(name)
		w.renew(s)
		s.dead = true
	}
}

// revive lets speakers, all without names, renew their leases again, each some time within spread.
func (w *world) revive(spread time.Duration, names ...string) {
	for _, s := range w.speakers {
		if len(names) == 0 || slices.Contains(names, s.name) {
			s.dead, s.next = false, w.now.Add(w.within(spread))
		}
	}
}

// outage is one of the API server; back, renewals come in random order over 3 s.
func (w *world) outage(d time.Duration) {
	w.away = true
	w.run(d)
	w.away = false
	for _, s := range w.speakers {
		s.next = w.now.Add(w.within(3 * time.Second))
	}
}

func (w *world) renew(s *speaker) {
	s.renewal = w.now.Add(s.clock)
	s.next = w.now.Add(s.interval*9/10 + w.within(s.interval/5))
	w.see(s)
}

func (w *world) see(s *speaker) {
	s.seen = w.now
	if w.Renewed(w.now, s.name, s.renewal, s.duration) {
		w.judge()
	}
}

func (w *world) report(name string, session, gracefulRestart bool) {
	w.Reported(w.now, name, session, gracefulRestart)
	w.judge()
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(tick)
		for _, i := range w.random.Perm(len(w.speakers)) {
			if s := w.speakers[i]; !s.dead && !w.away && !w.now.Before(s.next) {
				w.renew(s)
			}
		}
		if !w.judgeAt.IsZero() && !w.now.Before(w.judgeAt) {
			w.judge()
		}
		if len(w.speakers) < 5 { // many would only take long
			w.mustBeRight()
		}
	}
}

// mustBeRight says that the controller's verdict is the one that it would get now.
func (w *world) mustBeRight() {
	w.Helper()
	tracker := &Tracker{nodes: map[string]*node{}, renewed: w.renewed, most: w.most}
	for name, n := range w.nodes {
		same := *n
		tracker.nodes[name] = &same
	}
	if now := tracker.Judge(w.now); now.MostSilent != w.verdict.MostSilent || !maps.Equal(now.Nodes, w.verdict.Nodes) {
		w.Fatalf("the controller was not told to judge again; -has +would get:\n%s", cmp.Diff(w.verdict, now))
	}
}

// judge gets a verdict and records what changed in it; silent and lost with the age of the lease.
func (w *world) judge() {
	before := w.verdict
	w.verdict = w.Judge(w.now)
	w.judgeAt = time.Time{}
	if w.verdict.Again > 0 {
		w.judgeAt = w.now.Add(w.verdict.Again)
	}
	w.change(before.MostSilent, w.verdict.MostSilent, "most silent")
	for _, s := range w.speakers {
		was, is := before.Nodes[s.name], w.verdict.Nodes[s.name]
		age := w.now.Sub(s.seen)
		w.change(was.Silent, is.Silent, fmt.Sprintf("%s silent, %v", s.name, age))
		w.change(was.Lost, is.Lost, fmt.Sprintf("%s lost, %v", s.name, age))
		w.change(was.SessionHeld, is.SessionHeld, s.name+" session")
	}
}

func (w *world) change(was, is bool, what string) {
	switch {
	case is && !was:
		w.log = append(w.log, "+ "+what)
	case was && !is:
		w.log = append(w.log, "- "+what)
	}
}

// saw compares the record, and begins a new one.
func (w *world) saw(want ...string) {
	w.Helper()
	if diff := cmp.Diff(want, w.log, cmpopts.EquateEmpty()); diff != "" {
		w.Errorf("verdicts, -want +got:\n%s", diff)
	}
	w.log = nil
}

// sawNobody is that no node's health changed.
func (w *world) sawNobody() {
	w.Helper()
	w.log = slices.DeleteFunc(w.log, func(line string) bool { return line[2:] == "most silent" })
	w.saw()
}
