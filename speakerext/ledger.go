// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/dataplane"
)

// programmed is what a plan does for one service in which this node has a role.
type programmed struct {
	uid        types.UID
	generation int64
	role       v1alpha1.Role
	addresses  []netip.Addr
}

// ledger is what the loops know of one another. The dataplane loop enters each plan before
// and after it is applied; what it says is programmed is what the guard may open for.
type ledger struct {
	mutex     sync.Mutex
	applied   []entry                      // applied, not yet seen at the integration bridge; oldest first
	confirmed map[string]programmed        // by service key
	refused   map[string]string            // by service key: why this node can't serve it
	behind    []string                     // keys of services whose packets are not treated as wanted; ordered
	started   bool                         // some plan has been confirmed since the start
	problems  map[string][]string          // what each loop could not honour
	sessions  bool                         // the BGP speaker has been given its configuration since the start
	findings  map[types.NamespacedName]int // problems per FRRConfiguration, those with none left out
	config    offers                       // of the newest BGP sync
}

// offers answers which addresses this node's FRRConfigurations hold a host route for, and for
// which of them the guard is open.
type offers struct {
	offered, open map[netip.Addr]bool
}

// maxApplied bounds what is remembered while the integration bridge does not follow.
const maxApplied = 16

type entry struct {
	sequence dataplane.Sequence
	services map[string]programmed
}

// narrow takes back whatever the coming plan does not hold any more. It is called before the
// plan is applied: the guard closes at the next BGP sync, which runs beside the application. True
// when it took back anything.
func (l *ledger) narrow(coming map[string]programmed) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for i := range l.applied {
		l.applied[i].services, _ = intersect(l.applied[i].services, coming)
	}
	var narrowed bool
	l.confirmed, narrowed = intersect(l.confirmed, coming)
	return narrowed
}

// enter records an applied plan, and confirms every plan that the integration bridge has.
// True when what is confirmed changed.
func (l *ledger) enter(sequence, installed dataplane.Sequence, services map[string]programmed) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.applied = slices.DeleteFunc(l.applied, func(e entry) bool { return e.sequence >= sequence })
	l.applied = append(l.applied, entry{sequence, services})
	if len(l.applied) > maxApplied {
		// The bridge is far behind: the oldest would be the next to be reached, the newest the
		// one that counts.
		l.applied = slices.Delete(l.applied, 1, 2)
	}
	reached := -1
	for i, e := range l.applied {
		if e.sequence <= installed {
			reached = i
		}
	}
	if reached < 0 {
		return false
	}
	l.started = true
	before := l.confirmed
	l.confirmed = l.applied[reached].services
	l.applied = slices.Clone(l.applied[reached:])
	return !equal(before, l.confirmed)
}

// isProgrammed returns what is confirmed for a service.
func (l *ledger) isProgrammed(key string) (programmed, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	p, ok := l.confirmed[key]
	return p, ok
}

// hasStarted is true once what this node had programmed is known again.
func (l *ledger) hasStarted() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.started
}

// refuse replaces what this node can't serve.
func (l *ledger) refuse(refused map[string]string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.refused = refused
}

// refusal is why this node can't serve a service, or empty.
func (l *ledger) refusal(key string) string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.refused[key]
}

// setBehind replaces the services whose packets are not treated as wanted.
func (l *ledger) setBehind(keys []string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.behind = keys
}

func (l *ledger) allBehind() []string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return slices.Clone(l.behind)
}

func (l *ledger) setOffers(o offers) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.config = o
}

func (l *ledger) offers() offers {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.config
}

// setProblems replaces what one loop could not honour.
func (l *ledger) setProblems(loop string, problems []string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.problems == nil {
		l.problems = map[string][]string{}
	}
	l.problems[loop] = problems
}

func (l *ledger) setSessions() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.sessions = true
}

// hasSessions is true once the BGP speaker's sessions are those that are wanted.
func (l *ledger) hasSessions() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.sessions
}

func (l *ledger) setFindings(findings map[types.NamespacedName]int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.findings = findings
}

func (l *ledger) allFindings() map[types.NamespacedName]int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.findings
}

// setFailure records why a loop's last application failed, or, by nil, that it did not. It is
// one line of that loop's problems.
func (l *ledger) setFailure(loop string, err error) {
	var problems []string
	if err != nil {
		problems = []string{loop + ": " + err.Error()}
	}
	l.setProblems(loop+" application", problems)
}

// allProblems are those of every loop, ordered, without duplicates.
func (l *ledger) allProblems() []string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	var all []string
	for _, problems := range l.problems {
		all = append(all, problems...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// intersect keeps of have what want holds too; true when something was lost.
func intersect(have, want map[string]programmed) (map[string]programmed, bool) {
	kept, lost := map[string]programmed{}, false
	for key, h := range have {
		w, ok := want[key]
		if !ok || w.uid != h.uid {
			lost = true
			continue
		}
		both := slices.DeleteFunc(slices.Clone(h.addresses), func(a netip.Addr) bool { return !slices.Contains(w.addresses, a) })
		lost = lost || len(both) < len(h.addresses)
		h.addresses = both
		kept[key] = h
	}
	return kept, lost
}

func equal(a, b map[string]programmed) bool {
	if len(a) != len(b) {
		return false
	}
	for key, x := range a {
		y, ok := b[key]
		if !ok || x.uid != y.uid || x.generation != y.generation || x.role != y.role || !slices.Equal(x.addresses, y.addresses) {
			return false
		}
	}
	return true
}
