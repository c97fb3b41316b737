// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

func TestMatch(t *testing.T) {
	pair := func(pod, source string) dataplane.Translation {
		return dataplane.Translation{Pod: netip.MustParseAddr(pod), Source: netip.MustParseAddr(source)}
	}
	filter := ended{
		pair("10.244.1.5", "172.19.0.100"): true, pair("fd00:10:244:1::5", "fd00:19::100"): true,
		pair("0.0.0.0", "172.19.0.200"): true, pair("::", "fd00:19::200"): true,
	}
	strays := strays{netip.MustParseAddr("172.19.0.100"): true}
	tests := []struct {
		name                                       string
		source, destination, replySource, replyDst string
		want, stray                                bool
	}{
		{"opened by the pod, translated", "10.244.1.5", "198.51.100.7", "198.51.100.7", "172.19.0.100", true, false},
		{"the same in IPv6", "fd00:10:244:1::5", "2001:db8::7", "2001:db8::7", "fd00:19::100", true, false},
		{"translated to another address", "10.244.1.5", "198.51.100.7", "198.51.100.7", "172.18.0.11", false, false},
		{"not translated", "10.244.1.5", "10.244.2.6", "10.244.2.6", "10.244.1.5", false, false},
		{"of another pod", "10.244.1.6", "198.51.100.7", "198.51.100.7", "172.19.0.100", false, false},
		{"of any pod", "10.244.1.6", "198.51.100.7", "198.51.100.7", "172.19.0.200", true, false},
		{"of any pod in IPv6", "fd00:10:244:1::6", "2001:db8::7", "2001:db8::7", "fd00:19::200", true, false},
		{"of the address itself", "172.19.0.200", "198.51.100.7", "198.51.100.7", "172.19.0.200", false, false},
		{"from outside, sent on to nobody", "198.51.100.7", "172.19.0.100", "172.19.0.100", "198.51.100.7", false, true},
		{"from outside to another address", "198.51.100.7", "172.19.0.101", "172.19.0.101", "198.51.100.7", false, false},
		{"opened from outside to the pod", "198.51.100.7", "172.19.0.100", "10.244.1.5", "198.51.100.7", false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			flow := &netlink.ConntrackFlow{
				Forward: netlink.IPTuple{SrcIP: net.ParseIP(test.source), DstIP: net.ParseIP(test.destination)},
				Reverse: netlink.IPTuple{SrcIP: net.ParseIP(test.replySource), DstIP: net.ParseIP(test.replyDst)},
			}
			if got := filter.MatchConntrackFlow(flow); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
			if got := strays.MatchConntrackFlow(flow); got != test.stray {
				t.Errorf("stray %v, want %v", got, test.stray)
			}
		})
	}
}
