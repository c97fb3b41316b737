// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"maps"
	"net/netip"
	"slices"
)

// Guard decides which host routes may leave the node. It is subtractive: what it lets through is
// what was there before.
type Guard struct {
	// Egress has every LB IP of every Service that has a LoadBalancerIP EgressService, assigned or
	// not. True means that this node may announce the address now: it is labeled, primary of the
	// newest assignment it has seen, and has programmed that address.
	Egress map[netip.Addr]bool
}

// Filter returns c without the host routes of the egress addresses that are not open, and those
// addresses, ordered and each once. Aggregates that cover an egress address and addresses that
// Egress does not name are left alone. c itself is not changed.
func (g Guard) Filter(c Config) (allowed Config, withheld []netip.Addr) {
	closed := map[netip.Addr]bool{}
	for address, open := range g.Egress {
		// A closed spelling of an address wins over an open one.
		closed[address.Unmap()] = closed[address.Unmap()] || !open
	}
	taken := map[netip.Addr]bool{}
	// Neighbors that share their routes go on doing so.
	type list struct {
		first  *Route
		length int
	}
	kept := map[list][]Route{}
	allowed.Routers = slices.Clone(c.Routers)
	for i := range allowed.Routers {
		neighbors := slices.Clone(allowed.Routers[i].Neighbors)
		for j := range neighbors {
			routes := neighbors[j].Routes
			if len(routes) == 0 {
				continue
			}
			key := list{&routes[0], len(routes)}
			if _, done := kept[key]; !done {
				kept[key] = withhold(routes, closed, taken)
			}
			neighbors[j].Routes = kept[key]
		}
		allowed.Routers[i].Neighbors = neighbors
	}
	return allowed, slices.SortedFunc(maps.Keys(taken), netip.Addr.Compare)
}

// withhold returns routes without the host routes of closed addresses, and notes those in taken. It is
// routes itself when there are none. It looks at every route: nothing that it is given, ordered or not,
// may slip through.
func withhold(routes []Route, closed map[netip.Addr]bool, taken map[netip.Addr]bool) []Route {
	var kept []Route
	copied := 0 // routes before this one are in kept, or withheld
	for i := range routes {
		host, ok := hostAddress(routes[i].Prefix)
		if !ok || !closed[host] {
			continue
		}
		taken[host] = true
		if kept == nil {
			kept = make([]Route, 0, len(routes)-1)
		}
		kept, copied = append(kept, routes[copied:i]...), i+1
	}
	if copied == 0 {
		return routes
	}
	return append(kept, routes[copied:]...)
}
