// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"cmp"
	"net/netip"
	"slices"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
)

// maxCommunities bounds the communities of each kind that one route may have: all of them have to
// fit into one UPDATE, 4,096 bytes (RFC 4271 §4.1).
const maxCommunities = 100

// ComparePrefixes orders masked prefixes: by family, address and length. Routes are in this order.
func ComparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// FindRoute looks for a prefix in ordered routes.
func FindRoute(routes []Route, p netip.Prefix) (index int, found bool) {
	return slices.BinarySearchFunc(routes, p, func(r Route, p netip.Prefix) int { return ComparePrefixes(r.Prefix, p) })
}

// ownPrefixes are those of one router of one object.
type ownPrefixes struct {
	texts    []string
	prefixes []netip.Prefix // ordered, each once
	// routes has them without attributes, for neighbors that have these families. Most neighbors of
	// MetalLB's objects are allowed all of them, and share these.
	routes map[Families][]Route
}

func newOwnPrefixes(report reporter, texts []string) *ownPrefixes {
	return &ownPrefixes{texts: texts, prefixes: parsePrefixes(report, "prefixes", texts), routes: map[Families][]Route{}}
}

// all are the routes that families can carry. They must not be changed.
func (o *ownPrefixes) all(families Families) []Route {
	routes, ok := o.routes[families]
	if !ok {
		for _, prefix := range o.prefixes {
			if families.Has(prefix) {
				routes = append(routes, Route{Prefix: prefix})
			}
		}
		o.routes[families] = routes
	}
	return routes
}

// parsePrefixes reads a list of prefixes and orders them; field names it in problems.
func parsePrefixes(report reporter, field string, texts []string) []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		if prefix, ok := parsePrefix(text); ok {
			prefixes = append(prefixes, prefix)
		} else {
			report.problem("%s: %q is not a prefix, ignored", field, text)
		}
	}
	slices.SortFunc(prefixes, ComparePrefixes)
	return slices.Compact(prefixes)
}

// parsePrefix masks the host bits, as FRR does. IPv4-mapped IPv6 prefixes are nobody's route.
func parsePrefix(text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return prefix.Masked(), true
}

// advertise reads toAdvertise: the allowed prefixes, which must be among the router's own, and
// the attributes, whose prefixes must be among the allowed ones.
func (n *neighborMerge) advertise(report reporter, own *ownPrefixes, in *frrk8sv1beta1.Advertise) {
	n.nextHop4 = parseNextHop(report, "ipv4", in.NextHop.IPv4, netip.Addr.Is4)
	n.nextHop6 = parseNextHop(report, "ipv6", in.NextHop.IPv6, netip.Addr.Is6)

	if in.Allowed.Mode == frrk8sv1beta1.AllowAll || slices.Equal(in.Allowed.Prefixes, own.texts) {
		n.routes, n.shared = own.all(n.Families), true
	} else {
		n.routes = n.allowed(report, own, in.Allowed.Prefixes)
	}
	for _, entry := range in.PrefixesWithLocalPref {
		n.withLocalPref(report, entry)
	}
	for _, entry := range in.PrefixesWithCommunity {
		n.withCommunity(report, entry)
	}
}

// allowed are the routes to some of the router's prefixes.
func (n *neighborMerge) allowed(report reporter, own *ownPrefixes, texts []string) (routes []Route) {
	for _, prefix := range parsePrefixes(report, "toAdvertise.allowed.prefixes", texts) {
		if !n.Families.Has(prefix) {
			continue // no mistake: only a dual stack session carries the other family
		}
		if _, ok := slices.BinarySearchFunc(own.prefixes, prefix, ComparePrefixes); !ok {
			report.problem("toAdvertise.allowed.prefixes: %s is not among the router's prefixes, ignored", prefix)
			continue
		}
		routes = append(routes, Route{Prefix: prefix})
	}
	return routes
}

// unshare makes the routes the neighbor's own, so that they can be changed.
func (n *neighborMerge) unshare() {
	if n.shared {
		n.routes, n.shared = slices.Clone(n.routes), false
	}
}

func parseNextHop(report reporter, field, text string, right func(netip.Addr) bool) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	address, err := netip.ParseAddr(text)
	if err != nil || !right(address) || address.Is4In6() || address.Zone() != "" || address.IsUnspecified() || address.IsMulticast() {
		report.problem("toAdvertise.nextHop.%s: %q can't be a next hop, ignored", field, text)
		return netip.Addr{}
	}
	return address
}

func (n *neighborMerge) withLocalPref(report reporter, entry frrk8sv1beta1.LocalPrefPrefixes) {
	for _, route := range n.routesOf(report, "withLocalPref", entry.Prefixes) {
		if route.LocalPref != nil && *route.LocalPref != entry.LocalPref {
			report.problem("toAdvertise.withLocalPref: %s has local preference %d already, %d is ignored", route.Prefix, *route.LocalPref, entry.LocalPref)
			continue
		}
		value := entry.LocalPref
		route.LocalPref = &value
	}
}

func (n *neighborMerge) withCommunity(report reporter, entry frrk8sv1beta1.CommunityPrefixes) {
	if err := new(Route).addCommunity(entry.Community); err != nil {
		report.problem("toAdvertise.withCommunity: %v, ignored", err)
		return
	}
	for _, route := range n.routesOf(report, "withCommunity", entry.Prefixes) {
		_ = route.addCommunity(entry.Community) // parsed above
	}
}

// maxPrepends is the CRD's.
const maxPrepends = 10

func (n *neighborMerge) withASPathPrepend(report reporter, entry ASPathPrepend) {
	if entry.Times < 1 || entry.Times > maxPrepends {
		report.problem("toAdvertise.%s: %d is not between 1 and %d, ignored", asPathPrepend, entry.Times, maxPrepends)
		return
	}
	for _, route := range n.routesOf(report, asPathPrepend, entry.Prefixes) {
		if route.Prepend != 0 && route.Prepend != uint8(entry.Times) {
			report.problem("toAdvertise.%s: %s is prepended %d times already, %d is ignored", asPathPrepend, route.Prefix, route.Prepend, entry.Times)
			continue
		}
		route.Prepend = uint8(entry.Times)
	}
}

// routesOf finds the routes that an attribute names, to change them.
func (n *neighborMerge) routesOf(report reporter, field string, texts []string) []*Route {
	n.unshare()
	var routes []*Route
	for _, text := range texts {
		prefix, ok := parsePrefix(text)
		if ok && !n.Families.Has(prefix) {
			continue
		}
		index, found := FindRoute(n.routes, prefix)
		if !ok || !found {
			report.problem("toAdvertise.%s: %q is not among the allowed prefixes, ignored", field, text)
			continue
		}
		routes = append(routes, &n.routes[index])
	}
	return routes
}

// joinRoutes adds a younger object's routes.
func (n *neighborMerge) joinRoutes(report reporter, younger *neighborMerge) {
	n.nextHop4 = joinNextHop(report, n.nextHop4, younger.nextHop4)
	n.nextHop6 = joinNextHop(report, n.nextHop6, younger.nextHop6)
	if len(younger.routes) == 0 {
		return
	}
	older, next := n.routes, younger.routes
	joined := make([]Route, 0, len(older)+len(next))
	for len(older) > 0 || len(next) > 0 {
		order := 0
		switch {
		case len(next) == 0:
			order = -1
		case len(older) == 0:
			order = 1
		default:
			order = ComparePrefixes(older[0].Prefix, next[0].Prefix)
		}
		switch {
		case order < 0:
			joined, older = append(joined, older[0]), older[1:]
		case order > 0:
			if n.Families.Has(next[0].Prefix) {
				joined = append(joined, next[0])
			}
			next = next[1:]
		default:
			joined = append(joined, joinRoute(report, older[0], next[0]))
			older, next = older[1:], next[1:]
		}
	}
	n.routes, n.shared = joined, false
}

// joinRoute adds the attributes that a younger object gives a route.
func joinRoute(report reporter, route, next Route) Route {
	if route.LocalPref == nil {
		route.LocalPref = next.LocalPref
	} else if next.LocalPref != nil && *next.LocalPref != *route.LocalPref {
		report.problem("toAdvertise.withLocalPref: %s has local preference %d by an older object, %d is ignored", route.Prefix, *route.LocalPref, *next.LocalPref)
	}
	if route.Prepend == 0 {
		route.Prepend = next.Prepend
	} else if next.Prepend != 0 && next.Prepend != route.Prepend {
		report.problem("toAdvertise.%s: %s is prepended %d times by an older object, %d is ignored", asPathPrepend, route.Prefix, route.Prepend, next.Prepend)
	}
	communities, large := slices.Concat(route.Communities, next.Communities), slices.Concat(route.LargeCommunities, next.LargeCommunities)
	if max(len(communities), len(large)) > maxCommunities && max(len(next.Communities), len(next.LargeCommunities)) > 0 {
		report.problem("toAdvertise.withCommunity: with those of older objects %s would have more than %d communities, ignored", route.Prefix, maxCommunities)
		return route
	}
	route.Communities, route.LargeCommunities = communities, large
	return route
}

func joinNextHop(report reporter, older, younger netip.Addr) netip.Addr {
	if older.IsValid() && younger.IsValid() && older != younger {
		report.problem("toAdvertise.nextHop: %s contradicts %s of an older object, ignored", younger, older)
	}
	if older.IsValid() {
		return older
	}
	return younger
}

// finish orders the routes' attributes and gives them their next hops.
func (m *merger) finish(n *neighborMerge) Neighbor {
	out := n.Neighbor
	plain := !n.nextHop4.IsValid() && !n.nextHop6.IsValid() && !(n.Address.Is4() && n.Families.IPv6)
	if n.shared && plain {
		out.Routes = n.routes
		return out
	}
	unreachable, crowded := 0, 0
	for _, route := range n.routes {
		slices.Sort(route.Communities)
		route.Communities = slices.Compact(route.Communities)
		slices.SortFunc(route.LargeCommunities, LargeCommunity.compare)
		route.LargeCommunities = slices.Compact(route.LargeCommunities)
		if max(len(route.Communities), len(route.LargeCommunities)) > maxCommunities {
			crowded++
			continue
		}
		route.NextHop = n.nextHop4
		if route.Prefix.Addr().Is6() {
			route.NextHop = n.nextHop6
			if !route.NextHop.IsValid() && n.Address.Is4() {
				// A session over IPv4 has no address of its own that an IPv6 route could point to.
				route.NextHop = m.node.ipv6()
				if !route.NextHop.IsValid() {
					unreachable++
					continue
				}
			}
		}
		out.Routes = append(out.Routes, route)
	}
	if unreachable > 0 {
		n.report.problem("%d IPv6 prefixes are not announced: the session is over IPv4 and the node has no IPv6 address for their next hop", unreachable)
	}
	if crowded > 0 {
		n.report.problem("%d prefixes are not announced: they have more than %d communities", crowded, maxCommunities)
	}
	return out
}
