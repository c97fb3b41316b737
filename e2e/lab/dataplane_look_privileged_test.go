// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// families are the IP versions of the example, once testDualStack has given it both.
var families = []lab.Family{lab.IPv4, lab.IPv6}

func examplePod(l *lab.Lab, node topology.Node) string {
	return l.Prefix + "-pod-" + lab.ExamplePod(node.Name)
}

func otherPod(l *lab.Lab, node topology.Node) string {
	return l.Prefix + "-pod-" + lab.OtherPod(node.Name)
}

// paths checks that the ToR has one path to the example's address of each family, through the node.
func paths(ctx context.Context, l *lab.Lab, node topology.Node, families ...lab.Family) error {
	var errs []error
	for _, f := range families {
		_, err := l.Path(ctx, f, node)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// noPaths checks that the ToR has none.
func noPaths(ctx context.Context, l *lab.Lab) error {
	return errors.Join(l.NoPath(ctx, lab.IPv4), l.NoPath(ctx, lab.IPv6))
}

// leaving is a namespace and the source that the server outside should see of it in a family. No address: it should not see it at all.
type leaving struct {
	netns  string
	family lab.Family
	want   netip.Addr
}

// as is what namespaces should leave as in both families.
func as(want func(lab.Family) netip.Addr, namespaces ...string) []leaving {
	var all []leaving
	for _, f := range families {
		for _, netns := range namespaces {
			all = append(all, leaving{netns, f, want(f)})
		}
	}
	return all
}

// theService is the LoadBalancer IP, nobody is no source.
func theService(f lab.Family) netip.Addr { return f.Service }
func nobody(lab.Family) netip.Addr       { return netip.Addr{} }

// theNode is the node's own address.
func theNode(node topology.Node) func(lab.Family) netip.Addr {
	return func(f lab.Family) netip.Addr { return f.Node(node) }
}

// examplePods are the namespaces of the service's pods.
func examplePods(l *lab.Lab) []string {
	var pods []string
	for _, node := range l.Topology.Nodes() {
		pods = append(pods, examplePod(l, node))
	}
	return pods
}

// leave has all of them ask at the same time.
func leave(ctx context.Context, l *lab.Lab, all ...leaving) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, s := range all {
		group.Go(func() {
			got, err := l.Source(ctx, s.netns, s.family.Outside)
			switch {
			case !s.want.IsValid() && err != nil: // as it should be
			case err != nil:
				errs[i] = fmt.Errorf("%s in %s: %w", s.netns, s.family.Name, err)
			case got != s.want:
				errs[i] = fmt.Errorf("%s leaves in %s as %s, want %s", s.netns, s.family.Name, got, s.want)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// pod is a pod of the topology.
func pod(t *testing.T, l *lab.Lab, name string) topology.Pod {
	t.Helper()
	pods, err := l.Topology.Pods()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pods, func(p topology.Pod) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("no pod %s", name)
	}
	return pods[i]
}

// change edits the example's EgressService.
func change(t *testing.T, l *lab.Lab, edit func(*egressv1.EgressService)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	egress := &egressv1.EgressService{}
	if err := l.Client.Get(ctx, lab.ExampleService, egress); err != nil {
		t.Fatal(err)
	}
	before := egress.DeepCopy()
	edit(egress)
	if err := l.Client.Patch(ctx, egress, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// moveTo has the service move to a node and waits until the ToR sends packets there.
func moveTo(t *testing.T, l *lab.Lab, node topology.Node) {
	t.Helper()
	change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector = hostname(node.Name) })
	await(t, "the service is at "+node.Name, func(ctx context.Context) error {
		elected, err := l.Elected(ctx)
		if err == nil && elected.Name != node.Name {
			err = fmt.Errorf("%s is elected", elected.Name)
		}
		if err == nil {
			err = paths(ctx, l, node, families...)
		}
		return err
	})
}

// watchSources counts, on the host outside, the packets of conversations with any source but the LoadBalancer IP.
func watchSources(t *testing.T, l *lab.Lab) func() int {
	t.Helper()
	const table = "watch"
	exec := func(ctx context.Context, args ...string) (string, error) {
		output, err := l.Topology.Exec(ctx, l.Topology.OutsideNetns(), append([]string{"nft"}, args...)...)
		return string(output), err
	}
	rules := fmt.Sprintf("table inet %s { counter wrong { } ; chain in { type filter hook prerouting priority -300; "+
		"tcp dport %[2]d ip saddr != %[3]s counter name wrong; tcp dport %[2]d ip6 saddr != %[4]s counter name wrong; }; }",
		table, conversationPort, lab.IPv4.Service, lab.IPv6.Service)
	if output, err := exec(t.Context(), rules); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if output, err := exec(ctx, "delete", "table", "inet", table); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	})
	return func() int {
		output, err := exec(t.Context(), "-j", "list", "counter", "inet", table, "wrong")
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return countersIn(t, output)["wrong"]
	}
}

// counters are the packets of the counters of a node's nftables table.
func counters(t *testing.T, l *lab.Lab, node topology.Node) map[string]int {
	t.Helper()
	output, err := l.Topology.Exec(t.Context(), node.Netns, "nft", "-j", "list", "counters", "table", "inet", "metallb-egress")
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return countersIn(t, string(output))
}

func countersIn(t *testing.T, text string) map[string]int {
	t.Helper()
	var document struct {
		Nftables []struct {
			Counter struct {
				Name    string `json:"name"`
				Packets int    `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	found := map[string]int{}
	for _, object := range document.Nftables {
		if object.Counter.Name != "" {
			found[object.Counter.Name] = object.Counter.Packets
		}
	}
	return found
}

func addressCounters(t *testing.T, l *lab.Lab, node topology.Node, address netip.Addr) topology.Counters {
	t.Helper()
	c, err := l.Topology.AddressCounters(t.Context(), node.Name, address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// askUDP has a server answer a datagram.
func askUDP(ctx context.Context, netns string, server netip.AddrPort) error {
	_, err := sourceOfUDP(ctx, netns, 0, server)
	return err
}

// sourceOfUDP is the source that a server sees of a datagram from a port, 0 being any.
func sourceOfUDP(ctx context.Context, netns string, port uint16, server netip.AddrPort) (netip.Addr, error) {
	connection, err := topology.DialFrom(netns, port)(ctx, "udp", server.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = connection.Close() }()
	if err := connection.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return netip.Addr{}, err
	}
	if _, err := connection.Write([]byte("?")); err != nil {
		return netip.Addr{}, err
	}
	answer := make([]byte, 64)
	n, err := connection.Read(answer)
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddrPort(strings.TrimSpace(string(answer[:n])))
	return seen.Addr(), err
}
