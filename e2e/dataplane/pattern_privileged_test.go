// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-org/libovsdb/cache"
	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
	"github.com/ovn-org/libovsdb/ovsdb"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// pattern is what OVN-Kubernetes' EgressService does (egressservice_zone.go): for each endpoint a logical router policy that sends its
// packets to the management port, or, in another zone than the service's, to the transit address of the service's node. The service's
// zone has those of all endpoints, others those of their own. Where the service moves, all of its policies are made anew. Its node has
// an element in an nftables map for each endpoint. It is kinder to OVN than the original: one transaction for each service and node, also
// for a move, with one reference list, no address set, no cache to keep, and one transaction of nftables for all services.
type pattern struct {
	world *world
	nodes []*patternNode
}

type patternNode struct {
	thread
	topology.Node
	northbound, vswitch client.Client
	installed           atomic.Int64
	changed             chan struct{}
	tables              knftables.Interface
	translations        map[netip.Addr]netip.Addr
	held                map[string]*policies // by service
}

// policies are a service's: their rows by endpoint.
type policies struct {
	nextHop netip.Addr
	rows    map[netip.Addr]string
}

const (
	patternTable, patternMap = "ladder-pattern", "sources"
	patternPriority          = 101
)

// patternRow has the columns that are read, of table Bridge. Rows of the northbound database are only written.
type patternRow struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

// newPattern connects to the databases and makes the nftables tables.
func (w *world) newPattern(ctx context.Context) (side, error) {
	p := &pattern{world: w}
	for _, node := range w.nodes {
		n := &patternNode{Node: node, changed: make(chan struct{}, 1), held: map[string]*policies{}}
		p.nodes = append(p.nodes, n)
		if err := n.start(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return p, nil
}

func (n *patternNode) start(ctx context.Context) (err error) {
	if n.northbound, err = connect(ctx, n.NorthboundSocket, "OVN_Northbound", "NB_Global"); err != nil {
		return err
	}
	if n.vswitch, err = connect(ctx, n.OpenvSwitchSocket, "Open_vSwitch", "Bridge"); err != nil {
		return err
	}
	report := func(row model.Model) {
		number, _ := strconv.ParseInt(row.(*patternRow).ExternalIDs["ovn-nb-cfg"], 10, 64)
		n.installed.Store(number)
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
	n.vswitch.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row model.Model) { report(row) },
		UpdateFunc: func(_ string, _, row model.Model) { report(row) },
	})
	monitor := n.vswitch.NewMonitor()
	monitor.Tables = []client.TableMonitor{{
		Table: "Bridge", Fields: []string{"name", "external_ids"},
		Conditions: []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, "br-int")},
	}}
	if _, err = n.vswitch.Monitor(ctx, monitor); err != nil {
		return err
	}
	if n.thread, err = newThread(n.Netns); err != nil {
		return err
	}
	return n.do(func() (err error) {
		if n.tables, err = knftables.New(knftables.InetFamily, patternTable); err != nil {
			return err
		}
		tx := n.tables.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Add(&knftables.Map{Name: patternMap, Type: "ipv4_addr : ipv4_addr"})
		tx.Add(&knftables.Chain{
			Name: "post", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook),
			Priority: knftables.PtrTo(knftables.SNATPriority),
		})
		tx.Add(&knftables.Rule{Chain: "post", Rule: "snat ip to ip saddr map @" + patternMap})
		return n.tables.Run(ctx, tx)
	})
}

func connect(ctx context.Context, socket, database, table string) (client.Client, error) {
	schema, err := model.NewClientDBModel(database, map[string]model.Model{table: &patternRow{}})
	if err != nil {
		return nil, err
	}
	quiet := logr.Discard()
	c, err := client.NewOVSDBClient(schema, client.WithEndpoint("unix:"+socket), client.WithLogger(&quiet))
	if err != nil {
		return nil, err
	}
	return c, c.Connect(ctx)
}

func (p *pattern) plan(s scene) (jobs []job) {
	for _, n := range p.nodes {
		translations := map[netip.Addr]netip.Addr{}
		want := map[string]*policies{}
		nextHop := n.ManagementAddress
		if n.Name != s.primary && s.services > 0 {
			nextHop = p.world.facts[s.primary].TransitAddresses[0]
		}
		for i := range s.services {
			service := s.service(i)
			w := &policies{nextHop: nextHop, rows: map[netip.Addr]string{}}
			want[service.Key] = w
			for _, e := range service.Endpoints {
				if n.Name == s.primary {
					translations[e.Address] = service.SourceIPs[0]
				}
				if n.Name == s.primary || n.Name == e.Node {
					w.rows[e.Address] = ""
				}
			}
		}
		jobs = append(jobs, func(ctx context.Context) (time.Time, error) {
			err := n.do(func() error { return errors.Join(n.translate(ctx, translations), n.steer(ctx, want)) })
			return time.Now(), err
		})
	}
	return jobs
}

// translate has the nftables map hold the translations.
func (n *patternNode) translate(ctx context.Context, want map[netip.Addr]netip.Addr) error {
	tx := n.tables.NewTransaction()
	for pod, source := range n.translations {
		if want[pod] != source {
			tx.Delete(element(pod, source))
		}
	}
	for pod, source := range want {
		if n.translations[pod] != source {
			tx.Add(element(pod, source))
		}
	}
	n.translations = want
	if tx.NumOperations() == 0 {
		return nil
	}
	return n.tables.Run(ctx, tx)
}

func element(pod, source netip.Addr) *knftables.Element {
	return &knftables.Element{Map: patternMap, Key: []string{pod.String()}, Value: []string{source.String()}}
}

// steer has the router hold the policies, and waits for their flows. The last transaction increases nb_cfg.
func (n *patternNode) steer(ctx context.Context, want map[string]*policies) error {
	for key := range n.held {
		if want[key] == nil {
			want[key] = &policies{}
		}
	}
	var changed []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have := n.held[key]; have == nil || have.nextHop != want[key].nextHop || len(have.rows) != len(want[key].rows) {
			changed = append(changed, key)
		}
	}
	for i, key := range changed {
		count := i == len(changed)-1
		sequence, err := n.commit(ctx, key, want[key], count)
		if err != nil {
			return err
		}
		for count && n.installed.Load() < sequence {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-n.changed:
			}
		}
	}
	return nil
}

// commit changes the policies of one service in one transaction.
func (n *patternNode) commit(ctx context.Context, key string, want *policies, count bool) (int64, error) {
	have := n.held[key]
	if have == nil {
		have = &policies{}
	}
	var surplus, missing []any
	for pod, row := range have.rows {
		if _, wanted := want.rows[pod]; wanted && have.nextHop == want.nextHop {
			want.rows[pod] = row
		} else {
			surplus = append(surplus, ovsdb.UUID{GoUUID: row})
		}
	}
	var ops []ovsdb.Operation
	var pods []netip.Addr
	for pod, row := range want.rows {
		if row != "" {
			continue
		}
		name := fmt.Sprintf("policy%d", len(ops))
		ops = append(ops, ovsdb.Operation{Op: ovsdb.OperationInsert, Table: "Logical_Router_Policy", UUIDName: name, Row: ovsdb.Row{
			"priority": patternPriority, "match": "ip4.src == " + pod.String(), "action": "reroute",
			"nexthops":     ovsdb.OvsSet{GoSet: []any{want.nextHop.String()}},
			"external_ids": ovsdb.OvsMap{GoMap: map[any]any{"EgressSVC": key}},
		}})
		pods = append(pods, pod)
		missing = append(missing, ovsdb.UUID{GoUUID: name})
	}
	references := ovsdb.Operation{Op: ovsdb.OperationMutate, Table: "Logical_Router", Where: []ovsdb.Condition{
		ovsdb.NewCondition("name", ovsdb.ConditionEqual, dataplane.ClusterRouter),
	}}
	mutate := func(how ovsdb.Mutator, rows []any) {
		if len(rows) > 0 {
			references.Mutations = append(references.Mutations, *ovsdb.NewMutation("policies", how, ovsdb.OvsSet{GoSet: rows}))
		}
	}
	mutate(ovsdb.MutateOperationDelete, surplus)
	mutate(ovsdb.MutateOperationInsert, missing)
	ops = append(ops, references)
	if count {
		// There is one row.
		all := []ovsdb.Condition{ovsdb.NewCondition("nb_cfg", ovsdb.ConditionGreaterThanOrEqual, 0)}
		ops = append(ops, ovsdb.Operation{
			Op: ovsdb.OperationMutate, Table: "NB_Global", Where: all,
			Mutations: []ovsdb.Mutation{*ovsdb.NewMutation("nb_cfg", ovsdb.MutateOperationAdd, 1)},
		}, ovsdb.Operation{Op: ovsdb.OperationSelect, Table: "NB_Global", Where: all, Columns: []string{"nb_cfg"}})
	}
	results, err := n.northbound.Transact(ctx, ops...)
	if err != nil {
		return 0, err
	}
	if _, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		return 0, err
	}
	for i, pod := range pods {
		want.rows[pod] = results[i].UUID.GoUUID
	}
	n.held[key] = want
	if len(want.rows) == 0 {
		delete(n.held, key)
	}
	if !count {
		return 0, nil
	}
	sequence, _ := results[len(ops)-1].Rows[0]["nb_cfg"].(float64)
	return int64(sequence), nil
}

func (p *pattern) host(ctx context.Context, s scene) (start, one figure, err error) {
	n := p.nodes[slices.IndexFunc(p.nodes, func(n *patternNode) bool { return n.Name == s.primary })]
	pod, source := netip.MustParseAddr("10.244.2.1"), s.service(0).SourceIPs[0]
	return start, one, n.do(func() error {
		if start, err = alone(func() error {
			found, err := n.tables.ListElements(ctx, "map", patternMap)
			if err == nil && len(found) != len(n.translations) {
				err = fmt.Errorf("it found %d elements", len(found))
			}
			return err
		}); err != nil {
			return err
		}
		if one, err = alone(func() error {
			tx := n.tables.NewTransaction()
			tx.Add(element(pod, source))
			return n.tables.Run(ctx, tx)
		}); err != nil {
			return err
		}
		tx := n.tables.NewTransaction()
		tx.Delete(element(pod, source))
		return n.tables.Run(ctx, tx)
	})
}

func (p *pattern) close(ctx context.Context) error {
	var problems []error
	for _, n := range p.nodes {
		problems = append(problems, n.do(func() error {
			tx := n.tables.NewTransaction()
			tx.Delete(&knftables.Table{})
			return n.tables.Run(ctx, tx)
		}))
		close(n.thread)
		n.northbound.Close()
		n.vswitch.Close()
	}
	return errors.Join(problems...)
}
