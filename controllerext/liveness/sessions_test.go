// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"testing"
	"time"
)

func TestSessionHoldDowns(t *testing.T) {
	for _, test := range []struct {
		name     string
		down, up time.Duration // of n1, after one another
		want     []string
	}{
		{"down for less than the hold-down", 2900 * time.Millisecond, time.Minute, nil},
		{"down, and up not long enough", 3 * time.Second, 29900 * time.Millisecond, []string{"- n1 session"}},
		{"down, and up long enough", 3 * time.Second, 30 * time.Second, []string{"- n1 session", "+ n1 session"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := settled(t, 3, 1, false)
			w.report("n1", false, false)
			w.run(test.down)
			w.report("n1", true, false)
			w.run(test.up)
			w.saw(test.want...)
		})
	}
	t.Run("up for long in all, but never in a row", func(t *testing.T) {
		w := settled(t, 3, 1, false)
		w.report("n1", false, false)
		w.run(3 * time.Second)
		for range 4 {
			w.report("n1", true, false)
			w.run(20 * time.Second)
			w.report("n1", false, false)
			w.run(time.Second)
		}
		w.saw("- n1 session")
	})
}

// TestRouterReboot: all sessions go, and come back in some order: from the first that is held up, all
// are, but for those that are not back even then.
func TestRouterReboot(t *testing.T) {
	w := settled(t, 4, 1, false)
	for _, s := range w.speakers {
		w.report(s.name, false, false)
	}
	w.run(time.Minute)
	w.saw("- n1 session", "- n2 session", "- n3 session", "- n4 session")
	for _, name := range []string{"n3", "n1", "n2"} {
		w.report(name, true, false)
		w.run(8 * time.Second)
	}
	w.saw()
	w.run(6 * time.Second) // 30 s after the first, 14 s after the last
	w.saw("+ n1 session", "+ n2 session", "+ n3 session")
	w.report("n1", false, false)
	w.report("n4", true, false)
	w.run(5 * time.Second)
	w.report("n1", true, false)
	w.saw("- n1 session")
	w.run(24 * time.Second)
	w.saw() // others have one, so each one's own time counts
	w.run(time.Second)
	w.saw("+ n4 session")
	w.run(5 * time.Second)
	w.saw("+ n1 session")
}

// TestRouterRebootBesideADeadNode: what a dead speaker said last does not count.
func TestRouterRebootBesideADeadNode(t *testing.T) {
	w := settled(t, 4, 1, true)
	w.kill("n4")
	w.run(time.Minute)
	for _, name := range []string{"n1", "n2", "n3"} {
		w.report(name, false, false)
	}
	w.run(time.Minute)
	w.log = nil
	for _, name := range []string{"n3", "n1", "n2"} {
		w.report(name, true, false)
		w.run(10 * time.Second)
	}
	w.saw("+ n1 session", "+ n2 session", "+ n3 session")
}

// TestHoldDownsBetweenVerdicts: nothing is lost when nobody asks for a verdict at the very moment.
func TestHoldDownsBetweenVerdicts(t *testing.T) {
	tracker, now := New(), time.Unix(1_000_000, 0)
	tracker.Reported(now, "n1", true, false)
	tracker.Reported(now.Add(holdUp), "n1", false, false)
	if !tracker.Judge(now.Add(holdUp)).Nodes["n1"].SessionHeld {
		t.Error("up for 30 s, just gone: not held")
	}
	tracker.Reported(now.Add(holdUp+holdDown), "n1", true, false)
	if tracker.Judge(now.Add(holdUp + holdDown)).Nodes["n1"].SessionHeld {
		t.Error("down for 3 s, just back: still held")
	}
}

func TestSessionsWhileMostAreSilent(t *testing.T) {
	w := settled(t, 4, 1, false)
	w.kill("n1", "n2", "n3")
	w.run(20 * time.Second)
	w.report("n4", false, false)
	w.run(20 * time.Second)
	w.saw("+ most silent")
}

// TestSessionsInAnOutage: what was reported last is not news while the API server is away.
func TestSessionsInAnOutage(t *testing.T) {
	w := settled(t, 3, 1, false)
	w.outage(3 * time.Second)
	w.away = true
	w.report("n1", false, false) // the last thing that came through
	w.run(20 * time.Second)
	w.sawNobody()
	w.away = false
	w.revive(tick)
	w.run(2 * time.Second)
	w.sawNobody()
	w.report("n1", true, false) // it had been back all the while
	w.run(time.Minute)
	w.sawNobody()
}

// TestGracefulRestartIsRemembered: it says what the peers do while the session is down.
func TestGracefulRestartIsRemembered(t *testing.T) {
	w := settled(t, 3, 1, true)
	w.kill("n1")
	w.report("n1", false, false)
	w.run(time.Minute)
	w.saw("- n1 session", "+ n1 silent, 10s", "+ n1 lost, 30s")

	w = settled(t, 3, 1, true)
	w.report("n1", true, false) // established again, without it
	w.kill("n1")
	w.run(time.Minute)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
}
