// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// Dataplane is a prometheus.Collector of what a node's dataplane does and has counted. Make it with
// NewDataplane.
type Dataplane struct {
	counters   func(context.Context) (dataplane.Counters, error)
	perService bool
	syncs      *prometheus.HistogramVec
	errors     prometheus.Counter
}

// NewDataplane makes a collector of these counters. perService includes the series of each service:
// three, on nodes that it has a role or endpoints on.
func NewDataplane(counters func(context.Context) (dataplane.Counters, error), perService bool) *Dataplane {
	return &Dataplane{
		counters: counters, perService: perService,
		syncs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "egress_speaker_dataplane_sync_duration_seconds", Help: "How long it took to bring the node to what is wanted, by whether that succeeded.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"result"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_speaker_dataplane_counter_errors_total", Help: "How often the counters could not be read.",
		}),
	}
}

// Observe counts one sync.
func (d *Dataplane) Observe(took time.Duration, err error) {
	result := "success"
	if err != nil {
		result = "error"
	}
	d.syncs.WithLabelValues(result).Observe(took.Seconds())
}

var (
	translatedPackets = perServiceDesc("egress_speaker_translated_packets_total", "Packets that left with the service's LoadBalancer IP, of connections that its pods opened.")
	translatedBytes   = perServiceDesc("egress_speaker_translated_bytes_total", "Bytes of egress_speaker_translated_packets_total, with IP headers.")
	heldPackets       = perServiceDesc("egress_speaker_held_packets_total", "Packets of the service's pods to the outside that were dropped, because no node could give them the LoadBalancer IP.")
	strayPackets      = prometheus.NewDesc("egress_speaker_stray_packets_total", "Packets of pods that were dropped because they would have left the cluster untranslated.", nil, nil)
	guardedPackets    = prometheus.NewDesc("egress_speaker_guard_dropped_packets_total", "Packets from outside to a LoadBalancer IP that were dropped, because no Service has the port (closed), TCP did not begin there (midstream), or they belong to no connection (invalid).", []string{"reason"}, nil)
	endedConnections  = prometheus.NewDesc("egress_speaker_conntrack_entries_ended_total", "Connection tracking entries that were deleted.", nil, nil)
	driftFound        = prometheus.NewDesc("egress_speaker_dataplane_drift_total", "How often something of ours was found changed by somebody else, and repaired.", []string{"part"}, nil)
	databaseConnected = prometheus.NewDesc("egress_speaker_database_connected", "Whether the database is connected (1) or not (0).", []string{"database"}, nil)
)

func perServiceDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"namespace", "service"}, nil)
}

// Describe implements prometheus.Collector.
func (d *Dataplane) Describe(out chan<- *prometheus.Desc) {
	d.syncs.Describe(out)
	d.errors.Describe(out)
	for _, desc := range []*prometheus.Desc{
		translatedPackets, translatedBytes, heldPackets, strayPackets, guardedPackets, endedConnections, driftFound, databaseConnected,
	} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (d *Dataplane) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	// What the program itself has counted is there also when the rest can't be read.
	counted, err := d.counters(ctx)
	if err != nil {
		d.errors.Inc()
	}
	d.syncs.Collect(out)
	d.errors.Collect(out)
	count := func(desc *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	count(endedConnections, counted.ConnectionsEnded)
	count(driftFound, counted.DriftNFTables, "nftables")
	count(driftFound, counted.DriftOVN, "ovn")
	for database, connected := range map[string]bool{"northbound": counted.NorthboundConnected, "openvswitch": counted.OpenvSwitchConnected} {
		out <- prometheus.MustNewConstMetric(databaseConnected, prometheus.GaugeValue, float64(oneIf(connected)), database)
	}
	if err != nil {
		return
	}
	count(strayPackets, counted.Strays.Packets)
	for reason, c := range counted.Guarded {
		count(guardedPackets, c.Packets, reason)
	}
	if !d.perService {
		return
	}
	for key, c := range counted.Translated {
		namespace, name, _ := strings.Cut(key, "/")
		count(translatedPackets, c.Packets, namespace, name)
		count(translatedBytes, c.Bytes, namespace, name)
	}
	for key, c := range counted.Held {
		namespace, name, _ := strings.Cut(key, "/")
		count(heldPackets, c.Packets, namespace, name)
	}
}
