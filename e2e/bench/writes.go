// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one line of Prometheus' text format.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

var labelPair = regexp.MustCompile(`([a-zA-Z_]+)="([^"]*)"`)

// samples are those whose name begins with prefix. Label values with quotes in them do not occur there.
func samples(text []byte, prefix string) iter.Seq[sample] {
	return func(yield func(sample) bool) {
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, prefix) {
				continue
			}
			series, number, ok := strings.Cut(strings.TrimSpace(line), "} ")
			name, pairs, _ := strings.Cut(series, "{")
			value, err := strconv.ParseFloat(number, 64)
			if !ok || err != nil {
				continue
			}
			s := sample{name: name, labels: map[string]string{}, value: value}
			for _, pair := range labelPair.FindAllStringSubmatch(pairs, -1) {
				s.labels[pair[1]] = pair[2]
			}
			if !yield(s) {
				return
			}
		}
	}
}

// write is a kind of API write: the verb as the API server counts it, and the resource with its subresource.
type write struct{ verb, resource string }

// writes counts API writes. In a world everybody writes kinds of their own: the admin EgressServices, the speakers the status of EgressNodes,
// and the controller all others.
type writes map[write]int

// Kinds of writes.
var (
	createEgress       = write{"POST", "egressservices"}
	createAssignment   = write{"POST", "egressassignments"}
	updateAssignment   = write{"PUT", "egressassignments"}
	patchAssignment    = write{"PATCH", "egressassignments"}
	patchNode          = write{"PATCH", "nodes"}
	applyService       = write{"APPLY", "services"}
	patchService       = write{"PATCH", "services"}
	createAdvertised   = write{"POST", "bgpadvertisements"}
	patchReport        = write{"PATCH", "egressnodes/status"}
	patchEgressStatus  = write{"PATCH", "egressservices/status"}
	patchAssignedState = write{"PATCH", "egressassignments/status"}
	createEvent        = write{"POST", "events"}
	refused            = write{"refused", ""}
)

// upToLabel are the writes without which no service gets its label. What else the controller writes tells people how far it is.
var upToLabel = []write{createEgress, createAssignment, updateAssignment, patchAssignment, patchNode, applyService, patchService, createAdvertised, patchReport}

// count reads from the API server's own metrics how many writes it has accepted so far, without Leases.
func (w *world) count(ctx context.Context) (writes, error) {
	text, err := w.discovery.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("the API server's metrics: %w", err)
	}
	counted := writes{}
	for s := range samples(text, "apiserver_request_total{") {
		kind := write{s.labels["verb"], s.labels["resource"]}
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "APPLY", "DELETE"}, kind.verb) || kind.resource == "leases" {
			continue
		}
		if s.labels["subresource"] != "" {
			kind.resource += "/" + s.labels["subresource"]
		}
		if !strings.HasPrefix(s.labels["code"], "2") {
			kind = refused
		}
		counted[kind] += int(s.value)
	}
	return counted, nil
}

func (w writes) minus(before writes) writes {
	left := writes{}
	for kind, n := range w {
		if n -= before[kind]; n > 0 {
			left[kind] = n
		}
	}
	return left
}

func (w writes) total() int {
	total := 0
	for _, n := range w {
		total += n
	}
	return total
}

// only keeps some kinds.
func (w writes) only(kinds []write) writes {
	kept := writes{}
	for _, kind := range kinds {
		if w[kind] > 0 {
			kept[kind] = w[kind]
		}
	}
	return kept
}

// quiet waits until nobody has written anything for a while, and returns the counts.
func (w *world) quiet(ctx context.Context) (counted writes, err error) {
	last := -1
	err = poll(ctx, patience, "the end of all writes", time.Second, func(ctx context.Context) (bool, error) {
		if counted, err = w.count(ctx); err != nil {
			return false, err
		}
		done := counted.total() == last
		last = counted.total()
		return done, nil
	})
	return counted, err
}

// fairness is what the API server's priority and fairness did to the controller's account since the API server started.
func (w *world) fairness(ctx context.Context) (string, error) {
	text, err := w.discovery.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("the API server's metrics: %w", err)
	}
	sums := map[string]float64{}
	level := ""
	for s := range samples(text, "apiserver_flowcontrol_") {
		if s.labels["flow_schema"] == "service-accounts" {
			sums[s.name] += s.value
			level = s.labels["priority_level"]
		}
	}
	return fmt.Sprintf("flow schema service-accounts, priority level %s: %.0f requests served, %.0f refused, %.1f ms in a queue each", level,
		sums["apiserver_flowcontrol_dispatched_requests_total"], sums["apiserver_flowcontrol_rejected_requests_total"],
		1000*sums["apiserver_flowcontrol_request_wait_duration_seconds_sum"]/max(1, sums["apiserver_flowcontrol_request_wait_duration_seconds_count"])), nil
}
