// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/go-kit/log/level"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	// shortestBeat is the time between two renewals in clusters of up to 125 nodes: the controller
	// learns within 10 s of a speaker that died, and one that is late twice does not count as dead.
	shortestBeat = 2500 * time.Millisecond
	// beatsPerSecond bounds the renewals of all speakers together: the API server writes each of
	// them to etcd.
	beatsPerSecond = 50
	// longestBeat bounds the wait in clusters of more than 1,500 nodes: the controller takes no lease
	// for longer than 2 min.
	longestBeat = 30 * time.Second
	// beatsPerLease is how many renewals fit into leaseDurationSeconds.
	beatsPerLease = 4
	// hangs is how long a loop may be in one call before the speaker counts as dead. Whatever a loop
	// calls ends within applyTimeout, unless it ignores that.
	hangs = 3 * applyTimeout
	// hangsForGood is how long the BGP loop may be in one call before the process had better end, and begin
	// anew: no route can be withdrawn meanwhile.
	hangsForGood = 2 * hangs
	// lookAtLoops is how long to wait before looking again at loops that don't work.
	lookAtLoops = 500 * time.Millisecond
)

// errStarting is that a loop has not come back for the first time.
var errStarting = errors.New("the speaker starts")

// Heartbeat renews this node's Lease until ctx ends, and makes it when it is not there. It does so
// only while each loop comes back from its calls; that they return errors is no matter.
//
// All speakers together write 4 renewals a second in a cluster of 10 nodes, 40 in one of 100, and 50
// from 125 to 1,500 nodes, where each waits the longer for it: 20 s with 1,000 nodes, and as many more
// seconds pass before a dead one is noticed (leaseDurationSeconds is 4 times that).
//
// The error is that the BGP loop hangs for good.
func (s *Speaker) Heartbeat(ctx context.Context) error {
	interval, failing := shortestBeat, false
	names := []string{dataplaneName, reportName}
	if s.BGP != nil {
		names = append(names, bgpName)
	}
	for {
		wait := lookAtLoops
		err := s.loops.work(s.Now(), names)
		if err == nil {
			begun := s.Now()
			interval, err = s.beat(ctx, interval)
			// Jitter: the speakers of all nodes may have been started at once.
			wait = time.Duration((0.9+0.2*rand.Float64())*float64(interval)) - s.Now().Sub(begun)
		}
		if ctx.Err() != nil {
			return nil
		}
		if s.loops.inCall(bgpName, s.Now()) > hangsForGood {
			return fmt.Errorf("the %s loop hangs: it has been in one call for more than %v, and the process ends, so that its routes do", bgpName, hangsForGood)
		}
		if !errors.Is(err, errStarting) {
			s.logHeartbeat(failing, err)
			failing = err != nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// logHeartbeat says once that there is no heartbeat, and once that there is again.
func (s *Speaker) logHeartbeat(failing bool, err error) {
	switch {
	case err == nil && failing:
		level.Info(s.Logger).Log("event", "heartbeat", "msg", "the Lease is renewed again")
	case err != nil && !failing:
		level.Warn(s.Logger).Log("event", "noHeartbeat", "msg", "the Lease is not renewed", "error", err)
	}
}

// beat renews the Lease once, and returns the time from one renewal to the next.
func (s *Speaker) beat(ctx context.Context, interval time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, min(interval, applyTimeout))
	defer cancel()
	var nodes corev1.NodeList
	if err := s.list(ctx, &nodes); err != nil {
		return interval, err
	}
	own := slices.IndexFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == s.Node })
	if own < 0 {
		return interval, fmt.Errorf("node %s does not exist", s.Node)
	}
	interval = beatInterval(len(nodes.Items))
	lease := s.lease(&nodes.Items[own], interval)
	patch, err := json.Marshal(lease)
	if err != nil {
		return interval, fmt.Errorf("lease %s: %w", lease.Name, err)
	}
	// The patch has no resourceVersion: it conflicts with nobody, and nothing has to be read before.
	err = s.Client.Patch(ctx, lease.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return interval, fmt.Errorf("renew Lease %s: %w", lease.Name, err)
	}
	if err == nil {
		return interval, nil
	}
	if err := s.Client.Create(ctx, lease); err != nil {
		return interval, fmt.Errorf("create Lease %s: %w", lease.Name, err)
	}
	return interval, nil
}

// beatInterval is the time from one renewal to the next in a cluster of so many nodes.
func beatInterval(nodes int) time.Duration {
	return min(max(shortestBeat, time.Duration(nodes)*time.Second/beatsPerSecond), longestBeat)
}

// lease is the node's, renewed now.
func (s *Speaker) lease(node *corev1.Node, interval time.Duration) *coordinationv1.Lease {
	seconds := int32(beatsPerLease * interval / time.Second)
	renewed := metav1.NewMicroTime(s.Now())
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.FRRNamespace, Name: v1alpha1.SpeakerLeasePrefix + s.Node,
			Labels:          map[string]string{v1alpha1.SpeakerLeaseLabel: ""},
			OwnerReferences: []metav1.OwnerReference{ownedBy(node)},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &s.Node, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
	}
}

// loops knows which of the speaker's loops is in a call.
type loops struct {
	mutex sync.Mutex
	calls map[string]call
}

type call struct {
	begun time.Time // zero: none under way
	ended bool      // one has come back since the start
}

// enter records that a loop is called; the function it returns, that the call has come back.
func (l *loops) enter(name string, now func() time.Time) (leave func()) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.calls == nil {
		l.calls = map[string]call{}
	}
	l.calls[name] = call{begun: now(), ended: l.calls[name].ended}
	return func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		l.calls[name] = call{ended: true}
	}
}

// inCall is how long the call of a loop that is under way has lasted.
func (l *loops) inCall(name string, now time.Time) time.Duration {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if begun := l.calls[name].begun; !begun.IsZero() {
		return now.Sub(begun)
	}
	return 0
}

// work is nil when each loop has come back at least once, and none is in a call for too long.
func (l *loops) work(now time.Time, names []string) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, name := range names {
		switch c := l.calls[name]; {
		case !c.begun.IsZero() && now.Sub(c.begun) > hangs:
			return fmt.Errorf("the %s loop hangs: it has been in one call for more than %v", name, hangs)
		case !c.ended:
			return errStarting
		}
	}
	return nil
}
