// SPDX-License-Identifier: Apache-2.0

// Package metrics shows a node's BGP sessions to Prometheus, by the names and labels that users of
// frr-k8s have, so that their dashboards and alerts go on working. It must not import client-go.
package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// collectTimeout bounds one scrape.
const collectTimeout = 5 * time.Second

// defaultVRF is frr-k8s' name of it.
const defaultVRF = "default"

// Collector is a prometheus.Collector. Make it with New.
type Collector struct {
	speaker  bgp.Speaker
	findings func() map[types.NamespacedName]int
}

// New makes a collector of the speaker's sessions, and of what findings returns: how many problems
// each FRRConfiguration has on this node.
func New(speaker bgp.Speaker, findings func() map[types.NamespacedName]int) *Collector {
	return &Collector{speaker, findings}
}

// metric is one value per session.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(bgp.Session, bgp.Counters) uint64
}

func perSession(name, help string, kind prometheus.ValueType, value func(bgp.Session, bgp.Counters) uint64) metric {
	return metric{prometheus.NewDesc(name, help, []string{"peer", "vrf"}, nil), kind, value}
}

func gauge(name, help string, value func(bgp.Session, bgp.Counters) uint64) metric {
	return perSession(name, help, prometheus.GaugeValue, value)
}

func counter(name, help string, value func(bgp.Counters) uint64) metric {
	return perSession(name, help, prometheus.CounterValue, func(_ bgp.Session, c bgp.Counters) uint64 { return value(c) })
}

func oneIf(condition bool) uint64 {
	if condition {
		return 1
	}
	return 0
}

// The names without a unit or "_total", and gauges with one, are frr-k8s'.
var (
	bgpMetrics = []metric{
		gauge("frrk8s_bgp_session_up", "BGP session state (1 is up, 0 is down).", func(s bgp.Session, _ bgp.Counters) uint64 { return oneIf(s.State == bgp.Established) }),
		gauge("frrk8s_bgp_announced_prefixes_total", "Prefixes that the peer is given now.", func(_ bgp.Session, c bgp.Counters) uint64 { return c.AnnouncedPrefixes }),
		gauge("frrk8s_bgp_received_prefixes_total", "Prefixes that the peer gives now; none is used.", func(_ bgp.Session, c bgp.Counters) uint64 { return c.ReceivedPrefixes }),
		counter("frrk8s_bgp_opens_sent", "BGP OPEN messages sent.", func(c bgp.Counters) uint64 { return c.Sent.Opens }),
		counter("frrk8s_bgp_opens_received", "BGP OPEN messages received.", func(c bgp.Counters) uint64 { return c.Received.Opens }),
		counter("frrk8s_bgp_notifications_sent", "BGP NOTIFICATION messages sent.", func(c bgp.Counters) uint64 { return c.Sent.Notifications }),
		counter("frrk8s_bgp_updates_total", "BGP UPDATE messages sent.", func(c bgp.Counters) uint64 { return c.Sent.Updates }),
		counter("frrk8s_bgp_updates_total_received", "BGP UPDATE messages received.", func(c bgp.Counters) uint64 { return c.Received.Updates }),
		counter("frrk8s_bgp_keepalives_sent", "BGP KEEPALIVE messages sent.", func(c bgp.Counters) uint64 { return c.Sent.Keepalives }),
		counter("frrk8s_bgp_keepalives_received", "BGP KEEPALIVE messages received.", func(c bgp.Counters) uint64 { return c.Received.Keepalives }),
		counter("frrk8s_bgp_route_refresh_sent", "BGP ROUTE-REFRESH messages sent.", func(c bgp.Counters) uint64 { return c.Sent.RouteRefreshes }),
		counter("frrk8s_bgp_total_sent", "BGP messages sent.", func(c bgp.Counters) uint64 { return c.Sent.Total }),
		counter("frrk8s_bgp_total_received", "BGP messages received.", func(c bgp.Counters) uint64 { return c.Received.Total }),
	}
	bfdMetrics = []metric{
		gauge("frrk8s_bfd_session_up", "BFD session state (1 is up, 0 is down).", func(s bgp.Session, _ bgp.Counters) uint64 { return oneIf(s.BFD == bgp.BFDUp) }),
		counter("frrk8s_bfd_control_packet_input", "BFD control packets received.", func(c bgp.Counters) uint64 { return c.BFDPacketsReceived }),
		counter("frrk8s_bfd_control_packet_output", "BFD control packets sent.", func(c bgp.Counters) uint64 { return c.BFDPacketsSent }),
		counter("frrk8s_bfd_session_up_events", "How often BFD came up.", func(c bgp.Counters) uint64 { return c.BFDUps }),
		counter("frrk8s_bfd_session_down_events", "How often BFD went down.", func(c bgp.Counters) uint64 { return c.BFDDowns }),
	}
	findingsDesc = prometheus.NewDesc("egress_speaker_frrconfiguration_problems",
		"What of an FRRConfiguration this node does not honor; none: no series.", []string{"namespace", "name"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, list := range [][]metric{bgpMetrics, bfdMetrics} {
		for _, m := range list {
			out <- m.desc
		}
	}
	out <- findingsDesc
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	type key struct{ vrf, peer string }
	counters := map[key]bgp.Counters{}
	for _, c := range c.speaker.Counters(ctx) {
		counters[key{c.VRF, c.Peer.String()}] = c
	}
	for _, session := range c.speaker.Sessions() {
		peer, vrf := session.Peer.String(), session.VRF
		list := bgpMetrics
		if session.BFD != bgp.NoBFD {
			list = append(list[:len(list):len(list)], bfdMetrics...)
		}
		counted := counters[key{vrf, peer}]
		if vrf == "" {
			vrf = defaultVRF
		}
		for _, m := range list {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(session, counted)), peer, vrf)
		}
	}
	for object, count := range c.findings() {
		out <- prometheus.MustNewConstMetric(findingsDesc, prometheus.GaugeValue, float64(count), object.Namespace, object.Name)
	}
}
