// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
	"github.com/ovn-org/libovsdb/ovsdb"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Tables and columns, ovn-nb(5) and ovs-vswitchd.conf.db(5). A column that the server's schema
// lacks makes libovsdb refuse the connection, so only those of OVN 23.03 are named.
const (
	tableGlobal      = "NB_Global"
	tableRouter      = "Logical_Router"
	tablePolicy      = "Logical_Router_Policy"
	tableStaticRoute = "Logical_Router_Static_Route"
	tableAddressSet  = "Address_Set"
	tableBridge      = "Bridge"

	// policySourceIP is the value of a static route's policy column that makes it match sources.
	policySourceIP = "src-ip"
	// installedKey in the integration bridge's external_ids is written by ovn-controller.
	installedKey = "ovn-nb-cfg"
	// optionPacketMark is the option of a policy that sets pkt.mark.
	optionPacketMark = "pkt_mark"
)

type global struct {
	UUID  string `ovsdb:"_uuid"`
	NBCfg int    `ovsdb:"nb_cfg"`
}

type router struct {
	UUID         string   `ovsdb:"_uuid"`
	Name         string   `ovsdb:"name"`
	Policies     []string `ovsdb:"policies"`
	StaticRoutes []string `ovsdb:"static_routes"`
}

// CloneModel and the methods like it spare libovsdb a round trip through JSON for each change.
func (r *router) CloneModel() model.Model {
	c := &router{}
	r.CloneModelInto(c)
	return c
}

func (r *router) CloneModelInto(to model.Model) {
	c := to.(*router)
	*c = *r
	c.Policies, c.StaticRoutes = slices.Clone(r.Policies), slices.Clone(r.StaticRoutes)
}

type policy struct {
	UUID        string            `ovsdb:"_uuid"`
	Priority    int               `ovsdb:"priority"`
	Match       string            `ovsdb:"match"`
	Action      string            `ovsdb:"action"`
	Nexthops    []string          `ovsdb:"nexthops"`
	Options     map[string]string `ovsdb:"options"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type staticRoute struct {
	UUID        string            `ovsdb:"_uuid"`
	RouteTable  string            `ovsdb:"route_table"`
	IPPrefix    string            `ovsdb:"ip_prefix"`
	Policy      *string           `ovsdb:"policy"`
	Nexthop     string            `ovsdb:"nexthop"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type addressSet struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	Addresses   []string          `ovsdb:"addresses"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

func (s *addressSet) CloneModel() model.Model {
	c := &addressSet{}
	s.CloneModelInto(c)
	return c
}

func (s *addressSet) CloneModelInto(to model.Model) {
	c := to.(*addressSet)
	*c = *s
	c.Addresses, c.ExternalIDs = slices.Clone(s.Addresses), maps.Clone(s.ExternalIDs)
}

type bridge struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

func northboundModel() (model.ClientDBModel, error) {
	m, err := model.NewClientDBModel("OVN_Northbound", map[string]model.Model{
		tableGlobal:      &global{},
		tableRouter:      &router{},
		tablePolicy:      &policy{},
		tableStaticRoute: &staticRoute{},
		tableAddressSet:  &addressSet{},
	})
	if err != nil {
		return m, fmt.Errorf("model of OVN_Northbound: %w", err)
	}
	return m, nil
}

func openvSwitchModel() (model.ClientDBModel, error) {
	m, err := model.NewClientDBModel("Open_vSwitch", map[string]model.Model{tableBridge: &bridge{}})
	if err != nil {
		return m, fmt.Errorf("model of Open_vSwitch: %w", err)
	}
	return m, nil
}

// northboundTables asks for our own rows, and for what could be ours or stand in for it: policies
// at our priorities (a mark may have been removed) and everybody's source routes. A row is sent
// when any one of a table's conditions holds (ovsdb-server(7), monitor_cond).
func northboundTables() []client.TableMonitor {
	ours := ovsdb.NewCondition("external_ids", ovsdb.ConditionIncludes, stringMap(map[string]string{dataplane.OwnerKey: dataplane.OwnerValue}))
	return []client.TableMonitor{
		{Table: tableGlobal, Fields: []string{"nb_cfg"}},
		{
			Table:      tableRouter,
			Fields:     []string{"name", "policies", "static_routes"},
			Conditions: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, dataplane.ClusterRouter)},
		},
		{
			Table:  tablePolicy,
			Fields: []string{"priority", "match", "action", "nexthops", "options", "external_ids"},
			Conditions: []ovsdb.Condition{
				ours,
				ovsdb.NewCondition("priority", ovsdb.ConditionEqual, dataplane.PriorityExempt),
				ovsdb.NewCondition("priority", ovsdb.ConditionEqual, dataplane.PriorityArrival),
				ovsdb.NewCondition("priority", ovsdb.ConditionEqual, dataplane.PrioritySteer),
				ovsdb.NewCondition("priority", ovsdb.ConditionEqual, dataplane.PriorityStrayExempt),
				ovsdb.NewCondition("priority", ovsdb.ConditionEqual, dataplane.PriorityStray),
			},
		},
		{
			Table:      tableStaticRoute,
			Fields:     []string{"route_table", "ip_prefix", "policy", "nexthop", "external_ids"},
			Conditions: []ovsdb.Condition{ours, ovsdb.NewCondition("policy", ovsdb.ConditionEqual, policySourceIP)},
		},
		{
			Table:      tableAddressSet,
			Fields:     []string{"name", "addresses", "external_ids"},
			Conditions: []ovsdb.Condition{ours},
		},
	}
}

func bridgeTables(name string) []client.TableMonitor {
	return []client.TableMonitor{{
		Table:      tableBridge,
		Fields:     []string{"name", "external_ids"},
		Conditions: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, name)},
	}}
}

// stringMap is a map in OVSDB's notation (RFC 7047 §5.1).
func stringMap(m map[string]string) ovsdb.OvsMap {
	out := ovsdb.OvsMap{GoMap: make(map[any]any, len(m))}
	for k, v := range m {
		out.GoMap[k] = v
	}
	return out
}

// stringSet is a set of strings in OVSDB's notation (RFC 7047 §5.1).
func stringSet(list []string) ovsdb.OvsSet {
	out := ovsdb.OvsSet{GoSet: make([]any, 0, len(list))}
	for _, s := range list {
		out.GoSet = append(out.GoSet, s)
	}
	return out
}

// uuidSet is a set of references to rows, by UUID or by the name of an insert of the same
// transaction.
func uuidSet(list []string) ovsdb.OvsSet {
	out := ovsdb.OvsSet{GoSet: make([]any, 0, len(list))}
	for _, s := range list {
		out.GoSet = append(out.GoSet, ovsdb.UUID{GoUUID: s})
	}
	return out
}
