// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"maps"
	"net/netip"
	"slices"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
)

// parsePrefixes reads a list of prefixes; field names it in problems.
func parsePrefixes(report reporter, field string, texts []string) map[netip.Prefix]bool {
	prefixes := map[netip.Prefix]bool{}
	for _, text := range texts {
		if prefix, ok := parsePrefix(text); ok {
			prefixes[prefix] = true
		} else {
			report.problem("%s: %q is not a prefix, ignored", field, text)
		}
	}
	return prefixes
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
func (n *neighborMerge) advertise(report reporter, own map[netip.Prefix]bool, in *frrk8sv1beta1.Advertise) {
	n.nextHop4 = parseNextHop(report, "ipv4", in.NextHop.IPv4, netip.Addr.Is4)
	n.nextHop6 = parseNextHop(report, "ipv6", in.NextHop.IPv6, netip.Addr.Is6)

	allowed := own
	if in.Allowed.Mode != frrk8sv1beta1.AllowAll {
		allowed = parsePrefixes(report, "toAdvertise.allowed.prefixes", in.Allowed.Prefixes)
	}
	for _, prefix := range slices.SortedFunc(maps.Keys(allowed), netip.Prefix.Compare) {
		switch {
		case !n.Families.Has(prefix):
			// No mistake: only a dual stack session carries the other family.
		case !own[prefix]:
			report.problem("toAdvertise.allowed.prefixes: %s is not among the router's prefixes, ignored", prefix)
		default:
			n.routes[prefix] = &Route{Prefix: prefix}
		}
	}
	for _, entry := range in.PrefixesWithLocalPref {
		n.withLocalPref(report, entry)
	}
	for _, entry := range in.PrefixesWithCommunity {
		n.withCommunity(report, entry)
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

// routesOf finds the routes that an attribute names.
func (n *neighborMerge) routesOf(report reporter, field string, texts []string) []*Route {
	var routes []*Route
	for _, text := range texts {
		prefix, ok := parsePrefix(text)
		if ok && !n.Families.Has(prefix) {
			continue
		}
		route := n.routes[prefix]
		if !ok || route == nil {
			report.problem("toAdvertise.%s: %q is not among the allowed prefixes, ignored", field, text)
			continue
		}
		routes = append(routes, route)
	}
	return routes
}

// joinRoutes adds a younger object's routes.
func (n *neighborMerge) joinRoutes(report reporter, younger *neighborMerge) {
	n.nextHop4 = joinNextHop(report, n.nextHop4, younger.nextHop4)
	n.nextHop6 = joinNextHop(report, n.nextHop6, younger.nextHop6)
	for _, prefix := range slices.SortedFunc(maps.Keys(younger.routes), netip.Prefix.Compare) {
		next := younger.routes[prefix]
		route := n.routes[prefix]
		if route == nil {
			if n.Families.Has(prefix) {
				n.routes[prefix] = next
			}
			continue
		}
		if route.LocalPref == nil {
			route.LocalPref = next.LocalPref
		} else if next.LocalPref != nil && *next.LocalPref != *route.LocalPref {
			report.problem("toAdvertise.withLocalPref: %s has local preference %d by an older object, %d is ignored", prefix, *route.LocalPref, *next.LocalPref)
		}
		route.Communities = append(route.Communities, next.Communities...)
		route.LargeCommunities = append(route.LargeCommunities, next.LargeCommunities...)
	}
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

// finish orders the routes and gives them their next hops.
func (m *merger) finish(n *neighborMerge) Neighbor {
	out := n.Neighbor
	unreachable := 0
	for _, prefix := range slices.SortedFunc(maps.Keys(n.routes), netip.Prefix.Compare) {
		route := *n.routes[prefix]
		slices.Sort(route.Communities)
		route.Communities = slices.Compact(route.Communities)
		slices.SortFunc(route.LargeCommunities, LargeCommunity.compare)
		route.LargeCommunities = slices.Compact(route.LargeCommunities)
		route.NextHop = n.nextHop4
		if prefix.Addr().Is6() {
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
	return out
}
