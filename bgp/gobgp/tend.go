// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	"github.com/osrg/gobgp/v4/api"

	"github.com/metallb-egress/metallb-egress/bgp"
)

const (
	// retryTime is how long something that GoBGP refused is left alone.
	retryTime = 10 * time.Second
	// minUptime is the instances': a session that never stays is left to GoBGP, which waits longer
	// between its attempts.
	minUptime = 5 * time.Second
	// refusalTime is how long a peer is kept away from that has the wrong kind of AS number or sends
	// too many prefixes.
	refusalTime = time.Minute
	// maxReceivedPrefixes bounds what GoBGP keeps of what a peer sends, some 34 MiB, though none of it
	// is used. GoBGP's own limit counts all of them anew at each UPDATE, which is worse than what it
	// prevents: 10 ms for each. Here they are counted once in countingTime.
	maxReceivedPrefixes = 100_000
	countingTime        = 2 * time.Second
)

func (i *instance) wake() {
	select {
	case i.attention <- struct{}{}:
	default:
	}
}

// tend does what sessions ask for until ctx ends.
func (i *instance) tend(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.attention:
		case <-timer.C:
		}
		again := i.attend(ctx)
		if again == 0 {
			again = time.Hour
		}
		timer.Reset(again)
	}
}

// attend does for every peer what the state of its session asks for. It returns when to look
// again, 0 for when something happens.
func (i *instance) attend(ctx context.Context) (again time.Duration) {
	i.applying.Lock()
	defer i.applying.Unlock()
	if i.ended {
		return 0
	}
	if i.countReceived(ctx, time.Now()) {
		again = countingTime
	}
	for _, address := range slices.SortedFunc(maps.Keys(i.peers), netip.Addr.Compare) {
		if !i.peers[address].conf.Address.IsValid() {
			continue // numbered by an Apply that failed before it came to the peers
		}
		next, err := i.attendPeer(ctx, address, time.Now())
		if err != nil {
			level.Warn(i.logger).Log("event", "peer", "peer", address, "msg", "BGP peer could not be brought up to date", "again", retryTime, "error", err)
			next = retryTime
		}
		if next > 0 && (again == 0 || next < again) {
			again = next
		}
	}
	return again
}

// countReceived refuses peers that send too much. It is true when there is a session in which more
// can come.
func (i *instance) countReceived(ctx context.Context, now time.Time) (more bool) {
	peers := i.asPeers(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	for address, s := range i.sessions {
		more = more || s.state == bgp.Established
		if count := receivedPrefixes(peers[address]); count > maxReceivedPrefixes {
			s.refuse(now, fmt.Sprintf("the peer has sent %d prefixes, more than %d", count, maxReceivedPrefixes))
		}
	}
	return more
}

func (i *instance) attendPeer(ctx context.Context, address netip.Addr, now time.Time) (again time.Duration, err error) {
	p := i.peers[address]
	i.mu.Lock()
	s := i.sessions[address]
	if s == nil {
		i.mu.Unlock()
		return 0, nil
	}
	seen := *s
	s.lost = false
	i.mu.Unlock()

	switch {
	case !p.running && now.Before(seen.refusedUntil):
		return seen.refusedUntil.Sub(now), nil
	case !p.running:
		i.mu.Lock()
		s.refused = ""
		i.mu.Unlock()
		return 0, i.addPeer(ctx, address, false)
	case seen.refused != "":
		return seen.refusedUntil.Sub(now), i.deletePeer(ctx, address)
	case seen.lost:
		// As the same peer GoBGP would come back without the F bit (RFC 4724 §3), and the peer would
		// drop the routes that it kept. The dataplane has not stopped forwarding.
		if err := i.deletePeer(ctx, address); err != nil {
			return 0, err
		}
		return 0, i.addPeer(ctx, address, true)
	}

	// FRR makes its BFD session anew when BGP comes up, which looks like a failure to one that
	// runs already.
	var watching bgp.BFD
	if seen.state == bgp.Established {
		if until := seen.suspendedUntil.Sub(now); until > 0 {
			again = until
		} else {
			watching = p.bfd
		}
	}
	return again, i.watch(ctx, address, watching)
}

// watchTimeout bounds the wait for GoBGP's BFD server.
const watchTimeout = 2 * time.Second

// watch gives the peer this BFD, none with the zero one.
//
// It waits until the BFD server says in its log that it has done it. That server has a queue of one
// request, filled by the same goroutine that a BFD session needs to reset its BGP peer: requests on top
// of each other while a session ends would hang all of GoBGP (v4.8.0).
func (i *instance) watch(ctx context.Context, address netip.Addr, want bgp.BFD) error {
	if before := i.peers[address].watching; before != want {
		if before != (bgp.BFD{}) && want != (bgp.BFD{}) {
			if err := i.watch(ctx, address, bgp.BFD{}); err != nil {
				return err
			}
		}
		if err := i.askForBFD(ctx, address, want); err != nil {
			return err
		}
		defer i.notify()
	}
	// Also for what was asked for before and never answered.
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		i.mu.Lock()
		runs := i.bfdRuns[address]
		i.mu.Unlock()
		if runs == (want != bgp.BFD{}) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.New("BFD of peer " + address.String() + ": GoBGP's BFD server does not answer")
		}
	}
}

func (i *instance) askForBFD(ctx context.Context, address netip.Addr, want bgp.BFD) error {
	p := i.peers[address]
	request := i.peerOf(p, false)
	if want != (bgp.BFD{}) {
		request.Bfd = &api.BfdPeerConfig{
			Enabled:                  true,
			DesiredMinimumTxInterval: uint32(want.TransmitInterval.Microseconds()),
			RequiredMinimumReceive:   uint32(want.ReceiveInterval.Microseconds()),
			DetectionMultiplier:      uint32(want.Multiplier),
		}
	}
	if _, err := i.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: request}); err != nil {
		return fmt.Errorf("BFD of peer %s: %w", address, err)
	}
	p.watching = want
	i.setPeer(address, p)
	return nil
}

// bfdPeers are the BFD sessions that GoBGP has.
func (i *instance) bfdPeers(ctx context.Context) map[netip.Addr]*api.BfdPeerState {
	found := map[netip.Addr]*api.BfdPeerState{}
	i.server.ListBfdPeer(ctx, func(text string, state *api.BfdPeerState) {
		if address, err := netip.ParseAddr(text); err == nil {
			found[address.Unmap()] = state
		}
	})
	return found
}
