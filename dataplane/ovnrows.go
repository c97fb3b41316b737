// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// ovnRows plans one family's rows.
func (c *computer) ovnRows(f family, shares []share) OVN {
	var rows OVN
	var served []netip.Addr
	arrivals := false
	for _, s := range shares {
		if s.family.name != f.name {
			continue
		}
		served = append(append(served, s.own...), s.arriving...)
		if len(s.own) > 0 {
			set := serviceSet("own", s, s.own)
			rows.AddressSets = append(rows.AddressSets, set)
			rows.Policies = append(rows.Policies, c.steerPolicy(s, set))
		}
		if len(s.arriving) > 0 {
			arrivals = true
			set := serviceSet("arriving", s, s.arriving)
			rows.AddressSets = append(rows.AddressSets, set)
			rows.Policies = append(rows.Policies, c.arrivalPolicy(s, set))
		}
	}
	if len(served) > 0 {
		rows.add(c.exemptions(f, served))
	}
	if arrivals {
		rows.SourceRoutes = c.sourceRoutes(f)
	}
	if c.stopsStrays() {
		rows.add(c.strays(f))
	}
	return rows
}

// strays sends to the host, which translates or drops it, what pods of services that this node does
// not translate for send to the outside by way of this node: their own node still takes it for the
// primary. Where somebody else's source route gives arrivals a way to the gateway router, they would
// leave with another address otherwise.
func (c *computer) strays(f family) OVN {
	nextHop := first(c.self.ManagementAddresses, f)
	var elsewhere []netip.Addr
	for _, s := range c.in.Services {
		if _, concerned := sourceOf(s, f); !concerned || s.Role.Translates() {
			continue
		}
		for _, e := range s.Endpoints {
			if a := e.Address.Unmap(); f.is(a) && e.Node != c.in.Node && c.owner[a] == s.Key {
				elsewhere = append(elsewhere, a)
			}
		}
	}
	if !nextHop.IsValid() || len(elsewhere) == 0 {
		return OVN{}
	}
	slices.SortFunc(elsewhere, netip.Addr.Compare)
	set, internal := sharedSet("elsewhere", f, addressStrings(slices.Compact(elsewhere))), c.internalSet(f)
	arrival := fmt.Sprintf("inport == %q && ", TransitPort(c.in.Node))
	return OVN{
		AddressSets: []AddressSet{set, internal},
		Policies: []Policy{{
			ID:       RowID{Row: "stray-exempt-" + f.name},
			Priority: PriorityStrayExempt,
			Match:    arrival + fmt.Sprintf("%s.dst == $%s", f.name, internal.Name),
			Action:   ActionAllow,
		}, {
			ID:       RowID{Row: "stray-" + f.name},
			Priority: PriorityStray,
			Match:    arrival + fmt.Sprintf("%s.src == $%s", f.name, set.Name),
			Action:   ActionReroute, NextHop: nextHop,
		}},
	}
}

// internalSet holds the cluster's subnets.
func (c *computer) internalSet(f family) AddressSet {
	return sharedSet("internal", f, prefixStrings(onlyPrefixes(c.internal, f)))
}

// exemptions keep the cluster's own destinations out of the steering. Their source set is
// everything that this zone steers. On a node that translates these are pods of other zones
// too: what they send to a destination in this zone was exempt in their own zone and comes in by
// the transit switch, where the arrival policy would take it otherwise.
func (c *computer) exemptions(f family, served []netip.Addr) OVN {
	var rows OVN
	slices.SortFunc(served, netip.Addr.Compare)
	servedSet := sharedSet("served", f, addressStrings(served))
	rows.AddressSets = append(rows.AddressSets, servedSet)
	exempt := func(what string, set AddressSet, mark uint32) {
		if len(set.Addresses) == 0 {
			return
		}
		rows.AddressSets = append(rows.AddressSets, set)
		rows.Policies = append(rows.Policies, Policy{
			ID:         RowID{Row: "exempt-" + what + "-" + f.name},
			Priority:   PriorityExempt,
			Match:      fmt.Sprintf("%s.src == $%s && %s.dst == $%s", f.name, servedSet.Name, f.name, set.Name),
			Action:     ActionAllow,
			PacketMark: mark,
		})
	}
	exempt("nodes", sharedSet("nodes", f, addressStrings(only(c.hosts, f))), PacketMarkNodeIP)
	exempt("internal", c.internalSet(f), 0)
	return rows
}

// arrivalPolicy takes what other zones' pods send to this node because it is the primary, or was or
// will be.
func (c *computer) arrivalPolicy(s share, set AddressSet) Policy {
	p := Policy{
		ID:       RowID{Row: "arrive-" + s.family.name, Service: s.service.Key},
		Priority: PriorityArrival,
		Match:    fmt.Sprintf("inport == %q && %s.src == $%s", TransitPort(c.in.Node), s.family.name, set.Name),
	}
	c.reroute(&p, s, s.arriving, c.leaveHere(s))
	return p
}

// steerPolicy takes what the pods of this zone send.
func (c *computer) steerPolicy(s share, set AddressSet) Policy {
	p := Policy{
		ID:       RowID{Row: "steer-" + s.family.name, Service: s.service.Key},
		Priority: PrioritySteer,
		Match:    fmt.Sprintf("%s.src == $%s", s.family.name, set.Name),
	}
	var nextHop netip.Addr
	if s.service.Role == RolePrimary {
		nextHop = c.leaveHere(s)
	} else if s.service.Primary != "" {
		nextHop = c.transit(s)
	}
	c.reroute(&p, s, s.own, nextHop)
	return p
}

// reroute holds the packets of these pods on this node when there is no next hop, because they must
// not leave with another source: the host, which sees which of them are replies, drops the others
// and counts them. A node without a management address drops all of them here.
func (c *computer) reroute(p *Policy, s share, pods []netip.Addr, nextHop netip.Addr) {
	if !nextHop.IsValid() {
		if nextHop = first(c.self.ManagementAddresses, s.family); nextHop.IsValid() {
			for _, pod := range pods {
				c.holds = append(c.holds, Hold{Pod: pod, Service: s.service.Key})
			}
		}
	}
	p.Action, p.NextHop = ActionReroute, nextHop
	if !nextHop.IsValid() {
		p.Action = ActionDrop
	}
}

// leaveHere is this node's management address, where the host translates and forwards, or the
// invalid address when there is no way out here.
func (c *computer) leaveHere(s share) netip.Addr {
	if !s.source.IsValid() {
		c.problem(s.service.Key, "it has no LoadBalancer IP, its pods' %s packets to the outside are dropped", s.family.name)
		return netip.Addr{}
	}
	a := first(c.self.ManagementAddresses, s.family)
	if !a.IsValid() {
		c.problem(s.service.Key, "node %s has no %s management address, packets are dropped", c.in.Node, s.family.name)
	}
	return a
}

// transit is the primary's address on the transit switch.
func (c *computer) transit(s share) netip.Addr {
	if s.service.Primary == c.in.Node {
		c.problem(s.service.Key, "node %s is named primary but has the role %s, packets are dropped", c.in.Node, s.service.Role)
		return netip.Addr{}
	}
	a := first(c.in.Nodes[s.service.Primary].TransitAddresses, s.family)
	if !a.IsValid() {
		c.problem(s.service.Key, "primary %s has no known %s transit address, packets are dropped", s.service.Primary, s.family.name)
	}
	return a
}

// sourceRoutes give arrivals a route. The router looks for one before it looks at policies, and
// drops a packet without one.
func (c *computer) sourceRoutes(f family) []SourceRoute {
	nextHop := first(c.self.ManagementAddresses, f)
	if !nextHop.IsValid() {
		return nil
	}
	var routes []SourceRoute
	for _, p := range outermost(onlyPrefixes(c.in.Cluster.PodSubnets, f)) {
		routes = append(routes, SourceRoute{ID: RowID{Row: "source-route-" + p.String()}, Prefix: p, NextHop: nextHop})
	}
	return routes
}

func serviceSet(what string, s share, addresses []netip.Addr) AddressSet {
	return AddressSet{
		ID:        RowID{Row: what + "-" + s.family.name, Service: s.service.Key},
		Name:      serviceSetName(what, s.service.Key, s.family),
		Addresses: addressStrings(addresses),
	}
}

func sharedSet(what string, f family, addresses []string) AddressSet {
	return AddressSet{ID: RowID{Row: what + "-" + f.name}, Name: sharedSetName(what, f), Addresses: addresses}
}

func (o *OVN) add(other OVN) {
	o.AddressSets = append(o.AddressSets, other.AddressSets...)
	o.Policies = append(o.Policies, other.Policies...)
	o.SourceRoutes = append(o.SourceRoutes, other.SourceRoutes...)
}

func (o *OVN) order() {
	slices.SortFunc(o.AddressSets, func(a, b AddressSet) int { return cmp.Compare(a.Name, b.Name) })
	o.AddressSets = slices.CompactFunc(o.AddressSets, func(a, b AddressSet) bool { return a.Name == b.Name })
	slices.SortFunc(o.Policies, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.ID.Row, b.ID.Row), cmp.Compare(a.ID.Service, b.ID.Service))
	})
	slices.SortFunc(o.SourceRoutes, func(a, b SourceRoute) int { return cmp.Compare(a.ID.Row, b.ID.Row) })
}

func first(addresses []netip.Addr, f family) netip.Addr {
	for _, a := range addresses {
		if a = a.Unmap(); f.is(a) {
			return a
		}
	}
	return netip.Addr{}
}

func only(addresses []netip.Addr, f family) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !f.is(a) })
}

func onlyPrefixes(prefixes []netip.Prefix, f family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return !f.is(p.Addr()) })
}

func addressStrings(addresses []netip.Addr) []string {
	list := make([]string, 0, len(addresses))
	for _, a := range addresses {
		list = append(list, a.String())
	}
	return list
}

func prefixStrings(prefixes []netip.Prefix) []string {
	list := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return list
}
