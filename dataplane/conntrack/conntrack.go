// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// dumpAttempts is how often a dump that the kernel interrupted is repeated.
const dumpAttempts = 5

// Cleaner deletes connection tracking entries in one network namespace.
type Cleaner struct {
	handle *netlink.Handle
}

// New opens a netlink socket in the network namespace of the calling thread.
func New() (*Cleaner, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack: netlink: %w", err)
	}
	return &Cleaner{handle: handle}, nil
}

// Close closes the socket.
func (c *Cleaner) Close() { c.handle.Close() }

// End deletes the entries of the connections that each pair's pod opened and that carry the
// pair's source, and returns their number. It reads the whole table once per family.
func (c *Cleaner) End(pairs []dataplane.Translation) (uint, error) {
	byFamily := map[netlink.InetFamily]ended{}
	for _, p := range pairs {
		family := netlink.InetFamily(unix.AF_INET)
		if p.Pod.Is6() {
			family = unix.AF_INET6
		}
		if byFamily[family] == nil {
			byFamily[family] = ended{}
		}
		byFamily[family][p] = true
	}
	var total uint
	for family, filter := range byFamily {
		n, err := c.end(family, filter)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (c *Cleaner) end(family netlink.InetFamily, filter ended) (uint, error) {
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
	return e[dataplane.Translation{Pod: address(flow.Forward.SrcIP), Source: address(flow.Reverse.DstIP)}]
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
