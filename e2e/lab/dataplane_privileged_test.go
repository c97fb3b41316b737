// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// testDataplane has real packets go through everything that can happen to a service. It leaves the lab as it was.
func testDataplane(t *testing.T, l *lab.Lab) {
	change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector = metav1.LabelSelector{} })
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"connections survive moves", testMoves},
		{"connections survive the death of the node", testNodeDeath},
		{"guard", testGuard},
		{"no node", testNoNode},
		{"ingress to a pod that is held", testHeldIngress},
		{"a pod's address goes to another pod", testAddressReuse},
		{"endpoints come and go", testChurn},
		{"an EndpointSlice with somebody else's pods", testHijack},
		{"OVN's processes", testOVNProcesses},
		{"somebody else's hands", testDrift},
	} {
		t.Run(test.name, func(t *testing.T) {
			settled(t, l)
			test.run(t, l)
		})
	}
	settled(t, l)
}

// testMoves moves the service round all nodes while each of its pods talks to a server outside.
func testMoves(t *testing.T, l *lab.Lab) {
	conversations := startConversations(t, l, l.Topology.Nodes())
	first, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range append(l.Topology.Nodes(), first) {
		moveTo(t, l, node)
		conversations.goOn(t)
	}
	conversations.end(t)
	change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector = metav1.LabelSelector{} })
}

// testNodeDeath cuts the elected node off, as its death would, and has the cluster notice.
func testNodeDeath(t *testing.T, l *lab.Lab) {
	dead, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var alive []topology.Node
	for _, node := range l.Topology.Nodes() {
		if node.Name != dead.Name {
			alive = append(alive, node)
		}
	}
	conversations := startConversations(t, l, alive)
	uplink := func(state string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if output, err := l.Topology.Exec(ctx, dead.Netns, "ip", "link", "set", "eth0", state); err != nil {
			t.Errorf("uplink %s: %v: %s", state, err, output)
		}
		if err := l.Control.SetNodeReady(ctx, dead.Name, state == "up"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { uplink("up") })
	uplink("down")
	await(t, "another node has taken over", func(ctx context.Context) error {
		node, err := l.Elected(ctx)
		if err == nil && node.Name == dead.Name {
			err = errors.New("the dead node is still elected")
		}
		if err == nil {
			_, err = l.Path(ctx, node)
		}
		return err
	})
	conversations.goOn(t)
	conversations.end(t)
}

// testGuard sends to the address what nothing in the cluster waits for, and what a second Service does.
func testGuard(t *testing.T, l *lab.Lab) {
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, loops := addressCounters(t, l, node, lab.ExampleAddress), addressCounters(t, l, node, topology.OutsideAddress)
	if _, err := l.Source(t.Context(), l.Topology.OutsideNetns(), netip.AddrPortFrom(lab.ExampleAddress, 81)); err == nil {
		t.Error("a port that no Service has answers")
	}
	after := addressCounters(t, l, node, lab.ExampleAddress)
	if n := addressCounters(t, l, node, topology.OutsideAddress).FromNode - loops.FromNode; n > 0 {
		t.Errorf("the node has sent %d of the packets back", n)
	}
	// curl asks for three seconds: one SYN and two repetitions.
	if n := after.ToNode - before.ToNode; n < 1 || n > 3 || after.FromNode != before.FromNode {
		t.Errorf("%d packets to the node and %d from it, want one to three and none", n, after.FromNode-before.FromNode)
	}
	if got := counters(t, l, node)["guard_closed"]; got == 0 {
		t.Error("nothing was counted")
	}

	// A UDP port of the Service, and another ordinary Service with the address.
	service := &corev1.Service{}
	editService := func(edit func(*corev1.Service)) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Client.Get(ctx, lab.ExampleService, service); err != nil {
			t.Fatal(err)
		}
		before := service.DeepCopy()
		edit(service)
		if err := l.Client.Patch(ctx, service, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	const sharing = "metallb.io/allow-shared-ip"
	var tcp []corev1.ServicePort
	editService(func(s *corev1.Service) {
		tcp = append(tcp, s.Spec.Ports...)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 8080, TargetPort: intstr.FromInt32(8080)})
		s.Annotations[sharing] = "example"
	})
	t.Cleanup(func() {
		editService(func(s *corev1.Service) {
			s.Spec.Ports = tcp
			delete(s.Annotations, sharing)
		})
	})
	create(t, l, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "shares",
			Annotations: map[string]string{sharing: "example", "metallb.io/loadBalancerIPs": lab.ExampleAddress.String()},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "other"},
			Ports: []corev1.ServicePort{{Port: 8888, TargetPort: intstr.FromInt32(8080)}},
		},
	})
	await(t, "the UDP port answers", func(ctx context.Context) error {
		return askUDP(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(lab.ExampleAddress, 8080))
	})
	await(t, "the second Service answers", func(ctx context.Context) error {
		_, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(lab.ExampleAddress, 8888))
		return err
	})
}

// testNoNode has no node fit, with both failure policies.
func testNoNode(t *testing.T, l *lab.Lab) {
	annotate := func(policy v1alpha1.FailurePolicy) func(*egressv1.EgressService) {
		return func(e *egressv1.EgressService) {
			e.Spec.NodeSelector = hostname("nobody")
			e.Annotations = map[string]string{v1alpha1.FailurePolicyAnnotation: string(policy)}
		}
	}
	t.Cleanup(func() {
		change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector, e.Annotations = metav1.LabelSelector{}, nil })
	})
	change(t, l, annotate(v1alpha1.FailClosed))
	nodes := l.Topology.Nodes()
	awaitPaths(t, l, "closed: the address is announced from nowhere", netip.PrefixFrom(lab.ExampleAddress, 32), nil)
	held := "held_" + dataplane.ServiceHash(lab.ExampleService.String())
	for _, node := range nodes {
		if source, err := l.Source(t.Context(), examplePod(l, node), outside); err == nil {
			t.Errorf("closed: the pod on %s leaves as %s", node.Name, source)
		}
		if counters(t, l, node)[held] == 0 {
			t.Errorf("nothing was counted on %s", node.Name)
		}
		if _, err := l.Source(t.Context(), examplePod(l, node), podAddress(t, l, lab.OtherPod(nodes[0].Name))); err != nil {
			t.Errorf("closed: the pod on %s does not reach another pod: %v", node.Name, err)
		}
	}
	change(t, l, annotate(v1alpha1.FailOpen))
	await(t, "open: the pods leave with their nodes' addresses", func(ctx context.Context) error {
		var errs []error
		for _, node := range nodes {
			source, err := l.Source(ctx, examplePod(l, node), outside)
			if err == nil && source != node.Address {
				err = fmt.Errorf("the pod on %s leaves as %s", node.Name, source)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	awaitPaths(t, l, "open: the address is announced from nowhere", netip.PrefixFrom(lab.ExampleAddress, 32), nil)
}

// testHeldIngress asks a pod by a NodePort with externalTrafficPolicy Local, so that its answer goes to the outside: also while what it
// opens itself is held.
func testHeldIngress(t *testing.T, l *lab.Lab) {
	node := l.Topology.Nodes()[0]
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: lab.ExampleService.Namespace, Name: "node-port"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "example"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			Ports: []corev1.ServicePort{{Port: 8080}},
		},
	}
	create(t, l, service)
	t.Cleanup(func() {
		change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector, e.Annotations = metav1.LabelSelector{}, nil })
	})
	change(t, l, func(e *egressv1.EgressService) {
		e.Spec.NodeSelector = hostname("nobody")
		e.Annotations = map[string]string{v1alpha1.FailurePolicyAnnotation: string(v1alpha1.FailClosed)}
	})
	awaitPaths(t, l, "the address is announced from nowhere", netip.PrefixFrom(lab.ExampleAddress, 32), nil)
	if source, err := l.Source(t.Context(), examplePod(l, node), outside); err == nil {
		t.Errorf("the pod leaves as %s", source)
	}
	await(t, "the pod answers by its NodePort", func(ctx context.Context) error {
		source, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(node.Address, uint16(service.Spec.Ports[0].NodePort)))
		if err == nil && source != topology.OutsideAddress {
			err = fmt.Errorf("it sees the client as %s", source)
		}
		return err
	})
}

// testAddressReuse gives the address of a pod of the service to a pod of nobody, at once, while the first has a connection.
func testAddressReuse(t *testing.T, l *lab.Lab) {
	node := l.Topology.Nodes()[1]
	name, netns := lab.ExamplePod(node.Name), examplePod(l, node)
	address := podAddress(t, l, name).Addr()
	addresses := []netip.Addr{address}
	const port = 5555
	expect := func(want netip.Addr) func(context.Context) error {
		return func(ctx context.Context) error {
			got, err := sourceOfUDP(ctx, netns, port, outside)
			if err == nil && got != want {
				err = fmt.Errorf("it leaves as %s, want %s", got, want)
			}
			return err
		}
	}
	await(t, "the pod leaves with the LoadBalancer IP", expect(lab.ExampleAddress))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := errors.Join(l.Control.DeletePod(ctx, "default", "successor"),
			l.Control.CreatePod(ctx, lab.ExampleService.Namespace, name, node.Name, addresses, map[string]string{"app": "example"}))
		if err != nil {
			t.Error(err)
		}
	})
	if err := l.Control.DeletePod(t.Context(), lab.ExampleService.Namespace, name); err != nil {
		t.Fatal(err)
	}
	if err := l.Control.CreatePod(t.Context(), "default", "successor", node.Name, addresses, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "its successor leaves with the node's address, by the same ports too", expect(node.Address))
	for _, n := range l.Topology.Nodes() {
		output, err := l.Topology.Exec(t.Context(), n.Netns, "conntrack", "-L", "-s", address.String(), "-q", lab.ExampleAddress.String())
		if err != nil || strings.TrimSpace(string(output)) != "" {
			t.Errorf("entries left on %s: %v\n%s", n.Name, err, output)
		}
	}
}

// testChurn has pods come, become unready, move and go, and counts any packet with another source than it should have.
func testChurn(t *testing.T, l *lab.Lab) {
	wrong := watchSources(t, l)
	nodes := l.Topology.Nodes()
	pod, err := l.Topology.AddPod(t.Context(), nodes[2].Name, "example-new")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(l.Control.DeletePod(ctx, lab.ExampleService.Namespace, pod.Name), l.Topology.RemovePod(ctx, pod.Name)); err != nil {
			t.Error(err)
		}
	})
	if err := l.Control.CreatePod(t.Context(), lab.ExampleService.Namespace, pod.Name, pod.Node, pod.Addresses(), map[string]string{"app": "example"}); err != nil {
		t.Fatal(err)
	}
	leaves := func(ctx context.Context) error {
		source, err := l.Source(ctx, pod.Netns, outside)
		if err == nil && source != lab.ExampleAddress {
			err = fmt.Errorf("it leaves as %s", source)
		}
		return err
	}
	await(t, "a new pod leaves with the LoadBalancer IP", leaves)
	// From here on none of its packets may have another source.
	talk := startConversation(t, l, pod.Netns)
	object := &corev1.Pod{}
	setReady := func(ready corev1.ConditionStatus) {
		if err := l.Client.Get(t.Context(), client.ObjectKey{Namespace: lab.ExampleService.Namespace, Name: pod.Name}, object); err != nil {
			t.Fatal(err)
		}
		before := object.DeepCopy()
		for i := range object.Status.Conditions {
			if object.Status.Conditions[i].Type == corev1.PodReady {
				object.Status.Conditions[i].Status = ready
			}
		}
		if err := l.Client.Status().Patch(t.Context(), object, client.StrategicMergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := func(ready bool) func(context.Context) error {
		return func(ctx context.Context) error {
			var slices discoveryv1.EndpointSliceList
			if err := l.Client.List(ctx, &slices, client.InNamespace(lab.ExampleService.Namespace)); err != nil {
				return err
			}
			for _, slice := range slices.Items {
				for _, e := range slice.Endpoints {
					if e.Addresses[0] == pod.Address.String() && e.Conditions.Ready != nil && *e.Conditions.Ready == ready {
						return nil
					}
				}
			}
			return errors.New("the EndpointSlice says something else")
		}
	}
	for _, ready := range []bool{false, true, false} {
		setReady(map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionFalse}[ready])
		await(t, fmt.Sprintf("the endpoint is ready: %v", ready), endpoint(ready))
		if err := leaves(t.Context()); err != nil {
			t.Error(err)
		}
		talk.goOn(t)
	}
	talk.end(t)
	if n := wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
	if err := l.Control.DeletePod(t.Context(), lab.ExampleService.Namespace, pod.Name); err != nil {
		t.Fatal(err)
	}
	await(t, "when it is gone its address is an ordinary one", func(ctx context.Context) error {
		source, err := l.Source(ctx, pod.Netns, outside)
		if err == nil && source != nodes[2].Address {
			err = fmt.Errorf("it leaves as %s", source)
		}
		return err
	})
}

// testHijack has a tenant name other tenants' pods in an EndpointSlice of a Service of his.
func testHijack(t *testing.T, l *lab.Lab) {
	automatic, name, protocol, port := false, "hijack", corev1.ProtocolTCP, int32(8080)
	meta := metav1.ObjectMeta{Namespace: name, Name: name}
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	endpoints.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	nodes := l.Topology.Nodes()
	for _, node := range nodes {
		for _, victim := range []string{lab.ExamplePod(node.Name), lab.OtherPod(node.Name)} {
			endpoints.Endpoints = append(endpoints.Endpoints, discoveryv1.Endpoint{Addresses: []string{podAddress(t, l, victim).Addr().String()}, NodeName: &node.Name})
		}
	}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: name, Protocol: protocol, Port: port}},
	}}
	service.Annotations = map[string]string{"metallb.io/address-pool": name}
	create(t, l,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}},
		&metallbv1beta1.IPAddressPool{ObjectMeta: inMetalLB(name), Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: []string{"172.19.3.0/28"}, AutoAssign: &automatic}},
		endpoints, service, &egressv1.EgressService{ObjectMeta: meta})
	await(t, "the speakers have seen it, and say so", func(ctx context.Context) error {
		var reports v1alpha1.EgressNodeList
		if err := l.Client.List(ctx, &reports); err != nil {
			return err
		}
		for _, report := range reports.Items {
			for _, problem := range report.Status.Problems {
				if strings.Contains(problem, "hijack/hijack: 6 endpoint addresses belong to no pod of the namespace") {
					return nil
				}
			}
		}
		return errors.New("no EgressNode does")
	})
	for _, node := range nodes {
		for netns, want := range map[string]netip.Addr{examplePod(l, node): lab.ExampleAddress, l.Prefix + "-pod-" + lab.OtherPod(node.Name): node.Address} {
			if source, err := l.Source(t.Context(), netns, outside); err != nil || source != want {
				t.Errorf("%s leaves as %s, error %v; want %s", netns, source, err, want)
			}
		}
	}
}

// testOVNProcesses kills what a zone consists of, one after another, on the elected node and on another one.
func testOVNProcesses(t *testing.T, l *lab.Lab) {
	elected, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := l.Topology.Nodes()[0]
	if other.Name == elected.Name {
		other = l.Topology.Nodes()[1]
	}
	wrong := watchSources(t, l)
	for _, node := range []topology.Node{elected, other} {
		for _, name := range []string{"ovn-northd", "ovn-controller", "ovsdb-nb", "ovsdb-sb"} {
			process := node.Name + "." + name
			kill(t, l, process)
			leaveWith(t, l, lab.ExampleAddress)
			if err := l.Processes.Restart(t.Context(), process); err != nil {
				t.Fatal(err)
			}
			leaveWith(t, l, lab.ExampleAddress)
		}
		// What comes now needs all of them.
		oneMoreEndpoint(t, l, node)
	}
	if n := wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
}

// testDrift takes away on every node what is ours.
func testDrift(t *testing.T, l *lab.Lab) {
	before := map[string]string{}
	for _, node := range l.Topology.Nodes() {
		before[node.Name] = ownState(t, l, node)
		northbound := func(args ...string) {
			if output, err := l.Topology.Exec(t.Context(), node.Netns, append([]string{"ovn-nbctl", "--db=unix:" + node.NorthboundSocket}, args...)...); err != nil {
				t.Fatalf("%v: %v: %s", args, err, output)
			}
		}
		northbound("lr-policy-del", "ovn_cluster_router", strconv.Itoa(dataplane.PrioritySteer))
		northbound("lr-policy-del", "ovn_cluster_router", strconv.Itoa(dataplane.PriorityExempt))
		if output, err := l.Topology.Exec(t.Context(), node.Netns, "nft", "delete", "table", "inet", "metallb-egress"); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	await(t, "everything is there again", func(ctx context.Context) error {
		for _, node := range l.Topology.Nodes() {
			if after := ownState(t, l, node); after != before[node.Name] {
				return fmt.Errorf("%s: before\n%s\nafter\n%s", node.Name, before[node.Name], after)
			}
		}
		return nil
	})
	leaveWith(t, l, lab.ExampleAddress)
}

// kill ends a process without mercy.
func kill(t *testing.T, l *lab.Lab, process string) {
	t.Helper()
	pid, ok := l.Processes.PID(process)
	if !ok {
		t.Fatalf("%s does not run", process)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, process+" is dead", func(context.Context) error {
		if l.Processes.Alive(process) {
			return errors.New("it lives")
		}
		return nil
	})
}
