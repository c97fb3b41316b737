// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// difference returns the operations that turn what the database holds into what the plan wants,
// none when it holds that already. It needs a router in have.
func difference(want dataplane.OVN, have rows) []ovsdb.Operation {
	d := differ{have: have}
	d.addressSets(want.AddressSets)
	d.policies(want.Policies)
	d.sourceRoutes(want.SourceRoutes)
	return d.operations()
}

// differ collects row operations, and apart from them the references of the router.
type differ struct {
	have           rows
	ops            []ovsdb.Operation
	addPolicies    []string
	removePolicies []string
	addRoutes      []string
	removeRoutes   []string
}

func (d *differ) addressSets(want []dataplane.AddressSet) {
	have := map[string]*addressSet{}
	for _, s := range d.have.sets {
		have[s.Name] = s
	}
	for _, w := range want {
		h := have[w.Name]
		delete(have, w.Name)
		if h == nil {
			// A set of this name that lost its mark is not in the cache, but the name is ours and
			// must be unique.
			d.ops = append(d.ops, ovsdb.Operation{
				Op: ovsdb.OperationDelete, Table: tableAddressSet,
				Where: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, w.Name)},
			})
			d.insert(tableAddressSet, fmt.Sprintf("set%d", len(d.ops)), ovsdb.Row{
				"name": w.Name, "addresses": stringSet(w.Addresses), "external_ids": stringMap(externalIDs(w.ID)),
			})
			continue
		}
		if rowID(h.ExternalIDs) != w.ID {
			d.update(tableAddressSet, h.UUID, ovsdb.Row{"external_ids": stringMap(externalIDs(w.ID))})
		}
		d.addresses(h, w.Addresses)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		d.ops = append(d.ops, ovsdb.Operation{Op: ovsdb.OperationDelete, Table: tableAddressSet, Where: byUUID(have[name].UUID)})
	}
}

// addresses changes only what differs, so that one more address costs the same in a large set.
func (d *differ) addresses(have *addressSet, want []string) {
	there := make(map[string]bool, len(have.Addresses))
	for _, a := range have.Addresses {
		there[a] = true
	}
	var missing, surplus []string
	for _, a := range want {
		if !there[a] {
			missing = append(missing, a)
		}
		delete(there, a)
	}
	surplus = slices.Sorted(maps.Keys(there))
	var mutations []ovsdb.Mutation
	if len(missing) > 0 {
		mutations = append(mutations, *ovsdb.NewMutation("addresses", ovsdb.MutateOperationInsert, stringSet(missing)))
	}
	if len(surplus) > 0 {
		mutations = append(mutations, *ovsdb.NewMutation("addresses", ovsdb.MutateOperationDelete, stringSet(surplus)))
	}
	d.mutate(tableAddressSet, have.UUID, mutations)
}

func (d *differ) policies(want []dataplane.Policy) {
	have := map[dataplane.RowID]*policy{}
	for _, p := range d.have.policies {
		if !p.ours() {
			continue
		}
		id := rowID(p.ExternalIDs)
		if id.Row == "" || have[id] != nil {
			d.removePolicies = append(d.removePolicies, p.UUID)
			continue
		}
		have[id] = p
	}
	for i, w := range want {
		h := have[w.ID]
		delete(have, w.ID)
		columns := ovsdb.Row{}
		if h == nil || h.Priority != w.Priority {
			columns["priority"] = w.Priority
		}
		if h == nil || h.Match != w.Match {
			columns["match"] = w.Match
		}
		if h == nil || h.Action != string(w.Action) {
			columns["action"] = string(w.Action)
		}
		if n := nextHops(w); h == nil || !slices.Equal(h.Nexthops, n) {
			columns["nexthops"] = stringSet(n)
		}
		if o := policyOptions(w); h == nil || !maps.Equal(h.Options, o) {
			columns["options"] = stringMap(o)
		}
		if h != nil {
			d.update(tablePolicy, h.UUID, columns)
			continue
		}
		columns["external_ids"] = stringMap(externalIDs(w.ID))
		d.addPolicies = append(d.addPolicies, d.insert(tablePolicy, fmt.Sprintf("policy%d", i), columns))
	}
	for _, p := range have {
		d.removePolicies = append(d.removePolicies, p.UUID)
	}
}

func (d *differ) sourceRoutes(want []dataplane.SourceRoute) {
	have := map[dataplane.RowID]*staticRoute{}
	for _, r := range d.have.routes {
		if !marked(r.ExternalIDs) {
			continue
		}
		id := rowID(r.ExternalIDs)
		if id.Row == "" || have[id] != nil {
			d.removeRoutes = append(d.removeRoutes, r.UUID)
			continue
		}
		have[id] = r
	}
	for i, w := range want {
		// Two routes of the same prefix would share the traffic, so ours gives way.
		if d.have.covered(w.Prefix) {
			continue
		}
		h := have[w.ID]
		delete(have, w.ID)
		columns := ovsdb.Row{}
		if h == nil || h.IPPrefix != w.Prefix.String() {
			columns["ip_prefix"] = w.Prefix.String()
		}
		if h == nil || h.Nexthop != w.NextHop.String() {
			columns["nexthop"] = w.NextHop.String()
		}
		if h == nil || h.Policy == nil || *h.Policy != policySourceIP {
			columns["policy"] = policySourceIP
		}
		if h != nil && h.RouteTable != "" {
			columns["route_table"] = ""
		}
		if h != nil {
			d.update(tableStaticRoute, h.UUID, columns)
			continue
		}
		columns["external_ids"] = stringMap(externalIDs(w.ID))
		d.addRoutes = append(d.addRoutes, d.insert(tableStaticRoute, fmt.Sprintf("route%d", i), columns))
	}
	for _, r := range have {
		d.removeRoutes = append(d.removeRoutes, r.UUID)
	}
}

// operations closes with the router's references. A policy or route that no router refers to is
// removed by the server: neither is a root table (RFC 7047 §3.1).
func (d *differ) operations() []ovsdb.Operation {
	var mutations []ovsdb.Mutation
	change := func(column string, mutator ovsdb.Mutator, uuids []string) {
		if len(uuids) > 0 {
			slices.Sort(uuids)
			mutations = append(mutations, *ovsdb.NewMutation(column, mutator, uuidSet(uuids)))
		}
	}
	change("policies", ovsdb.MutateOperationInsert, d.addPolicies)
	change("policies", ovsdb.MutateOperationDelete, d.removePolicies)
	change("static_routes", ovsdb.MutateOperationInsert, d.addRoutes)
	change("static_routes", ovsdb.MutateOperationDelete, d.removeRoutes)
	d.mutate(tableRouter, d.have.router.UUID, mutations)
	return d.ops
}

func (d *differ) insert(table, name string, columns ovsdb.Row) string {
	d.ops = append(d.ops, ovsdb.Operation{Op: ovsdb.OperationInsert, Table: table, UUIDName: name, Row: columns})
	return name
}

func (d *differ) update(table, uuid string, columns ovsdb.Row) {
	if len(columns) > 0 {
		d.ops = append(d.ops, ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: table, Where: byUUID(uuid), Row: columns})
	}
}

func (d *differ) mutate(table, uuid string, mutations []ovsdb.Mutation) {
	if len(mutations) > 0 {
		d.ops = append(d.ops, ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: byUUID(uuid), Mutations: mutations})
	}
}

// routerStillThere makes a transaction fail when the router was replaced meanwhile: without a
// reference from it our policies would be removed at once, yet nb_cfg would say that they are in.
func routerStillThere(r *router) ovsdb.Operation {
	now := 0
	return ovsdb.Operation{
		Op: ovsdb.OperationWait, Table: tableRouter, Where: byUUID(r.UUID), Timeout: &now,
		Columns: []string{"name"}, Until: string(ovsdb.WaitConditionEqual), Rows: []ovsdb.Row{{"name": r.Name}},
	}
}

// increment adds to nb_cfg and reads the new value.
func increment(g *global, by int) []ovsdb.Operation {
	return []ovsdb.Operation{
		{
			Op: ovsdb.OperationMutate, Table: tableGlobal, Where: byUUID(g.UUID),
			Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("nb_cfg", ovsdb.MutateOperationAdd, by)},
		},
		{Op: ovsdb.OperationSelect, Table: tableGlobal, Where: byUUID(g.UUID), Columns: []string{"nb_cfg"}},
	}
}

func byUUID(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})}
}

func nextHops(p dataplane.Policy) []string {
	if !p.NextHop.IsValid() {
		return nil
	}
	return []string{p.NextHop.String()}
}

func policyOptions(p dataplane.Policy) map[string]string {
	if p.PacketMark == 0 {
		return nil
	}
	return map[string]string{optionPacketMark: strconv.FormatUint(uint64(p.PacketMark), 10)}
}
