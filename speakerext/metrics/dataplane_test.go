// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

const always = `
# HELP egress_speaker_conntrack_entries_ended_total Connection tracking entries that were deleted.
# TYPE egress_speaker_conntrack_entries_ended_total counter
egress_speaker_conntrack_entries_ended_total 1
# HELP egress_speaker_database_connected Whether the database is connected (1) or not (0).
# TYPE egress_speaker_database_connected gauge
egress_speaker_database_connected{database="northbound"} 1
egress_speaker_database_connected{database="openvswitch"} 0
# HELP egress_speaker_dataplane_drift_total How often something of ours was found changed by somebody else, and repaired.
# TYPE egress_speaker_dataplane_drift_total counter
egress_speaker_dataplane_drift_total{part="nftables"} 2
egress_speaker_dataplane_drift_total{part="ovn"} 3
`

func TestDataplane(t *testing.T) {
	ours := dataplane.Counters{ConnectionsEnded: 1, DriftNFTables: 2, DriftOVN: 3, NorthboundConnected: true}
	all := ours
	all.HostCounters = dataplane.HostCounters{
		Translated: map[string]dataplane.Count{"ns/a": {Packets: 4, Bytes: 5}},
		Held:       map[string]dataplane.Count{"ns/b": {Packets: 6, Bytes: 7}},
		Strays:     dataplane.Count{Packets: 8, Bytes: 9},
		Guarded:    map[string]dataplane.Count{"closed": {Packets: 10, Bytes: 11}},
	}
	const host = `
# HELP egress_speaker_guard_dropped_packets_total Packets from outside to a LoadBalancer IP that were dropped, because no Service has the port (closed), TCP did not begin there (midstream), or they belong to no connection (invalid).
# TYPE egress_speaker_guard_dropped_packets_total counter
egress_speaker_guard_dropped_packets_total{reason="closed"} 10
# HELP egress_speaker_stray_packets_total Packets of pods that were dropped because they would have left the cluster untranslated.
# TYPE egress_speaker_stray_packets_total counter
egress_speaker_stray_packets_total 8
`
	const services = `
# HELP egress_speaker_held_packets_total Packets of the service's pods to the outside that were dropped, because no node could give them the LoadBalancer IP.
# TYPE egress_speaker_held_packets_total counter
egress_speaker_held_packets_total{namespace="ns",service="b"} 6
# HELP egress_speaker_translated_bytes_total Bytes of egress_speaker_translated_packets_total, with IP headers.
# TYPE egress_speaker_translated_bytes_total counter
egress_speaker_translated_bytes_total{namespace="ns",service="a"} 5
# HELP egress_speaker_translated_packets_total Packets that left with the service's LoadBalancer IP, of connections that its pods opened.
# TYPE egress_speaker_translated_packets_total counter
egress_speaker_translated_packets_total{namespace="ns",service="a"} 4
`
	const errorsHelp = `
# HELP egress_speaker_dataplane_counter_errors_total How often the counters could not be read.
# TYPE egress_speaker_dataplane_counter_errors_total counter
`
	tests := []struct {
		name       string
		perService bool
		counters   dataplane.Counters
		err        error
		want       string
	}{
		{"all", true, all, nil, always + host + services + errorsHelp + "egress_speaker_dataplane_counter_errors_total 0\n"},
		{"without services", false, all, nil, always + host + errorsHelp + "egress_speaker_dataplane_counter_errors_total 0\n"},
		{"nftables can't be read", true, ours, errors.New("broken"), always + errorsHelp + "egress_speaker_dataplane_counter_errors_total 1\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := NewDataplane(func(context.Context) (dataplane.Counters, error) { return test.counters, test.err }, test.perService)
			if err := testutil.CollectAndCompare(d, strings.NewReader(test.want)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSyncDuration(t *testing.T) {
	d := NewDataplane(func(context.Context) (dataplane.Counters, error) { return dataplane.Counters{}, nil }, true)
	d.Observe(3*time.Millisecond, nil)
	d.Observe(time.Second, errors.New("broken"))
	if n := testutil.CollectAndCount(d, "egress_speaker_dataplane_sync_duration_seconds"); n != 2 {
		t.Errorf("%d series, want one per result", n)
	}
}
