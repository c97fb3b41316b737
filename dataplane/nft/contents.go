// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// elements of one set: keys, and in a map their values.
type elements map[string]string

// contents is what the table holds.
type contents struct {
	// base is whether all objects and rules are there that belong to no service.
	base bool
	sets map[string]elements
	// foreign are sets with elements that we never write and can't name, ranges. They count as empty.
	foreign []set
	// counters are those of services, with their keys; the keys of those read are not known.
	counters map[string]string
}

// list reads the table.
func list(ctx context.Context, nft knftables.Interface) (*contents, error) {
	c := &contents{base: true, sets: map[string]elements{}, counters: map[string]string{}}
	objects, err := nft.ListAll(ctx)
	if err != nil && !knftables.IsNotFound(err) {
		return nil, fmt.Errorf("list table %s: %w", Table, err)
	}
	for _, s := range sets() {
		c.sets[s.name] = elements{}
		if !slices.Contains(objects[s.kind], s.name) {
			c.base = false
			continue
		}
		found, err := nft.ListElements(ctx, s.kind, s.name)
		if err != nil {
			return nil, fmt.Errorf("list %s %s: %w", s.kind, s.name, err)
		}
		for _, e := range found {
			value := ""
			if len(e.Value) > 0 {
				value = canonical(e.Value[0])
			}
			c.sets[s.name][key(e.Key...)] = value
		}
		if _, foreign := c.sets[s.name][""]; foreign {
			c.foreign = append(c.foreign, s)
			c.sets[s.name] = elements{}
		}
	}
	for _, name := range objects["counter"] {
		if strings.HasPrefix(name, translatedPrefix) || strings.HasPrefix(name, heldPrefix) {
			c.counters[name] = ""
		}
	}
	for _, name := range counters() {
		c.base = c.base && slices.Contains(objects["counter"], name)
	}
	for _, chain := range chains() {
		if !slices.Contains(objects["chain"], chain.Name) {
			c.base = false
			continue
		}
		found, err := nft.ListRules(ctx, chain.Name)
		if err != nil {
			return nil, fmt.Errorf("list chain %s: %w", chain.Name, err)
		}
		wanted := slices.DeleteFunc(rules(), func(r *knftables.Rule) bool { return r.Chain != chain.Name })
		c.base = c.base && slices.EqualFunc(found, wanted, func(a, b *knftables.Rule) bool {
			return a.Comment != nil && *a.Comment == *b.Comment
		})
	}
	return c, nil
}

// wanted is what the table holds once a plan is in place, but for what is leaving.
func wanted(want dataplane.Host) contents {
	c := contents{base: true, sets: map[string]elements{}, counters: map[string]string{}}
	for _, s := range sets() {
		c.sets[s.name] = elements{}
	}
	prefixes := func(list []netip.Prefix, which func(*names) set) {
		for _, p := range list {
			c.sets[which(of(p.Addr())).name][key(p.String())] = ""
		}
	}
	prefixes(want.Internal, func(n *names) set { return n.internal })
	prefixes(want.Pods, func(n *names) set { return n.pods })
	prefixes(want.OwnPods, func(n *names) set { return n.ownPods })
	for _, t := range want.Translations {
		c.sets[of(t.Pod).snat.name][t.Pod.String()] = t.Source.String()
	}
	for _, key := range want.Counted {
		c.counters[heldPrefix+dataplane.ServiceHash(key)] = key
	}
	for _, a := range want.Accounts {
		name := translatedPrefix + dataplane.ServiceHash(a.Service)
		c.counters[name] = a.Service
		c.sets[of(a.Source).accounts.name][a.Source.String()] = name
	}
	for _, h := range want.Holds {
		name := heldPrefix + dataplane.ServiceHash(h.Service)
		c.counters[name] = h.Service
		c.sets[of(h.Pod).holds.name][h.Pod.String()] = name
	}
	for _, g := range want.Guards {
		n, address := of(g.Address), g.Address.String()
		c.sets[n.guarded.name][address] = ""
		for _, p := range g.Ports {
			c.sets[n.ports.name][key(address, p.Protocol.String(), strconv.Itoa(int(p.Number)))] = ""
		}
	}
	return c
}
