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

// contents is what the table holds.
type contents struct {
	// base is whether all objects and rules are there.
	base     bool
	internal map[netip.Prefix]bool
	snat     map[netip.Addr]netip.Addr
	leaving  map[dataplane.Translation]bool
	// foreign are sets and maps with elements that we never write, for example a range.
	foreign []knftables.Object
}

// list reads the table.
func list(ctx context.Context, nft knftables.Interface) (*contents, error) {
	c := &contents{base: true, internal: map[netip.Prefix]bool{}, snat: map[netip.Addr]netip.Addr{}, leaving: map[dataplane.Translation]bool{}}
	objects, err := nft.ListAll(ctx)
	if knftables.IsNotFound(err) {
		c.base = false
		return c, nil
	} else if err != nil {
		return nil, fmt.Errorf("list table %s: %w", Table, err)
	}
	elements := func(kind, name string) ([]*knftables.Element, error) {
		if !slices.Contains(objects[kind], name) {
			c.base = false
			return nil, nil
		}
		found, err := nft.ListElements(ctx, kind, name)
		if err != nil {
			return nil, fmt.Errorf("list %s %s: %w", kind, name, err)
		}
		return found, nil
	}
	for _, n := range []names{names4(), names6()} {
		internal, err := elements("set", n.internal)
		if err != nil {
			return nil, err
		}
		snat, err := elements("map", n.snat)
		if err != nil {
			return nil, err
		}
		leaving, err := elements("set", n.leaving)
		if err != nil {
			return nil, err
		}
		c.readInternal(n, internal)
		c.readSNAT(n, snat)
		c.readLeaving(n, leaving)
	}
	if !slices.Contains(objects["chain"], chainPostrouting) {
		c.base = false
		return c, nil
	}
	found, err := nft.ListRules(ctx, chainPostrouting)
	if err != nil {
		return nil, fmt.Errorf("list chain %s: %w", chainPostrouting, err)
	}
	c.base = c.base && slices.EqualFunc(found, rules(), func(a, b *knftables.Rule) bool {
		return a.Comment != nil && *a.Comment == *b.Comment
	})
	return c, nil
}

func (c *contents) readInternal(n names, elements []*knftables.Element) {
	for _, e := range elements {
		p, ok := parsePrefix(e.Key)
		if !ok {
			c.foreign = append(c.foreign, &knftables.Set{Name: n.internal})
			// It will be emptied, so whatever was read of it counts as absent.
			for p := range c.internal {
				if of(p.Addr()) == n {
					delete(c.internal, p)
				}
			}
			return
		}
		c.internal[p] = true
	}
}

func (c *contents) readSNAT(n names, elements []*knftables.Element) {
	for _, e := range elements {
		t, ok := parsePair(append(slices.Clone(e.Key), e.Value...))
		if !ok {
			c.foreign = append(c.foreign, &knftables.Map{Name: n.snat})
			for pod := range c.snat {
				if of(pod) == n {
					delete(c.snat, pod)
				}
			}
			return
		}
		c.snat[t.Pod] = t.Source
	}
}

func (c *contents) readLeaving(n names, elements []*knftables.Element) {
	for _, e := range elements {
		if t, ok := parsePair(e.Key); ok && of(t.Pod) == n {
			c.leaving[t] = true
		}
	}
}

// parsePrefix reads an element of an interval set. nft writes a single address without a length.
func parsePrefix(key []string) (netip.Prefix, bool) {
	if len(key) != 1 {
		return netip.Prefix{}, false
	}
	if a, err := netip.ParseAddr(key[0]); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(key[0])
	return p, err == nil
}

func parsePair(key []string) (dataplane.Translation, bool) {
	if len(key) != 2 {
		return dataplane.Translation{}, false
	}
	pod, podErr := netip.ParseAddr(key[0])
	source, sourceErr := netip.ParseAddr(key[1])
	return dataplane.Translation{Pod: pod, Source: source}, podErr == nil && sourceErr == nil
}
