// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

func applyExample(ctx context.Context, l *Lab) (string, error) {
	manifest, err := os.ReadFile(filepath.Join(l.Root, "docs", "examples", "example-service.yaml"))
	if err != nil {
		return "", err
	}
	return "docs/examples/example-service.yaml", l.Apply(ctx, manifest)
}

func checkElected(ctx context.Context, l *Lab) (string, error) {
	return Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		node, err := l.Elected(ctx)
		return fmt.Sprintf("%s has %s; status.host is %s", node.Name, ExampleLabel, node.Name), err
	})
}

func checkAdvertisement(ctx context.Context, l *Lab) (string, error) {
	return Eventually(ctx, settleTime, l.ownAdvertisement)
}

func checkPath(ctx context.Context, l *Lab) (string, error) {
	return Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		node, err := l.Elected(ctx)
		if err != nil {
			return "", err
		}
		return l.Path(ctx, IPv4, node)
	})
}

func checkIngress(ctx context.Context, l *Lab) (string, error) { return l.Ingress(ctx, IPv4) }

// Ingress asks the service from outside and counts, at the ToR, on whose uplinks the packets to
// and from the address were.
func (l *Lab) Ingress(ctx context.Context, f Family) (string, error) {
	elected, err := l.Elected(ctx)
	if err != nil {
		return "", err
	}
	if _, err := Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		_, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, serverPort))
		return "", err
	}); err != nil {
		return "", err
	}
	before, err := l.counters(ctx, f)
	if err != nil {
		return "", err
	}
	const requests = 10
	for range requests {
		if _, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, serverPort)); err != nil {
			return "", err
		}
	}
	return l.onlyThrough(ctx, f, elected, before, fmt.Sprintf("%d of %d requests answered", requests, requests))
}

func (l *Lab) counters(ctx context.Context, f Family) (map[string]topology.Counters, error) {
	counters := map[string]topology.Counters{}
	for _, node := range l.Topology.Nodes() {
		c, err := l.Topology.AddressCounters(ctx, node.Name, f.Service)
		if err != nil {
			return nil, err
		}
		counters[node.Name] = c
	}
	return counters, nil
}

// onlyThrough checks that since before packets of the address were seen on the elected node's
// uplink, in both directions, and on no other.
func (l *Lab) onlyThrough(ctx context.Context, f Family, elected topology.Node, before map[string]topology.Counters, what string) (string, error) {
	after, err := l.counters(ctx, f)
	if err != nil {
		return "", err
	}
	var seen []string
	for _, node := range l.Topology.Nodes() {
		in, out := after[node.Name].ToNode-before[node.Name].ToNode, after[node.Name].FromNode-before[node.Name].FromNode
		seen = append(seen, fmt.Sprintf("%s %d in %d out", node.Name, in, out))
		if through := in > 0 && out > 0; through != (node.Name == elected.Name) || !through && in+out > 0 {
			err = errors.Join(err, fmt.Errorf("packets on the uplink of %s: %d in, %d out, while %s is elected", node.Name, in, out, elected.Name))
		}
	}
	return fmt.Sprintf("%s; packets of %s on the uplinks: %s", what, f.Service, strings.Join(seen, ", ")), err
}

func checkEgress(ctx context.Context, l *Lab) (string, error) { return l.Egress(ctx, IPv4) }

// Egress has every pod of the service ask the server outside, which tells the source it
// saw, while tcpdump listens between the ToR and that server.
func (l *Lab) Egress(ctx context.Context, f Family) (string, error) {
	elected, err := l.Elected(ctx)
	if err != nil {
		return "", err
	}
	before, err := l.counters(ctx, f)
	if err != nil {
		return "", err
	}
	capture, err := l.capture(ctx, fmt.Sprintf("tcp port %d and dst host %s", outsidePort, f.Outside.Addr()))
	if err != nil {
		return "", err
	}
	defer capture.Close()
	var seen []string
	for _, node := range l.Topology.Nodes() {
		source, err := l.Source(ctx, l.pod(ExamplePod(node.Name)), f.Outside)
		if err == nil && source != f.Service {
			err = fmt.Errorf("pod %s was seen as %s", ExamplePod(node.Name), source)
		}
		if err != nil {
			return "", err
		}
		seen = append(seen, ExamplePod(node.Name))
	}
	sources, err := capture.Sources()
	if err != nil {
		return "", err
	}
	if len(sources) != 1 || sources[f.Service] == 0 {
		return "", fmt.Errorf("tcpdump saw the sources %v, want %s alone", sources, f.Service)
	}
	what := fmt.Sprintf("the server saw %s from %s; tcpdump %d packets, all from %s",
		f.Service, strings.Join(seen, ", "), sources[f.Service], f.Service)
	return l.onlyThrough(ctx, f, elected, before, what)
}

// pod is the network namespace of a pod.
func (l *Lab) pod(name string) string { return l.Prefix + "-pod-" + name }

func checkOthers(ctx context.Context, l *Lab) (string, error) { return l.Others(ctx, IPv4) }

// Others looks at everything that must not carry the LoadBalancer IP.
func (l *Lab) Others(ctx context.Context, f Family) (string, error) {
	pods, err := l.Topology.Pods()
	if err != nil {
		return "", err
	}
	addresses := map[string]netip.Addr{}
	for _, pod := range pods {
		addresses[pod.Name] = f.Pod(pod)
	}
	var service corev1.Service
	if err := l.Client.Get(ctx, client.ObjectKey{Namespace: otherNamespace, Name: "other"}, &service); err != nil {
		return "", err
	}
	clusterIP, err := clusterIPOf(&service, f)
	if err != nil {
		return "", err
	}
	var errs []error
	count := 0
	expect := func(what, from string, server netip.AddrPort, want netip.Addr) {
		count++
		got, err := l.Source(ctx, l.pod(from), server)
		if err == nil && got != want {
			err = fmt.Errorf("seen as %s, want %s", got, want)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s from %s: %w", what, from, err))
		}
	}
	nodes := l.Topology.Nodes()
	for i, node := range nodes {
		other := nodes[(i+1)%len(nodes)]
		example, plain := ExamplePod(node.Name), OtherPod(node.Name)
		expect("pod that is no endpoint to outside", plain, f.Outside, f.Node(node))
		for _, pod := range []string{example, plain} {
			expect("pod to pod on its node", pod, netip.AddrPortFrom(addresses[OtherPod(node.Name)], serverPort), addresses[pod])
			expect("pod to pod on another node", pod, netip.AddrPortFrom(addresses[OtherPod(other.Name)], serverPort), addresses[pod])
			expect("pod to example pod on another node", pod, netip.AddrPortFrom(addresses[ExamplePod(other.Name)], serverPort), addresses[pod])
			expect("pod to its own node", pod, netip.AddrPortFrom(f.Node(node), nodePort), addresses[pod])
			expect("pod to another node", pod, netip.AddrPortFrom(f.Node(other), nodePort), f.Node(node))
		}
		errs = append(errs, l.toClusterIP(ctx, example, netip.AddrPortFrom(clusterIP, serverPort), addresses[example]))
		count++
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d connections on %d nodes: pods keep their address to pods, to their node and to ClusterIPs (TCP and UDP), "+
		"take their node's to other nodes; pods that are no endpoint leave with their node's", count, len(nodes)), nil
}

// clusterIPOf is the Service's address of a family.
func clusterIPOf(service *corev1.Service, f Family) (netip.Addr, error) {
	for _, text := range service.Spec.ClusterIPs {
		if address, err := netip.ParseAddr(text); err == nil && address.Is4() == f.Service.Is4() {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("service %s has no %s address among %v", service.Name, f.Name, service.Spec.ClusterIPs)
}

// toClusterIP asks a ClusterIP as pods ask cluster DNS, by UDP too. The pod itself may be the
// one that answers, which OVN shows as a hairpin address: ask until another one does.
func (l *Lab) toClusterIP(ctx context.Context, from string, server netip.AddrPort, want netip.Addr) error {
	got, err := l.Source(ctx, l.pod(from), server)
	if err == nil && got != want {
		err = fmt.Errorf("seen as %s, want %s", got, want)
	}
	if err != nil {
		return fmt.Errorf("pod to ClusterIP %s from %s: %w", server, from, err)
	}
	udp, err := l.sourceUDP(ctx, l.pod(from), server)
	if err == nil && udp != want {
		err = fmt.Errorf("seen as %s, want %s", udp, want)
	}
	if err != nil {
		return fmt.Errorf("pod to ClusterIP %s by UDP from %s: %w", server, from, err)
	}
	return nil
}

// checkMove limits the service to a node that is not the elected one.
func checkMove(ctx context.Context, l *Lab) (string, error) {
	elected, err := l.Elected(ctx)
	if err != nil {
		return "", err
	}
	nodes := l.Topology.Nodes()
	target := nodes[0]
	if target.Name == elected.Name {
		target = nodes[1]
	}
	begin := time.Now()
	if err := l.selectNode(ctx, target.Name); err != nil {
		return "", err
	}
	if _, err := Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		node, err := l.Elected(ctx)
		if err == nil && node.Name != target.Name {
			err = fmt.Errorf("%s is still elected", node.Name)
		}
		if err != nil {
			return "", err
		}
		return l.Path(ctx, IPv4, node)
	}); err != nil {
		return "", err
	}
	took := time.Since(begin)
	for _, check := range []func(context.Context, *Lab) (string, error){checkElected, checkAdvertisement, checkPath, checkIngress, checkEgress} {
		if _, err := check(ctx, l); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s to %s in %.1f s; 1 to 5 hold there", elected.Name, target.Name, took.Seconds()), nil
}

// selectNode patches the nodeSelector, as kubectl would.
func (l *Lab) selectNode(ctx context.Context, name string) error {
	var egress egressv1.EgressService
	if err := l.Client.Get(ctx, ExampleService, &egress); err != nil {
		return err
	}
	after := egress.DeepCopy()
	after.Spec.NodeSelector = metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: name}}
	return l.Client.Patch(ctx, after, client.MergeFrom(&egress))
}

// checkGuard adds what most clusters have, an advertisement of everything from everywhere, and
// waits until MetalLB offers the address on every node: only the guard is left.
func checkGuard(ctx context.Context, l *Lab) (string, error) {
	elected, err := l.Elected(ctx)
	if err != nil {
		return "", err
	}
	general := &metallbv1beta1.BGPAdvertisement{
		ObjectMeta: metav1.ObjectMeta{Namespace: controlplane.MetalLBNamespace, Name: "everything-from-everywhere"},
		Spec:       metallbv1beta1.BGPAdvertisementSpec{IPAddressPools: []string{"example-pool"}},
	}
	if err := l.Client.Create(ctx, general); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, l.Client.Delete(ctx, general)) }()
	offered, err := Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		nodes, err := l.offeredNodes(ctx)
		if err == nil && len(nodes) != len(l.Topology.Nodes()) {
			err = fmt.Errorf("MetalLB offers the address on %v only", nodes)
		}
		return strings.Join(nodes, ", "), err
	})
	if err != nil {
		return "", err
	}
	err = Always(ctx, 2*time.Second, func(ctx context.Context) error {
		_, err := l.Path(ctx, IPv4, elected)
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("MetalLB offers %s on %s; the ToR has one path, through %s", IPv4.Prefix(), offered, elected.Name), err
}

func checkDelete(ctx context.Context, l *Lab) (string, error) {
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: ExampleService.Namespace, Name: ExampleService.Name}}
	if err := l.Client.Delete(ctx, egress); err != nil {
		return "", err
	}
	seen, err := Eventually(ctx, settleTime, l.leftovers)
	if err != nil {
		return "", err
	}
	for _, node := range l.Topology.Nodes() {
		source, err := l.Source(ctx, l.pod(ExamplePod(node.Name)), IPv4.Outside)
		if err == nil && source != node.Address {
			err = fmt.Errorf("pod %s still leaves as %s", ExamplePod(node.Name), source)
		}
		if err != nil {
			return "", err
		}
	}
	return seen + "; the pods leave with their nodes' addresses", nil
}

// checkAcknowledgement stops ovn-controller on the only node that may be elected, so that the
// node can't have the flows, and lets it go on afterwards.
func checkAcknowledgement(ctx context.Context, l *Lab) (_ string, err error) {
	node := l.Topology.Nodes()[0]
	process := node.Name + ".ovn-controller"
	pid, ok := l.Processes.PID(process)
	if !ok {
		return "", fmt.Errorf("%s is not running", process)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
	}()
	egress := &egressv1.EgressService{
		ObjectMeta: metav1.ObjectMeta{Namespace: ExampleService.Namespace, Name: ExampleService.Name},
		Spec:       egressv1.EgressServiceSpec{NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node.Name}}},
	}
	if err := l.Client.Create(ctx, egress); err != nil {
		return "", err
	}
	if _, err := Eventually(ctx, settleTime, func(ctx context.Context) (string, error) {
		var assignment v1alpha1.EgressAssignment
		if err := l.Client.Get(ctx, ExampleService, &assignment); err != nil {
			return "", err
		}
		offered, err := l.offeredNodes(ctx)
		if err == nil && (assignment.Spec.Standby != node.Name || !slices.Contains(offered, node.Name)) {
			err = fmt.Errorf("standby %q, offered on %v", assignment.Spec.Standby, offered)
		}
		return "", err
	}); err != nil {
		return "", fmt.Errorf("%s as standby with the route at hand: %w", node.Name, err)
	}
	const held = 3 * time.Second
	err = Always(ctx, held, func(ctx context.Context) error {
		labelled, err := l.labelledNodes(ctx, ExampleLabel)
		if err == nil && len(labelled) > 0 {
			err = fmt.Errorf("%v has the label before the acknowledgement", labelled)
		}
		return errors.Join(err, l.NoPath(ctx, IPv4))
	})
	if err != nil {
		return "", err
	}
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return "", err
	}
	if _, err := checkPath(ctx, l); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, standby with the route at hand but ovn-controller stopped: nothing for %s; %.1f s after it went on: label and path",
		node.Name, held, time.Since(begin).Seconds()), nil
}
