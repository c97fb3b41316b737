// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

const (
	// reportInterval is the shortest time between two reports of a node, which grows up to longestInterval where the API server takes more
	// than a reportShare-th of it to write one (design of the egress-speaker).
	reportInterval, longestInterval = 200 * time.Millisecond, 2 * time.Second
	reportShare                     = 20
	writeTimeout                    = 30 * time.Second
	retryAfter                      = time.Second
	// never is the wait of somebody who will be woken.
	never = time.Hour
)

// change is something that a speaker has yet to see.
type change struct {
	at time.Time
	// key is the assignment's, <namespace>/<name>; empty when the Node's labels changed. The assignment is nil when it is gone, or names the node
	// no longer.
	key        string
	assignment *v1alpha1.EgressAssignment
	labels     map[string]string
}

// speaker is one fake.
type speaker struct {
	fleet   *Fleet
	node    string
	cancel  context.CancelFunc
	running sync.WaitGroup
	// changed wakes the report, revived the Lease.
	changed, revived chan struct{}

	mutex     sync.Mutex
	behaviour Behaviour
	inbox     []change // oldest first

	// What the speaker has seen. The report's goroutine alone uses it.
	labels      map[string]string
	assignments map[string]*v1alpha1.EgressAssignment
	entries     map[string]*entry
	written     status // nil until the first report
}

// begin makes the objects of a speaker, or takes over those that are there.
func (s *speaker) begin(ctx context.Context) error {
	return s.fleet.write(ctx, func(ctx context.Context) error {
		owner, err := s.fleet.ownerOf(ctx, s.node)
		if err != nil {
			return err
		}
		if err := s.createReport(ctx, owner); err != nil {
			return err
		}
		promised := interval(s.fleet.size() + 1)
		if err := s.createLease(ctx, owner, promised); !apierrors.IsAlreadyExists(err) {
			return err
		}
		return s.renewOnce(ctx, promised)
	})
}

func (s *speaker) createReport(ctx context.Context, owner metav1.OwnerReference) error {
	own := &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: s.node, OwnerReferences: []metav1.OwnerReference{owner}}}
	if err := s.fleet.client.Create(ctx, own); !apierrors.IsAlreadyExists(err) {
		return err
	}
	return nil
}

func (s *speaker) behaves() Behaviour {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.behaviour
}

func (s *speaker) set(b Behaviour) {
	s.mutex.Lock()
	revived := s.behaviour.Dead && !b.Dead
	s.behaviour = b
	s.mutex.Unlock()
	wake(s.changed)
	if revived {
		wake(s.revived)
	}
}

func (s *speaker) see(c change) {
	s.mutex.Lock()
	s.inbox = append(s.inbox, c)
	s.mutex.Unlock()
	wake(s.changed)
}

// wake leaves one signal for a goroutine that may be busy.
func wake(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}

// look takes what is due out of the inbox. It returns the behaviour and how long it is until something else is due.
func (s *speaker) look(now time.Time) (Behaviour, time.Duration) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i, c := range s.inbox {
		if left := c.at.Add(s.behaviour.Lag).Sub(now); left > 0 {
			s.inbox = s.inbox[i:]
			return s.behaviour, left
		}
		switch {
		case c.key == "":
			s.labels = c.labels
		case c.assignment == nil:
			delete(s.assignments, c.key)
		default:
			s.assignments[c.key] = c.assignment
		}
	}
	s.inbox = nil
	return s.behaviour, never
}

// report keeps the EgressNode until ctx ends.
func (s *speaker) report(ctx context.Context) {
	var next time.Time // when it may be written
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		case <-time.After(wait):
		}
		var b Behaviour
		b, wait = s.look(time.Now())
		if left := time.Until(next); left > 0 {
			wait = min(wait, left)
			continue
		}
		if b.Dead || b.Mute {
			continue
		}
		took, err := s.reportOnce(ctx, b)
		if took > 0 {
			next = time.Now().Add(min(max(reportInterval, reportShare*took), longestInterval))
		}
		if err != nil {
			wait = min(wait, retryAfter)
		}
	}
}

// reportOnce writes the EgressNode unless it is up to date, and returns how long that took the API server.
func (s *speaker) reportOnce(ctx context.Context, b Behaviour) (took time.Duration, err error) {
	now, err := s.status(b)
	if err != nil {
		return 0, err
	}
	body, err := now.patch(s.written)
	if err != nil || body == nil {
		return 0, err
	}
	err = s.fleet.write(ctx, func(ctx context.Context) error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		err := s.patchStatus(ctx, body)
		if !apierrors.IsNotFound(err) {
			return err
		}
		// A new one has nothing of what was written before.
		owner, err := s.fleet.ownerOf(ctx, s.node)
		if err != nil {
			return err
		}
		if body, err = now.patch(nil); err != nil {
			return err
		}
		if err := s.createReport(ctx, owner); err != nil {
			return err
		}
		return s.patchStatus(ctx, body)
	})
	if err != nil {
		return took, err
	}
	s.written = now
	s.fleet.reported(Report{At: time.Now(), Node: s.node, Services: len(s.assignments)})
	return took, nil
}

func (s *speaker) patchStatus(ctx context.Context, body []byte) error {
	own := &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: s.node}}
	return s.fleet.client.Status().Patch(ctx, own, client.RawPatch(types.MergePatchType, body))
}
