// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"net/netip"
	"slices"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// MetalLB is what the installed one has.
type MetalLB struct {
	advertisement.Features
	// BGPStatuses, L2Statuses and ConfigurationStates are true where its speakers write ServiceBGPStatus, ServiceL2Status and
	// ConfigurationState.
	BGPStatuses, L2Statuses, ConfigurationStates bool
}

// Kinds are those of MetalLB that the controller reads, as far as they are installed: their changes call for the advertisement loop.
func (m MetalLB) Kinds() []client.Object {
	kinds := []client.Object{
		&advertisement.BGPAdvertisement{}, &metallbv1beta1.IPAddressPool{}, &metallbv1beta1.L2Advertisement{}, &metallbv1beta2.BGPPeer{},
	}
	if m.BGPStatuses {
		kinds = append(kinds, &metallbv1beta1.ServiceBGPStatus{})
	}
	if m.L2Statuses {
		kinds = append(kinds, &metallbv1beta1.ServiceL2Status{})
	}
	if m.ConfigurationStates {
		kinds = append(kinds, &metallbv1beta1.ConfigurationState{})
	}
	return kinds
}

// seen is what the advertisement loop reads: the plan's view, and the objects behind it.
type seen struct {
	advertisement.Cluster
	services []*corev1.Service
	existing map[string]*advertisement.BGPAdvertisement
	wanted   map[types.NamespacedName]*advertised
	says     announcers
}

// advertised is one EgressService in the advertisement loop.
type advertised struct {
	egress     *egressv1.EgressService
	service    *corev1.Service // nil where there is none of type LoadBalancer
	assignment *v1alpha1.EgressAssignment
}

// announcers are the nodes from which MetalLB says that it announces a Service by BGP.
type announcers map[types.NamespacedName]map[string]bool

// see reads the caches.
func (c *Controller) see(ctx context.Context) (*seen, time.Duration, error) {
	s := &seen{
		Cluster: advertisement.Cluster{
			Namespace: c.MetalLBNamespace, Features: c.MetalLB.Features, Guarded: c.Guarded, Manage: c.ManageAdvertisements, IgnoreExclude: c.IgnoreExclude,
		},
		existing: map[string]*advertisement.BGPAdvertisement{}, wanted: map[types.NamespacedName]*advertised{}, says: announcers{},
	}
	services, err := list[corev1.ServiceList](ctx, c.Client)
	if err != nil {
		return nil, 0, err
	}
	s.services = pointers(services.Items)
	if err := c.seeEgressServices(ctx, s); err != nil {
		return nil, 0, err
	}
	for _, service := range s.services {
		if service.Spec.Type == corev1.ServiceTypeLoadBalancer {
			s.Services = append(s.Services, loadBalancer(service))
		}
	}
	nodes, err := list[corev1.NodeList](ctx, c.Client, unordered)
	if err != nil {
		return nil, 0, err
	}
	for _, node := range pointers(nodes.Items) {
		s.Nodes = append(s.Nodes, advertisement.Node{Name: node.Name, Labels: node.Labels})
	}
	again, err := c.seeMetalLB(ctx, s)
	return s, again, err
}

// seeEgressServices reads what was elected.
func (c *Controller) seeEgressServices(ctx context.Context, s *seen) error {
	egressServices, err := c.egressServices(ctx)
	if err != nil {
		return err
	}
	assignments, err := list[v1alpha1.EgressAssignmentList](ctx, c.Client, unordered)
	if err != nil {
		return err
	}
	reports, err := list[v1alpha1.EgressNodeList](ctx, c.Client, unordered)
	if err != nil {
		return err
	}
	vrfs := map[string]bool{}
	for _, report := range pointers(reports.Items) {
		for _, vrf := range report.Status.VRFs {
			vrfs[vrf] = true
		}
	}
	refused := c.refusedNames()
	oldest := oldestFirst(egressServices.Items)
	for _, egress := range oldest {
		if key := client.ObjectKeyFromObject(egress); !refused[key] {
			s.wanted[key] = &advertised{egress: egress}
		}
	}
	for _, a := range pointers(assignments.Items) {
		if w := s.wanted[client.ObjectKeyFromObject(a)]; w != nil && metav1.IsControlledBy(a, w.egress) {
			w.assignment = a
		}
	}
	for _, service := range s.services {
		if w := s.wanted[client.ObjectKeyFromObject(service)]; w != nil && service.Spec.Type == corev1.ServiceTypeLoadBalancer {
			w.service = service
		}
	}
	for _, egress := range oldest {
		key := client.ObjectKeyFromObject(egress)
		if w := s.wanted[key]; w != nil {
			s.EgressServices = append(s.EgressServices, elected(key, w, vrfs[egress.Spec.Network]))
		}
	}
	return nil
}

// elected is the plan's view of an EgressService.
func elected(key types.NamespacedName, w *advertised, vrf bool) advertisement.EgressService {
	e := advertisement.EgressService{
		Key: key, EveryNode: w.egress.Spec.SourceIPBy == egressv1.SourceIPNetwork, Digest: lifecycle.Digest(key.Namespace, key.Name),
		Network: w.egress.Spec.Network, VRF: vrf,
	}
	if w.assignment != nil {
		spec := &w.assignment.Spec
		e.LabelKey, e.StandbyLabelKey, e.Primary = spec.LabelKey, spec.StandbyLabelKey(), spec.Primary
	}
	return e
}

// loadBalancer is the plan's view of a Service.
func loadBalancer(service *corev1.Service) advertisement.Service {
	s := advertisement.Service{
		Key: client.ObjectKeyFromObject(service), Labels: service.Labels, Pool: advertisement.Pool(service.Annotations),
		DualStack: len(service.Spec.IPFamilies) > 1,
	}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		if address, err := netip.ParseAddr(ingress.IP); err == nil {
			s.Addresses = append(s.Addresses, address)
		}
	}
	return s
}

// strayTime is how long MetalLB may still say that it announces a service from another node: after a move it takes some seconds.
const strayTime = 10 * time.Second

// seeMetalLB reads MetalLB's own objects.
func (c *Controller) seeMetalLB(ctx context.Context, s *seen) (again time.Duration, err error) {
	namespace := client.InNamespace(c.MetalLBNamespace)
	advertisements, err := list[advertisement.BGPAdvertisementList](ctx, c.Client, namespace)
	if err != nil {
		return 0, err
	}
	s.Advertisements = pointers(advertisements.Items)
	for _, a := range s.Advertisements {
		s.existing[a.Name] = a
	}
	pools, err := list[metallbv1beta1.IPAddressPoolList](ctx, c.Client, namespace, unordered)
	if err != nil {
		return 0, err
	}
	s.Pools = pointers(pools.Items)
	l2, err := list[metallbv1beta1.L2AdvertisementList](ctx, c.Client, namespace, unordered)
	if err != nil {
		return 0, err
	}
	s.L2Advertisements = pointers(l2.Items)
	peers, err := list[metallbv1beta2.BGPPeerList](ctx, c.Client, namespace, unordered)
	if err != nil {
		return 0, err
	}
	s.Peers = pointers(peers.Items)
	return c.seeStatuses(ctx, s)
}

// seeStatuses reads what MetalLB's speakers say of themselves.
func (c *Controller) seeStatuses(ctx context.Context, s *seen) (again time.Duration, err error) {
	namespace := client.InNamespace(c.MetalLBNamespace)
	if c.MetalLB.ConfigurationStates {
		states, err := list[metallbv1beta1.ConfigurationStateList](ctx, c.Client, namespace, unordered)
		if err != nil {
			return 0, err
		}
		s.Invalid = map[string]string{}
		for _, state := range pointers(states.Items) {
			if node := state.Labels[metallbNodeLabel]; node != "" && state.Status.Result == metallbv1beta1.ConfigurationResultInvalid {
				s.Invalid[node] = state.Status.ErrorSummary
			}
		}
	}
	before := c.strays
	c.strays = map[stray]time.Time{}
	keep := func(kind string, node, namespace, name string, all *[]advertisement.Announcement) {
		a := advertisement.Announcement{Node: node, Service: types.NamespacedName{Namespace: namespace, Name: name}}
		w := s.wanted[a.Service]
		if w == nil || w.assignment == nil || w.assignment.Spec.Primary == node {
			return
		}
		since, known := before[stray{kind, a}]
		if !known {
			since = c.Now()
		}
		c.strays[stray{kind, a}] = since
		if left := strayTime - c.Now().Sub(since); left > 0 {
			again = sooner(again, left)
			return
		}
		*all = append(*all, a)
	}
	if c.MetalLB.BGPStatuses {
		statuses, err := list[metallbv1beta1.ServiceBGPStatusList](ctx, c.Client, namespace, unordered)
		if err != nil {
			return 0, err
		}
		for _, status := range pointers(statuses.Items) {
			st := &status.Status
			if len(st.Peers) == 0 {
				continue
			}
			key := types.NamespacedName{Namespace: st.ServiceNamespace, Name: st.ServiceName}
			if s.says[key] == nil {
				s.says[key] = map[string]bool{}
			}
			s.says[key][st.Node] = true
			keep("BGP", st.Node, st.ServiceNamespace, st.ServiceName, &s.BGPAnnouncements)
		}
	}
	if c.MetalLB.L2Statuses {
		statuses, err := list[metallbv1beta1.ServiceL2StatusList](ctx, c.Client, namespace, unordered)
		if err != nil {
			return 0, err
		}
		for _, status := range pointers(statuses.Items) {
			keep("L2", status.Status.Node, status.Status.ServiceNamespace, status.Status.ServiceName, &s.L2Announcements)
		}
	}
	return again, nil
}

// metallbNodeLabel is, on a ConfigurationState, the node of the speaker that it is about.
const metallbNodeLabel = "metallb.io/node-name"

// stray is an announcement by MetalLB from a node that is not the primary.
type stray struct {
	kind string
	advertisement.Announcement
}

// refusedNames are the services whose label and advertisement would be another's.
func (c *Controller) refusedNames() map[types.NamespacedName]bool {
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	refused := map[types.NamespacedName]bool{}
	for _, w := range c.shared.works {
		if w.observed.Blocked == v1alpha1.ReasonNameCollision {
			refused[w.key] = true
		}
	}
	return refused
}

// released are the Services that carry our label without an EgressService that needs it, with every key that the label of their node may
// have: the advertisement loop has yet to take the Service's label off, and until then nothing but that node is allowed to announce them.
func released(services []*corev1.Service, needs func(types.NamespacedName) bool) []string {
	var keys []string
	for _, service := range services {
		key := client.ObjectKeyFromObject(service)
		if _, labelled := service.Labels[v1alpha1.ServiceLabel]; labelled && !needs(key) {
			keys = append(keys, egressv1.LabelPrefix+key.Namespace+"-"+key.Name, egressv1.LabelPrefix+lifecycle.Digest(key.Namespace, key.Name))
		}
	}
	slices.Sort(keys)
	return keys
}
