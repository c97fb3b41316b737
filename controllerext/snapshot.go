// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// snapshot is what the caches hold at the start of one election. The objects are the caches'
// own: nothing in here may be changed.
type snapshot struct {
	egressServices []*egressv1.EgressService // oldest first, without those being deleted
	assignments    map[types.NamespacedName]*v1alpha1.EgressAssignment
	services       map[types.NamespacedName]*corev1.Service              // of namespaces with an EgressService
	slices         map[types.NamespacedName][]*discoveryv1.EndpointSlice // by Service; of the same namespaces
	nodes          []*corev1.Node
	released       []string // keys of Node labels that must not go yet
	pods           prefixes // the nodes' pod subnets
	reports        map[string]*v1alpha1.EgressNode
	entries        map[string]map[string]v1alpha1.EgressNodeService // of the reports, by service key and node
	behind         map[string][]string                              // service key to the nodes that could not follow
}

// unordered lists without waiting for one's own writes to come back: for kinds of which this
// loop reads no part that it writes.
var unordered = client.DisableReadYourWritesConsistency

func list[T any, L interface {
	client.ObjectList
	*T
}](ctx context.Context, reader client.Reader, options ...client.ListOption) (L, error) {
	into := L(new(T))
	if err := reader.List(ctx, into, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil, fmt.Errorf("list %T: %w", into, err)
	}
	return into, nil
}

func (c *Controller) read(ctx context.Context) (*snapshot, error) {
	egressServices, err := c.egressServices(ctx)
	if err != nil {
		return nil, err
	}
	oldest := oldestFirst(egressServices.Items)
	exclusive := make(map[types.NamespacedName]bool, len(oldest))
	for _, egress := range oldest {
		exclusive[client.ObjectKeyFromObject(egress)] = egress.Spec.SourceIPBy != egressv1.SourceIPNetwork
	}
	concerned := c.concern(oldest)
	assignments, err := list[v1alpha1.EgressAssignmentList](ctx, c.Client)
	if err != nil {
		return nil, err
	}
	services, err := list[corev1.ServiceList](ctx, c.Client, unordered)
	if err != nil {
		return nil, err
	}
	endpointSlices, err := list[discoveryv1.EndpointSliceList](ctx, c.Client)
	if err != nil {
		return nil, err
	}
	nodes, err := list[corev1.NodeList](ctx, c.Client)
	if err != nil {
		return nil, err
	}
	reports, err := list[v1alpha1.EgressNodeList](ctx, c.Client)
	if err != nil {
		return nil, err
	}

	s := &snapshot{
		egressServices: oldest,
		assignments:    make(map[types.NamespacedName]*v1alpha1.EgressAssignment, len(assignments.Items)),
		services:       map[types.NamespacedName]*corev1.Service{},
		slices:         map[types.NamespacedName][]*discoveryv1.EndpointSlice{},
		nodes:          pointers(nodes.Items),
	}
	for _, a := range pointers(assignments.Items) {
		s.assignments[client.ObjectKeyFromObject(a)] = a
	}
	for _, service := range pointers(services.Items) {
		if concerned[service.Namespace] {
			s.services[client.ObjectKeyFromObject(service)] = service
		}
	}
	for _, slice := range pointers(endpointSlices.Items) {
		if concerned[slice.Namespace] {
			key := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
			s.slices[key] = append(s.slices[key], slice)
		}
	}
	s.released = released(pointers(services.Items), func(key types.NamespacedName) bool { return exclusive[key] })
	s.pods = c.subnets.read(s.nodes)
	s.index(pointers(reports.Items))
	return s, nil
}

// index sorts the nodes' reports by service.
func (s *snapshot) index(reports []*v1alpha1.EgressNode) {
	s.reports = make(map[string]*v1alpha1.EgressNode, len(reports))
	s.entries = make(map[string]map[string]v1alpha1.EgressNodeService, len(s.egressServices))
	s.behind = map[string][]string{}
	for _, report := range reports {
		s.reports[report.Name] = report
		for _, entry := range report.Status.Services {
			if s.entries[entry.Key] == nil {
				s.entries[entry.Key] = make(map[string]v1alpha1.EgressNodeService, 2)
			}
			s.entries[entry.Key][report.Name] = entry
		}
		for _, key := range report.Status.Behind {
			s.behind[key] = append(s.behind[key], report.Name)
		}
	}
	for _, nodes := range s.behind {
		slices.Sort(nodes)
	}
}

// oldestFirst are the EgressServices that are not being deleted, in the order of their creation,
// then of their names.
func oldestFirst(items []egressv1.EgressService) []*egressv1.EgressService {
	found := slices.DeleteFunc(pointers(items), func(e *egressv1.EgressService) bool { return e.DeletionTimestamp != nil })
	slices.SortFunc(found, func(a, b *egressv1.EgressService) int {
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return found
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
