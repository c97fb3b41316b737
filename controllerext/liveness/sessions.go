// SPDX-License-Identifier: Apache-2.0

package liveness

import "time"

const (
	// holdUp is how long a session must be up, without a break, before it counts. It is longer than
	// a peer takes that accepts a session only to end it again (a limit, a policy, a router that is
	// still booting), and as long as the restart time: a peer that comes and goes attracts nothing.
	holdUp = 30 * time.Second
	// holdDown is how long the node must be without one before that counts. The speaker ends and
	// renews a session when its settings change, and a router on an operator's word: it is back in
	// some 2 s, less than what a move costs.
	holdDown = 3 * time.Second
)

// Reported records what a node's EgressNode says now: whether some BGP session is established, and
// whether at least one established session negotiated graceful restart. The latter is remembered
// while none is.
func (t *Tracker) Reported(now time.Time, name string, session, gracefulRestart bool) {
	n := t.node(now, name)
	if session {
		n.gracefulRestart = gracefulRestart
	}
	if session != n.session {
		t.judgeSessions(now) // what was held up to now must not be lost
		n.session, n.changed = session, now
	}
}

// judgeSessions lets the hold-downs that are over take effect. While most speakers are silent, or
// nothing comes in, what was reported last is too old for that.
func (t *Tracker) judgeSessions(now time.Time) {
	if t.most || t.gap(now) {
		return
	}
	ripe, someHeld := false, false
	for _, n := range t.nodes {
		over := now.Sub(n.changed) >= n.hold()
		if !n.session && over {
			n.held = false
		}
		ripe = ripe || n.session && !n.held && over
		someHeld = someHeld || n.held && n.state == alive
	}
	if !ripe {
		return
	}
	for _, n := range t.nodes {
		// After a reboot of the router, and after a start, the first node to be ripe brings along all
		// that have a session by then: services must not move by the order in which sessions return.
		if n.session && (!someHeld || now.Sub(n.changed) >= holdUp) {
			n.held = true
		}
	}
}

// hold is the time after which session takes effect.
func (n *node) hold() time.Duration {
	if n.session {
		return holdUp
	}
	return holdDown
}

// sessionChange is when session takes effect; the zero time is never.
func (n *node) sessionChange() time.Time {
	if n.session == n.held {
		return time.Time{}
	}
	return n.changed.Add(n.hold())
}
