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
	filter := ended{pair("10.244.1.5", "172.19.0.100"): true, pair("fd00:10:244:1::5", "fd00:19::100"): true}
	tests := []struct {
		name                                       string
		source, destination, replySource, replyDst string
		want                                       bool
	}{
		{"opened by the pod, translated", "10.244.1.5", "198.51.100.7", "198.51.100.7", "172.19.0.100", true},
		{"the same in IPv6", "fd00:10:244:1::5", "2001:db8::7", "2001:db8::7", "fd00:19::100", true},
		{"translated to another address", "10.244.1.5", "198.51.100.7", "198.51.100.7", "172.18.0.11", false},
		{"not translated", "10.244.1.5", "10.244.2.6", "10.244.2.6", "10.244.1.5", false},
		{"of another pod", "10.244.1.6", "198.51.100.7", "198.51.100.7", "172.19.0.100", false},
		{"opened from outside to the pod", "198.51.100.7", "172.19.0.100", "10.244.1.5", "198.51.100.7", false},
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
		})
	}
}
