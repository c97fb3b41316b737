// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
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
}

// carries is false on a nil session.
func (s *session) carries(p netip.Prefix) bool {
	return s != nil && s.state == bgp.Established && s.families.Has(p)
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
	before := s.state
	s.state, s.since = state, at
	if state == bgp.Established {
		s.lastError = ""
		s.families = announcedFamilies(event.RemoteCap)
		s.gracefulRestart = keepsRoutes(event.LocalCap, event.RemoteCap)
	} else if reason := disconnectReason(before, event); reason != "" {
		s.lastError = reason
	}
	lastError := s.lastError
	i.mu.Unlock()

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
	i.mu.Lock()
	defer i.mu.Unlock()
	list := make([]bgp.Session, 0, len(i.sessions))
	for address, s := range i.sessions {
		list = append(list, bgp.Session{
			VRF: i.key.vrf, Peer: address, State: s.state, GracefulRestart: s.gracefulRestart, LastError: s.lastError, Since: s.since,
		})
	}
	slices.SortFunc(list, func(a, b bgp.Session) int { return a.Peer.Compare(b.Peer) })
	return list
}
