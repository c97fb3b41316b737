// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package apply

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func conntrackEntries(t *testing.T, src netip.Addr) []string {
	family := netlink.InetFamily(unix.AF_INET)
	if src.Is6() {
		family = unix.AF_INET6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		t.Errorf("list conntrack: %v", err)
	}
	var list []string
	for _, f := range flows {
		if f.Forward.SrcIP.String() == src.String() {
			list = append(list, f.Forward.SrcIP.String()+" > "+f.Reverse.DstIP.String())
		}
	}
	slices.Sort(list)
	return list
}

func unique(list []string) []string { return slices.Compact(list) }
