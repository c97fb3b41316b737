// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
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

// lookAgain is how long the dataplane may go unlooked at: just past the age at which the applier
// reads the nftables table again (apply.Options.RelistInterval).
const lookAgain = 31 * time.Second

// localGateway is the gateway mode in which the pods' traffic leaves through the host.
const localGateway = "local"

// lingering is a service that this node was primary of until just now.
type lingering struct {
	uid   types.UID
	until time.Time
}

// SyncDataplane computes the node's plan and applies it. It returns when to look again though
// nothing happens.
func (s *Speaker) SyncDataplane(ctx context.Context) (time.Duration, error) {
	defer s.loops.enter(dataplaneName, s.Now)()
	want, err := s.intend(ctx)
	if err != nil {
		return 0, err
	}
	plan, findings := s.planner.Plan(want.input)
	for _, p := range findings {
		want.problems = append(want.problems, p.Service+": "+p.Message)
	}
	s.ledger.setProblems("dataplane", want.problems)
	s.ledger.refuse(want.refused)
	if s.ledger.narrow(want.services) {
		s.wake(s.bgpWake)
	}

	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	began := s.Now()
	sequence, err := s.Dataplane.Apply(ctx, plan)
	if s.ObserveSync != nil {
		s.ObserveSync(s.Now().Sub(began), err)
	}
	s.ledger.setFailure("dataplane", err)
	s.ledger.setBehind(s.behind(want.input.Services, err))
	if err != nil {
		s.wake(s.reportWake)
		return want.again, fmt.Errorf("apply the dataplane's plan: %w", err)
	}
	started := s.ledger.hasStarted()
	changed := s.ledger.enter(sequence, s.Dataplane.Installed(), want.services)
	if changed {
		level.Info(s.Logger).Log("event", "programmed", "msg", "the dataplane has caught up", "sequence", sequence)
	}
	if changed || s.ledger.hasStarted() != started {
		s.wake(s.bgpWake)
	}
	s.wake(s.reportWake)
	return want.again, nil
}

// intent is what a sync wants of the dataplane.
type intent struct {
	input    dataplane.Input
	services map[string]programmed // what is programmed, by service key, once the plan is in place
	refused  map[string]string     // by service key: why this node can't serve it
	problems []string
	again    time.Duration // when to look again though nothing happens
}

// intend reads what the dataplane should be from the caches.
func (s *Speaker) intend(ctx context.Context) (intent, error) {
	want := intent{services: map[string]programmed{}, refused: map[string]string{}}
	all, err := s.follow(ctx)
	if err != nil {
		return want, err
	}
	if want.input, want.problems, err = s.facts(ctx); err != nil {
		return want, err
	}
	if want.input.Guards, err = s.guards(ctx, all); err != nil {
		return want, err
	}
	want.input.StraysPass = s.StraysPass
	if s.HostProblems != nil {
		want.problems = append(want.problems, s.HostProblems()...)
	}
	previous, again := s.previous(all)
	// Nothing tells when somebody changes the nftables table: it is looked at again by itself.
	if want.again = again; again == 0 || again > lookAgain {
		want.again = lookAgain
	}
	known := namespaces{}
	for _, f := range all {
		if !f.steered() {
			continue
		}
		found, foreign, err := s.endpoints(ctx, known, f.key)
		if err != nil {
			return want, err
		}
		role := f.role(s.Node)
		if role == "" && previous[f.key] {
			role = v1alpha1.RolePrevious
		}
		if foreign > 0 && role != "" {
			want.problems = append(want.problems, fmt.Sprintf("%s: %d endpoint addresses belong to no pod of the namespace and are left alone", f.key, foreign))
		}
		service := planned(f, role, found)
		if previous[f.key] {
			// As the standby, too, it still carries what is under way.
			service.Role = dataplane.RolePrevious
		}
		want.input.Services = append(want.input.Services, service)
		switch why := s.cannotServe(want.input.Nodes[s.Node], f.sourceIPs()); {
		case role == "":
		case why != "":
			want.refused[f.key.String()] = why
		default:
			want.services[f.key.String()] = programmed{f.assignment.UID, f.assignment.Generation, role, f.sourceIPs()}
		}
	}
	return want, nil
}

// behind are the services with endpoints on this node, whatever its role, whose packets are not
// treated as wanted because an application failed: ordered, none after one that did not fail. Those
// for which the last successful one did the same as wanted now are not behind: what is in place
// stays in place.
func (s *Speaker) behind(wanted []dataplane.Service, failure error) []string {
	if failure == nil {
		s.applied = map[string]dataplane.Service{}
		for _, service := range wanted {
			s.applied[service.Key] = service
		}
		return nil
	}
	var behind []string
	for _, service := range wanted {
		local := slices.ContainsFunc(service.Endpoints, func(e dataplane.Endpoint) bool { return e.Node == s.Node })
		if local && !reflect.DeepEqual(service, s.applied[service.Key]) {
			behind = append(behind, service.Key)
		}
	}
	slices.Sort(behind)
	return behind
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
		if wide := slices.IndexFunc(parsed.PodSubnets, func(p netip.Prefix) bool { return !plausible(p) }); wide >= 0 {
			problems = append(problems, fmt.Sprintf("node %s: its pod subnet %s is too wide to be one, none of its annotation counts", node.Name, parsed.PodSubnets[wide]))
			parsed.PodSubnets = nil
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
	// The caches give their objects in any order.
	slices.SortFunc(podSubnets, netip.Prefix.Compare)
	slices.SortFunc(serviceSubnets, netip.Prefix.Compare)
	input.Cluster = dataplane.Cluster{
		PodSubnets: podSubnets, ServiceSubnets: serviceSubnets, JoinSubnets: s.Subnets.Join,
		TransitSubnets: s.Subnets.Transit, MasqueradeSubnets: s.Subnets.Masquerade,
	}
	return input, problems, nil
}

// guards are the LoadBalancer IPs of all EgressServices of the LoadBalancerIP kind, assigned or not,
// each with the ports of all Services that have it, of whatever namespace.
func (s *Speaker) guards(ctx context.Context, all []*followed) ([]dataplane.Guard, error) {
	ports, owner := map[netip.Addr][]dataplane.Port{}, map[netip.Addr]string{}
	for _, f := range all {
		if f.exclusive() {
			for _, address := range slices.Concat(f.sourceIPs(), f.loadBalancerIPs()) {
				if ports[address] = nil; owner[address] == "" {
					owner[address] = f.key.String()
				}
			}
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	var services corev1.ServiceList
	if err := s.list(ctx, &services); err != nil {
		return nil, err
	}
	for i := range services.Items {
		f := followed{service: &services.Items[i]}
		for _, address := range f.loadBalancerIPs() {
			if _, guarded := ports[address]; guarded {
				ports[address] = append(ports[address], portsOf(f.service)...)
			}
		}
	}
	// In order: equal input is not planned twice.
	var guards []dataplane.Guard
	for _, address := range slices.SortedFunc(maps.Keys(ports), netip.Addr.Compare) {
		of := ports[address]
		slices.SortFunc(of, func(a, b dataplane.Port) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
		})
		guards = append(guards, dataplane.Guard{Address: address, Service: owner[address], Ports: of})
	}
	return guards, nil
}

func portsOf(service *corev1.Service) []dataplane.Port {
	var ports []dataplane.Port
	for _, p := range service.Spec.Ports {
		protocol := dataplane.TCP
		switch p.Protocol {
		case corev1.ProtocolUDP:
			protocol = dataplane.UDP
		case corev1.ProtocolSCTP:
			protocol = dataplane.SCTP
		}
		ports = append(ports, dataplane.Port{Protocol: protocol, Number: uint16(p.Port)})
	}
	return ports
}

// plausible is false for a pod subnet so wide that what is outside the cluster would be taken for
// inside: an annotation of one node must not let all nodes' pods out untranslated.
func plausible(subnet netip.Prefix) bool {
	if subnet.Addr().Is4() {
		return subnet.Bits() >= 8
	}
	return subnet.Bits() >= 32
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
	service := dataplane.Service{Key: f.key.String(), FailClosed: f.closed(), SourceIPs: f.sourceIPs()}
	if f.assignment != nil {
		service.Primary, service.Standby, service.Epoch = f.assignment.Spec.Primary, f.assignment.Spec.Standby, f.assignment.Spec.Epoch
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

// cannotServe says why this node must not answer that it has a service programmed, or is empty:
// packets could not leave through it, or not come back.
func (s *Speaker) cannotServe(node dataplane.NodeFacts, sources []netip.Addr) string {
	if mode := s.gatewayMode(); mode != "" && mode != localGateway {
		return "OVN-Kubernetes' gateway mode " + mode + " is not supported on a node that serves an EgressService"
	}
	for _, source := range sources {
		sameFamily := func(a netip.Addr) bool { return a.Is4() == source.Is4() }
		family := "IPv6"
		if source.Is4() {
			family = "IPv4"
		}
		if !slices.ContainsFunc(node.ManagementAddresses, sameFamily) {
			return "the node has no " + family + " pod subnet (annotation " + ovnkubernetes.NodeSubnets + ")"
		}
		if !slices.ContainsFunc(node.TransitAddresses, sameFamily) {
			return "the node has no " + family + " address on the transit switch (annotation " + ovnkubernetes.TransitSwitchPort + "): OVN-Kubernetes' interconnect is needed"
		}
	}
	return ""
}
