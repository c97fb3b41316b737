// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Connection is an entry of connection tracking.
type Connection struct {
	Protocol uint8
	// Source and Destination are those of the first packet as it came, ReplySource and
	// ReplyDestination those that an answer is known by.
	Source, Destination, ReplySource, ReplyDestination netip.AddrPort
}

// Connections are the namespace's entries of both families that match.
func (n *Namespace) Connections(t *testing.T, match func(Connection) bool) []Connection {
	t.Helper()
	var list []Connection
	n.Do(t, func() {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				t.Errorf("list connections: %v", err)
			}
			for _, f := range flows {
				c := Connection{Protocol: f.Forward.Protocol}
				c.Source, c.Destination = endpoints(f.Forward)
				c.ReplySource, c.ReplyDestination = endpoints(f.Reverse)
				if match(c) {
					list = append(list, c)
				}
			}
		}
	})
	return list
}

func endpoints(tuple netlink.IPTuple) (source, destination netip.AddrPort) {
	at := func(ip net.IP, port uint16) netip.AddrPort {
		a, _ := netip.AddrFromSlice(ip)
		return netip.AddrPortFrom(a.Unmap(), port)
	}
	return at(tuple.SrcIP, tuple.SrcPort), at(tuple.DstIP, tuple.DstPort)
}
