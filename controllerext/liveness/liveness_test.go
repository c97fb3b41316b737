// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"fmt"
	"testing"
	"time"
)

// several runs a test with several sizes of the cluster and seeds of chance.
func several(t *testing.T, test func(t *testing.T, nodes int, seed uint64)) {
	for _, cluster := range []struct {
		nodes int
		seeds uint64
	}{{2, 10}, {3, 10}, {100, 1}} {
		for seed := range cluster.seeds {
			t.Run(fmt.Sprintf("%d nodes, seed %d", cluster.nodes, seed), func(t *testing.T) { test(t, cluster.nodes, seed) })
		}
	}
}

func TestOneDead(t *testing.T) {
	for _, test := range []struct {
		name            string
		gracefulRestart bool
		want            []string
	}{
		{"without graceful restart", false, []string{"+ n1 silent, 10s", "+ n1 lost, 10s"}},
		{"with graceful restart", true, []string{"+ n1 silent, 10s", "+ n1 lost, 30s"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			several(t, func(t *testing.T, nodes int, seed uint64) {
				w := settled(t, nodes, seed, test.gracefulRestart)
				w.kill("n1")
				w.run(time.Minute)
				w.saw(test.want...)
				w.revive(time.Second, "n1")
				w.run(time.Minute)
				w.saw("- n1 silent, 0s", "- n1 lost, 0s")
			})
		})
	}
}

// TestAPIOutage: nobody moves, whether the outage is shorter than a gap, longer than a lease, or very long.
func TestAPIOutage(t *testing.T) {
	for _, d := range []time.Duration{4 * time.Second, 6 * time.Second, 9 * time.Second, 20 * time.Second, 10 * time.Minute} {
		t.Run(d.String(), func(t *testing.T) {
			several(t, func(t *testing.T, nodes int, seed uint64) {
				w := settled(t, nodes, seed, false)
				w.outage(d)
				w.run(time.Minute)
				w.sawNobody()
				w.kill("n1")
				w.run(time.Minute)
				w.saw("+ n1 silent, 10s", "+ n1 lost, 10s") // and it is seen again when one dies
			})
		})
	}
}

// TestSilentBeforeAnOutage: who was silent stays so, and does not become lost by the time that the API
// server was away, since the speaker may have come back in it.
func TestSilentBeforeAnOutage(t *testing.T) {
	w := settled(t, 3, 1, true)
	w.kill("n1")
	w.run(25 * time.Second)
	w.saw("+ n1 silent, 10s")
	w.outage(7 * time.Second)
	w.run(25 * time.Second)
	w.saw() // 57 s after its last renewal
	w.run(10 * time.Second)
	if len(w.log) != 1 || !w.verdict.Nodes["n1"].Lost {
		t.Errorf("%v, want n1 lost 30 s after the outage", w.log)
	}
}

// TestStart: the leases' own times count for nothing, nor do sessions yet.
func TestStart(t *testing.T) {
	several(t, func(t *testing.T, nodes int, seed uint64) {
		w := newWorld(t, nodes, seed)
		w.speaker("n1").dead = true
		w.start(false)
		w.run(29 * time.Second)
		w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
		w.run(time.Second)
		var want []string
		for _, s := range w.speakers {
			want = append(want, "+ "+s.name+" session")
		}
		w.saw(want...)
	})
}

func TestAllRestart(t *testing.T) {
	several(t, func(t *testing.T, nodes int, seed uint64) {
		w := settled(t, nodes, seed, false)
		for _, s := range w.speakers {
			s.dead = true
		}
		w.run(15 * time.Second)
		w.revive(9 * time.Second)
		w.run(time.Minute)
		w.sawNobody()
	})
}

func TestHalfAndMore(t *testing.T) {
	w := settled(t, 4, 1, false)
	w.kill("n1", "n2")
	w.run(time.Minute)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s", "+ n2 silent, 10s", "+ n2 lost, 10s")

	w = settled(t, 4, 1, false)
	w.kill("n1", "n2", "n3")
	w.run(time.Minute)
	w.saw("+ most silent")
	w.revive(tick, "n1")
	w.run(5 * time.Second)
	w.saw("- most silent") // the two others have one more lease
	w.run(6 * time.Second)
	if !w.verdict.Nodes["n2"].Lost || !w.verdict.Nodes["n3"].Lost || w.verdict.Nodes["n1"].Silent || len(w.log) != 4 {
		t.Errorf("%v; want n2 and n3 lost a lease later", w.log)
	}
}

// TestMostHidesThoseSilentBefore: nothing at all moves while most are silent.
func TestMostHidesThoseSilentBefore(t *testing.T) {
	w := settled(t, 3, 1, false)
	w.kill("n1")
	w.run(20 * time.Second)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
	w.kill("n2")
	w.run(20 * time.Second)
	w.saw("+ most silent", "- n1 silent, 30s", "- n1 lost, 30s")
	w.revive(tick, "n2")
	w.run(20 * time.Second)
	w.saw("- most silent", "+ n1 silent, 40.05s", "+ n1 lost, 40.05s")
}

// TestSilentAreCounted: also while their ages, started anew after an outage, are below their leases.
func TestSilentAreCounted(t *testing.T) {
	w := newWorld(t, 3, 1)
	w.speaker("n1").duration = 20 * time.Second
	w.start(false)
	w.run(40 * time.Second)
	w.kill("n1")
	w.run(30 * time.Second)
	w.outage(7 * time.Second)
	w.log = nil
	w.run(3 * time.Second)
	w.kill("n2")
	w.run(11 * time.Second)
	if !w.verdict.MostSilent {
		t.Errorf("%v; want most silent", w.log)
	}
}

// TestLongLeases are a large cluster's, with few nodes: the gap is longer too.
func TestLongLeases(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, 3, seed)
		for _, s := range w.speakers {
			s.interval, s.duration = 20*time.Second, time.Minute
		}
		w.start(true)
		w.report("n4", true, true) // has no lease yet, so it says nothing about how long they are
		w.run(2 * time.Minute)
		w.log = nil
		w.outage(50 * time.Second)
		w.run(2 * time.Minute)
		w.sawNobody()
		w.kill("n1")
		w.run(2 * time.Minute)
		w.saw("+ n1 silent, 1m0s", "+ n1 lost, 1m0s")
	}
}

// TestSlowRenewals: of two, one is dead, and the other renews every 2.5 s to 3.3 s.
func TestSlowRenewals(t *testing.T) {
	for seed := range uint64(20) {
		w := settled(t, 2, seed, false)
		w.speaker("n2").interval = 2900 * time.Millisecond
		w.run(20 * time.Second)
		w.kill("n1")
		w.run(time.Minute)
		w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
	}

	w := settled(t, 2, 1, false)
	w.kill("n1", "n2") // n2's next renewal is late by more than half a lease
	w.run(6 * time.Second)
	w.revive(tick, "n2")
	w.run(20 * time.Second)
	w.saw("+ n1 silent, 16.05s", "+ n1 lost, 16.05s")
}

func TestClocksOfNodes(t *testing.T) {
	w := newWorld(t, 3, 1)
	w.speaker("n1").clock = 7 * time.Hour
	w.speaker("n2").clock = -7 * time.Hour
	w.start(false)
	w.run(40 * time.Second)
	w.log = nil
	w.speaker("n1").clock = -time.Hour // set right, and too far
	w.run(time.Minute)
	w.saw()
	w.kill("n1")
	w.run(time.Minute)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
}

// TestSameLeaseAgain: a Lease that is listed anew, or whose other fields change, is no sign of life.
func TestSameLeaseAgain(t *testing.T) {
	w := settled(t, 3, 1, false)
	w.kill("n1")
	n1 := w.speaker("n1")
	for range 20 {
		w.run(time.Second)
		w.Renewed(w.now, "n1", n1.renewal, n1.duration)
	}
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
}

// TestNewNode: a node that comes later is in the next verdict, which is asked for.
func TestNewNode(t *testing.T) {
	w := settled(t, 3, 1, false)
	for _, renewal := range []time.Time{w.now, {}} {
		w.speakers = append(w.speakers, &speaker{name: fmt.Sprintf("n%d", len(w.speakers)+1), dead: true, seen: w.now})
		if !w.Renewed(w.now, w.speakers[len(w.speakers)-1].name, renewal, 10*time.Second) {
			t.Error("no verdict asked for")
		}
	}
	w.judge()
	w.run(20 * time.Second)
	w.saw("+ n4 silent, 10s", "+ n4 lost, 10s", "+ n5 silent, 10s", "+ n5 lost, 10s")
}

func TestWithoutLease(t *testing.T) {
	w := newWorld(t, 3, 1)
	n1 := w.speaker("n1") // has an EgressNode, and no Lease
	n1.dead, n1.seen = true, w.now
	w.Reported(w.now, "n1", false, false)
	for _, s := range w.speakers[1:] {
		w.see(s)
	}
	w.judge()
	w.run(20 * time.Second)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 10s")
	w.Renewed(w.now, "n1", time.Time{}, n1.duration) // made, never renewed
	w.run(time.Second)
	w.saw()
	w.revive(tick, "n1")
	w.run(20 * time.Second)
	w.saw("- n1 silent, 0s", "- n1 lost, 0s")
}

// TestNoLeases: speakers that renew none are not taken for dead all at once.
func TestNoLeases(t *testing.T) {
	w := newWorld(t, 3, 1)
	for _, s := range w.speakers {
		s.dead = true
		w.report(s.name, true, false)
	}
	w.run(time.Minute)
	w.saw("+ most silent")
}

// TestSingleNode: there is nothing to compare its silence with, and nobody to move to.
func TestSingleNode(t *testing.T) {
	w := settled(t, 1, 1, true)
	w.kill("n1")
	w.run(time.Minute)
	w.saw("+ n1 silent, 10s", "+ n1 lost, 30s")
	w.revive(tick)
	w.run(time.Minute)
	w.saw("- n1 silent, 0s", "- n1 lost, 0s")
}

func TestDurationIsBounded(t *testing.T) {
	for _, test := range []struct {
		name     string
		duration time.Duration
		want     string
	}{
		{"too short", time.Second, "5s"},
		{"as it says", 17 * time.Second, "17s"},
		{"too long", time.Hour, "2m0s"},
		{"none", 0, "5s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := settled(t, 30, 1, false)
			w.speaker("n1").duration = test.duration
			w.kill("n1")
			w.run(3 * time.Minute)
			w.saw("+ n1 silent, "+test.want, "+ n1 lost, "+test.want)
		})
	}
}

func TestKeep(t *testing.T) {
	w := settled(t, 4, 1, false)
	w.kill("n1", "n2", "n3")
	w.run(20 * time.Second)
	w.saw("+ most silent")
	w.Keep(map[string]bool{"n1": true, "n4": true})
	w.judge()
	if _, known := w.verdict.Nodes["n2"]; known || len(w.verdict.Nodes) != 2 {
		t.Errorf("nodes %v", w.verdict.Nodes)
	}
	if w.verdict.MostSilent {
		t.Error("most silent: those that are gone were counted")
	}
}

func TestNothingToWaitFor(t *testing.T) {
	if got := New().Judge(time.Unix(1, 0)); got.Again != 0 || len(got.Nodes) != 0 || got.MostSilent {
		t.Errorf("nobody heard of: %+v", got)
	}
}
