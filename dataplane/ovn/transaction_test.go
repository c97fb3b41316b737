// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

func wanted() dataplane.OVN {
	hop := netip.MustParseAddr("10.244.1.2")
	return dataplane.OVN{
		AddressSets: []dataplane.AddressSet{{ID: dataplane.RowID{Row: "endpoints-ip4", Service: "ns/a"}, Name: "metallb_egress_a", Addresses: []string{"10.244.1.5", "10.244.2.5"}}},
		Policies: []dataplane.Policy{
			{ID: dataplane.RowID{Row: "exempt-nodes-ip4"}, Priority: 111, Match: "m111", Action: dataplane.ActionAllow, PacketMark: 1008},
			{ID: dataplane.RowID{Row: "steer-ip4", Service: "ns/a"}, Priority: 109, Match: "m109", Action: dataplane.ActionReroute, NextHop: hop},
		},
		SourceRoutes: []dataplane.SourceRoute{{ID: dataplane.RowID{Row: "source-route"}, Prefix: netip.MustParsePrefix("10.244.0.0/16"), NextHop: hop}},
	}
}

// present are rows as difference itself would have made them.
func present(o dataplane.OVN) rows {
	r := rows{router: &router{UUID: "router"}, global: &global{UUID: "global"}}
	for i, s := range o.AddressSets {
		r.sets = append(r.sets, &addressSet{UUID: fmt.Sprint("set", i), Name: s.Name, Addresses: slices.Clone(s.Addresses), ExternalIDs: externalIDs(s.ID)})
	}
	for i, p := range o.Policies {
		r.policies = append(r.policies, &policy{
			UUID: fmt.Sprint("policy", i), Priority: p.Priority, Match: p.Match, Action: string(p.Action),
			Nexthops: nextHops(p), Options: policyOptions(p), ExternalIDs: externalIDs(p.ID),
		})
	}
	source := policySourceIP
	for i, s := range o.SourceRoutes {
		r.routes = append(r.routes, &staticRoute{UUID: fmt.Sprint("route", i), Policy: &source, IPPrefix: s.Prefix.String(), Nexthop: s.NextHop.String(), ExternalIDs: externalIDs(s.ID)})
	}
	return r
}

// describe writes operations as one line each.
func describe(ops []ovsdb.Operation) []string {
	var lines []string
	for _, op := range ops {
		line := op.Op + " " + op.Table
		for _, w := range op.Where {
			line += fmt.Sprintf(" %v", w.Value)
		}
		columns := make([]string, 0, len(op.Row))
		for c := range op.Row {
			columns = append(columns, c)
		}
		slices.Sort(columns)
		for _, c := range columns {
			line += " " + c
		}
		for _, m := range op.Mutations {
			line += fmt.Sprintf(" %s %s %v", m.Column, m.Mutator, m.Value)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDifference(t *testing.T) {
	tests := []struct {
		name   string
		change func(want *dataplane.OVN, have *rows)
		ops    []string
	}{
		{name: "nothing", change: func(*dataplane.OVN, *rows) {}},
		{
			name: "a move is one update",
			change: func(want *dataplane.OVN, _ *rows) {
				want.Policies[1].NextHop = netip.MustParseAddr("100.88.0.3")
			},
			ops: []string{"update Logical_Router_Policy {policy1} nexthops"},
		},
		{
			name: "no primary",
			change: func(want *dataplane.OVN, _ *rows) {
				want.Policies[1].NextHop, want.Policies[1].Action = netip.Addr{}, dataplane.ActionDrop
			},
			ops: []string{"update Logical_Router_Policy {policy1} action nexthops"},
		},
		{
			name: "one more endpoint is one mutation",
			change: func(want *dataplane.OVN, _ *rows) {
				want.AddressSets[0].Addresses = []string{"10.244.1.5", "10.244.2.6"}
			},
			ops: []string{"mutate Address_Set {set0} addresses insert {[10.244.2.6]} addresses delete {[10.244.2.5]}"},
		},
		{
			name:   "everything is new",
			change: func(_ *dataplane.OVN, have *rows) { have.sets, have.policies, have.routes = nil, nil, nil },
			ops: []string{
				"delete Address_Set metallb_egress_a",
				"insert Address_Set addresses external_ids name",
				"insert Logical_Router_Policy action external_ids match nexthops options priority",
				"insert Logical_Router_Policy action external_ids match nexthops options priority",
				"insert Logical_Router_Static_Route external_ids ip_prefix nexthop policy",
				"mutate Logical_Router {router} policies insert {[{policy0} {policy1}]} static_routes insert {[{route0}]}",
			},
		},
		{
			name:   "everything goes",
			change: func(want *dataplane.OVN, _ *rows) { *want = dataplane.OVN{} },
			ops: []string{
				"delete Address_Set {set0}",
				"mutate Logical_Router {router} policies delete {[{policy0} {policy1}]} static_routes delete {[{route0}]}",
			},
		},
		{
			name: "rows of others",
			change: func(_ *dataplane.OVN, have *rows) {
				have.policies = append(have.policies, &policy{UUID: "foreign", Priority: 109, Match: "m109", Action: "drop"})
				source := policySourceIP
				have.routes = append(have.routes, &staticRoute{UUID: "narrow", Policy: &source, IPPrefix: "10.244.1.0/24"},
					&staticRoute{UUID: "destination", IPPrefix: "10.244.0.0/16"},
					&staticRoute{UUID: "othertable", Policy: &source, IPPrefix: "10.0.0.0/8", RouteTable: "7"})
			},
		},
		{
			name: "a source route of others covers ours",
			change: func(_ *dataplane.OVN, have *rows) {
				source := policySourceIP
				have.routes = append(have.routes, &staticRoute{UUID: "foreign", Policy: &source, IPPrefix: "10.0.0.0/8"})
			},
			ops: []string{"mutate Logical_Router {router} static_routes delete {[{route0}]}"},
		},
		{
			name:   "additional external ids are left alone",
			change: func(_ *dataplane.OVN, have *rows) { have.sets[0].ExternalIDs["note"] = "x" },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := wanted()
			have := present(wanted())
			test.change(&want, &have)
			if d := cmp.Diff(test.ops, describe(difference(want, have))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
