// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	"github.com/osrg/gobgp/v4/api"
	gobgpapiutil "github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// session is what events and log lines have told of one peer.
type session struct {
	state     bgp.State
	since     time.Time
	lastError string
	families  bgp.Families // that the peer can take, while established
	// gracefulRestart is of the session that is established, or was last.
	gracefulRestart bool
	// lost is true after an established session has ended without a word while its peer keeps our
	// routes, until attend has seen it.
	lost bool
	// refused is why this speaker wants no session with the peer, empty when it does; it is tried
	// again at refusedUntil.
	refused      string
	refusedUntil time.Time
	bfdMemory
}

// refuse notes that this speaker wants no session with the peer for a while.
func (s *session) refuse(now time.Time, reason string) {
	s.refused, s.refusedUntil = reason, now.Add(refusalTime)
}

// bfdMemory is what is remembered of a peer's BFD.
type bfdMemory struct {
	up             bool // GoBGP's own word is a moment later than its log, which is what wakes readers
	ups, downs     uint64
	lastDown       time.Time
	recentDowns    []time.Time // since the last suspension; the newest few
	suspendedUntil time.Time
}

const (
	// maxBFDDowns within bfdWindow suspend BFD for bfdSuspension: some peers make BFD end every
	// session that comes up.
	maxBFDDowns   = 4
	bfdWindow     = time.Minute
	bfdSuspension = 10 * time.Minute
)

// down notes that BFD went down. It is true when BFD is to be suspended.
func (b *bfdMemory) down(now time.Time) bool {
	b.up, b.downs, b.lastDown = false, b.downs+1, now
	b.recentDowns = append(b.recentDowns, now)
	if len(b.recentDowns) < maxBFDDowns {
		return false
	}
	if now.Sub(b.recentDowns[0]) > bfdWindow {
		b.recentDowns = b.recentDowns[1:]
		return false
	}
	b.suspendedUntil, b.recentDowns = now.Add(bfdSuspension), nil
	return true
}

// endedBy says whether BFD went down so shortly before that it will have ended the session.
func (b *bfdMemory) endedBy(now time.Time) bool {
	return now.Sub(b.lastDown) < 2*time.Second
}

// carries is false on a nil session.
func (s *session) carries(p netip.Prefix) bool {
	return s != nil && s.state == bgp.Established && s.refused == "" && s.families.Has(p)
}

var states = map[gobgppacket.FSMState]bgp.State{
	gobgppacket.BGP_FSM_IDLE:        bgp.Idle,
	gobgppacket.BGP_FSM_CONNECT:     bgp.Connect,
	gobgppacket.BGP_FSM_ACTIVE:      bgp.Active,
	gobgppacket.BGP_FSM_OPENSENT:    bgp.OpenSent,
	gobgppacket.BGP_FSM_OPENCONFIRM: bgp.OpenConfirm,
	gobgppacket.BGP_FSM_ESTABLISHED: bgp.Established,
}

// sessionEvent records a change of state.
func (i *instance) sessionEvent(event gobgpapiutil.PeerState, at time.Time) {
	state, ok := states[event.SessionState]
	if !ok {
		state = bgp.Idle // GoBGP says -1 of a peer that is going away
	}
	i.mu.Lock()
	s := i.sessions[event.NeighborAddress.Unmap()]
	if s == nil || s.state == state {
		i.mu.Unlock()
		return
	}
	before, up := s.state, at.Sub(s.since)
	s.state, s.since = state, at
	switch reason := disconnectReason(before, event); {
	case state == bgp.Established:
		s.lastError = ""
		s.families = announcedFamilies(event.RemoteCap)
		s.gracefulRestart = keepsRoutes(event.LocalCap, event.RemoteCap)
		if i.peers[event.NeighborAddress.Unmap()].conf.ASN == 0 && event.PeerASN == i.key.asn {
			s.refuse(at, fmt.Sprintf("the peer has AS number %d, the router's own, and dynamicASN is external", event.PeerASN))
		}
	case before == bgp.Established && s.endedBy(at):
		s.lastError = "BFD found the path down"
	case reason != "":
		s.lastError = reason
	}
	s.lost = before == bgp.Established && s.gracefulRestart && up >= i.minUptime &&
		event.DisconnectReason == api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART
	lastError := s.lastError
	i.mu.Unlock()
	i.wake()

	switch bgp.Established {
	case state:
		level.Info(i.logger).Log("event", "sessionUp", "peer", event.NeighborAddress, "msg", "BGP session established")
	case before:
		level.Warn(i.logger).Log("event", "sessionDown", "peer", event.NeighborAddress, "error", lastError, "msg", "BGP session lost")
	}
	i.notify()
}

// disconnectReason says why a session went, if it did. GoBGP v4.8.0 takes a NOTIFICATION that
// answers its OPEN for an invalid message, and doesn't keep its code.
func disconnectReason(before bgp.State, event gobgpapiutil.PeerState) string {
	switch event.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_UNSPECIFIED:
		return ""
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		if before == bgp.OpenConfirm {
			return "the peer refused the OPEN message: it may expect another AS number"
		}
	}
	return event.DisconnectMessage
}

// sessionError records what GoBGP says of a peer in its log alone.
func (i *instance) sessionError(address netip.Addr, text string) {
	i.mu.Lock()
	s := i.sessions[address]
	changed := s != nil && s.state != bgp.Established && s.lastError != text
	if changed {
		s.lastError = text
	}
	i.mu.Unlock()
	if changed {
		i.notify()
	}
}

// bfdEvent records that a peer's BFD came up or went down.
func (i *instance) bfdEvent(address netip.Addr, up bool) {
	suspended := false
	i.mu.Lock()
	if s := i.sessions[address]; s != nil && up {
		s.up, s.ups = true, s.ups+1
	} else if s != nil {
		suspended = s.down(time.Now())
	}
	i.mu.Unlock()
	if suspended {
		level.Error(i.logger).Log("event", "bfdSuspended", "peer", address, "again", bfdSuspension,
			"msg", fmt.Sprintf("BFD ended the session %d times within %s, and is switched off for a while", maxBFDDowns, bfdWindow))
	}
	i.notify()
}

// bfdServerEvent records that GoBGP's BFD server has a session with the peer, or has ended it.
func (i *instance) bfdServerEvent(address netip.Addr, runs bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bfdRuns[address] = runs
	if s := i.sessions[address]; s != nil && !runs {
		s.up = false
	}
}

// announcedFamilies reads the families of an OPEN. A side without multiprotocol extensions takes
// IPv4 unicast (RFC 4760 §8).
func announcedFamilies(capabilities []gobgppacket.ParameterCapabilityInterface) (families bgp.Families) {
	multiprotocol := false
	for _, capability := range capabilities {
		if c, ok := capability.(*gobgppacket.CapMultiProtocol); ok {
			multiprotocol = true
			families.IPv4 = families.IPv4 || c.CapValue == gobgppacket.RF_IPv4_UC
			families.IPv6 = families.IPv6 || c.CapValue == gobgppacket.RF_IPv6_UC
		}
	}
	if !multiprotocol {
		families.IPv4 = true
	}
	return families
}

// keepsRoutes says whether a peer keeps our routes when we go away: it announced graceful restart,
// for whatever families, and we did for all that the session carries. A peer that names no family
// can't restart itself, but keeps routes (RFC 4724 §3): FRR does so unless told more. GoBGP's own
// state of a family says what the peer named, which is about the peer's restarts.
func keepsRoutes(local, remote []gobgppacket.ParameterCapabilityInterface) bool {
	ours, theirs := gracefulRestartOf(local), gracefulRestartOf(remote)
	if ours == nil || theirs == nil {
		return false
	}
	named := map[gobgppacket.Family]bool{}
	for _, tuple := range ours.Tuples {
		named[gobgppacket.NewFamily(tuple.AFI, tuple.SAFI)] = true
	}
	we, they := announcedFamilies(local), announcedFamilies(remote)
	four, six := we.IPv4 && they.IPv4, we.IPv6 && they.IPv6
	return (four || six) && (!four || named[gobgppacket.RF_IPv4_UC]) && (!six || named[gobgppacket.RF_IPv6_UC])
}

func gracefulRestartOf(capabilities []gobgppacket.ParameterCapabilityInterface) *gobgppacket.CapGracefulRestart {
	for _, capability := range capabilities {
		if c, ok := capability.(*gobgppacket.CapGracefulRestart); ok {
			return c
		}
	}
	return nil
}

// list returns the sessions, ordered by peer.
func (i *instance) list() []bgp.Session {
	now := time.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	list := make([]bgp.Session, 0, len(i.sessions))
	for _, address := range slices.SortedFunc(maps.Keys(i.sessions), netip.Addr.Compare) {
		s := i.sessions[address]
		session := bgp.Session{
			VRF: i.key.vrf, Peer: address, State: s.state, GracefulRestart: s.gracefulRestart, LastError: cmp.Or(s.refused, s.lastError), Since: s.since,
		}
		switch {
		case i.peers[address].bfd == bgp.BFD{}:
		case now.Before(s.suspendedUntil):
			session.BFD = bgp.BFDSuspended
		case s.up:
			session.BFD = bgp.BFDUp
		default:
			session.BFD = bgp.BFDDown
		}
		list = append(list, session)
	}
	return list
}

// receivedPrefixes is how many prefixes of all families GoBGP keeps of what the peer has sent.
func receivedPrefixes(p *api.Peer) (sum uint64) {
	for _, family := range p.GetAfiSafis() {
		sum += family.GetState().GetReceived()
	}
	return sum
}

// asPeers are the peers as GoBGP has them.
func (i *instance) asPeers(ctx context.Context) map[netip.Addr]*api.Peer {
	peers := map[netip.Addr]*api.Peer{}
	_ = i.server.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		if address, err := netip.ParseAddr(p.GetConf().GetNeighborAddress()); err == nil {
			peers[address.Unmap()] = p
		}
	}) // an error says that the server has stopped
	return peers
}

// counters returns the sessions' counters, ordered by peer.
func (i *instance) counters(ctx context.Context) []bgp.Counters {
	peers := i.asPeers(ctx)
	running := i.bfdPeers(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	announced := map[uint32]uint64{}
	families := map[uint32]*session{}
	for address, p := range i.peers {
		families[p.index] = i.sessions[address]
	}
	for prefix, tags := range i.paths {
		for _, t := range tags {
			if families[t.peer].carries(prefix) {
				announced[t.peer]++
			}
		}
	}
	list := make([]bgp.Counters, 0, len(i.sessions))
	for _, address := range slices.SortedFunc(maps.Keys(i.sessions), netip.Addr.Compare) {
		list = append(list, bgp.Counters{
			VRF: i.key.vrf, Peer: address,
			Sent:               messages(peers[address].GetState().GetMessages().GetSent()),
			Received:           messages(peers[address].GetState().GetMessages().GetReceived()),
			AnnouncedPrefixes:  announced[i.peers[address].index],
			ReceivedPrefixes:   receivedPrefixes(peers[address]),
			BFDPacketsSent:     running[address].GetBfdAsync().GetTransmittedPackets(),
			BFDPacketsReceived: running[address].GetBfdAsync().GetReceivedPackets(),
			BFDUps:             i.sessions[address].ups,
			BFDDowns:           i.sessions[address].downs,
		})
	}
	return list
}

func messages(m *api.Message) bgp.Messages {
	return bgp.Messages{
		Opens: m.GetOpen(), Updates: m.GetUpdate(), Notifications: m.GetNotification(),
		Keepalives: m.GetKeepalive(), RouteRefreshes: m.GetRefresh(), Total: m.GetTotal(),
	}
}
