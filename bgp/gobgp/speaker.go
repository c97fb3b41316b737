// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-kit/log"

	"github.com/metallb-egress/metallb-egress/bgp"
)

var errStopped = errors.New("the BGP speaker has been stopped")

// Options are the speaker's settings.
type Options struct {
	// ForwardingPreserved says that the node's dataplane kept forwarding while no speaker ran: true
	// after a restart of the process, false after a boot of the node. With it the first sessions
	// tell peers to keep the routes of before until they have been sent again (the F bit of
	// RFC 4724 §3).
	ForwardingPreserved bool
}

// Speaker is a bgp.Speaker. Make it with New.
type Speaker struct {
	logger  log.Logger
	options Options
	started time.Time
	changed chan struct{}
	// minUptime is that of the instances.
	minUptime time.Duration

	// applying is held by Apply and Stop, and guards stopped and met.
	applying sync.Mutex
	stopped  bool
	met      map[peerKey]bool // peers that had a session of this process

	// mu guards instances. It is never held while GoBGP is called.
	mu        sync.Mutex
	instances map[instanceKey]*instance
}

var _ bgp.Speaker = (*Speaker)(nil)

type peerKey struct {
	vrf     string
	address netip.Addr
}

// New returns a speaker without sessions.
func New(logger log.Logger, options Options) *Speaker {
	return &Speaker{
		logger:    logger,
		options:   options,
		started:   time.Now(),
		changed:   make(chan struct{}, 1),
		minUptime: minUptime,
		met:       map[peerKey]bool{},
		instances: map[instanceKey]*instance{},
	}
}

// Apply implements bgp.Speaker.
func (s *Speaker) Apply(ctx context.Context, want bgp.Config) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.stopped {
		return errStopped
	}
	var errs []error
	wanted := map[instanceKey]bgp.Router{}
	for _, router := range want.Routers {
		wanted[instanceKey{router.VRF, router.ASN, router.ID}] = router
	}
	// Those that run come first: to end a server may take as long as ctx allows. New ones come last: they
	// may have the peers of one that ends.
	running := s.list()
	for _, i := range running {
		if router, ok := wanted[i.key]; ok {
			errs = append(errs, i.apply(ctx, router, s.restarting))
			delete(wanted, i.key)
		}
	}
	for _, i := range running {
		if !slices.ContainsFunc(want.Routers, func(r bgp.Router) bool { return i.key == instanceKey{r.VRF, r.ASN, r.ID} }) {
			errs = append(errs, s.remove(ctx, i))
		}
	}
	for _, router := range want.Routers {
		if _, ok := wanted[instanceKey{router.VRF, router.ASN, router.ID}]; ok {
			errs = append(errs, s.start(ctx, router))
		}
	}
	return errors.Join(errs...)
}

// start starts a server.
func (s *Speaker) start(ctx context.Context, router bgp.Router) error {
	key := instanceKey{router.VRF, router.ASN, router.ID}
	i, err := startInstance(ctx, s.logger, key, s.notify, s.minUptime)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.instances[key] = i
	s.mu.Unlock()
	return i.apply(ctx, router, s.restarting)
}

// remove ends one server for good. One that does not end stays known, and is tried again.
func (s *Speaker) remove(ctx context.Context, i *instance) error {
	if err := i.stop(ctx, bgp.Withdraw); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.instances, i.key)
	s.mu.Unlock()
	s.notify()
	return nil
}

// restarting says whether the peer may be told that this is a restart in which forwarding went on.
// It is so for the first session of a peer only, and while the peer can still hold routes of before.
func (s *Speaker) restarting(vrf string, peer netip.Addr) bool {
	key := peerKey{vrf, peer}
	first := !s.met[key]
	s.met[key] = true
	return first && s.options.ForwardingPreserved && time.Since(s.started) < bgp.RestartTime
}

// list returns the instances, ordered.
func (s *Speaker) list() []*instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*instance, 0, len(s.instances))
	for _, i := range s.instances {
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b *instance) int {
		return cmp.Or(cmp.Compare(a.key.vrf, b.key.vrf), cmp.Compare(a.key.asn, b.key.asn), a.key.id.Compare(b.key.id))
	})
	return list
}

// Sessions implements bgp.Speaker.
func (s *Speaker) Sessions() []bgp.Session {
	var sessions []bgp.Session
	for _, i := range s.list() {
		sessions = append(sessions, i.list()...)
	}
	return sessions
}

// Counters implements bgp.Speaker.
func (s *Speaker) Counters(ctx context.Context) []bgp.Counters {
	var counters []bgp.Counters
	for _, i := range s.list() {
		counters = append(counters, i.counters(ctx)...)
	}
	return counters
}

// Announced implements bgp.Speaker.
func (s *Speaker) Announced(p netip.Prefix) bool {
	for _, i := range s.list() {
		if i.announced(p) {
			return true
		}
	}
	return false
}

// Changed implements bgp.Speaker.
func (s *Speaker) Changed() <-chan struct{} {
	return s.changed
}

func (s *Speaker) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Stop implements bgp.Speaker.
func (s *Speaker) Stop(ctx context.Context, mode bgp.StopMode) error {
	// An Apply that hangs must not keep the process from ending.
	if err := acquire(ctx, &s.applying); err != nil {
		return err
	}
	defer s.applying.Unlock()
	s.stopped = true
	instances := s.list()
	s.mu.Lock()
	clear(s.instances)
	s.mu.Unlock()

	errs := make([]error, len(instances))
	var group sync.WaitGroup
	for n, i := range instances {
		group.Go(func() { errs[n] = i.stop(ctx, mode) })
	}
	group.Wait()
	return errors.Join(errs...)
}
