// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Applier writes the host's part of plans. But for Counters and Drift, its methods must not be
// called concurrently.
type Applier struct {
	nft knftables.Interface
	// known is what the table holds as far as we know, nil when it has to be read.
	known *contents
	// before is what was known when Relist was called.
	before *contents
	// based is whether this applier has written the rules itself once: those of an older program
	// can carry the same comments.
	based bool
	drift atomic.Uint64
	// plan is the one that came last, and target what the table holds once it is in place.
	plan   dataplane.Host
	target *contents
}

// New takes an interface for Family and Table. It does nothing yet.
func New(nft knftables.Interface) *Applier { return &Applier{nft: nft} }

// Relist makes the next call read the table, because somebody may have changed it.
func (a *Applier) Relist() {
	if a.known != nil {
		a.before, a.known = a.known, nil
	}
}

// Drift is how often the table was not as it had been left.
func (a *Applier) Drift() uint64 { return a.drift.Load() }

// Add brings in what the plan wants: the table itself, elements of all sets, and new values of those
// that have another one. It takes out what the plan lacks, but for translations, accounts and holds. It
// returns the number of elements written, counting the table's rules as one.
func (a *Applier) Add(ctx context.Context, want dataplane.Host) (int, error) {
	target := a.wanted(want)
	add := func(c *contents, tx *changes) {
		if !c.base || !a.based {
			tx.addBase()
		}
		tx.emptyForeign()
		tx.addCounters(target.counters)
		for _, s := range sets() {
			// Deletions first, because intervals must not overlap.
			if s.goes == early {
				tx.removeElements(s, target.sets[s.name])
			}
			tx.addElements(s, target.sets[s.name])
		}
	}
	written, err := a.change(ctx, add)
	if err == nil || ctx.Err() != nil {
		return written, err
	}
	if again, rebuildErr := a.rebuild(ctx, add); rebuildErr == nil {
		return again, nil
	}
	return 0, err
}

// rebuild replaces the whole table in one transaction: it holds something that can't be changed in
// place, such as a set of another type or a chain with another priority, which another version of this
// program or somebody else has made. Translations stay until Remove takes them away, and what is to be
// ended is kept.
func (a *Applier) rebuild(ctx context.Context, add func(*contents, *changes)) (int, error) {
	empty := wanted(dataplane.Host{})
	empty.base = false
	tx := &changes{tx: a.nft.NewTransaction(), contents: &empty}
	tx.tx.Add(&knftables.Table{})
	tx.tx.Delete(&knftables.Table{})
	add(&empty, tx)
	if old, err := list(ctx, a.nft); err == nil {
		tx.keep(old)
	}
	if err := a.nft.Run(ctx, tx.tx); err != nil {
		return 0, fmt.Errorf("table %s: %w", Table, err)
	}
	a.drift.Add(1)
	empty.base, a.known, a.based = true, &empty, true
	return tx.written, nil
}

// wanted is what the table is to hold. Each plan comes several times.
func (a *Applier) wanted(plan dataplane.Host) *contents {
	if a.target == nil || !plan.Equal(a.plan) {
		target := wanted(plan)
		a.plan, a.target = plan, &target
	}
	return a.target
}

// Remove takes translations, accounts and holds that the plan lacks out of the maps, and returns all
// pairs whose connections are to be ended, those of earlier calls included, until Forget is told of
// them. A pair without a pod, the unspecified address, stands for all connections with its source.
func (a *Applier) Remove(ctx context.Context, want dataplane.Host) ([]dataplane.Translation, error) {
	target := a.wanted(want)
	_, err := a.change(ctx, func(_ *contents, tx *changes) {
		for _, s := range sets() {
			if s.goes == late {
				tx.removeElements(s, target.sets[s.name])
			}
		}
		tx.removeCounters(target.counters)
	})
	if err != nil {
		return nil, err
	}
	return a.known.leaving(), nil
}

// Forget drops pairs whose connections have been ended.
func (a *Applier) Forget(ctx context.Context, ended []dataplane.Translation) error {
	_, err := a.change(ctx, func(_ *contents, tx *changes) {
		for _, t := range ended {
			tx.forget(t)
		}
	})
	return err
}

// Uninstall deletes the table and returns all pairs whose connections are to be ended.
func (a *Applier) Uninstall(ctx context.Context) ([]dataplane.Translation, error) {
	c, err := list(ctx, a.nft)
	if err != nil {
		return nil, err
	}
	a.known, a.before, a.based = nil, nil, false
	tx := a.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := a.nft.Run(ctx, tx); err != nil {
		return nil, fmt.Errorf("delete table %s: %w", Table, err)
	}
	for _, s := range sets() {
		if s.pair == nil {
			continue
		}
		for key, value := range c.sets[s.name] {
			c.sets[s.leaving][s.pair(key, value)] = ""
		}
	}
	return c.leaving(), nil
}

// Counters reads what the table has counted.
func (a *Applier) Counters(ctx context.Context) (dataplane.HostCounters, error) {
	counted := dataplane.HostCounters{
		Guarded: map[string]dataplane.Count{}, Translated: map[string]dataplane.Count{}, Held: map[string]dataplane.Count{},
	}
	list, err := a.nft.ListCounters(ctx)
	if knftables.IsNotFound(err) {
		return counted, nil
	} else if err != nil {
		return counted, fmt.Errorf("list counters of table %s: %w", Table, err)
	}
	for _, c := range list {
		if c == nil || c.Packets == nil || c.Bytes == nil {
			continue
		}
		count := dataplane.Count{Packets: *c.Packets, Bytes: *c.Bytes}
		switch reason, guards := strings.CutPrefix(c.Name, "guard_"); {
		case guards:
			counted.Guarded[reason] = count
		case c.Name == counterStrays:
			counted.Strays = count
		case c.Comment == nil:
		case strings.HasPrefix(c.Name, translatedPrefix):
			counted.Translated[*c.Comment] = count
		case strings.HasPrefix(c.Name, heldPrefix):
			counted.Held[*c.Comment] = count
		}
	}
	return counted, nil
}

// change commits what describe asks for, in one transaction. When the table is not as it was
// known to be, it is read again and the change described again, once.
func (a *Applier) change(ctx context.Context, describe func(*contents, *changes)) (int, error) {
	fresh := a.known == nil
	if fresh {
		c, err := list(ctx, a.nft)
		if err != nil {
			return 0, err
		}
		if a.before != nil && !c.same(a.before) {
			a.drift.Add(1)
		}
		a.known, a.before = c, nil
	}
	tx := &changes{tx: a.nft.NewTransaction(), contents: a.known}
	describe(a.known, tx)
	if tx.written == 0 {
		return 0, nil
	}
	if err := a.nft.Run(ctx, tx.tx); err != nil {
		a.known = nil
		if !fresh && ctx.Err() == nil {
			a.drift.Add(1)
			return a.change(ctx, describe)
		}
		return 0, fmt.Errorf("table %s: %w", Table, err)
	}
	if tx.based {
		a.known.base, a.based = true, true
	}
	return tx.written, nil
}

// same is whether two readings of the table agree.
func (c *contents) same(other *contents) bool {
	return c.base == other.base && len(c.foreign) == 0 && reflect.DeepEqual(c.sets, other.sets) &&
		maps.EqualFunc(c.counters, other.counters, func(_, _ string) bool { return true })
}

// leaving are the pairs whose connections are to be ended, ordered.
func (c *contents) leaving() []dataplane.Translation {
	var pairs []dataplane.Translation
	for _, n := range []*names{names4, names6} {
		for key := range c.sets[n.leaving.name] {
			if t, ok := pairOf(key); ok {
				pairs = append(pairs, t)
			}
		}
	}
	slices.SortFunc(pairs, func(a, b dataplane.Translation) int {
		if d := a.Pod.Compare(b.Pod); d != 0 {
			return d
		}
		return a.Source.Compare(b.Source)
	})
	return pairs
}

// changes is a transaction and what the table will hold after it. If the transaction fails the
// contents are wrong, and must be read again.
type changes struct {
	*contents
	tx      *knftables.Transaction
	written int
	based   bool
}

func (c *changes) addBase() {
	addBase(c.tx)
	c.based = true
	c.written++
}

// keep takes over of a table that is replaced what must not be lost with it. Entries that don't read as
// pairs of addresses are not ours.
func (c *changes) keep(old *contents) {
	for _, n := range []*names{names4, names6} {
		for pod, source := range old.sets[n.snat.name] {
			if _, ok := pairOf(key(pod, source)); ok && !has(c.sets[n.snat.name], pod) {
				c.tx.Add(element(n.snat, pod, source))
				c.sets[n.snat.name][pod] = source
			}
		}
		for source := range old.sets[n.accounts.name] {
			if pair := n.accounts.pair(source, ""); !has(c.sets[n.accounts.name], source) {
				if t, ok := pairOf(pair); ok {
					old.sets[n.leaving.name][pairKey(t)] = ""
				}
			}
		}
	}
	for _, t := range old.leaving() {
		if set := of(t.Pod).leaving; !has(c.sets[set.name], pairKey(t)) {
			c.tx.Add(element(set, pairKey(t), ""))
			c.sets[set.name][pairKey(t)] = ""
		}
	}
}

func (c *changes) emptyForeign() {
	for _, s := range c.foreign {
		c.tx.Flush(&knftables.Set{Name: s.name})
		c.written++
	}
	c.foreign = nil
}

func (c *changes) addCounters(want map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, there := c.counters[name]; !there {
			c.tx.Add(&knftables.Counter{Name: name, Comment: knftables.PtrTo(want[name])})
			c.counters[name] = want[name]
			c.written++
		}
	}
}

// removeCounters comes after the elements that use them are gone.
func (c *changes) removeCounters(want map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(c.counters)) {
		if _, wanted := want[name]; !wanted {
			c.tx.Delete(&knftables.Counter{Name: name})
			delete(c.counters, name)
			c.written++
		}
	}
}

func (c *changes) addElements(s set, want elements) {
	have := c.sets[s.name]
	var other []string
	for key, value := range want {
		if is, there := have[key]; !there || is != value {
			other = append(other, key)
		}
	}
	slices.Sort(other)
	for _, key := range other {
		if has(have, key) {
			c.remove(s, key)
		}
		c.tx.Add(element(s, key, want[key]))
		have[key] = want[key]
		c.written++
		if s.pair != nil {
			c.stay(s.leaving, s.pair(key, want[key]))
		}
	}
}

func (c *changes) removeElements(s set, want elements) {
	var surplus []string
	for key := range c.sets[s.name] {
		if !has(want, key) {
			surplus = append(surplus, key)
		}
	}
	slices.Sort(surplus)
	for _, key := range surplus {
		c.remove(s, key)
	}
}

// remove takes an element out, and notes whose connections are over with it.
func (c *changes) remove(s set, key string) {
	value := c.sets[s.name][key]
	c.tx.Delete(element(s, key, value))
	delete(c.sets[s.name], key)
	c.written++
	if s.pair == nil {
		return
	}
	if pair := s.pair(key, value); !has(c.sets[s.leaving], pair) {
		c.tx.Add(&knftables.Element{Set: s.leaving, Key: strings.Split(pair, separator)})
		c.sets[s.leaving][pair] = ""
		c.written++
	}
}

// stay takes back what was noted of a pair.
func (c *changes) stay(leaving, pair string) {
	if has(c.sets[leaving], pair) {
		c.tx.Delete(&knftables.Element{Set: leaving, Key: strings.Split(pair, separator)})
		delete(c.sets[leaving], pair)
		c.written++
	}
}

func has(e elements, key string) bool {
	_, there := e[key]
	return there
}

func (c *changes) forget(t dataplane.Translation) { c.stay(of(t.Pod).leaving.name, pairKey(t)) }
