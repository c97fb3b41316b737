// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// BenchmarkCompute plans the primary of one service with many endpoints, and of many services.
func BenchmarkCompute(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{1, 10}, {1, 1000}, {1, 10_000}, {1000, 10}} {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			in := cluster()
			in.Node = "n1"
			for i := range size.services {
				s := dataplane.Service{
					Key: fmt.Sprintf("ns/s%d", i), Role: dataplane.RolePrimary, Primary: "n1", Standby: "n2", Epoch: 1,
					SourceIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 19, byte(i >> 8), byte(i)})},
				}
				for k := range size.endpoints {
					n := i*size.endpoints + k
					s.Endpoints = append(s.Endpoints, dataplane.Endpoint{Node: "n2", Address: netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)})})
				}
				in.Services = append(in.Services, s)
				in.Guards = append(in.Guards, dataplane.Guard{Address: s.SourceIPs[0], Service: s.Key, Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}}})
			}
			b.ReportAllocs()
			for b.Loop() {
				dataplane.Compute(in)
			}
		})
	}
}
