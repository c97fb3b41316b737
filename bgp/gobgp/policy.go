// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v4/api"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// tag names one peer and one set of attributes. A path carries it as the large community
// bgp.ReservedGlobalAdministrator:peer:attributes.
type tag struct {
	peer, attributes uint32
}

func (t tag) compare(u tag) int {
	return cmp.Or(cmp.Compare(t.peer, u.peer), cmp.Compare(t.attributes, u.attributes))
}

// community is the tag as it stands on a path.
func (t tag) community() string {
	return fmt.Sprintf("%d:%d:%d", uint32(bgp.ReservedGlobalAdministrator), t.peer, t.attributes)
}

// name is that of the tag's policy, statement and community set.
func (t tag) name() string { return fmt.Sprintf("peer-%d-attributes-%d", t.peer, t.attributes) }

// neighborSet is the name of the peer's neighbor set.
func (t tag) neighborSet() string { return fmt.Sprintf("peer-%d", t.peer) }

// allTags matches every tag, to take them off.
var allTags = fmt.Sprintf(`^%d:\d+:\d+$`, uint32(bgp.ReservedGlobalAdministrator))

// globalTable is GoBGP's name for the table that policies can be assigned to.
const globalTable = "global"

// policies is what one server has been given, and how its numbers are taken. Numbers are never
// used twice: an old path could still carry them.
type policies struct {
	nextPeer, nextAttributes uint32
	attributes               map[string]uint32 // number of a set of attributes, by attributesKey
	statements               map[tag]bool
	paths                    map[tag]int     // how many paths have a tag
	neighborSets             map[uint32]bool // by peer number
}

func newPolicies() policies {
	return policies{attributes: map[string]uint32{}, statements: map[tag]bool{}, paths: map[tag]int{}, neighborSets: map[uint32]bool{}}
}

// use counts the paths that have tags.
func (p *policies) use(tags []tag, by int) {
	for _, t := range tags {
		if p.paths[t] += by; p.paths[t] == 0 {
			delete(p.paths, t)
		}
	}
}

// attributesKey is equal for routes that differ only in their prefix. asn is the one to prepend.
func attributesKey(r bgp.Route, asn uint32) string {
	localPref := "none"
	if r.LocalPref != nil {
		localPref = fmt.Sprint(*r.LocalPref)
	}
	if r.Prepend == 0 {
		asn = 0
	}
	return fmt.Sprint(localPref, r.Communities, r.LargeCommunities, r.NextHop, r.Prepend, asn)
}

// attributesNumber is the number of r's attributes.
func (p *policies) attributesNumber(r bgp.Route, asn uint32) uint32 {
	key := attributesKey(r, asn)
	number, ok := p.attributes[key]
	if !ok {
		number = p.nextAttributes
		p.nextAttributes++
		p.attributes[key] = number
	}
	return number
}

// defaultPolicies lets the server's own paths into its table, nothing else, and nothing out. A
// default of reject on import alone would refuse the server's own paths as well.
func (i *instance) defaultPolicies(ctx context.Context) error {
	const name = "own-paths"
	err := i.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: &api.Policy{Name: name, Statements: []*api.Statement{{
		Name:       name,
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}})
	if err != nil {
		return err
	}
	err = i.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name:          globalTable,
		Direction:     api.PolicyDirection_POLICY_DIRECTION_IMPORT,
		Policies:      []*api.Policy{{Name: name}},
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
	if err != nil {
		return err
	}
	return i.assignStatements(ctx, nil)
}

// assignStatements makes the statements of exactly these tags the export policy.
func (i *instance) assignStatements(ctx context.Context, tags []tag) error {
	assignment := &api.PolicyAssignment{
		Name:          globalTable,
		Direction:     api.PolicyDirection_POLICY_DIRECTION_EXPORT,
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}
	for _, t := range tags {
		assignment.Policies = append(assignment.Policies, &api.Policy{Name: t.name()})
	}
	if err := i.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: assignment}); err != nil {
		return fmt.Errorf("assigning export policies: %w", err)
	}
	return nil
}

// addStatements makes sure that there is a statement for every tag of the plan. It returns the
// tags that have none.
func (i *instance) addStatements(ctx context.Context, plan plan) (missing map[tag]bool, err error) {
	missing = map[tag]bool{}
	var added []tag
	var errs []error
	for _, t := range slices.SortedFunc(maps.Keys(plan.statements), tag.compare) {
		if i.policies.statements[t] {
			continue
		}
		if err := i.addStatement(ctx, t, plan.statements[t]); err != nil {
			errs = append(errs, fmt.Errorf("peer %s: adding an export policy: %w", plan.statements[t].peer, err))
			missing[t] = true
			continue
		}
		added = append(added, t)
	}
	if len(added) == 0 {
		return missing, errors.Join(errs...)
	}
	all := slices.AppendSeq(slices.Clone(added), maps.Keys(i.policies.statements))
	slices.SortFunc(all, tag.compare)
	err = i.assignStatements(ctx, all)
	for _, t := range added {
		if err != nil {
			missing[t] = true
			errs = append(errs, i.deleteStatement(ctx, t))
		} else {
			i.policies.statements[t] = true
		}
	}
	return missing, errors.Join(append(errs, err)...)
}

// addStatement makes the tag's sets and policy, not yet assigned. It replaces sets that a failed
// attempt has left.
func (i *instance) addStatement(ctx context.Context, t tag, s statement) error {
	if !i.policies.neighborSets[t.peer] {
		err := i.server.AddDefinedSet(ctx, &api.AddDefinedSetRequest{Replace: true, DefinedSet: &api.DefinedSet{
			DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR,
			Name:        t.neighborSet(),
			List:        []string{netip.PrefixFrom(s.peer, s.peer.BitLen()).String()},
		}})
		if err != nil {
			return err
		}
		i.policies.neighborSets[t.peer] = true
	}
	err := i.server.AddDefinedSet(ctx, &api.AddDefinedSetRequest{Replace: true, DefinedSet: &api.DefinedSet{
		DefinedType: api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY,
		Name:        t.name(),
		List:        []string{"^" + t.community() + "$"},
	}})
	if err != nil {
		return err
	}
	return i.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: &api.Policy{Name: t.name(), Statements: []*api.Statement{{
		Name: t.name(),
		Conditions: &api.Conditions{
			NeighborSet:       &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: t.neighborSet()},
			LargeCommunitySet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: t.name()},
		},
		Actions: actions(s.route, s.asn),
	}}}})
}

// actions gives a path the attributes of r, and takes the tags off.
func actions(r bgp.Route, asn uint32) *api.Actions {
	actions := &api.Actions{
		RouteAction:    api.RouteAction_ROUTE_ACTION_ACCEPT,
		LargeCommunity: &api.CommunityAction{Type: api.CommunityAction_TYPE_REMOVE, Communities: []string{allTags}},
	}
	if len(r.LargeCommunities) > 0 {
		// A statement has one action on large communities. A path has no others than tags.
		actions.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_REPLACE, Communities: texts(r.LargeCommunities)}
	}
	if len(r.Communities) > 0 {
		actions.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_REPLACE, Communities: texts(r.Communities)}
	}
	if r.LocalPref != nil {
		actions.LocalPref = &api.LocalPrefAction{Value: *r.LocalPref}
	}
	if r.Prepend > 0 {
		actions.AsPrepend = &api.AsPrependAction{Asn: asn, Repeat: uint32(r.Prepend)}
	}
	if r.NextHop.IsValid() {
		actions.Nexthop = &api.NexthopAction{Address: r.NextHop.String()}
	}
	return actions
}

func texts[T fmt.Stringer](values []T) []string {
	list := make([]string, len(values))
	for i, value := range values {
		list[i] = value.String()
	}
	return list
}

// removeStatements removes those that no path needs any more.
func (i *instance) removeStatements(ctx context.Context) error {
	used := map[uint32]bool{}
	for t := range i.policies.paths {
		used[t.attributes] = true
	}
	maps.DeleteFunc(i.policies.attributes, func(_ string, number uint32) bool { return !used[number] })
	var keep, drop []tag
	for t := range i.policies.statements {
		if i.policies.paths[t] > 0 {
			keep = append(keep, t)
		} else {
			drop = append(drop, t)
		}
	}
	if len(drop) == 0 {
		return nil
	}
	slices.SortFunc(keep, tag.compare)
	slices.SortFunc(drop, tag.compare)
	if err := i.assignStatements(ctx, keep); err != nil {
		return err
	}
	var errs []error
	for _, t := range drop {
		delete(i.policies.statements, t)
		errs = append(errs, i.deleteStatement(ctx, t))
	}
	for _, t := range drop {
		if i.policies.neighborSets[t.peer] && !slices.ContainsFunc(keep, func(k tag) bool { return k.peer == t.peer }) {
			delete(i.policies.neighborSets, t.peer)
			errs = append(errs, i.deleteSet(ctx, api.DefinedType_DEFINED_TYPE_NEIGHBOR, t.neighborSet()))
		}
	}
	return errors.Join(errs...)
}

// deleteStatement undoes addStatement, the neighbor set aside. Its number never comes back, so a
// failure leaves garbage and no harm.
func (i *instance) deleteStatement(ctx context.Context, t tag) error {
	err := i.server.DeletePolicy(ctx, &api.DeletePolicyRequest{Policy: &api.Policy{Name: t.name()}, All: true})
	if err != nil {
		err = fmt.Errorf("deleting policy %s: %w", t.name(), err)
	}
	return errors.Join(err, i.deleteSet(ctx, api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, t.name()))
}

func (i *instance) deleteSet(ctx context.Context, kind api.DefinedType, name string) error {
	err := i.server.DeleteDefinedSet(ctx, &api.DeleteDefinedSetRequest{All: true, DefinedSet: &api.DefinedSet{DefinedType: kind, Name: name}})
	if err != nil {
		return fmt.Errorf("deleting %s %s: %w", strings.ToLower(kind.String()), name, err)
	}
	return nil
}
