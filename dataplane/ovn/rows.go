// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ovn-org/libovsdb/cache"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// rows is what the database held at one moment. It shares memory with the cache: read only.
type rows struct {
	global *global
	router *router
	sets   []*addressSet
	// policies and routes are those that the router refers to, of us and of others.
	policies []*policy
	routes   []*staticRoute
}

func readRows(c *cache.TableCache) rows {
	var r rows
	for _, g := range table[global](c, tableGlobal) {
		r.global = g
	}
	for _, x := range table[router](c, tableRouter) {
		// Should there be two of that name, every call must take the same.
		if r.router == nil || x.UUID < r.router.UUID {
			r.router = x
		}
	}
	for _, s := range table[addressSet](c, tableAddressSet) {
		r.sets = append(r.sets, s)
	}
	if r.router != nil {
		policies := table[policy](c, tablePolicy)
		for _, uuid := range r.router.Policies {
			if p := policies[uuid]; p != nil {
				r.policies = append(r.policies, p)
			}
		}
		routes := table[staticRoute](c, tableStaticRoute)
		for _, uuid := range r.router.StaticRoutes {
			if s := routes[uuid]; s != nil {
				r.routes = append(r.routes, s)
			}
		}
	}
	slices.SortFunc(r.sets, func(a, b *addressSet) int { return strings.Compare(a.UUID, b.UUID) })
	slices.SortFunc(r.policies, func(a, b *policy) int { return strings.Compare(a.UUID, b.UUID) })
	slices.SortFunc(r.routes, func(a, b *staticRoute) int { return strings.Compare(a.UUID, b.UUID) })
	return r
}

// table returns a cached table's rows by UUID.
func table[T any](c *cache.TableCache, name string) map[string]*T {
	t := c.Table(name)
	if t == nil {
		return nil
	}
	out := map[string]*T{}
	for uuid, m := range t.RowsShallow() {
		if row, ok := m.(*T); ok {
			out[uuid] = row
		}
	}
	return out
}

func marked(externalIDs map[string]string) bool {
	return externalIDs[dataplane.OwnerKey] == dataplane.OwnerValue
}

func externalIDs(id dataplane.RowID) map[string]string {
	ids := map[string]string{dataplane.OwnerKey: dataplane.OwnerValue, dataplane.RowKey: id.Row}
	if id.Service != "" {
		ids[dataplane.ServiceKey] = id.Service
	}
	return ids
}

func rowID(externalIDs map[string]string) dataplane.RowID {
	if !marked(externalIDs) {
		return dataplane.RowID{}
	}
	return dataplane.RowID{Row: externalIDs[dataplane.RowKey], Service: externalIDs[dataplane.ServiceKey]}
}

// ours knows a policy of ours also when its mark is gone: nobody else's names our address sets.
func (p *policy) ours() bool {
	return marked(p.ExternalIDs) || strings.Contains(p.Match, "$"+dataplane.AddressSetPrefix)
}

// covered is whether somebody else's source route already gives all of a prefix a route.
func (r rows) covered(prefix netip.Prefix) bool {
	return slices.ContainsFunc(r.routes, func(s *staticRoute) bool {
		if marked(s.ExternalIDs) || s.Policy == nil || *s.Policy != policySourceIP || s.RouteTable != "" {
			return false
		}
		p, err := netip.ParsePrefix(s.IPPrefix)
		return err == nil && p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr())
	})
}
