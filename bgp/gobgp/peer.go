// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/metallb-egress/metallb-egress/bgp"
)

const (
	// deferralTime in seconds. A restarting speaker sends nothing before its peers have sent their
	// End-of-RIB or this time is over; a peer that is down never sends one, and what peers send is
	// rejected anyway.
	deferralTime = 1
	// idleHoldTimeAfterReset in seconds: how long GoBGP stays away from a peer after an
	// administrative reset. Its default of 30 is an outage.
	idleHoldTimeAfterReset = 2
	multihopTTL            = 255
)

// peerNumber is the peer's number in tags. It takes a new one for a peer that has none.
func (i *instance) peerNumber(address netip.Addr) uint32 {
	if p, ok := i.peers[address]; ok {
		return p.index
	}
	index := i.policies.nextPeer
	i.policies.nextPeer++
	i.setPeer(address, peer{index: index})
	return index
}

func (i *instance) setPeer(address netip.Addr, p peer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.peers[address] = p
}

// removePeers removes the peers that are not wanted, and those whose session has to be another:
// GoBGP takes new timers for a running session without using them. Those keep their number.
func (i *instance) removePeers(ctx context.Context, want bgp.Router) error {
	wanted := map[netip.Addr]bgp.Neighbor{}
	for _, neighbor := range want.Neighbors {
		wanted[neighbor.Address] = sessionOf(neighbor)
	}
	var errs []error
	for _, address := range slices.SortedFunc(maps.Keys(i.peers), netip.Addr.Compare) {
		next, keep := wanted[address]
		p := i.peers[address]
		if keep && reflect.DeepEqual(p.conf, next) {
			continue
		}
		if err := i.deletePeer(ctx, address); err != nil {
			errs = append(errs, err)
			continue
		}
		i.mu.Lock()
		delete(i.sessions, address)
		if !keep {
			delete(i.peers, address)
		}
		i.mu.Unlock()
		i.unsure = i.unsure || p.conf.Address.IsValid() // its number or its AS number, and so its tags, may be others
		i.notify()
	}
	return errors.Join(errs...)
}

// deletePeer takes the peer from GoBGP, if it has it.
func (i *instance) deletePeer(ctx context.Context, address netip.Addr) error {
	p := i.peers[address]
	if !p.running {
		return nil
	}
	if err := i.watch(ctx, address, bgp.BFD{}); err != nil {
		return err
	}
	if err := i.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()}); err != nil {
		return fmt.Errorf("removing peer %s: %w", address, err)
	}
	p = i.peers[address]
	p.running = false
	i.setPeer(address, p)
	return nil
}

// addPeers gives GoBGP the peers that it doesn't have.
func (i *instance) addPeers(ctx context.Context, want bgp.Router, restarting func(vrf string, peer netip.Addr) bool) error {
	var errs []error
	for _, neighbor := range want.Neighbors {
		p := i.peers[neighbor.Address]
		p.bfd = neighbor.BFD
		if !p.running { // else it is what runs that conf tells, also when it could not be removed
			p.conf = sessionOf(neighbor)
		}
		i.setPeer(neighbor.Address, p)
		i.mu.Lock()
		if i.sessions[neighbor.Address] == nil {
			i.sessions[neighbor.Address] = &session{state: bgp.Idle, since: time.Now()}
		}
		refused := i.sessions[neighbor.Address].refused != ""
		i.mu.Unlock()
		if p.running || refused {
			continue
		}
		errs = append(errs, i.addPeer(ctx, neighbor.Address, restarting(i.key.vrf, neighbor.Address)))
		i.notify()
	}
	return errors.Join(errs...)
}

// addPeer gives GoBGP a peer, without BFD.
func (i *instance) addPeer(ctx context.Context, address netip.Addr, restarting bool) error {
	p := i.peers[address]
	err := i.server.AddPeer(ctx, &api.AddPeerRequest{Peer: i.peerOf(p, restarting)})
	p.running = err == nil
	i.setPeer(address, p)
	if err != nil {
		i.sessionError(address, err.Error())
		return fmt.Errorf("adding peer %s: %w", address, err)
	}
	return nil
}

// sessionOf is what of n makes it another session: all but its routes and BFD.
func sessionOf(n bgp.Neighbor) bgp.Neighbor {
	n.Routes, n.BFD = nil, bgp.BFD{}
	return n
}

// peerOf says to GoBGP what a peer is.
func (i *instance) peerOf(wanted peer, restarting bool) *api.Peer {
	n := wanted.conf
	p := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: n.Address.String(),
			PeerAsn:         n.ASN,
			LocalAsn:        n.LocalASN,
			AuthPassword:    n.Password,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime:               seconds(n.HoldTime),
			KeepaliveInterval:      seconds(n.KeepaliveTime),
			ConnectRetry:           seconds(n.ConnectTime),
			IdleHoldTimeAfterReset: idleHoldTimeAfterReset,
		}},
		Transport: &api.Transport{RemotePort: uint32(n.Port), BindInterface: i.key.vrf},
	}
	if n.Source.IsValid() {
		p.Transport.LocalAddress = n.Source.String()
	}
	if n.EBGPMultiHop {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: multihopTTL}
	}
	if n.GracefulRestart {
		p.GracefulRestart = &api.GracefulRestart{
			Enabled:         true,
			RestartTime:     uint32(seconds(bgp.RestartTime)),
			DeferralTime:    deferralTime,
			LocalRestarting: restarting,
		}
	}
	for _, family := range []struct {
		enabled bool
		afi     api.Family_Afi
	}{
		{n.Families.IPv4, api.Family_AFI_IP},
		{n.Families.IPv6, api.Family_AFI_IP6},
	} {
		if family.enabled {
			p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
				Config: &api.AfiSafiConfig{Family: &api.Family{Afi: family.afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
				// Without it graceful restart is negotiated for no family at all.
				MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: n.GracefulRestart}},
			})
		}
	}
	return p
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }
