// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// The documented example.
var (
	// ExampleService is the Service and the EgressService.
	ExampleService = types.NamespacedName{Namespace: exampleNamespace, Name: "example-service"}
	// ExampleLabel is the public label of the node that may announce it.
	ExampleLabel = egressv1.LabelPrefix + "example-namespace-example-service"
	// ExampleAddress is its LoadBalancer IP.
	ExampleAddress = netip.MustParseAddr("172.19.0.100")
)

// Family is what the lab and the example have in one IP version.
type Family struct {
	Name string
	// Service is the example's LoadBalancer IP. In IPv6 it has one only where a test gives it to it.
	Service netip.Addr
	// Outside is the server on the host behind the ToR.
	Outside netip.AddrPort
	// Node and Pod pick an address.
	Node func(topology.Node) netip.Addr
	Pod  func(topology.Pod) netip.Addr
}

// The two families.
var (
	IPv4 = Family{
		"IPv4", ExampleAddress, netip.AddrPortFrom(topology.OutsideAddress, outsidePort),
		func(n topology.Node) netip.Addr { return n.Address }, func(p topology.Pod) netip.Addr { return p.Address },
	}
	IPv6 = Family{
		"IPv6", netip.MustParseAddr("fd00:19::100"), netip.AddrPortFrom(topology.OutsideAddress6, outsidePort),
		func(n topology.Node) netip.Addr { return n.Address6 }, func(p topology.Pod) netip.Addr { return p.Address6 },
	}
)

// Prefix is the host route to the example's address.
func (f Family) Prefix() netip.Prefix { return netip.PrefixFrom(f.Service, f.Service.BitLen()) }

// Eventually calls look until it returns no error, at most for the time given, and returns
// what it saw last.
func Eventually(ctx context.Context, atMost time.Duration, look func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	var last error
	for {
		seen, err := look(ctx)
		if err == nil {
			return seen, nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("not within %s: %w", atMost, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Always calls look for the time given and fails as soon as look does.
func Always(ctx context.Context, during time.Duration, look func(context.Context) error) error {
	end := time.Now().Add(during)
	for time.Now().Before(end) {
		if err := look(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// labelledNodes are the nodes with a label key, in order.
func (l *Lab) labelledNodes(ctx context.Context, key string) ([]string, error) {
	var nodes corev1.NodeList
	if err := l.Client.List(ctx, &nodes, client.HasLabels{key}); err != nil {
		return nil, err
	}
	names := []string{}
	for _, node := range nodes.Items {
		names = append(names, node.Name)
	}
	slices.Sort(names)
	return names, nil
}

// Elected is the one node with the example's label, which status.host has to agree with.
func (l *Lab) Elected(ctx context.Context) (topology.Node, error) {
	names, err := l.labelledNodes(ctx, ExampleLabel)
	if err != nil {
		return topology.Node{}, err
	}
	if len(names) != 1 {
		return topology.Node{}, fmt.Errorf("nodes with the label: %v, want one", names)
	}
	var egress egressv1.EgressService
	if err := l.Client.Get(ctx, ExampleService, &egress); err != nil {
		return topology.Node{}, err
	}
	if egress.Status.Host != names[0] {
		return topology.Node{}, fmt.Errorf("node %s has the label, status.host is %q", names[0], egress.Status.Host)
	}
	return l.Topology.Node(names[0])
}

// Source is the address that an HTTP server sees when a namespace asks it.
func (l *Lab) Source(ctx context.Context, netns string, server netip.AddrPort) (netip.Addr, error) {
	output, err := l.Topology.Exec(ctx, netns, "curl", "-s", "-S", "--max-time", "3", "http://"+server.String()+"/")
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddrPort(strings.TrimSpace(string(output)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("answer of %s: %w", server, err)
	}
	return seen.Addr(), nil
}

// Path is the ToR's only path to the example's address, through the node.
func (l *Lab) Path(ctx context.Context, f Family, node topology.Node) (string, error) {
	paths, err := l.Topology.TorRoutes(ctx, f.Prefix())
	if err != nil {
		return "", err
	}
	var hops []string
	for _, path := range paths {
		hops = append(hops, path.NextHop.String())
	}
	if len(paths) != 1 || paths[0].NextHop != f.Node(node) || !paths[0].Valid {
		return "", fmt.Errorf("the ToR has %d paths %v to %s, want one through %s", len(paths), hops, f.Prefix(), f.Node(node))
	}
	return fmt.Sprintf("the ToR has one path to %s, through %s (%s)", f.Prefix(), f.Node(node), node.Name), nil
}

// NoPath fails while the ToR has any path to the example's address.
func (l *Lab) NoPath(ctx context.Context, f Family) error {
	paths, err := l.Topology.TorRoutes(ctx, f.Prefix())
	if err == nil && len(paths) > 0 {
		err = fmt.Errorf("the ToR has a path to %s through %s", f.Prefix(), paths[0].NextHop)
	}
	return err
}

// ownAdvertisement is the one BGPAdvertisement that selects nodes by the example's label.
func (l *Lab) ownAdvertisement(ctx context.Context) (string, error) {
	var list metallbv1beta1.BGPAdvertisementList
	if err := l.Client.List(ctx, &list, client.InNamespace(controlplane.MetalLBNamespace)); err != nil {
		return "", err
	}
	for _, a := range list.Items {
		for _, selector := range a.Spec.NodeSelectors {
			if value, ok := selector.MatchLabels[ExampleLabel]; ok && value == "" {
				return fmt.Sprintf("BGPAdvertisement %s: nodeSelectors %s, pools %v", a.Name, ExampleLabel, a.Spec.IPAddressPools), nil
			}
		}
	}
	return "", fmt.Errorf("none of %d BGPAdvertisements selects nodes by %s", len(list.Items), ExampleLabel)
}

// offeredNodes are the nodes whose FRRConfigurations hold the example's address: those from
// which MetalLB would announce it.
func (l *Lab) offeredNodes(ctx context.Context) ([]string, error) {
	var list frrk8sv1beta1.FRRConfigurationList
	if err := l.Client.List(ctx, &list, client.InNamespace(controlplane.MetalLBNamespace)); err != nil {
		return nil, err
	}
	nodes := map[string]bool{}
	for _, c := range list.Items {
		for _, router := range c.Spec.BGP.Routers {
			if slices.Contains(router.Prefixes, IPv4.Prefix().String()) {
				nodes[strings.TrimPrefix(c.Name, "metallb-")] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(nodes)), nil
}

// leftovers lists whatever of ours still is in the cluster, in OVN, in nftables or in
// conntrack although no EgressService is.
func (l *Lab) leftovers(ctx context.Context) (string, error) {
	var found []string
	var nodes corev1.NodeList
	var assignments v1alpha1.EgressAssignmentList
	var advertisements metallbv1beta1.BGPAdvertisementList
	var services corev1.ServiceList
	err := errors.Join(
		l.Client.List(ctx, &nodes), l.Client.List(ctx, &assignments), l.Client.List(ctx, &services),
		l.Client.List(ctx, &advertisements, client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue}))
	if err != nil {
		return "", err
	}
	for _, node := range nodes.Items {
		for key := range node.Labels {
			if strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix) {
				found = append(found, "label "+key+" on "+node.Name)
			}
		}
	}
	for _, a := range assignments.Items {
		found = append(found, "EgressAssignment "+a.Name)
	}
	for _, a := range advertisements.Items {
		found = append(found, "BGPAdvertisement "+a.Name)
	}
	for _, service := range services.Items {
		if _, ok := service.Labels[v1alpha1.ServiceLabel]; ok {
			found = append(found, "label on Service "+service.Name)
		}
	}
	for _, node := range l.Topology.Nodes() {
		more, err := l.dataplaneLeftovers(ctx, node)
		if err != nil {
			return "", err
		}
		found = append(found, more...)
	}
	if len(found) > 0 {
		return "", fmt.Errorf("left behind: %s", strings.Join(found, "; "))
	}
	return "no label, EgressAssignment, BGPAdvertisement, OVN row, nftables element or conntrack entry of ours on any node", nil
}

// dataplaneLeftovers lists what one node's dataplane still holds of ours.
func (l *Lab) dataplaneLeftovers(ctx context.Context, node topology.Node) ([]string, error) {
	var found []string
	for _, table := range []string{"Logical_Router_Policy", "Address_Set", "Logical_Router_Static_Route"} {
		output, err := l.Topology.Exec(ctx, node.Netns, "ovn-nbctl", "--db=unix:"+node.NorthboundSocket, "--bare", "--columns=external_ids", "list", table)
		if err != nil {
			return nil, err
		}
		if n := strings.Count(string(output), "metallb-egress"); n > 0 {
			found = append(found, fmt.Sprintf("%d rows of %s on %s", n, table, node.Name))
		}
	}
	output, err := l.Topology.Exec(ctx, node.Netns, "nft", "list", "table", "inet", "metallb-egress")
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(output), ExampleAddress.String()) {
		found = append(found, "nftables elements on "+node.Name)
	}
	output, err = l.Topology.Exec(ctx, node.Netns, "conntrack", "-L", "-q", ExampleAddress.String())
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(output), "\n"); n > 0 {
		found = append(found, fmt.Sprintf("%d conntrack entries on %s", n, node.Name))
	}
	return found, nil
}
