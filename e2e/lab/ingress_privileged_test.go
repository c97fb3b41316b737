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
	for _, p := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal} {
		policy(p)
		await(t, "with "+string(p)+" the service answers, and Local shows the client's address", func(ctx context.Context) error {
			node, err := l.Elected(ctx)
			if err != nil {
				return err
			}
			errs := []error{paths(ctx, l, node, families...)}
			for _, f := range families {
				seen, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(f.Service, 8080))
				if local := seen == f.Outside.Addr(); err == nil && local != (p == corev1.ServiceExternalTrafficPolicyLocal) {
					err = fmt.Errorf("the pod sees %s", seen)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
		for _, f := range families {
			if seen, err := l.Ingress(t.Context(), f); err != nil {
				t.Errorf("%s, %s: %s: %v", p, f.Name, seen, err)
			}
		}
		leaveWithService(t, l)
	}
}
