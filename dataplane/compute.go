// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Compute plans one node. It never fails: what can't be honored is left out, or dropped where
// leaving it out would let a packet carry a wrong source, and is named in a Problem.
func Compute(in Input) (Plan, []Problem) {
	c := computer{in: in, self: in.Nodes[in.Node], owner: map[netip.Addr]string{}}
	c.internal, c.hosts = c.inside()

	var plan Plan
	shares := c.shares()
	for _, f := range families() {
		plan.OVN.add(c.ovnRows(f, shares))
	}
	plan.OVN.order()
	plan.Host = Host{
		Internal:     outermost(append(slices.Clone(c.internal), hostPrefixes(c.hosts)...)),
		Translations: translations(shares),
		Accounts:     accounts(shares),
		Holds:        c.holds,
		Counted:      counted(shares),
		Guards:       c.guards(),
	}
	slices.SortFunc(plan.Host.Holds, func(a, b Hold) int { return a.Pod.Compare(b.Pod) })
	if c.stopsStrays() {
		plan.Host.OwnPods = outermost(c.self.PodSubnets)
		plan.Host.Pods = slices.DeleteFunc(outermost(in.Cluster.PodSubnets), func(p netip.Prefix) bool {
			// A node that does not know its own pods would take them for others'.
			return !slices.ContainsFunc(plan.Host.OwnPods, func(own netip.Prefix) bool { return own.Addr().Is4() == p.Addr().Is4() })
		})
	}
	slices.SortFunc(c.problems, func(a, b Problem) int {
		if d := strings.Compare(a.Service, b.Service); d != 0 {
			return d
		}
		return strings.Compare(a.Message, b.Message)
	})
	return plan, slices.Compact(c.problems)
}

// Planner remembers its last plan: the same input comes at least twice for each change, when it has
// changed and when the flows are there.
type Planner struct {
	last     Input
	plan     Plan
	problems []Problem
}

// Plan is Compute.
func (p *Planner) Plan(in Input) (Plan, []Problem) {
	if !p.last.equal(in) {
		p.plan, p.problems = Compute(in)
		p.last = in
	}
	return p.plan, p.problems
}

type computer struct {
	in       Input
	self     NodeFacts
	internal []netip.Prefix // the cluster's subnets
	hosts    []netip.Addr   // addresses of hosts outside those subnets
	owner    map[netip.Addr]string
	holds    []Hold
	problems []Problem
}

// stopsStrays is whether other nodes' pods must not leave through this node untranslated: a node
// that does not know of an endpoint yet, or that a late node still takes for the primary, would let
// them.
func (c *computer) stopsStrays() bool { return len(c.in.Services) > 0 && !c.in.StraysPass }

func (c *computer) problem(service, format string, args ...any) {
	c.problems = append(c.problems, Problem{Service: service, Message: fmt.Sprintf(format, args...)})
}

// share is what this node has to do for one service in one family.
type share struct {
	service  Service
	family   family
	source   netip.Addr   // invalid when the service has no LoadBalancer IP at all
	own      []netip.Addr // ordered: this node's endpoints
	arriving []netip.Addr // ordered: other nodes', where this one translates for them
}

// shares splits the services by family and drops those that this node has nothing to do for.
func (c *computer) shares() []share {
	var shares []share
	for _, s := range c.in.Services {
		clash := map[string][]string{}
		for _, f := range families() {
			source, concerned := sourceOf(s, f)
			if !concerned {
				continue
			}
			owned := c.claim(s, f, clash)
			if s.Primary == "" && s.Standby == "" && s.Role != RolePrimary && !s.FailClosed {
				continue
			}
			sh := share{service: s, family: f, source: source}
			for _, e := range owned {
				if e.Node == c.in.Node {
					sh.own = append(sh.own, e.Address)
				} else if s.Role.Translates() {
					sh.arriving = append(sh.arriving, e.Address)
				}
			}
			if len(sh.own)+len(sh.arriving) > 0 {
				shares = append(shares, sh)
			}
		}
		for older, addresses := range clash {
			c.problem(s.Key, "%d endpoint addresses are served by the older service %s, the first is %s",
				len(addresses), older, addresses[0])
		}
	}
	return shares
}

// sourceOf finds the service's LoadBalancer IP of a family, and whether the family concerns the
// service. A service with an address of one family leaves the pods' other family alone: it has
// no source to offer there. One without any address concerns both, because its pods must not be
// seen with another source merely because the address isn't known yet.
func sourceOf(s Service, f family) (source netip.Addr, concerned bool) {
	for _, a := range s.SourceIPs {
		if a = a.Unmap(); f.is(a) {
			return a, true
		}
	}
	return netip.Addr{}, len(s.SourceIPs) == 0
}

// claim returns the service's endpoints of a family that no older service has, ordered by
// address, and records them as its own. All nodes see the same services in the same order, so
// they agree about the owner.
func (c *computer) claim(s Service, f family, clash map[string][]string) []Endpoint {
	var owned []Endpoint
	for _, e := range s.Endpoints {
		e.Address = e.Address.Unmap()
		if !f.is(e.Address) {
			continue
		}
		if older, taken := c.owner[e.Address]; taken && older != s.Key {
			clash[older] = append(clash[older], e.Address.String())
			continue
		} else if taken {
			continue
		}
		c.owner[e.Address] = s.Key
		owned = append(owned, e)
	}
	for _, addresses := range clash {
		slices.Sort(addresses)
	}
	if byAddress := func(a, b Endpoint) int { return a.Address.Compare(b.Address) }; !slices.IsSortedFunc(owned, byAddress) {
		slices.SortFunc(owned, byAddress)
	}
	return owned
}

// inside returns the cluster's subnets and the hosts' addresses that lie outside them. Apart,
// because an OVN match on the one must not overlap a match of the same priority on the other.
func (c *computer) inside() ([]netip.Prefix, []netip.Addr) {
	cl := c.in.Cluster
	subnets := outermost(slices.Concat(cl.PodSubnets, cl.ServiceSubnets, cl.JoinSubnets, cl.TransitSubnets, cl.MasqueradeSubnets))
	seen := map[netip.Addr]bool{}
	var hosts []netip.Addr
	for _, n := range c.in.Nodes {
		for _, p := range n.Addresses {
			a := p.Addr().Unmap().WithZone("")
			if !a.IsValid() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || seen[a] || contains(subnets, a) {
				continue
			}
			seen[a] = true
			hosts = append(hosts, a)
		}
	}
	slices.SortFunc(hosts, netip.Addr.Compare)
	return subnets, hosts
}

// translations are those of all services that this node translates for.
func translations(shares []share) []Translation {
	var list []Translation
	for _, s := range shares {
		if !s.service.Role.Translates() || !s.source.IsValid() {
			continue
		}
		for _, a := range slices.Concat(s.own, s.arriving) {
			list = append(list, Translation{Pod: a, Source: s.source})
		}
	}
	slices.SortFunc(list, func(a, b Translation) int { return a.Pod.Compare(b.Pod) })
	return list
}

// accounts are the sources that packets may leave with: a standby's not yet.
func accounts(shares []share) []Account {
	var list []Account
	at := map[netip.Addr]int{}
	for _, s := range shares {
		role := s.service.Role
		if !s.source.IsValid() || role != RolePrimary && role != RolePrevious {
			continue
		}
		i, seen := at[s.source]
		if !seen {
			i, at[s.source] = len(list), len(list)
			list = append(list, Account{Source: s.source, Service: s.service.Key})
		}
		if role == RolePrimary {
			list[i].Epoch = max(list[i].Epoch, s.service.Epoch)
		}
	}
	slices.SortFunc(list, func(a, b Account) int { return a.Source.Compare(b.Source) })
	return list
}

// counted are the services that this node has something to do for.
func counted(shares []share) []string {
	var keys []string
	for _, s := range shares {
		keys = append(keys, s.service.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// guards joins those of the same address. An address that is a host's, or lies in the cluster's own
// subnets, is left alone: with a guard the host could not be reached any more.
func (c *computer) guards() []Guard {
	byAddress := map[netip.Addr][]Port{}
	for _, g := range c.in.Guards {
		a := g.Address.Unmap()
		if _, isHost := slices.BinarySearchFunc(c.hosts, a, netip.Addr.Compare); isHost || contains(c.internal, a) {
			c.problem(g.Service, "its LoadBalancer IP %s is an address of a node or of the cluster's own, and is not guarded", a)
			continue
		}
		byAddress[a] = append(byAddress[a], g.Ports...)
	}
	var list []Guard
	for _, a := range slices.SortedFunc(maps.Keys(byAddress), netip.Addr.Compare) {
		ports := byAddress[a]
		slices.SortFunc(ports, func(a, b Port) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
		})
		list = append(list, Guard{Address: a, Ports: slices.Compact(ports)})
	}
	return list
}

// outermost masks and orders the prefixes and leaves out those that lie within another. An
// nftables interval set takes no overlapping elements.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	var valid []netip.Prefix
	for _, p := range prefixes {
		if p.IsValid() {
			valid = append(valid, p.Masked())
		}
	}
	slices.SortFunc(valid, func(a, b netip.Prefix) int {
		if d := a.Addr().Compare(b.Addr()); d != 0 {
			return d
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range valid {
		// In this order whatever contains p comes right before everything it contains.
		if len(out) > 0 && out[len(out)-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
	}
	return out
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func hostPrefixes(addresses []netip.Addr) []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(addresses))
	for _, a := range addresses {
		prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	return prefixes
}
