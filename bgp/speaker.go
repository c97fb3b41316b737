// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"context"
	"net/netip"
	"time"
)

// State is a state of BGP's finite state machine (RFC 4271 §8.2.2).
type State string

// The states, spelled as frr-k8s' BGPSessionState spells them.
const (
	Idle        State = "Idle"
	Connect     State = "Connect"
	Active      State = "Active"
	OpenSent    State = "OpenSent"
	OpenConfirm State = "OpenConfirm"
	Established State = "Established"
)

// Session is what is known of one session.
type Session struct {
	VRF   string
	Peer  netip.Addr
	State State
	// GracefulRestart is true when both sides announced graceful restart in the session that is
	// established, or was last: the peer keeps the routes of all families in use for RestartTime
	// when the speaker goes away without a word.
	GracefulRestart bool
	// BFD is the state of the BFD session that watches the path.
	BFD BFDState
	// LastError is the newest error since the session was last established, empty when it is.
	LastError string
	// Since is the time of the last change of State.
	Since time.Time
}

// BFDState is what is known of a session's BFD.
type BFDState string

// The states of BFD. Up and Down are spelled as frr-k8s' BGPSessionState spells them.
const (
	// NoBFD is that of sessions that want none.
	NoBFD   BFDState = ""
	BFDUp   BFDState = "Up"
	BFDDown BFDState = "Down"
	// BFDSuspended is that of a session that BFD has ended again and again: it is switched off for
	// some minutes.
	BFDSuspended BFDState = "Suspended"
)

// Counters are one session's: messages, packets and events since its settings were last changed,
// and the prefixes of now.
type Counters struct {
	VRF            string
	Peer           netip.Addr
	Sent, Received Messages
	// AnnouncedPrefixes are those that the peer is given, ReceivedPrefixes those that it gives. None
	// of the latter is used.
	AnnouncedPrefixes, ReceivedPrefixes uint64
	// BFDPacketsSent and BFDPacketsReceived are control packets.
	BFDPacketsSent, BFDPacketsReceived uint64
	// BFDUps and BFDDowns count how often BFD came up and went down.
	BFDUps, BFDDowns uint64
}

// Messages counts BGP messages by type. Total has all of them.
type Messages struct {
	Opens, Updates, Notifications, Keepalives, RouteRefreshes, Total uint64
}

// StopMode says what the peers are told when the speaker stops.
type StopMode int

const (
	// Withdraw ends every session with a Cease notification: peers drop the routes at once.
	Withdraw StopMode = iota
	// Keep closes the connections without a notification: peers that negotiated graceful restart
	// keep the routes for RestartTime, so that another speaker can take over.
	Keep
)

// RestartTime is the Restart Time of RFC 4724 §3 that a Speaker announces: so long a peer keeps
// the routes of a speaker that went away without a word.
const RestartTime = 30 * time.Second

// Speaker makes a Config real. One owner calls Apply and Stop; the other methods may be called at
// any time from anywhere.
type Speaker interface {
	// Apply converges sessions and routes on want. It is idempotent, and calls nothing when want is
	// what was applied before. On an error everything that could be done is done and the error
	// names the rest, which the next Apply tries again.
	Apply(ctx context.Context, want Config) error

	// Sessions lists the sessions, ordered by VRF and peer.
	Sessions() []Session

	// Counters lists the sessions' counters, ordered by VRF and peer.
	Counters(ctx context.Context) []Counters

	// Announced says whether the route to p is in the speaker's hands and some session that
	// carries it is established.
	Announced(p netip.Prefix) bool

	// Changed has a value in it after a session changed its state or its last error. Several
	// changes can make one value: read Sessions to see what holds.
	Changed() <-chan struct{}

	// Stop ends all sessions as mode says. Apply fails from then on. An error means that ctx
	// ended before the sessions did.
	Stop(ctx context.Context, mode StopMode) error
}
