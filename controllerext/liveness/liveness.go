// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"maps"
	"time"
)

const (
	// defaultDuration is a lease's while none was seen: what a speaker writes in a cluster of up to
	// 125 nodes, four of its renewal intervals.
	defaultDuration = 10 * time.Second
	// shortestDuration bounds what a lease can ask for: with less, two renewals that an API server
	// under load delays would be a failover.
	shortestDuration = 5 * time.Second
	// longestDuration bounds it too: with more, nobody would be told of a dead speaker in time to
	// look. It is beyond what speakers of 1,000 nodes write (80 s).
	longestDuration = 2 * time.Minute
	// restartTime is how long peers keep the routes of a speaker that went away, where graceful
	// restart was negotiated: bgp.RestartTime, which the speakers announce. Written out, because the
	// controller does not link the speaker's packages. Replacing the primary sooner would gain
	// nothing: traffic still flows through the node, and the speaker may be back in time.
	restartTime = 30 * time.Second
)

// Health is the judgement of one node.
type Health struct {
	// Silent is true when the speaker did not renew its lease for as long as the lease says.
	Silent bool
	// Lost is true when it is silent, and its peers have dropped its routes: at once, or, where
	// graceful restart was negotiated, 30 s after the last renewal.
	Lost bool
	// SessionHeld is true when some BGP session of the node is up, short changes left out.
	SessionHeld bool
}

// Verdict is the judgement of all nodes at one time.
type Verdict struct {
	// Nodes has every node that was heard of and kept.
	Nodes map[string]Health
	// MostSilent is true when more than half of the speakers, of two at least, are silent at once.
	// That is not taken for their failure: no node is Silent or Lost in the verdict.
	MostSilent bool
	// Again is when the verdict may change by time alone; 0 is never.
	Again time.Duration
}

// Tracker remembers what was seen of the speakers. It is not safe for concurrent use. Make it with
// New.
type Tracker struct {
	nodes map[string]*node
	// renewed is when the last renewal of any node was seen; at first, when the first node was heard of.
	renewed time.Time
	most    bool // as judged last
}

type state int

const (
	alive state = iota
	silent
	lost
)

// node is what is known of one node.
type node struct {
	state   state     // as judged last
	seen    time.Time // the last sign of life, or when ages started anew
	lease   bool
	renewal time.Time // what the lease said last, on the node's clock: only compared
	// duration is the lease's, within bounds.
	duration time.Duration

	gracefulRestart bool
	session         bool      // as reported last
	changed         time.Time // when session got its value
	held            bool      // session, after the hold-down
}

// overdue is true when the lease has run out, judged or not.
func (n *node) overdue(now time.Time) bool { return n.state != alive || now.Sub(n.seen) >= n.duration }

// New makes a Tracker that has heard of nobody.
func New() *Tracker { return &Tracker{nodes: map[string]*node{}} }

// node returns the node of that name. One that was not known counts as alive from now on.
func (t *Tracker) node(now time.Time, name string) *node {
	n := t.nodes[name]
	if n == nil {
		n = &node{seen: now, changed: now, duration: defaultDuration}
		t.nodes[name] = n
		if t.renewed.IsZero() {
			t.renewed = now
		}
	}
	return n
}

// Renewed records a node's Lease as seen now, with its renewTime (zero when it has none) and its
// duration. Only a renewTime other than the one seen before is a sign of life. Woke is true when it is
// time for another verdict: the node was judged silent, or is one of the most that were, or was not
// heard of, or its lease has become shorter. Otherwise the last verdict and its Again hold.
func (t *Tracker) Renewed(now time.Time, name string, renewal time.Time, duration time.Duration) (woke bool) {
	_, known := t.nodes[name]
	n := t.node(now, name)
	if renewal.IsZero() || n.lease && renewal.Equal(n.renewal) {
		return !known
	}
	duration = min(max(duration, shortestDuration), longestDuration)
	gap := t.gap(now)
	woke = !known || duration < n.duration || n.state != alive || t.most && (gap || n.overdue(now))
	if gap {
		t.startAnew(now)
	}
	n.state, n.seen, n.renewal, n.duration, n.lease = alive, now, renewal, duration, true
	t.renewed = now
	return woke
}

// Keep drops every node but those that are there: the Node objects of the others are gone, whose
// leases or reports may still be.
func (t *Tracker) Keep(there map[string]bool) {
	maps.DeleteFunc(t.nodes, func(name string, _ *node) bool { return !there[name] })
}

// Judge returns the verdict.
func (t *Tracker) Judge(now time.Time) Verdict {
	overdue := 0
	for _, n := range t.nodes {
		if n.overdue(now) {
			overdue++
		}
	}
	// A single node has nobody to be compared with, and nobody to move anything to.
	most := len(t.nodes) > 1 && 2*overdue > len(t.nodes)
	if t.most && !most {
		// Whatever ailed most of them ends: those that are not back in the same moment get one more
		// lease, since services would move by the order of their return.
		t.startAnew(now)
	}
	t.most = most
	t.judgeLeases(now)
	t.judgeSessions(now)

	verdict := Verdict{Nodes: make(map[string]Health, len(t.nodes)), MostSilent: most}
	for name, n := range t.nodes {
		verdict.Nodes[name] = Health{Silent: n.state != alive && !most, Lost: n.state == lost && !most, SessionHeld: n.held}
		for _, at := range []time.Time{n.leaseChange(), n.sessionChange()} {
			if left := at.Sub(now); left > 0 && (verdict.Again == 0 || left < verdict.Again) {
				verdict.Again = left
			}
		}
	}
	return verdict
}

// judgeLeases moves the nodes on, unless what is seen says more of the API server than of them.
// Back, only a renewal of its own brings a node.
func (t *Tracker) judgeLeases(now time.Time) {
	if t.most || t.gap(now) {
		return
	}
	for _, n := range t.nodes {
		age := now.Sub(n.seen)
		if n.overdue(now) && n.state == alive {
			n.state = silent
		}
		if n.state == silent && (!n.gracefulRestart || age >= restartTime) {
			n.state = lost
		}
	}
}

// leaseChange is when the node becomes overdue or lost; the zero time is never.
func (n *node) leaseChange() time.Time {
	switch {
	case n.state == alive:
		return n.seen.Add(n.duration)
	case n.state == silent && n.gracefulRestart:
		return n.seen.Add(restartTime)
	}
	return time.Time{}
}

// gap is true while no renewal of anybody was seen for half of the shortest lease, in which a
// healthy speaker makes two: then the API server, or our watch, is away, and no age means anything.
// With a single node it can't be told from the speaker's own silence.
func (t *Tracker) gap(now time.Time) bool {
	shortest := time.Duration(0)
	for _, n := range t.nodes {
		if n.lease && (shortest == 0 || n.duration < shortest) {
			shortest = n.duration
		}
	}
	if shortest == 0 {
		shortest = defaultDuration
	}
	return len(t.nodes) > 1 && now.Sub(t.renewed) > shortest/2
}

// startAnew lets every age and every hold-down run from now. What was judged stays.
func (t *Tracker) startAnew(now time.Time) {
	for _, n := range t.nodes {
		n.seen = now
		if n.session != n.held {
			n.changed = now
		}
	}
}
