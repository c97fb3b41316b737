// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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

// plan is what a server should have.
type plan struct {
	paths      map[netip.Prefix][]tag // tags ordered
	statements map[tag]statement
}

// statement is what a tag stands for.
type statement struct {
	peer  netip.Addr
	route bgp.Route // its prefix is any one that has these attributes
	asn   uint32    // the local one of the session
}

// plan numbers peers and attributes and works out the tags of every prefix.
func (i *instance) plan(want bgp.Router) plan {
	plan := plan{paths: map[netip.Prefix][]tag{}, statements: map[tag]statement{}}
	for _, neighbor := range want.Neighbors {
		index := i.peerNumber(neighbor.Address)
		for _, route := range neighbor.Routes {
			asn := cmp.Or(neighbor.LocalASN, want.ASN)
			t := tag{index, i.policies.attributesNumber(route, asn)}
			plan.paths[route.Prefix] = append(plan.paths[route.Prefix], t)
			plan.statements[t] = statement{neighbor.Address, route, asn}
		}
	}
	for _, tags := range plan.paths {
		slices.SortFunc(tags, tag.compare)
	}
	return plan
}

// without takes tags out of the plan.
func (p plan) without(missing map[tag]bool) {
	if len(missing) == 0 {
		return
	}
	for prefix, tags := range p.paths {
		p.paths[prefix] = slices.DeleteFunc(tags, func(t tag) bool { return missing[t] })
	}
}

// withdraw removes the paths that the plan doesn't have.
func (i *instance) withdraw(ctx context.Context, plan plan) error {
	var gone []netip.Prefix
	for prefix := range i.paths {
		if _, ok := plan.paths[prefix]; !ok {
			gone = append(gone, prefix)
		}
	}
	slices.SortFunc(gone, netip.Prefix.Compare)
	return i.inBatches(ctx, "withdrawing", gone, nil, func(paths []*gobgpapiutil.Path) error {
		return i.server.DeletePath(gobgpapiutil.DeletePathRequest{Paths: paths})
	})
}

// announce gives GoBGP the paths that are new or whose tags have changed.
func (i *instance) announce(ctx context.Context, plan plan) error {
	var changed []netip.Prefix
	for _, prefix := range slices.SortedFunc(maps.Keys(plan.paths), netip.Prefix.Compare) {
		if applied, ok := i.paths[prefix]; !ok || !slices.Equal(applied, plan.paths[prefix]) {
			changed = append(changed, prefix)
		}
	}
	return i.inBatches(ctx, "announcing", changed, plan.paths, func(paths []*gobgpapiutil.Path) error {
		_, err := i.server.AddPath(gobgpapiutil.AddPathRequest{Paths: paths})
		return err
	})
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
		if tags == nil {
			delete(i.paths, prefix)
		} else {
			i.paths[prefix] = tags[prefix]
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
