// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Peers of every node.
const tor1, tor2 = "tor1", "tor2"

// peerNames are the BGPPeers by address: that is all an FRRConfiguration says.
var peerNames = map[string]string{"203.0.113.1": tor1, "203.0.113.2": tor2}

func (w *world) peers() []*metallbv1beta2.BGPPeer {
	var all []*metallbv1beta2.BGPPeer
	for _, address := range slices.Sorted(maps.Keys(peerNames)) {
		peer := &metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: peerNames[address]}}
		peer.Spec = metallbv1beta2.BGPPeerSpec{MyASN: speakersASN, ASN: speakersASN, Address: address}
		// Of both families: else IPv6 prefixes would stay behind. Native has IPv4 only.
		peer.Spec.DualStackAddressFamily = w.backend != native
		all = append(all, peer)
	}
	return all
}

// newPool is a pool from which only those get an address who ask for it.
func newPool(name string, addresses ...string) *metallbv1beta1.IPAddressPool {
	p := &metallbv1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: name}}
	p.Spec = metallbv1beta1.IPAddressPoolSpec{Addresses: addresses, AutoAssign: new(false)}
	return p
}

// ads are BGPAdvertisements by name.
type ads map[string]metallbv1beta1.BGPAdvertisementSpec

func newAdvertisement(name string, spec metallbv1beta1.BGPAdvertisementSpec) *metallbv1beta1.BGPAdvertisement {
	return &metallbv1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: name}, Spec: spec}
}

// having selects what has a label with one of the values.
func having(key string, values ...string) (selectors []metav1.LabelSelector) {
	for _, value := range values {
		selectors = append(selectors, metav1.LabelSelector{MatchLabels: map[string]string{key: value}})
	}
	return selectors
}

// lacking selects what does not have a label, whatever its value.
func lacking(key string) []metav1.LabelSelector {
	return []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}}}}
}

// service is a LoadBalancer Service without a selector, and its endpoints.
type service struct {
	labels map[string]string
	pool   string // pool where it is empty
	// address is the one that it asks for, sharing the key with which others may have it too.
	address, sharing string
	port             int32 // 80 where it is 0: those who share an address need different ones
	local            bool  // externalTrafficPolicy
	dualStack        bool
	// endpoints are the nodes of its endpoints, each ready: n1 where it is nil.
	endpoints []string
	// conditions, when set, are those of every endpoint.
	conditions *discoveryv1.EndpointConditions
}

func serviceKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: exampleNamespace, Name: name}
}

// createService makes a service, after its endpoints.
func (w *world) createService(ctx context.Context, name string, s service) error {
	return errors.Join(w.setEndpoints(ctx, name, s), w.client.Create(ctx, s.object(name)))
}

func (s service) object(name string) *corev1.Service {
	object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: exampleNamespace, Name: name, Labels: maps.Clone(s.labels), Annotations: map[string]string{"metallb.io/address-pool": s.pool},
	}}
	if s.pool == "" {
		object.Annotations["metallb.io/address-pool"] = pool
	}
	if s.address != "" {
		object.Annotations["metallb.io/loadBalancerIPs"] = s.address
	}
	if s.sharing != "" {
		object.Annotations["metallb.io/allow-shared-ip"] = s.sharing
	}
	object.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "http", Port: max(s.port, 80)}},
		AllocateLoadBalancerNodePorts: new(false)}
	if s.local {
		object.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if s.dualStack {
		object.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	}
	return object
}

// podSubnet is the prefix of a node's pods.
func podSubnet(node string) netip.Prefix {
	number, _ := strconv.Atoi(strings.TrimPrefix(node, "n"))
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + number), 0, 0}), 16)
}

// setEndpoints makes or changes a service's endpoints, each with an address that no other has or had.
func (w *world) setEndpoints(ctx context.Context, name string, s service) error {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: exampleNamespace, Name: name,
			Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "e2e"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
	}
	nodes := s.endpoints
	if nodes == nil {
		nodes = []string{"n1"}
	}
	for _, node := range nodes {
		bytes, number := podSubnet(node).Addr().As4(), w.endpoints.Add(1)
		bytes[2], bytes[3] = byte(number>>8), byte(number)
		endpoint := discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4(bytes).String()}, NodeName: new(node)}
		endpoint.Conditions.Ready = new(true)
		if s.conditions != nil {
			endpoint.Conditions = *s.conditions
		}
		slice.Endpoints = append(slice.Endpoints, endpoint)
	}
	err := w.client.Create(ctx, slice)
	if client.IgnoreAlreadyExists(err) != nil {
		return err
	}
	if err != nil {
		return w.client.Update(ctx, slice)
	}
	return nil
}

// addresses are the service's LoadBalancer IPs, as host prefixes.
func (w *world) addresses(ctx context.Context, name string) ([]netip.Prefix, error) {
	object := &corev1.Service{}
	if err := w.client.Get(ctx, serviceKey(name), object); err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, ingress := range object.Status.LoadBalancer.Ingress {
		address, err := netip.ParseAddr(ingress.IP)
		if err != nil {
			return nil, err
		}
		all = append(all, netip.PrefixFrom(address, address.BitLen()))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("service %s has no LoadBalancer IP", name)
	}
	return all, nil
}

// allocated waits for MetalLB to give the services their addresses.
func (w *world) allocated(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		err := poll(t.Context(), "an address", func(ctx context.Context) error {
			_, err := w.addresses(ctx, name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// labels sets labels of an object and removes those that are nil.
func (w *world) label(ctx context.Context, object client.Object, labels map[string]*string) error {
	return w.patch(ctx, object, map[string]any{"metadata": map[string]any{"labels": labels}})
}

// labelNode is label for a Node.
func (w *world) labelNode(ctx context.Context, node string, labels map[string]*string) error {
	return w.label(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, labels)
}

// labelService is label for a Service.
func (w *world) labelService(ctx context.Context, name string, labels map[string]*string) error {
	return w.label(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: name}}, labels)
}

// changeAdvertisement patches some fields of a BGPAdvertisement's spec.
func (w *world) changeAdvertisement(ctx context.Context, name string, fields map[string]any) error {
	return w.patch(ctx, newAdvertisement(name, metallbv1beta1.BGPAdvertisementSpec{}), map[string]any{"spec": fields})
}

func (w *world) patch(ctx context.Context, object client.Object, patch map[string]any) error {
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return w.client.Patch(ctx, object, client.RawPatch(types.MergePatchType, text))
}

// setters is how many objects are written at once.
const setters = 16

// parallel calls do for 0 to n-1.
func parallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(setters)
	for i := range n {
		group.Go(func() error { return errors.Join(ctx.Err(), do(ctx, i)) })
	}
	return group.Wait()
}

// must ends the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
