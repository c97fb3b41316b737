// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	gobgpapiutil "github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// batch is the most paths in one call: while a call runs, every other one to the server waits
// (100,000 in one call: 1.6 s; in calls of 500: 51 ms).
const batch = 500

// globalFamilies are GoBGP's numbers for IPv4 and IPv6 unicast. Without them a server makes room
// for every family there is, some 9 MiB.
var globalFamilies = []uint32{0, 1}

// plan is what has to change.
type plan struct {
	paths      map[netip.Prefix][]tag // as they should be, tags ordered; without tags: not at all
	statements map[tag]statement      // that the tags need
}

// statement is what a tag stands for.
type statement struct {
	peer  netip.Addr
	route bgp.Route // its prefix is any one that has these attributes
	asn   uint32    // the local one of the session
}

// plan numbers peers and attributes, and works out the tags of the prefixes that have changed.
func (i *instance) plan(want bgp.Router) plan {
	plan := plan{paths: i.changed(want), statements: map[tag]statement{}}
	for _, neighbor := range want.Neighbors {
		index, asn := i.peerNumber(neighbor.Address), cmp.Or(neighbor.LocalASN, want.ASN)
		for prefix, tags := range plan.paths {
			at, ok := bgp.FindRoute(neighbor.Routes, prefix)
			if !ok {
				continue
			}
			route := neighbor.Routes[at]
			t := tag{index, i.policies.attributesNumber(route, asn)}
			plan.paths[prefix] = append(tags, t)
			plan.statements[t] = statement{neighbor.Address, route, asn}
		}
	}
	for _, tags := range plan.paths {
		slices.SortFunc(tags, tag.compare)
	}
	return plan
}

// changed are the prefixes whose path may have to be another: those that some neighbor has otherwise
// than when all was well last, or all of them when it was not.
func (i *instance) changed(want bgp.Router) map[netip.Prefix][]tag {
	changed := map[netip.Prefix][]tag{}
	add := func(routes []bgp.Route) {
		for _, route := range routes {
			changed[route.Prefix] = nil
		}
	}
	if i.unsure {
		for prefix := range i.paths {
			changed[prefix] = nil
		}
	}
	wanted := map[netip.Addr]bool{}
	type pair struct {
		before, now *bgp.Route
		lengths     [2]int
	}
	compared := map[pair]bool{} // neighbors often share their routes
	for _, neighbor := range want.Neighbors {
		wanted[neighbor.Address] = true
		before, now := i.given[neighbor.Address], neighbor.Routes
		if i.unsure || len(before) == 0 || len(now) == 0 {
			add(before)
			add(now)
			continue
		}
		if lists := (pair{&before[0], &now[0], [2]int{len(before), len(now)}}); !compared[lists] {
			compared[lists] = true
			compare(before, now, changed)
		}
	}
	for address, routes := range i.given {
		if !wanted[address] {
			add(routes)
		}
	}
	return changed
}

// compare adds the prefixes that only one of two ordered lists has, or both with other attributes.
func compare(before, now []bgp.Route, changed map[netip.Prefix][]tag) {
	if &before[0] == &now[0] && len(before) == len(now) {
		return
	}
	for len(before) > 0 && len(now) > 0 {
		switch order := bgp.ComparePrefixes(before[0].Prefix, now[0].Prefix); {
		case order < 0:
			changed[before[0].Prefix] = nil
			before = before[1:]
		case order > 0:
			changed[now[0].Prefix] = nil
			now = now[1:]
		default:
			if !sameAttributes(&before[0], &now[0]) {
				changed[now[0].Prefix] = nil
			}
			before, now = before[1:], now[1:]
		}
	}
	for _, rest := range [][]bgp.Route{before, now} {
		for _, route := range rest {
			changed[route.Prefix] = nil
		}
	}
}

func sameAttributes(a, b *bgp.Route) bool {
	if (a.LocalPref == nil) != (b.LocalPref == nil) || a.LocalPref != nil && *a.LocalPref != *b.LocalPref {
		return false
	}
	return a.NextHop == b.NextHop && a.Prepend == b.Prepend && slices.Equal(a.Communities, b.Communities) && slices.Equal(a.LargeCommunities, b.LargeCommunities)
}

// without takes tags out of the plan.
func (p plan) without(missing map[tag]bool) {
	for prefix, tags := range p.paths {
		p.paths[prefix] = slices.DeleteFunc(tags, func(t tag) bool { return missing[t] })
	}
}

// withdraw removes the paths that the plan doesn't have.
func (i *instance) withdraw(ctx context.Context, plan plan) error {
	var gone []netip.Prefix
	for prefix, tags := range plan.paths {
		if _, there := i.paths[prefix]; there && len(tags) == 0 {
			gone = append(gone, prefix)
		}
	}
	slices.SortFunc(gone, bgp.ComparePrefixes)
	// However late it is: nothing is more urgent.
	return i.inBatches(context.WithoutCancel(ctx), "withdrawing", gone, nil, func(paths []*gobgpapiutil.Path) error {
		return i.server.DeletePath(gobgpapiutil.DeletePathRequest{Paths: paths})
	})
}

// announce gives GoBGP the paths that are new or whose tags have changed.
func (i *instance) announce(ctx context.Context, plan plan) error {
	var fewer, more []netip.Prefix
	for prefix, tags := range plan.paths {
		switch had := i.paths[prefix]; {
		case len(tags) == 0 || slices.Equal(had, tags):
		case len(tags) < len(had) && !slices.ContainsFunc(tags, func(t tag) bool { return !slices.Contains(had, t) }):
			fewer = append(fewer, prefix) // a withdrawal, from some peers
		default:
			more = append(more, prefix)
		}
	}
	slices.SortFunc(fewer, bgp.ComparePrefixes)
	slices.SortFunc(more, bgp.ComparePrefixes)
	call := func(paths []*gobgpapiutil.Path) error {
		_, err := i.server.AddPath(gobgpapiutil.AddPathRequest{Paths: paths})
		return err
	}
	return errors.Join(
		i.inBatches(context.WithoutCancel(ctx), "announcing", fewer, plan.paths, call),
		i.inBatches(ctx, "announcing", more, plan.paths, call))
}

// inBatches calls GoBGP for the prefixes and records what it took. A batch that fails is given
// again path by path: GoBGP keeps part of it and doesn't say which.
func (i *instance) inBatches(ctx context.Context, verb string, prefixes []netip.Prefix, tags map[netip.Prefix][]tag, call func([]*gobgpapiutil.Path) error) error {
	var errs []error
	one := func(prefixes []netip.Prefix) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		paths := make([]*gobgpapiutil.Path, len(prefixes))
		for n, prefix := range prefixes {
			var err error
			if paths[n], err = newPath(prefix, tags[prefix], tags == nil); err != nil {
				return err
			}
		}
		if err := call(paths); err != nil {
			return err
		}
		i.record(prefixes, tags)
		return nil
	}
	for chunk := range slices.Chunk(prefixes, batch) {
		if one(chunk) == nil {
			continue
		}
		for n, prefix := range chunk {
			if err := one(chunk[n : n+1]); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", verb, prefix, err))
			}
			if ctx.Err() != nil {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// record notes the paths that GoBGP has, or with nil tags has no more.
func (i *instance) record(prefixes []netip.Prefix, tags map[netip.Prefix][]tag) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, prefix := range prefixes {
		i.policies.use(i.paths[prefix], -1)
		if tags == nil {
			delete(i.paths, prefix)
		} else {
			i.paths[prefix] = tags[prefix]
			i.policies.use(tags[prefix], 1)
		}
	}
}

// newPath makes a path that has nothing but its tags: statements add the attributes. The
// unspecified next hop becomes the local address of each session.
func newPath(prefix netip.Prefix, tags []tag, withdrawal bool) (*gobgpapiutil.Path, error) {
	nlri, err := gobgppacket.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, err
	}
	path := &gobgpapiutil.Path{Family: gobgppacket.RF_IPv4_UC, Nlri: nlri, Withdrawal: withdrawal}
	var nextHop gobgppacket.PathAttributeInterface
	if prefix.Addr().Is4() {
		nextHop, err = gobgppacket.NewPathAttributeNextHop(netip.IPv4Unspecified())
	} else {
		path.Family = gobgppacket.RF_IPv6_UC
		nextHop, err = gobgppacket.NewPathAttributeMpReachNLRI(path.Family, []gobgppacket.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
	}
	if err != nil {
		return nil, err
	}
	path.Attrs = []gobgppacket.PathAttributeInterface{
		gobgppacket.NewPathAttributeOrigin(gobgppacket.BGP_ORIGIN_ATTR_TYPE_IGP), nextHop,
	}
	if len(tags) > 0 {
		communities := make([]*gobgppacket.LargeCommunity, len(tags))
		for n, t := range tags {
			communities[n] = gobgppacket.NewLargeCommunity(bgp.ReservedGlobalAdministrator, t.peer, t.attributes)
		}
		path.Attrs = append(path.Attrs, gobgppacket.NewPathAttributeLargeCommunities(communities))
	}
	return path, nil
}
