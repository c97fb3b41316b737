// SPDX-License-Identifier: Apache-2.0

// Package metrics is what the controller tells Prometheus. Gauges are read from the newest Snapshot at
// each scrape, so that what is gone from the cluster is gone from the next scrape, and a sync costs one
// pointer. Counters and histograms live as long as the process.
//
// It promises a bounded number of series: labels hold namespaces, names, nodes, networks, and words of
// lists that are fixed when the program is built; any other word becomes Other. No address and no error
// text ever becomes a label. Each EgressService has at most seven series, which can be switched off.
//
// It must not import client-go or controller-runtime, nor read a clock.
package metrics
