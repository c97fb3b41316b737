// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// dumpAttempts is how often a dump that the kernel interrupted is repeated.
const dumpAttempts = 5

// Cleaner deletes and changes connection tracking entries in one network namespace.
type Cleaner struct {
	handle *netlink.Handle
	// socket is for what the library has no call for.
	socket *nl.NetlinkSocket
}

// New opens netlink sockets in the network namespace of the calling thread.
func New() (*Cleaner, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack: netlink: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("conntrack: netlink: %w", err)
	}
	return &Cleaner{handle, socket}, nil
}

// Close closes the sockets.
func (c *Cleaner) Close() {
	c.handle.Close()
	c.socket.Close()
}

// End deletes the entries of the connections that each pair's pod opened and that carry the pair's
// source, and returns their number. A pair whose pod is the unspecified address means all pods. It
// reads the whole table once per family.
func (c *Cleaner) End(pairs []dataplane.Translation) (uint, error) {
	byFamily := map[netlink.InetFamily]ended{}
	for _, p := range pairs {
		family := familyOf(p.Source)
		if byFamily[family] == nil {
			byFamily[family] = ended{}
		}
		byFamily[family][p] = true
	}
	return deleteAll(c, byFamily)
}

// EndStrays deletes the entries of what came to these addresses and nobody has sent on to a pod,
// and returns their number. Such an entry of a time before the address was guarded would take the
// ports of a connection that a pod opens.
func (c *Cleaner) EndStrays(addresses []netip.Addr) (uint, error) {
	byFamily := map[netlink.InetFamily]strays{}
	for _, a := range addresses {
		family := familyOf(a)
		if byFamily[family] == nil {
			byFamily[family] = strays{}
		}
		byFamily[family][a] = true
	}
	return deleteAll(c, byFamily)
}

func familyOf(a netip.Addr) netlink.InetFamily {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func deleteAll[F netlink.CustomConntrackFilter](c *Cleaner, byFamily map[netlink.InetFamily]F) (uint, error) {
	var total uint
	for family, filter := range byFamily {
		n, err := c.delete(family, filter)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (c *Cleaner) delete(family netlink.InetFamily, filter netlink.CustomConntrackFilter) (uint, error) {
	var total uint
	for attempt := 1; ; attempt++ {
		n, err := c.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		total += n
		// An interrupted dump has missed entries.
		if errors.Is(err, netlink.ErrDumpInterrupted) && attempt < dumpAttempts {
			continue
		}
		if err != nil {
			return total, fmt.Errorf("conntrack: %w", err)
		}
		return total, nil
	}
}

// ended are the pairs whose connections are over.
type ended map[dataplane.Translation]bool

// MatchConntrackFlow is for netlink: a pod's connection has the pod as its original source, and
// replies to it go to the source that it was given.
func (e ended) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	pod, source := address(flow.Forward.SrcIP), address(flow.Reverse.DstIP)
	if pod == source || flow.Zone != 0 {
		return false // not translated, or Open vSwitch's
	}
	everyPod := netip.IPv4Unspecified()
	if source.Is6() {
		everyPod = netip.IPv6Unspecified()
	}
	return e[dataplane.Translation{Pod: pod, Source: source}] || e[dataplane.Translation{Pod: everyPod, Source: source}]
}

// strays are addresses that nobody has sent packets on from.
type strays map[netip.Addr]bool

// MatchConntrackFlow is for netlink: replies come from where the first packet went.
func (s strays) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to := address(flow.Forward.DstIP)
	return s[to] && address(flow.Reverse.SrcIP) == to && flow.Zone == 0
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
