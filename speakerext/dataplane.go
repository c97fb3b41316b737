// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Linger is how long a node that was replaced still forwards what is under way to it.
const Linger = 30 * time.Second

// lingering is a service that this node was primary of until just now.
type lingering struct {
	uid   types.UID
	until time.Time
}

// SyncDataplane computes the node's plan and applies it. It returns when to look again though
// nothing happens (0: never).
func (s *Speaker) SyncDataplane(ctx context.Context) (time.Duration, error) {
	all, err := s.follow(ctx)
	if err != nil {
		return 0, err
	}
	input, problems, err := s.facts(ctx)
	if err != nil {
		return 0, err
	}
	services, again := map[string]programmed{}, time.Duration(0)
	previous, wake := s.previous(all)
	again = wake
	for _, f := range all {
		if f.assignment == nil {
			continue
		}
		found, foreign, err := s.endpoints(ctx, f.key)
		if err != nil {
			return 0, err
		}
		if foreign > 0 {
			problems = append(problems, fmt.Sprintf("%s: %d endpoint addresses belong to no pod of the namespace and are left alone", f.key, foreign))
		}
		role := f.role(s.Node)
		if role == "" && previous[f.key] {
			role = v1alpha1.RolePrevious
		}
		input.Services = append(input.Services, planned(f, role, found))
		if missing := missingManagement(input.Nodes[s.Node], f.sourceIPs()); role != "" && missing == "" {
			services[f.key.String()] = programmed{f.assignment.UID, f.assignment.Generation, role, f.sourceIPs()}
		}
	}
	plan, findings := dataplane.Compute(input)
	for _, p := range findings {
		problems = append(problems, p.Service+": "+p.Message)
	}
	s.ledger.setProblems("dataplane", problems)
	if s.ledger.narrow(services) {
		s.wake(s.bgpWake)
	}

	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	sequence, err := s.Dataplane.Apply(ctx, plan)
	if err != nil {
		return 0, fmt.Errorf("apply the dataplane's plan: %w", err)
	}
	if s.ledger.enter(sequence, s.Dataplane.Installed(), services) {
		level.Info(s.Logger).Log("event", "programmed", "msg", "the dataplane has caught up", "sequence", sequence)
		s.wake(s.bgpWake)
	}
	s.wake(s.reportWake)
	return again, nil
}

// facts are the parts of the plan's input that come from Nodes and the configuration.
func (s *Speaker) facts(ctx context.Context) (dataplane.Input, []string, error) {
	input := dataplane.Input{Node: s.Node, Nodes: map[string]dataplane.NodeFacts{}}
	var nodes corev1.NodeList
	if err := s.list(ctx, &nodes); err != nil {
		return input, nil, err
	}
	var problems []string
	podSubnets := slices.Clone(s.Subnets.Pods)
	for _, node := range nodes.Items {
		parsed, err := ovnkubernetes.Parse(node.Annotations)
		if err != nil {
			problems = append(problems, fmt.Sprintf("node %s: %v", node.Name, err))
		}
		input.Nodes[node.Name] = dataplane.NodeFacts{
			Addresses: parsed.HostAddresses, ManagementAddresses: parsed.ManagementAddresses(),
			TransitAddresses: parsed.TransitAddresses, PodSubnets: parsed.PodSubnets,
		}
		if len(s.Subnets.Pods) == 0 {
			podSubnets = append(podSubnets, parsed.PodSubnets...)
		}
		if node.Name == s.Node {
			s.setGatewayMode(parsed.GatewayMode)
		}
	}
	serviceSubnets, err := s.serviceSubnets(ctx)
	if err != nil {
		return input, nil, err
	}
	input.Cluster = dataplane.Cluster{
		PodSubnets: podSubnets, ServiceSubnets: serviceSubnets, JoinSubnets: s.Subnets.Join,
		TransitSubnets: s.Subnets.Transit, MasqueradeSubnets: s.Subnets.Masquerade,
	}
	return input, problems, nil
}

// previous are the services that this node was primary of until Linger ago, and when the
// first of them ends.
func (s *Speaker) previous(all []*followed) (map[types.NamespacedName]bool, time.Duration) {
	now := s.Now()
	current, again := map[types.NamespacedName]bool{}, time.Duration(0)
	was := s.wasPrimary
	s.wasPrimary = map[types.NamespacedName]lingering{}
	for _, f := range all {
		if f.assignment == nil {
			continue
		}
		uid := f.assignment.UID
		if f.assignment.Spec.Primary == s.Node {
			s.wasPrimary[f.key] = lingering{uid: uid}
			continue
		}
		last, ok := was[f.key]
		if !ok || last.uid != uid || f.assignment.Spec.Primary == "" {
			continue
		}
		if last.until.IsZero() {
			last.until = now.Add(Linger)
		}
		if left := last.until.Sub(now); left > 0 {
			s.wasPrimary[f.key] = last
			current[f.key] = true
			if again == 0 || left < again {
				again = left
			}
		}
	}
	return current, again
}

// planned is the dataplane's view of one service.
func planned(f *followed, role v1alpha1.Role, endpoints []endpoint) dataplane.Service {
	spec := f.assignment.Spec
	service := dataplane.Service{
		Key: f.key.String(), Primary: spec.Primary, Standby: spec.Standby,
		FailClosed: spec.FailurePolicy == v1alpha1.FailClosed, SourceIPs: f.sourceIPs(),
	}
	switch role {
	case v1alpha1.RolePrimary:
		service.Role = dataplane.RolePrimary
	case v1alpha1.RoleStandby:
		service.Role = dataplane.RoleStandby
	case v1alpha1.RolePrevious:
		service.Role = dataplane.RolePrevious
	}
	for _, e := range endpoints {
		service.Endpoints = append(service.Endpoints, dataplane.Endpoint{Address: e.address, Node: e.node})
	}
	return service
}

// missingManagement names the family of a source IP for which the node has no management
// address: there packets can't leave, and the node must not say that they can.
func missingManagement(node dataplane.NodeFacts, sources []netip.Addr) string {
	for _, source := range sources {
		if !slices.ContainsFunc(node.ManagementAddresses, func(a netip.Addr) bool { return a.Is4() == source.Is4() }) {
			if source.Is4() {
				return "IPv4"
			}
			return "IPv6"
		}
	}
	return ""
}
