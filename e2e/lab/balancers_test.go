// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A dual-stack Service has a load balancer per address, each with the endpoints of its family. Endpoints that are not ready are none.
func TestBalancersOfBothFamilies(t *testing.T) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dns"},
		Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.96.0.10", "fd00:10:96::a"},
			Ports:      []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "other", Protocol: corev1.ProtocolSCTP, Port: 53}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "fd00:19::100"}}}},
	}
	name, port, no := "dns", int32(5353), false
	slice := func(service string, addresses ...string) discoveryv1.EndpointSlice {
		s := discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
		s.Namespace, s.Labels = "default", map[string]string{discoveryv1.LabelServiceName: service}
		for _, address := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
		}
		return s
	}
	four, six := slice("dns", "10.244.2.3", "10.244.1.3"), slice("dns", "fd00:10:244:1::3", "fd00:10:244:2::3")
	six.Endpoints[1].Conditions.Ready = &no
	got := map[string][]string{}
	for _, balancer := range balancersOf(service, []discoveryv1.EndpointSlice{four, six, slice("else", "10.244.3.3")}) {
		vip := balancer.Protocol + "/" + balancer.VIP.String()
		for _, backend := range balancer.Backends {
			got[vip] = append(got[vip], backend.String())
		}
	}
	want := map[string][]string{
		"udp/10.96.0.10:53":      {"10.244.1.3:5353", "10.244.2.3:5353"},
		"udp/[fd00:10:96::a]:53": {"[fd00:10:244:1::3]:5353"},
		"udp/[fd00:19::100]:53":  {"[fd00:10:244:1::3]:5353"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
