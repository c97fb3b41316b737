// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// RunBalancers plays OVN-Kubernetes' part for pods that talk to Services: it keeps a load
// balancer on every node's switch for each ClusterIP and each LoadBalancer IP, until ctx ends.
func (l *Lab) RunBalancers(ctx context.Context) error {
	clientset, err := kubernetes.NewForConfig(l.Control.RESTConfig())
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(clientset, 0)
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().Services().Informer(), factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	defer factory.Shutdown()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if err := l.syncBalancers(ctx); err != nil && ctx.Err() == nil {
			l.Log("load balancers: %v", err)
			retry := time.AfterFunc(time.Second, notify)
			defer retry.Stop()
		}
	}
}

func (l *Lab) syncBalancers(ctx context.Context) error {
	var services corev1.ServiceList
	var endpointSlices discoveryv1.EndpointSliceList
	for _, list := range []client.ObjectList{&services, &endpointSlices} {
		if err := l.Client.List(ctx, list); err != nil {
			return err
		}
	}
	var balancers []topology.LoadBalancer
	for i := range services.Items {
		balancers = append(balancers, balancersOf(&services.Items[i], endpointSlices.Items)...)
	}
	return l.Topology.SetLoadBalancers(ctx, balancers)
}

// balancersOf are the load balancers of one Service: one per address and port.
func balancersOf(service *corev1.Service, all []discoveryv1.EndpointSlice) []topology.LoadBalancer {
	addresses := slices.Clone(service.Spec.ClusterIPs)
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		addresses = append(addresses, ingress.IP)
	}
	var balancers []topology.LoadBalancer
	for _, port := range service.Spec.Ports {
		if port.Protocol == corev1.ProtocolSCTP {
			continue
		}
		for _, text := range addresses {
			address, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			backends := backendsOf(service, port.Name, address.Is4(), all)
			if len(backends) == 0 {
				continue
			}
			balancers = append(balancers, topology.LoadBalancer{
				Name:     fmt.Sprintf("%s/%s-%s-%s", service.Namespace, service.Name, port.Name, text),
				Protocol: strings.ToLower(string(port.Protocol)),
				VIP:      netip.AddrPortFrom(address, uint16(port.Port)),
				Backends: backends,
			})
		}
	}
	return balancers
}

// backendsOf are the ready endpoints of one family.
func backendsOf(service *corev1.Service, port string, four bool, all []discoveryv1.EndpointSlice) []netip.AddrPort {
	var backends []netip.AddrPort
	for _, slice := range all {
		if slice.Namespace != service.Namespace || slice.Labels[discoveryv1.LabelServiceName] != service.Name {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name == nil || *p.Name != port || p.Port == nil {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
					continue
				}
				for _, text := range endpoint.Addresses {
					if address, err := netip.ParseAddr(text); err == nil && address.Is4() == four {
						backends = append(backends, netip.AddrPortFrom(address, uint16(*p.Port)))
					}
				}
			}
		}
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	return slices.Compact(backends)
}
