// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"context"
	"encoding/json"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	// heartbeat is the time between two renewals of a small fleet's Leases.
	heartbeat = 2500 * time.Millisecond
	// renewalsPerSecond bounds those of a large fleet.
	renewalsPerSecond = 50
	// renewalsPerLease is how many renewals fit in a Lease's duration.
	renewalsPerLease = 4
)

// interval is the time between two renewals in a fleet of that size.
func interval(speakers int) time.Duration {
	return max(heartbeat, time.Duration(speakers)*time.Second/renewalsPerSecond)
}

// leaseSpec promises another renewal after the interval.
func (s *speaker) leaseSpec(interval time.Duration) coordinationv1.LeaseSpec {
	seconds := int32((renewalsPerLease*interval + time.Second - 1) / time.Second)
	return coordinationv1.LeaseSpec{HolderIdentity: &s.node, LeaseDurationSeconds: &seconds, RenewTime: new(metav1.NowMicro())}
}

// renew keeps the Lease until ctx ends. Each renewal promises the interval of a fleet as large as it is then, and is followed by
// another after that interval, however large the fleet has grown.
func (s *speaker) renew(ctx context.Context) {
	for wait := heartbeat; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.revived:
		case <-time.After(wait):
		}
		if s.behaves().Dead {
			wait = heartbeat
			continue
		}
		wait = interval(s.fleet.size())
		if s.fleet.write(ctx, func(ctx context.Context) error { return s.renewOnce(ctx, wait) }) != nil {
			wait = retryAfter
		}
	}
}

func (s *speaker) renewOnce(ctx context.Context, interval time.Duration) error {
	body, err := json.Marshal(map[string]any{"spec": s.leaseSpec(interval)})
	if err != nil {
		return err
	}
	err = s.fleet.client.Patch(ctx, s.lease(), client.RawPatch(types.MergePatchType, body))
	if apierrors.IsNotFound(err) {
		owner, err := s.fleet.ownerOf(ctx, s.node)
		if err != nil {
			return err
		}
		return s.createLease(ctx, owner, interval)
	}
	return err
}

func (s *speaker) lease() *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: s.fleet.namespace, Name: v1alpha1.SpeakerLeasePrefix + s.node}}
}

// createLease makes the Lease; the Node's end takes it away.
func (s *speaker) createLease(ctx context.Context, owner metav1.OwnerReference, interval time.Duration) error {
	lease := s.lease()
	lease.Labels = map[string]string{v1alpha1.SpeakerLeaseLabel: ""}
	lease.OwnerReferences = []metav1.OwnerReference{owner}
	lease.Spec = s.leaseSpec(interval)
	return s.fleet.client.Create(ctx, lease)
}
