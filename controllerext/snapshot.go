// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
)

// snapshot is what the caches hold at the start of one sync. The objects are the caches' own:
// nothing in here may be changed.
type snapshot struct {
	egressServices []*egressv1.EgressService // oldest first
	assignments    map[types.NamespacedName]*v1alpha1.EgressAssignment
	services       map[types.NamespacedName]*corev1.Service
	slices         map[types.NamespacedName][]*discoveryv1.EndpointSlice // by Service
	nodes          []*corev1.Node
	candidates     []election.Node // as nodes
	podSubnets     []netip.Prefix
	reports        map[string]*v1alpha1.EgressNode
	advertisements map[string]*metallbv1beta1.BGPAdvertisement // ours only
}

func (c *Controller) read(ctx context.Context) (*snapshot, error) {
	s := &snapshot{
		assignments:    map[types.NamespacedName]*v1alpha1.EgressAssignment{},
		services:       map[types.NamespacedName]*corev1.Service{},
		slices:         map[types.NamespacedName][]*discoveryv1.EndpointSlice{},
		reports:        map[string]*v1alpha1.EgressNode{},
		advertisements: map[string]*metallbv1beta1.BGPAdvertisement{},
	}
	var egressServices egressv1.EgressServiceList
	var assignments v1alpha1.EgressAssignmentList
	var services corev1.ServiceList
	var endpointSlices discoveryv1.EndpointSliceList
	var nodes corev1.NodeList
	var reports v1alpha1.EgressNodeList
	var advertisements metallbv1beta1.BGPAdvertisementList
	ours := client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue}
	for _, list := range []struct {
		into    client.ObjectList
		options []client.ListOption
	}{
		{&egressServices, nil}, {&assignments, nil}, {&services, nil}, {&endpointSlices, nil}, {&nodes, nil}, {&reports, nil},
		{&advertisements, []client.ListOption{client.InNamespace(c.MetalLBNamespace), ours}},
	} {
		if err := c.Client.List(ctx, list.into, append(list.options, client.UnsafeDisableDeepCopy)...); err != nil {
			return nil, fmt.Errorf("list %T: %w", list.into, err)
		}
	}

	s.egressServices = pointers(egressServices.Items)
	slices.SortFunc(s.egressServices, func(a, b *egressv1.EgressService) int { return older(a, b) })
	for _, a := range pointers(assignments.Items) {
		s.assignments[client.ObjectKeyFromObject(a)] = a
	}
	for _, service := range pointers(services.Items) {
		s.services[client.ObjectKeyFromObject(service)] = service
	}
	for _, slice := range pointers(endpointSlices.Items) {
		key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		s.slices[key] = append(s.slices[key], slice)
	}
	for _, report := range pointers(reports.Items) {
		s.reports[report.Name] = report
	}
	for _, a := range pointers(advertisements.Items) {
		s.advertisements[a.Name] = a
	}
	s.nodes = pointers(nodes.Items)
	slices.SortFunc(s.nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	for _, node := range s.nodes {
		s.candidates = append(s.candidates, candidate(node, s.reports[node.Name]))
		// A malformed annotation is the speaker's to report; here its subnets are just missing.
		facts, _ := ovnkubernetes.Parse(node.Annotations)
		s.podSubnets = append(s.podSubnets, facts.PodSubnets...)
	}
	return s, nil
}

// candidate is the election's view of a node.
func candidate(node *corev1.Node, report *v1alpha1.EgressNode) election.Node {
	_, excluded := node.Labels[corev1.LabelNodeExcludeBalancers]
	c := election.Node{
		Name: node.Name, Labels: node.Labels, Zone: node.Labels[corev1.LabelTopologyZone],
		Deleting: node.DeletionTimestamp != nil, Excluded: excluded, Cordoned: node.Spec.Unschedulable,
		Reporting: report != nil,
	}
	for _, condition := range node.Status.Conditions {
		switch condition.Type {
		case corev1.NodeReady:
			c.Ready = condition.Status == corev1.ConditionTrue
		case corev1.NodeNetworkUnavailable:
			c.NetworkUnavailable = condition.Status == corev1.ConditionTrue
		}
	}
	if report != nil {
		c.SharedGateway = report.Status.GatewayMode == "shared"
		c.SessionEstablished = slices.ContainsFunc(report.Status.BGPSessions, func(b v1alpha1.BGPSession) bool { return b.State == "Established" })
	}
	return c
}

// reportsOf are the nodes' entries for one service.
func (s *snapshot) reportsOf(key string) map[string]v1alpha1.EgressNodeService {
	found := map[string]v1alpha1.EgressNodeService{}
	for node, report := range s.reports {
		for _, entry := range report.Status.Services {
			if entry.Key == key {
				found[node] = entry
			}
		}
	}
	return found
}

// endpoints says whether the Service has an endpoint on the pod network, and on which nodes
// one is serving.
func (s *snapshot) endpoints(service types.NamespacedName) (some bool, serving map[string]bool) {
	serving = map[string]bool{}
	for _, slice := range s.slices[service] {
		for _, endpoint := range slice.Endpoints {
			if !slices.ContainsFunc(endpoint.Addresses, s.onPodNetwork) {
				continue
			}
			some = true
			ready := endpoint.Conditions.Serving == nil || *endpoint.Conditions.Serving
			if ready && endpoint.NodeName != nil {
				serving[*endpoint.NodeName] = true
			}
		}
	}
	return some, serving
}

func (s *snapshot) onPodNetwork(text string) bool {
	address, err := netip.ParseAddr(text)
	return err == nil && slices.ContainsFunc(s.podSubnets, func(p netip.Prefix) bool { return p.Contains(address) })
}

// older orders by creation time, then namespace and name.
func older(a, b client.Object) int {
	if at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp(); !at.Equal(&bt) {
		return at.Compare(bt.Time)
	}
	return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
