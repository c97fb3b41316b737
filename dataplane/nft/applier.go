// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Applier writes the NAT part of plans. Its methods must not be called concurrently.
type Applier struct {
	nft knftables.Interface
	// known is what the table holds as far as we know, nil when it has to be read.
	known *contents
	// based is whether this applier has written the rules itself once: those of an older program
	// can carry the same comments.
	based bool
}

// New takes an interface for Family and Table. It does nothing yet.
func New(nft knftables.Interface) *Applier { return &Applier{nft: nft} }

// Relist makes the next call read the table, because somebody may have changed it.
func (a *Applier) Relist() { a.known = nil }

// Add brings in what the plan wants: the table itself, all internal destinations, and
// translations that are new or have another source. It returns the number of elements written.
func (a *Applier) Add(ctx context.Context, want dataplane.NAT) (int, error) {
	return a.change(ctx, func(c *contents, tx *changes) {
		if !c.base || !a.based {
			tx.addBase()
		}
		for _, set := range c.foreign {
			tx.flush(set)
		}
		tx.setInternal(want.Internal)
		for _, t := range want.Translations {
			tx.translate(t)
		}
	})
}

// Remove takes translations that the plan lacks out of the maps, and returns all pairs whose
// connections are to be ended, those of earlier calls included, until Forget is told of them.
func (a *Applier) Remove(ctx context.Context, want dataplane.NAT) ([]dataplane.Translation, error) {
	wanted := make(map[netip.Addr]bool, len(want.Translations))
	for _, t := range want.Translations {
		wanted[t.Pod] = true
	}
	_, err := a.change(ctx, func(c *contents, tx *changes) {
		for _, t := range sortedPairs(c.snat) {
			if !wanted[t.Pod] {
				tx.untranslate(t)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return sorted(a.known.leaving), nil
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
	a.known, a.based = nil, false
	tx := a.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := a.nft.Run(ctx, tx); err != nil {
		return nil, fmt.Errorf("delete table %s: %w", Table, err)
	}
	for pod, source := range c.snat {
		c.leaving[dataplane.Translation{Pod: pod, Source: source}] = true
	}
	return sorted(c.leaving), nil
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
		a.known = c
	}
	tx := &changes{tx: a.nft.NewTransaction(), contents: a.known}
	describe(a.known, tx)
	if tx.written == 0 {
		return 0, nil
	}
	if err := a.nft.Run(ctx, tx.tx); err != nil {
		a.known = nil
		if !fresh && ctx.Err() == nil {
			return a.change(ctx, describe)
		}
		return 0, fmt.Errorf("table %s: %w", Table, err)
	}
	a.known.foreign = nil
	if tx.based {
		a.known.base, a.based = true, true
	}
	return tx.written, nil
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

func (c *changes) flush(o knftables.Object) {
	c.tx.Flush(o)
	c.written++
}

func (c *changes) setInternal(want []netip.Prefix) {
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, p := range want {
		wanted[p] = true
	}
	// Deletions first, because intervals must not overlap.
	for p := range c.internal {
		if !wanted[p] {
			c.tx.Delete(internalElement(p))
			delete(c.internal, p)
			c.written++
		}
	}
	for _, p := range want {
		if !c.internal[p] {
			c.tx.Add(internalElement(p))
			c.internal[p] = true
			c.written++
		}
	}
}

func (c *changes) translate(t dataplane.Translation) {
	source, there := c.snat[t.Pod]
	if there && source == t.Source {
		c.forget(t)
		return
	}
	if there {
		c.untranslate(dataplane.Translation{Pod: t.Pod, Source: source})
	}
	c.tx.Add(snatElement(t))
	c.snat[t.Pod] = t.Source
	c.written++
	c.forget(t)
}

func (c *changes) untranslate(t dataplane.Translation) {
	c.tx.Delete(snatElement(t))
	delete(c.snat, t.Pod)
	c.tx.Add(leavingElement(t))
	c.leaving[t] = true
	c.written++
}

func (c *changes) forget(t dataplane.Translation) {
	if c.leaving[t] {
		c.tx.Delete(leavingElement(t))
		delete(c.leaving, t)
		c.written++
	}
}

func sortedPairs(m map[netip.Addr]netip.Addr) []dataplane.Translation {
	list := make([]dataplane.Translation, 0, len(m))
	for pod, source := range m {
		list = append(list, dataplane.Translation{Pod: pod, Source: source})
	}
	slices.SortFunc(list, comparePairs)
	return list
}

func sorted(m map[dataplane.Translation]bool) []dataplane.Translation {
	list := make([]dataplane.Translation, 0, len(m))
	for t := range m {
		list = append(list, t)
	}
	slices.SortFunc(list, comparePairs)
	return list
}

func comparePairs(a, b dataplane.Translation) int {
	if d := a.Pod.Compare(b.Pod); d != 0 {
		return d
	}
	return a.Source.Compare(b.Source)
}
