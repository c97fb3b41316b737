// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// followed is one EgressService with what belongs to it. The objects are the caches' own and
// must not be changed.
type followed struct {
	key        types.NamespacedName
	egress     *egressv1.EgressService
	service    *corev1.Service            // nil when there is none
	assignment *v1alpha1.EgressAssignment // nil when there is none
}

// exclusive is true when the LoadBalancer IP may leave one node only. A service of the Network
// kind is an ordinary one to BGP.
func (f *followed) exclusive() bool { return f.egress.Spec.SourceIPBy != egressv1.SourceIPNetwork }

// closed is true when the pods' packets to the outside must be dropped while no node is assigned.
// Before there is an assignment, and with one of an earlier EgressService, the annotation decides.
func (f *followed) closed() bool {
	if f.assignment != nil {
		return f.assignment.Spec.FailurePolicy == v1alpha1.FailClosed
	}
	return f.egress.Annotations[v1alpha1.FailurePolicyAnnotation] == string(v1alpha1.FailClosed)
}

// steered is true when OVN has something to do with the service's pods: a service of the
// Network kind has its own routing, unless that can't be had and it must not leave otherwise.
func (f *followed) steered() bool {
	if f.exclusive() {
		return f.assignment != nil || f.closed()
	}
	return f.egress.Spec.Network != "" && f.closed()
}

// role is the node's in the assignment.
func (f *followed) role(node string) v1alpha1.Role {
	switch {
	case f.assignment == nil || node == "":
		return ""
	case f.assignment.Spec.Primary == node:
		return v1alpha1.RolePrimary
	case f.assignment.Spec.Standby == node:
		return v1alpha1.RoleStandby
	}
	return ""
}

// servedElsewhere is true when another node is primary of the service, and the address is the
// assignment's: that node may announce it. One that the Service alone has was not given to it yet.
func (f *followed) servedElsewhere(node string, address netip.Addr) bool {
	return f.assignment != nil && f.assignment.Spec.Primary != "" && f.assignment.Spec.Primary != node && slices.Contains(f.sourceIPs(), address)
}

// sourceIPs are the assignment's, parsed.
func (f *followed) sourceIPs() []netip.Addr {
	if f.assignment == nil {
		return nil
	}
	var found []netip.Addr
	for _, text := range f.assignment.Spec.SourceIPs {
		if address, err := netip.ParseAddr(text); err == nil {
			found = append(found, address.Unmap())
		}
	}
	return found
}

// loadBalancerIPs are the Service's own, assigned or not.
func (f *followed) loadBalancerIPs() []netip.Addr {
	if f.service == nil {
		return nil
	}
	var found []netip.Addr
	for _, ingress := range f.service.Status.LoadBalancer.Ingress {
		if address, err := netip.ParseAddr(ingress.IP); err == nil {
			found = append(found, address.Unmap())
		}
	}
	return found
}

// follow lists the EgressServices, oldest first: on every node in the same order.
func (s *Speaker) follow(ctx context.Context) ([]*followed, error) {
	var egressServices egressv1.EgressServiceList
	if err := s.list(ctx, &egressServices); err != nil {
		return nil, err
	}
	var all []*followed
	for i := range egressServices.Items {
		egress := &egressServices.Items[i]
		if egress.DeletionTimestamp != nil {
			continue
		}
		f := &followed{key: client.ObjectKeyFromObject(egress), egress: egress}
		service, err := get(ctx, s.Client, f.key, &corev1.Service{})
		if err != nil {
			return nil, err
		}
		assignment, err := get(ctx, s.Client, f.key, &v1alpha1.EgressAssignment{})
		if err != nil {
			return nil, err
		}
		f.service = service
		if assignment != nil && metav1.IsControlledBy(assignment, egress) {
			f.assignment = assignment
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *followed) int {
		return cmp.Or(a.egress.CreationTimestamp.Compare(b.egress.CreationTimestamp.Time), cmp.Compare(a.key.String(), b.key.String()))
	})
	return all, nil
}

// namespaces are what one sync has read of them, each namespace once however many services it has.
type namespaces map[string]namespace

type namespace struct {
	nodeOf map[netip.Addr]string                   // of pods
	slices map[string][]*discoveryv1.EndpointSlice // by service
}

// read returns what there is in a namespace.
func (s *Speaker) read(ctx context.Context, known namespaces, name string) (namespace, error) {
	if there, ok := known[name]; ok {
		return there, nil
	}
	var endpointSlices discoveryv1.EndpointSliceList
	var pods corev1.PodList
	err := s.list(ctx, &endpointSlices, client.InNamespace(name))
	if err == nil {
		err = s.list(ctx, &pods, client.InNamespace(name))
	}
	if err != nil {
		return namespace{}, err
	}
	found := namespace{podAddresses(pods.Items), map[string][]*discoveryv1.EndpointSlice{}}
	for i := range endpointSlices.Items {
		slice := &endpointSlices.Items[i]
		if service := slice.Labels[discoveryv1.LabelServiceName]; service != "" {
			found.slices[service] = append(found.slices[service], slice)
		}
	}
	known[name] = found
	return found, nil
}

// endpoints are the Service's endpoint addresses that a pod of the Service's own namespace
// really has: an EndpointSlice is something its author may write at will, and must not
// redirect other pods' traffic. The second result counts the addresses left out.
func (s *Speaker) endpoints(ctx context.Context, known namespaces, service types.NamespacedName) ([]endpoint, int, error) {
	in, err := s.read(ctx, known, service.Namespace)
	if err != nil {
		return nil, 0, err
	}
	var found []endpoint
	foreign := 0
	seen := map[netip.Addr]bool{}
	for _, slice := range in.slices[service.Name] {
		for _, e := range slice.Endpoints {
			for _, text := range e.Addresses {
				address, err := netip.ParseAddr(text)
				if err != nil || seen[address] {
					continue
				}
				seen[address] = true
				if node, ok := in.nodeOf[address]; ok {
					found = append(found, endpoint{address, node})
				} else {
					foreign++
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b endpoint) int { return a.address.Compare(b.address) })
	return found, foreign, nil
}

type endpoint struct {
	address netip.Addr
	node    string
}

// podAddresses maps the addresses of the pods on the pod network to their nodes.
func podAddresses(pods []corev1.Pod) map[netip.Addr]string {
	nodeOf := map[netip.Addr]string{}
	for _, pod := range pods {
		if pod.Spec.HostNetwork || pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			if address, err := netip.ParseAddr(ip.IP); err == nil {
				nodeOf[address] = pod.Spec.NodeName
			}
		}
	}
	return nodeOf
}

// serviceSubnets are those given, else those of the cluster's ServiceCIDR objects.
func (s *Speaker) serviceSubnets(ctx context.Context) ([]netip.Prefix, error) {
	if len(s.Subnets.Services) > 0 {
		return slices.Clone(s.Subnets.Services), nil
	}
	var list networkingv1.ServiceCIDRList
	if err := s.list(ctx, &list); err != nil {
		return nil, err
	}
	var subnets []netip.Prefix
	for _, item := range list.Items {
		for _, text := range item.Spec.CIDRs {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("ServiceCIDR %s: %w", item.Name, err)
			}
			subnets = append(subnets, prefix)
		}
	}
	return subnets, nil
}

func (s *Speaker) list(ctx context.Context, into client.ObjectList, options ...client.ListOption) error {
	if err := s.Client.List(ctx, into, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		return fmt.Errorf("list %T: %w", into, err)
	}
	return nil
}

// get returns nil, and no error, when the object does not exist.
func get[T client.Object](ctx context.Context, reader client.Reader, key types.NamespacedName, into T) (T, error) {
	var none T
	err := reader.Get(ctx, key, into)
	if client.IgnoreNotFound(err) != nil {
		return none, fmt.Errorf("get %T %s: %w", into, key, err)
	}
	if err != nil {
		return none, nil
	}
	return into, nil
}
