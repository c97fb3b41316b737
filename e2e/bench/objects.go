// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
)

const (
	benchNamespace = "bench"
	benchPool      = "bench"
	// Annotation by which MetalLB's controller says which pool an address is from (metallb controller/service.go).
	poolAnnotation = "metallb.io/ip-allocated-from-pool"
	// podBits is the size of a node's pod subnet: every Service has one endpoint with an address of its own.
	podBits = 14
	// Limits that the address ranges below set.
	maxNodes, maxServices = 4000, 100_000
)

var (
	firstPodSubnet = netip.AddrFrom4([4]byte{20, 0, 0, 0})
	firstNode      = netip.AddrFrom4([4]byte{172, 20, 0, 1})
	firstService   = netip.AddrFrom4([4]byte{198, 18, 0, 1})
)

func nodeName(i int) string    { return fmt.Sprintf("node-%04d", i) }
func serviceName(i int) string { return fmt.Sprintf("service-%05d", i) }

// labelKey is the public label of a service: upstream's spelling, which is unambiguous here.
func labelKey(i int) string { return egressv1.LabelPrefix + benchNamespace + "-" + serviceName(i) }

// plus adds to an IPv4 address.
func plus(address netip.Addr, n int) netip.Addr {
	bytes := address.As4()
	binary.BigEndian.PutUint32(bytes[:], binary.BigEndian.Uint32(bytes[:])+uint32(n))
	return netip.AddrFrom4(bytes)
}

// endpointAddress is in the subnet of node i%nodes, behind the addresses that every node has.
func endpointAddress(i, nodes int) netip.Addr {
	return plus(firstPodSubnet, (i%nodes)<<podBits+10+i/nodes)
}

func newNode(i int) *corev1.Node {
	name, address := nodeName(i), plus(firstNode, i)
	subnet := netip.PrefixFrom(plus(firstPodSubnet, i<<podBits), 32-podBits)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Labels: map[string]string{
				corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3),
				"node-role.kubernetes.io/worker": "",
			},
			Annotations: map[string]string{
				ovnkubernetes.NodeSubnets: fmt.Sprintf(`{"default":[%q]}`, subnet),
				ovnkubernetes.HostCIDRs:   fmt.Sprintf(`["%s/16"]`, address),
			},
		},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}, {Type: corev1.NodeHostName, Address: name}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Bench"}},
		},
	}
}

// createService makes a Service as it is when MetalLB has given it an address, with one endpoint.
func (w *world) createService(ctx context.Context, i int) error {
	meta := metav1.ObjectMeta{Namespace: benchNamespace, Name: serviceName(i), Annotations: map[string]string{poolAnnotation: benchPool}}
	service := &corev1.Service{
		ObjectMeta: meta,
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}},
			// There are fewer node ports than services.
			AllocateLoadBalancerNodePorts: new(false),
		},
	}
	if err := w.admin.Create(ctx, service); err != nil {
		return err
	}
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: plus(firstService, i).String()}}
	if err := w.admin.Status().Update(ctx, service); err != nil {
		return err
	}
	return w.admin.Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: benchNamespace, Name: serviceName(i) + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: serviceName(i)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{endpointAddress(i, w.endpointNodes).String()}, NodeName: new(nodeName(i % w.endpointNodes)),
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
		}},
		Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
	})
}

func newEgressService(i int) *egressv1.EgressService {
	return &egressv1.EgressService{
		ObjectMeta: metav1.ObjectMeta{Namespace: benchNamespace, Name: serviceName(i)},
		Spec:       egressv1.EgressServiceSpec{SourceIPBy: egressv1.SourceIPLoadBalancer},
	}
}

// permit gives the controller's account the permissions of its role file, and no others.
func (w *world) permit(ctx context.Context) error {
	manifest, err := os.ReadFile(filepath.Join(w.root, "charts", "metallb-egress", "rbac", "controller.yaml"))
	if err != nil {
		return err
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096); ; {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(object.Object) > 0 {
			err = w.admin.Create(ctx, object)
		}
		if err != nil {
			return fmt.Errorf("the controller's role: %w", err)
		}
	}
}
