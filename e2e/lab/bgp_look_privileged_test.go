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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// step is a test in a lab that it leaves as it was.
type step struct {
	name string
	run  func(*testing.T, *lab.Lab)
}

// inTurn runs the steps one after another, each in a lab that is settled.
func inTurn(t *testing.T, l *lab.Lab, steps []step) {
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			settled(t, l)
			s.run(t, l)
		})
	}
	settled(t, l)
}

// settled waits until all sessions are in order and the example is announced.
func settled(t *testing.T, l *lab.Lab) {
	t.Helper()
	await(t, "the lab is settled", func(ctx context.Context) error {
		node, err := l.Elected(ctx)
		if err != nil {
			return err
		}
		return errors.Join(paths(ctx, l, node, families...), everySession(ctx, l, established), problems(ctx, l, nil))
	})
}

// await looks until there is no error.
func await(t *testing.T, what string, look func(context.Context) error) {
	t.Helper()
	begin := time.Now()
	_, err := lab.Eventually(t.Context(), patience, func(ctx context.Context) (string, error) { return "", look(ctx) })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s after %.1f s", what, time.Since(begin).Seconds())
}

// create makes objects and deletes them when the test ends, the last one first.
func create(t *testing.T, l *lab.Lab, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := l.Client.Create(t.Context(), object); err != nil {
			t.Fatalf("create %T %s: %v", object, object.GetName(), err)
		}
		t.Cleanup(func() { remove(t, l, object) })
	}
}

// remove deletes an object. One that is gone is no error.
func remove(t *testing.T, l *lab.Lab, object client.Object) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Client.Delete(ctx, object, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		t.Errorf("delete %T %s: %v", object, object.GetName(), err)
	}
}

// inMetalLB names an object in MetalLB's namespace.
func inMetalLB(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: controlplane.MetalLBNamespace, Name: name}
}

// hostname selects one node.
func hostname(node string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}}
}

// torPath is one path of the ToR's and what came with it.
type torPath struct{ NextHop, Communities, LargeCommunities string }

// awaitPaths waits until the ToR has these paths, which are ordered, and no others.
func awaitPaths(t *testing.T, l *lab.Lab, what string, prefix netip.Prefix, want []torPath) {
	t.Helper()
	await(t, what, func(ctx context.Context) error {
		got, err := torPaths(ctx, l, prefix)
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("paths to %s: -want +got:\n%s", prefix, diff)
		}
		return err
	})
}

// torPaths are the ToR's valid paths, ordered by next hop.
func torPaths(ctx context.Context, l *lab.Lab, prefix netip.Prefix) ([]torPath, error) {
	output, err := l.Topology.Vtysh(ctx, fmt.Sprintf("show bgp %s unicast %s json", map[bool]string{true: "ipv4", false: "ipv6"}[prefix.Addr().Is4()], prefix))
	if err != nil {
		return nil, err
	}
	type communities struct {
		String string `json:"string"`
	}
	var document struct {
		Paths []struct {
			Valid            bool        `json:"valid"`
			Communities      communities `json:"community"`
			LargeCommunities communities `json:"largeCommunity"`
			NextHops         []struct {
				IP string `json:"ip"`
			} `json:"nexthops"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(output, &document); err != nil {
		return nil, err
	}
	var paths []torPath
	for _, path := range document.Paths {
		if path.Valid && len(path.NextHops) == 1 {
			paths = append(paths, torPath{path.NextHops[0].IP, path.Communities.String, path.LargeCommunities.String})
		}
	}
	slices.SortFunc(paths, func(a, b torPath) int { return strings.Compare(a.NextHop, b.NextHop) })
	return paths, nil
}

// through are paths through nodes, ordered.
func through(f lab.Family, nodes []topology.Node, communities, largeCommunities string) []torPath {
	var paths []torPath
	for _, node := range nodes {
		paths = append(paths, torPath{f.Node(node).String(), communities, largeCommunities})
	}
	return paths
}

// connections are the ToR's established sessions: by node, the TCP port at the node's end, which is another one after a session has ended
// and come back.
func connections(ctx context.Context, l *lab.Lab) (map[string]int, error) {
	output, err := l.Topology.Vtysh(ctx, "show bgp neighbors json")
	if err != nil {
		return nil, err
	}
	// It also has what is not a neighbor, when there is none.
	var neighbors map[string]json.RawMessage
	if err := json.Unmarshal(output, &neighbors); err != nil {
		return nil, err
	}
	ports := map[string]int{}
	for _, node := range l.Topology.Nodes() {
		text, ok := neighbors[node.Address.String()]
		if !ok {
			continue
		}
		var neighbor struct {
			State string `json:"bgpState"`
			Port  int    `json:"portForeign"`
		}
		if err := json.Unmarshal(text, &neighbor); err != nil {
			return nil, err
		}
		if neighbor.State == "Established" {
			ports[node.Name] = neighbor.Port
		}
	}
	return ports, nil
}

// awaitConnections waits until every node has a session at the ToR, and none of those before.
func awaitConnections(t *testing.T, l *lab.Lab, what string, before map[string]int) map[string]int {
	t.Helper()
	var ports map[string]int
	await(t, what, func(ctx context.Context) (err error) {
		ports, err = connections(ctx, l)
		if err != nil {
			return err
		}
		for _, node := range l.Topology.Nodes() {
			port, ok := ports[node.Name]
			if old, was := before[node.Name]; !ok || was && port == old {
				return fmt.Errorf("the ToR's sessions are %v, before %v", ports, before)
			}
		}
		return nil
	})
	return ports
}

// sameConnections checks that the ToR's sessions are these.
func sameConnections(ctx context.Context, l *lab.Lab, want map[string]int) error {
	got, err := connections(ctx, l)
	if diff := cmp.Diff(want, got); err == nil && diff != "" {
		err = fmt.Errorf("the ToR's sessions, -want +got:\n%s", diff)
	}
	return err
}

// status is what a node's speaker reports.
func status(ctx context.Context, l *lab.Lab, node string) (v1alpha1.EgressNodeStatus, error) {
	var report v1alpha1.EgressNode
	err := l.Client.Get(ctx, client.ObjectKey{Name: node}, &report)
	return report.Status, err
}

// everySession checks what each node reports of its session with the ToR.
func everySession(ctx context.Context, l *lab.Lab, check func(v1alpha1.BGPSession) error) error {
	for _, node := range l.Topology.Nodes() {
		status, err := status(ctx, l, node.Name)
		if err != nil {
			return err
		}
		if len(status.BGPSessions) != 1 {
			return fmt.Errorf("%s reports %d sessions, want one: %+v", node.Name, len(status.BGPSessions), status.BGPSessions)
		}
		if err := check(status.BGPSessions[0]); err != nil {
			return fmt.Errorf("the session of %s: %w", node.Name, err)
		}
	}
	return nil
}

// established is the check of a session in order.
func established(got v1alpha1.BGPSession) error {
	want := v1alpha1.BGPSession{Peer: topology.RouterAddress.String(), State: "Established", GracefulRestart: true}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("-want +got:\n%s", diff)
	}
	return nil
}

// failed is the check of a session that is down and says why.
func failed(why string) func(v1alpha1.BGPSession) error {
	return func(got v1alpha1.BGPSession) error {
		if got.State == "Established" || !strings.Contains(got.LastError, why) {
			return fmt.Errorf("state %s, last error %q; want no session, because of %q", got.State, got.LastError, why)
		}
		return nil
	}
}

// problems checks what nodes report as not honored: by node, a part of each line.
func problems(ctx context.Context, l *lab.Lab, want map[string][]string) error {
	for _, node := range l.Topology.Nodes() {
		status, err := status(ctx, l, node.Name)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(status.Problems, want[node.Name], strings.Contains) {
			return fmt.Errorf("%s reports the problems %q, want %q", node.Name, status.Problems, want[node.Name])
		}
	}
	return nil
}

// changePeer changes the BGPPeer that is the ToR, until restore is called or the test ends.
func changePeer(t *testing.T, l *lab.Lab, change func(*metallbv1beta2.BGPPeerSpec)) (restore func()) {
	t.Helper()
	var peers metallbv1beta2.BGPPeerList
	if err := l.Client.List(t.Context(), &peers, client.InNamespace(controlplane.MetalLBNamespace)); err != nil {
		t.Fatal(err)
	}
	if len(peers.Items) != 1 {
		t.Fatalf("%d BGPPeers, want one", len(peers.Items))
	}
	before, after := &peers.Items[0], peers.Items[0].DeepCopy()
	patch := func(from, to *metallbv1beta2.BGPPeer) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Client.Patch(ctx, to.DeepCopy(), client.MergeFrom(from)); err != nil {
			t.Errorf("patch BGPPeer %s: %v", to.Name, err)
		}
	}
	change(&after.Spec)
	restore = func() { patch(after, before) }
	t.Cleanup(restore)
	patch(before, after)
	return restore
}
