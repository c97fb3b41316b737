// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/go-kit/log"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// BenchmarkOneChange is this speaker's own share of an announcement: from an event until the UPDATE
// has arrived at peers on the loopback device, with so many prefixes announced already. The event is
// a prefix that an FRRConfiguration of MetalLB's shape gets or loses at all peers ("prefix") or at
// one of them ("gate"), or the guard that opens or closes for one ("guard"). Reading the object from
// the API server is not in it.
func BenchmarkOneChange(b *testing.B) {
	for _, size := range []int{1, 100, 1_000, 10_000} {
		for _, peers := range []int{1, 4, 16} {
			for _, event := range []string{"prefix", "gate", "guard"} {
				b.Run(fmt.Sprintf("prefixes=%d/peers=%d/event=%s", size, peers, event), func(b *testing.B) { oneChange(b, size, peers, event) })
			}
		}
	}
}

func oneChange(b *testing.B, size, peers int, event string) {
	speaker := New(log.NewNopLogger(), Options{})
	defer func() { _ = speaker.Stop(b.Context(), bgp.Withdraw) }()
	var sinks []*sink
	for k := range peers {
		sinks = append(sinks, newSink(b, fmt.Sprintf("127.0.2.%d", 1+k), 64512))
	}
	texts := make([]string, size)
	for k, r := range manyRoutes(size) {
		texts[k] = r.Prefix.String()
	}
	changing := netip.MustParseAddr("203.0.113.1")
	all := append(slices.Clone(texts), "203.0.113.1/32")
	with, without := metallbObject(sinks, all), metallbObject(sinks, texts)
	if event == "gate" {
		without = metallbObject(sinks, all)
		without[0].Spec.BGP.Routers[0].Neighbors[0].ToAdvertise.Allowed.Prefixes = texts
	}
	with[0].ResourceVersion = "2"
	var merger bgp.Merger
	sync := func(on bool) {
		objects, guard := with, bgp.Guard{}
		if event == "guard" {
			guard.Egress = map[netip.Addr]bool{changing: on}
		} else if !on {
			objects = without
		}
		config, problems := merger.Merge(bgp.NodeView{Name: "n1"}, objects, nil)
		if len(problems) > 0 {
			b.Fatal(problems)
		}
		allowed, _ := guard.Filter(config)
		if err := speaker.Apply(b.Context(), allowed); err != nil {
			b.Fatal(err)
		}
	}
	sync(false)
	for k, s := range sinks {
		want := size
		if event == "gate" && k > 0 {
			want++
		}
		s.until("all prefixes", func() bool { return len(s.table) == want })
	}
	concerned := sinks
	if event == "gate" {
		concerned = sinks[:1]
	}
	var took []time.Duration
	on := false
	for b.Loop() {
		on = !on
		begin := time.Now()
		sync(on)
		for _, s := range concerned {
			s.until("the change", func() bool { return (s.table["203.0.113.1/32"] != "") == on })
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// metallbObject is what stock MetalLB writes.
func metallbObject(sinks []*sink, prefixes []string) []bgp.FRRConfiguration {
	router := frrk8sv1beta1.Router{ASN: ownASN, ID: "192.0.2.11", Prefixes: prefixes}
	for _, s := range sinks {
		router.Neighbors = append(router.Neighbors, frrk8sv1beta1.Neighbor{
			Address: s.address.String(), Port: &s.port, ASN: s.asn,
			ToAdvertise: frrk8sv1beta1.Advertise{Allowed: frrk8sv1beta1.AllowedOutPrefixes{Prefixes: prefixes, Mode: frrk8sv1beta1.AllowRestricted}},
		})
	}
	object := bgp.FRRConfiguration{FRRConfiguration: frrk8sv1beta1.FRRConfiguration{Spec: frrk8sv1beta1.FRRConfigurationSpec{BGP: frrk8sv1beta1.BGPConfig{Routers: []frrk8sv1beta1.Router{router}}}}}
	object.Namespace, object.Name = "metallb-system", "metallb-n1"
	return []bgp.FRRConfiguration{object}
}
