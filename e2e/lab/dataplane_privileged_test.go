// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

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

// testDataplane has real packets go, in both families, through everything that can happen to a service. It leaves the lab as it was.
func testDataplane(t *testing.T, l *lab.Lab) {
	change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector = metav1.LabelSelector{} })
	inTurn(t, l, []step{
		{"connections survive moves", testMoves},
		{"connections survive the death of the node", testNodeDeath},
		{"external traffic policies", testTrafficPolicies},
		{"guard", testGuard},
		{"no node", testNoNode},
		{"ingress to a pod that is held", testHeldIngress},
		{"a pod's address goes to another pod", testAddressReuse},
		{"endpoints come and go", testChurn},
		{"a service of IPv6 alone", testIPv6Alone},
		{"an EndpointSlice with somebody else's pods", testHijack},
		{"OVN's processes", testOVNProcesses},
		{"somebody else's hands", testDrift},
	})
}

// testMoves moves the service round all nodes, and at once back again, while each of its pods talks to a server outside.
func testMoves(t *testing.T, l *lab.Lab) {
	conversations := startConversations(t, l, l.Topology.Nodes(), longWord)
	first, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := l.Topology.Nodes()
	for _, node := range append(nodes, first, nodes[0], nodes[1], nodes[0], nodes[1], nodes[0]) {
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
	conversations := startConversations(t, l, alive, longWord)
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
			err = paths(ctx, l, node, families...)
		}
		return err
	})
	conversations.goOn(t)
	conversations.end(t)
}

// testGuard sends to the addresses what nothing in the cluster waits for, and what a second Service does.
func testGuard(t *testing.T, l *lab.Lab) {
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		testClosedPort(t, l, f, node)
	}

	// A UDP port of the Service, and another ordinary Service with the addresses.
	const sharing = "metallb.io/allow-shared-ip"
	var tcp []corev1.ServicePort
	editService(t, l, func(s *corev1.Service) {
		tcp = append(tcp, s.Spec.Ports...)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 8080, TargetPort: intstr.FromInt32(8080)})
		s.Annotations[sharing] = "example"
	})
	t.Cleanup(func() {
		editService(t, l, func(s *corev1.Service) {
			s.Spec.Ports = tcp
			delete(s.Annotations, sharing)
		})
	})
	create(t, l, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "shares",
			Annotations: map[string]string{sharing: "example", "metallb.io/loadBalancerIPs": lab.IPv4.Service.String() + "," + lab.IPv6.Service.String()},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "other"}, IPFamilyPolicy: &dualStack,
			Ports: []corev1.ServicePort{{Port: 8888, TargetPort: intstr.FromInt32(8080)}},
		},
	})
	for _, f := range families {
		await(t, "the UDP port answers in "+f.Name, func(ctx context.Context) error {
			return askUDP(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, 8080))
		})
		await(t, "the second Service answers in "+f.Name, func(ctx context.Context) error {
			_, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, 8888))
			return err
		})
	}
}

// testClosedPort asks for a port that no Service has: the packets reach the node, and nothing comes back from it.
func testClosedPort(t *testing.T, l *lab.Lab, f lab.Family, node topology.Node) {
	t.Helper()
	before, loops := addressCounters(t, l, node, f.Service), addressCounters(t, l, node, f.Outside.Addr())
	counted := counters(t, l, node)["guard_closed"]
	if _, err := l.Source(t.Context(), l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, 81)); err == nil {
		t.Errorf("%s: a port that no Service has answers", f.Name)
	}
	after := addressCounters(t, l, node, f.Service)
	if n := addressCounters(t, l, node, f.Outside.Addr()).FromNode - loops.FromNode; n > 0 {
		t.Errorf("%s: the node has sent %d of the packets back", f.Name, n)
	}
	// curl asks for three seconds: one SYN and two repetitions.
	if n := after.ToNode - before.ToNode; n < 1 || n > 3 || after.FromNode != before.FromNode {
		t.Errorf("%s: %d packets to the node and %d from it, want one to three and none", f.Name, n, after.FromNode-before.FromNode)
	}
	if got := counters(t, l, node)["guard_closed"]; got == counted {
		t.Errorf("%s: nothing was counted", f.Name)
	}
}

// dualStack asks for both families.
var dualStack = corev1.IPFamilyPolicyRequireDualStack

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
	nowhere := func(ctx context.Context) error { return noPaths(ctx, l) }
	await(t, "closed: the addresses are announced from nowhere", nowhere)
	other := pod(t, l, lab.OtherPod(nodes[0].Name))
	for _, f := range families {
		before := heldOf(t, l)
		var closed []leaving
		for _, netns := range examplePods(l) {
			closed = append(closed, leaving{netns, f, netip.Addr{}})
		}
		if err := leave(t.Context(), l, closed...); err != nil {
			t.Errorf("closed: %v", err)
		}
		for node, held := range heldOf(t, l) {
			if held == before[node] {
				t.Errorf("%s: nothing was counted on %s", f.Name, node)
			}
		}
		for _, netns := range examplePods(l) {
			if _, err := l.Source(t.Context(), netns, netip.AddrPortFrom(f.Pod(other), 8080)); err != nil {
				t.Errorf("closed: %s does not reach another pod: %v", netns, err)
			}
		}
	}
	change(t, l, annotate(v1alpha1.FailOpen))
	await(t, "open: the pods leave with their nodes' addresses", func(ctx context.Context) error {
		var open []leaving
		for _, node := range nodes {
			open = append(open, as(theNode(node), examplePod(l, node))...)
		}
		return leave(ctx, l, open...)
	})
	await(t, "open: the addresses are announced from nowhere", nowhere)
}

// heldOf is how many packets each node has held for the example.
func heldOf(t *testing.T, l *lab.Lab) map[string]int {
	t.Helper()
	held := map[string]int{}
	for _, node := range l.Topology.Nodes() {
		held[node.Name] = counters(t, l, node)["held_"+dataplane.ServiceHash(lab.ExampleService.String())]
	}
	return held
}

// testHeldIngress asks a pod by a NodePort with externalTrafficPolicy Local, so that its answer goes to the outside: also while what it
// opens itself is held.
func testHeldIngress(t *testing.T, l *lab.Lab) {
	node := l.Topology.Nodes()[0]
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: lab.ExampleService.Namespace, Name: "node-port"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "example"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			IPFamilyPolicy: &dualStack, Ports: []corev1.ServicePort{{Port: 8080}},
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
	await(t, "the addresses are announced from nowhere", func(ctx context.Context) error { return noPaths(ctx, l) })
	if err := leave(t.Context(), l, as(nobody, examplePod(l, node))...); err != nil {
		t.Error(err)
	}
	for _, f := range families {
		await(t, "the pod answers by its NodePort in "+f.Name, func(ctx context.Context) error {
			source, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Node(node), uint16(service.Spec.Ports[0].NodePort)))
			if err == nil && source != f.Outside.Addr() {
				err = fmt.Errorf("it sees the client as %s", source)
			}
			return err
		})
	}
}

// testAddressReuse gives the addresses of a pod of the service to a pod of nobody, at once, while the first has connections.
func testAddressReuse(t *testing.T, l *lab.Lab) {
	node := l.Topology.Nodes()[1]
	first := pod(t, l, lab.ExamplePod(node.Name))
	const port = 5555
	expect := func(want func(lab.Family) netip.Addr) func(context.Context) error {
		return func(ctx context.Context) error {
			var errs []error
			for _, f := range families {
				got, err := sourceOfUDP(ctx, first.Netns, port, f.Outside)
				if err == nil && got != want(f) {
					err = fmt.Errorf("it leaves as %s, want %s", got, want(f))
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}
	}
	await(t, "the pod leaves with the LoadBalancer IP", expect(theService))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := errors.Join(l.Control.DeletePod(ctx, "default", "successor"),
			l.Control.CreatePod(ctx, lab.ExampleService.Namespace, first.Name, node.Name, first.Addresses(), map[string]string{"app": "example"}))
		if err != nil {
			t.Error(err)
		}
	})
	if err := l.Control.DeletePod(t.Context(), lab.ExampleService.Namespace, first.Name); err != nil {
		t.Fatal(err)
	}
	if err := l.Control.CreatePod(t.Context(), "default", "successor", node.Name, first.Addresses(), nil); err != nil {
		t.Fatal(err)
	}
	await(t, "its successor leaves with the node's address, by the same ports too", expect(theNode(node)))
	for _, n := range l.Topology.Nodes() {
		for _, f := range families {
			output, err := l.Topology.Exec(t.Context(), n.Netns, "conntrack", "-L", "-f", strings.ToLower(f.Name), "-s", f.Pod(first).String(), "-q", f.Service.String())
			if err != nil || strings.TrimSpace(string(output)) != "" {
				t.Errorf("entries left on %s: %v\n%s", n.Name, err, output)
			}
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
	leaves := func(ctx context.Context) error { return leave(ctx, l, as(theService, pod.Netns)...) }
	await(t, "a new pod leaves with the LoadBalancer IP", leaves)
	// From here on none of its packets may have another source.
	talk := []*conversation{startConversation(t, l, lab.IPv4, pod.Netns, shortWord), startConversation(t, l, lab.IPv6, pod.Netns, shortWord)}
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
			found := 0
			for _, slice := range slices.Items {
				for _, e := range slice.Endpoints {
					mine := e.Addresses[0] == pod.Address.String() || e.Addresses[0] == pod.Address6.String()
					if mine && e.Conditions.Ready != nil && *e.Conditions.Ready == ready {
						found++
					}
				}
			}
			if found != len(families) {
				return fmt.Errorf("%d EndpointSlices say so, want %d", found, len(families))
			}
			return nil
		}
	}
	for _, ready := range []bool{false, true, false} {
		setReady(map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionFalse}[ready])
		await(t, fmt.Sprintf("the endpoint is ready: %v", ready), endpoint(ready))
		if err := leaves(t.Context()); err != nil {
			t.Error(err)
		}
		goOn(t, talk...)
	}
	for _, one := range talk {
		one.end(t)
	}
	if n := wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
	if err := l.Control.DeletePod(t.Context(), lab.ExampleService.Namespace, pod.Name); err != nil {
		t.Fatal(err)
	}
	await(t, "when it is gone its addresses are ordinary ones", func(ctx context.Context) error {
		return leave(ctx, l, as(theNode(nodes[2]), pod.Netns)...)
	})
}

// testHijack has a tenant name other tenants' pods in EndpointSlices of a Service of his.
func testHijack(t *testing.T, l *lab.Lab) {
	const name = "hijack"
	nodes := l.Topology.Nodes()
	create(t, l, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	serviceWithPool(t, l, name, "172.19.3.0/28", "fd00:19:3::/124")
	create(t, l, endpointSlices(t, l, name, lab.ExamplePod, lab.OtherPod)...)
	create(t, l, &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: name}})
	await(t, "the speakers have seen it, and say so", func(ctx context.Context) error {
		var reports v1alpha1.EgressNodeList
		if err := l.Client.List(ctx, &reports); err != nil {
			return err
		}
		for _, report := range reports.Items {
			for _, problem := range report.Status.Problems {
				if strings.Contains(problem, "hijack/hijack: 12 endpoint addresses belong to no pod of the namespace") {
					return nil
				}
			}
		}
		return errors.New("no EgressNode does")
	})
	expected := as(theService, examplePods(l)...)
	for _, node := range nodes {
		expected = append(expected, as(theNode(node), otherPod(l, node))...)
	}
	if err := leave(t.Context(), l, expected...); err != nil {
		t.Error(err)
	}
}
