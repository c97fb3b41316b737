// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// buckets, in seconds, resolve what is waited for: a promotion of a standby takes some tenths of a
// second, the silence of a speaker 10 s or 30 s, BGP's hold time up to 90 s.
var buckets = []float64{0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 60}

// Metrics is a prometheus.Collector. A nil *Metrics can be used and does nothing. Its methods may be
// called from several goroutines.
type Metrics struct {
	perService bool
	snapshot   atomic.Pointer[Snapshot]

	failoverDuration *prometheus.HistogramVec
	failovers        *prometheus.CounterVec
	gateWait         *prometheus.HistogramVec
	errors           *prometheus.CounterVec
}

// New makes metrics that have counted nothing. With perService, each EgressService has series of its own.
func New(perService bool) *Metrics {
	return &Metrics{
		perService: perService,
		failoverDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "egress_service_failover_duration_seconds", Buckets: buckets,
			Help: "From when another primary is first wanted for an EgressService until it announces, per cause.",
		}, []string{"cause"}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_service_failovers_total",
			Help: "Completed moves of an EgressService from one primary to another, per cause.",
		}, []string{"cause"}),
		gateWait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "egress_service_gate_wait_seconds", Buckets: buckets,
			Help: "What a new primary was waited for, first assignments included: dataplane, until it is promoted; announce, from then until it announces.",
		}, []string{"phase"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_service_reconcile_errors_total",
			Help: "Writes to the API server that failed, per what was to be written.",
		}, []string{"controller", "reason"}),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(registry prometheus.Registerer) error { return registry.Register(m) }

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	if m == nil {
		return
	}
	m.describeSnapshot(out)
	for _, c := range m.counted() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	if m == nil {
		return
	}
	m.collectSnapshot(out)
	for _, c := range m.counted() {
		c.Collect(out)
	}
}

func (m *Metrics) counted() []prometheus.Collector {
	return []prometheus.Collector{m.failoverDuration, m.failovers, m.gateWait, m.errors}
}

// Set replaces what the gauges show. The snapshot and what it points to must not be changed any more.
func (m *Metrics) Set(s Snapshot) {
	if m == nil {
		return
	}
	m.snapshot.Store(&s)
}

// Moved counts a move that is complete: the new primary announces. First is true where the service had
// no primary before. That is no failover and is left out here, since its duration holds what only its
// user decides, as when the pods start; Waited counts it. Of a move of cause Unrecorded the duration is
// not known, and is ignored.
func (m *Metrics) Moved(cause string, first bool, duration time.Duration) {
	if m == nil || first {
		return
	}
	cause = moveCauses.bound(cause)
	m.failovers.WithLabelValues(cause).Inc()
	if cause == v1alpha1.CauseUnrecorded {
		return
	}
	m.failoverDuration.WithLabelValues(cause).Observe(seconds(duration))
}

// Waited counts how long a phase of a move took: PhaseDataplane or PhaseAnnounce.
func (m *Metrics) Waited(phase string, d time.Duration) {
	if m == nil {
		return
	}
	m.gateWait.WithLabelValues(phases.bound(phase)).Observe(seconds(d))
}

// Failed counts a write that failed: in which loop, and of what. Both must be constants of the caller.
func (m *Metrics) Failed(loop, what string) {
	if m == nil {
		return
	}
	m.errors.WithLabelValues(loop, what).Inc()
}

// seconds is at least 0: a move may have begun under another leader, whose clock is ahead, and the sum
// of a histogram must not go back.
func seconds(d time.Duration) float64 { return max(d, 0).Seconds() }
