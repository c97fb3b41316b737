// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"net/netip"
	"time"
)

// Config is what all FRRConfigurations of one node come to: routers ordered by VRF, neighbors by
// address, routes by prefix, communities by value, none of them twice. Two Configs that mean the
// same are equal by reflect.DeepEqual.
type Config struct {
	Routers []Router
}

// Router is one BGP router: the sessions of one VRF.
type Router struct {
	// VRF is the VRF device's name; empty for the default VRF.
	VRF string
	// ASN is the local AS number, never 0.
	ASN uint32
	// ID is the BGP identifier (RFC 4271 §4.2): an IPv4 address, always set.
	ID        netip.Addr
	Neighbors []Neighbor
}

// Neighbor is one session and the routes that it is given.
type Neighbor struct {
	// Address is the peer's, without zone and never IPv4-mapped.
	Address netip.Addr
	// Port is the peer's TCP port, never 0.
	Port uint16
	// ASN is the peer's AS number; 0 stands for any but the router's own.
	ASN uint32
	// LocalASN replaces the router's ASN on this session, alone in the AS path; 0 when unset.
	LocalASN uint32
	// Source is the local address of the session; the zero Addr leaves the choice to the kernel.
	Source netip.Addr
	// HoldTime, KeepaliveTime and ConnectTime are whole seconds (RFC 4271 §10).
	HoldTime, KeepaliveTime, ConnectTime time.Duration
	// EBGPMultiHop lifts the TTL of 1 that eBGP sessions have.
	EBGPMultiHop bool
	// GracefulRestart negotiates RFC 4724 for every family of the session.
	GracefulRestart bool
	// BFD watches the session's path; the zero BFD doesn't.
	BFD BFD
	// Password is the TCP MD5 key (RFC 2385), empty for none. It is never logged.
	Password string
	// Families are those the session negotiates.
	Families Families
	Routes   []Route
}

// BFD are the parameters of an asynchronous single-hop session (RFC 5880, RFC 5881). All of them are
// above 0, or all 0.
type BFD struct {
	// ReceiveInterval and TransmitInterval are the smallest that this end can take and wants to
	// send at.
	ReceiveInterval, TransmitInterval time.Duration
	// Multiplier is how many packets in a row have to be missing for the path to be down.
	Multiplier uint8
}

// Families says which unicast address families a session carries.
type Families struct {
	IPv4, IPv6 bool
}

// Has says whether the family of p is among f.
func (f Families) Has(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return f.IPv4
	}
	return f.IPv6
}

// Route is one prefix and the attributes it has at one neighbor.
type Route struct {
	// Prefix is masked and never IPv4-mapped.
	Prefix netip.Prefix
	// LocalPref is LOCAL_PREF, which only iBGP peers see; nil leaves BGP's default of 100.
	LocalPref        *uint32
	Communities      []Community
	LargeCommunities []LargeCommunity
	// Prepend is how often the session's AS number is in the AS path beside the once that every
	// external peer sees.
	Prepend uint8
	// NextHop is the zero Addr for the session's own local address.
	NextHop netip.Addr
}

// Offers says whether some neighbor is given the host route of a.
func (c Config) Offers(a netip.Addr) bool {
	for _, router := range c.Routers {
		for _, neighbor := range router.Neighbors {
			for _, route := range neighbor.Routes {
				if host, ok := hostAddress(route.Prefix); ok && host == a.Unmap() {
					return true
				}
			}
		}
	}
	return false
}

// hostAddress is the address of a /32 or /128, unmapped so that both spellings of an IPv4 address
// are the same one.
func hostAddress(p netip.Prefix) (netip.Addr, bool) {
	return p.Addr().Unmap(), p.IsValid() && p.IsSingleIP()
}
