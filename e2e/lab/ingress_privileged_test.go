// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// testTrafficPolicies asks the service from outside with both external traffic policies: the answers come back, and no packet of the
// connection is on the uplink of another node than the elected one.
func testTrafficPolicies(t *testing.T, l *lab.Lab) {
	policy := func(p corev1.ServiceExternalTrafficPolicy) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		service := &corev1.Service{}
		if err := l.Client.Get(ctx, lab.ExampleService, service); err != nil {
			t.Fatal(err)
		}
		before := service.DeepCopy()
		service.Spec.ExternalTrafficPolicy = p
		if err := l.Client.Patch(ctx, service, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { policy(corev1.ServiceExternalTrafficPolicyCluster) })
	server := netip.AddrPortFrom(lab.ExampleAddress, 8080)
	for _, p := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
		policy(p)
		var elected topology.Node
		await(t, "with "+string(p)+" the service answers, and Local shows the client's address", func(ctx context.Context) error {
			node, err := l.Elected(ctx)
			if err != nil {
				return err
			}
			elected = node
			_, pathErr := l.Path(ctx, node)
			seen, err := l.Source(ctx, l.Topology.OutsideNetns(), server)
			if local := seen == topology.OutsideAddress; err == nil && local != (p == corev1.ServiceExternalTrafficPolicyLocal) {
				err = fmt.Errorf("the pod sees %s", seen)
			}
			return errors.Join(pathErr, err)
		})
		before := map[string]topology.Counters{}
		for _, node := range l.Topology.Nodes() {
			before[node.Name] = addressCounters(t, l, node, lab.ExampleAddress)
		}
		for range 10 {
			if _, err := l.Source(t.Context(), l.Topology.OutsideNetns(), server); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
		for _, node := range l.Topology.Nodes() {
			after := addressCounters(t, l, node, lab.ExampleAddress)
			in, out := after.ToNode-before[node.Name].ToNode, after.FromNode-before[node.Name].FromNode
			if through := in > 0 && out > 0; through != (node.Name == elected.Name) || !through && in+out > 0 {
				t.Errorf("%s: %d packets in and %d out at %s, while %s is elected", p, in, out, node.Name, elected.Name)
			}
		}
		leaveWith(t, l, lab.ExampleAddress)
	}
}
