// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/osrg/gobgp/v4/api"
	gobgpapiutil "github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgpserver "github.com/osrg/gobgp/v4/pkg/server"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// instanceKey is what a running GoBGP server can't change.
type instanceKey struct {
	vrf string
	asn uint32
	id  netip.Addr
}

func (k instanceKey) String() string {
	return fmt.Sprintf("router of VRF %q (AS %d, ID %s)", k.vrf, k.asn, k.id)
}

// instance is one GoBGP server and what it has been given.
type instance struct {
	key    instanceKey
	logger log.Logger
	server *gobgpserver.BgpServer
	cancel context.CancelFunc // of the event watcher
	notify func()
	// minUptime is how long a session must have been up for its loss to be treated as an accident.
	minUptime time.Duration
	// attention has a value in it when a session's change may ask for something, see attend.
	attention chan struct{}
	// stopped silences GoBGP's log: it complains about being stopped twice.
	stopped atomic.Bool

	// applying is held by whoever changes what GoBGP has. It guards ended, policies, and the writing
	// of what mu guards, sessions aside.
	applying sync.Mutex
	ended    bool
	policies policies
	// given are the routes of each neighbor as of the last apply; unsure says that it failed, or that
	// they mean something else by now.
	given  map[netip.Addr][]bgp.Route
	unsure bool

	mu       sync.Mutex
	bfdRuns  map[netip.Addr]bool // that GoBGP's BFD server has, by its log
	peers    map[netip.Addr]peer
	paths    map[netip.Prefix][]tag // as given to GoBGP, tags ordered
	sessions map[netip.Addr]*session
}

// peer is a neighbor that is wanted, and what GoBGP has of it.
type peer struct {
	index uint32       // in tags; never used again for another peer of this server
	conf  bgp.Neighbor // without Routes and BFD
	bfd   bgp.BFD

	running  bool    // GoBGP has the peer, as conf says
	watching bgp.BFD // as GoBGP has it
}

// startInstance starts a server that has its default policies and no peers.
//
// GoBGP v4.8.0 writes its route selection options, always the same ones here, to package variables
// in StartBgp (osrg/gobgp#3659): two servers must not start at once.
func startInstance(ctx context.Context, logger log.Logger, key instanceKey, notify func(), minUptime time.Duration) (*instance, error) {
	i := &instance{
		key:       key,
		logger:    log.With(logger, "vrf", key.vrf, "asn", key.asn, "routerID", key.id),
		notify:    notify,
		minUptime: minUptime,
		attention: make(chan struct{}, 1),
		policies:  newPolicies(),
		peers:     map[netip.Addr]peer{},
		paths:     map[netip.Prefix][]tag{},
		sessions:  map[netip.Addr]*session{},
		bfdRuns:   map[netip.Addr]bool{},
	}
	i.server = gobgpserver.NewBgpServer(gobgpserver.LoggerOption(slog.New(&tap{instance: i}), nil))
	go i.server.Serve()
	watching, cancel := context.WithCancel(context.Background())
	i.cancel = cancel

	err := i.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:          key.asn,
		RouterId:     key.id.String(),
		ListenPort:   -1,
		Families:     globalFamilies,
		BindToDevice: key.vrf,
	}})
	if err == nil {
		err = i.defaultPolicies(ctx)
	}
	if err == nil {
		err = i.server.WatchEvent(watching, gobgpserver.WatchEventMessageCallbacks{OnPeerUpdate: i.peerUpdate}, gobgpserver.WatchPeer())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: starting: %w", key, err), i.stop(ctx, bgp.Withdraw))
	}
	go i.tend(watching)
	return i, nil
}

// apply converges the server on want.
//
// The order matters: what must not be announced goes first; a statement comes before the paths
// that need it and goes after them; a peer comes last, when all its paths are there.
func (i *instance) apply(ctx context.Context, want bgp.Router, restarting func(vrf string, peer netip.Addr) bool) error {
	i.applying.Lock()
	defer i.applying.Unlock()
	if i.ended {
		return fmt.Errorf("%s: it has not been stopped to the end", i.key)
	}
	var errs []error
	failed := func(err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", i.key, err))
		}
	}
	failed(i.removePeers(ctx, want))
	plan := i.plan(want)
	paths := i.withdraw(ctx, plan)
	missing, err := i.addStatements(ctx, plan)
	failed(err)
	if len(missing) > 0 {
		plan.without(missing)
		paths = errors.Join(paths, i.withdraw(ctx, plan))
	}
	paths = errors.Join(paths, i.announce(ctx, plan))
	failed(paths)
	failed(i.removeStatements(ctx))
	if paths == nil { // else a new peer's first End-of-RIB would not be honest
		failed(i.addPeers(ctx, want, restarting))
	}
	i.given, i.unsure = map[netip.Addr][]bgp.Route{}, len(errs) > 0
	for _, neighbor := range want.Neighbors {
		i.given[neighbor.Address] = neighbor.Routes
	}
	i.wake() // BFD may be another
	return errors.Join(errs...)
}

// announced says whether p is with GoBGP and one of its peers, in a session that carries p's
// family, is to have it. After a restart GoBGP may hold paths back for deferralTime more.
func (i *instance) announced(p netip.Prefix) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, tag := range i.paths[p] {
		for address, peer := range i.peers {
			if peer.index == tag.peer && i.sessions[address].carries(p) {
				return true
			}
		}
	}
	return false
}

// settleTime is how long the counters of sent UPDATEs have to stand still before everything that
// was given to GoBGP counts as sent: it has no call to flush. maxSettleTime bounds the wait.
const (
	settleTime    = 200 * time.Millisecond
	maxSettleTime = 2 * time.Second
)

// settle waits until GoBGP has probably sent what it was given.
func (i *instance) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, maxSettleTime)
	defer cancel()
	ticker := time.NewTicker(settleTime / 4)
	defer ticker.Stop()
	last, since := i.sentUpdates(ctx), time.Now()
	for time.Since(since) < settleTime {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now := i.sentUpdates(ctx); now != last {
			last, since = now, time.Now()
		}
	}
}

func (i *instance) sentUpdates(ctx context.Context) (sum uint64) {
	_ = i.server.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		sum += p.GetState().GetMessages().GetSent().GetUpdate()
	}) // an error leaves the sum as it is: nothing more will be sent
	return sum
}

// stop ends the server. With bgp.Keep it first lets withdrawals out: a peer that keeps routes
// would keep those too.
func (i *instance) stop(ctx context.Context, mode bgp.StopMode) error {
	if err := acquire(ctx, &i.applying); err != nil {
		return fmt.Errorf("%s: stopping: %w", i.key, err)
	}
	i.ended = true
	var errs []error
	if mode == bgp.Withdraw {
		// StopBgp can't wait for BFD sessions to end, see watch. With bgp.Keep the process ends anyway.
		for address := range i.peers {
			errs = append(errs, i.watch(ctx, address, bgp.BFD{}))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		// It goes on for now, and must not go on announcing.
		all := plan{paths: map[netip.Prefix][]tag{}}
		for prefix := range i.paths {
			all.paths[prefix] = nil
		}
		err = errors.Join(err, i.withdraw(ctx, all))
	}
	i.applying.Unlock()
	if err != nil {
		return fmt.Errorf("%s: stopping: %w", i.key, err)
	}
	if mode == bgp.Keep {
		i.settle(ctx)
	}
	done := make(chan error, 1)
	go func() {
		err := i.server.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: mode == bgp.Keep})
		i.cancel()
		i.stopped.Store(true)
		i.server.Stop() // StopBgp leaves the goroutine of the BFD server
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s: stopping: %w", i.key, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: stopping: %w", i.key, ctx.Err())
	}
}

// acquire locks mu unless ctx ends before.
func acquire(ctx context.Context, mu *sync.Mutex) error {
	for !mu.TryLock() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("GoBGP is still at work: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// peerUpdate is called by GoBGP's watcher.
func (i *instance) peerUpdate(event *gobgpapiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if event.Type != gobgpapiutil.PEER_EVENT_INIT && event.Type != gobgpapiutil.PEER_EVENT_STATE {
		return
	}
	i.sessionEvent(event.Peer.State, at)
}
