// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

// outcome is what one repetition of one cell gave.
type outcome struct {
	p50, p99 time.Duration // from the creation of an EgressService to its label
	labelled time.Duration // from the first creation to the last label
	ready    time.Duration // to the last condition Ready; 0 when that never came
	// untilLabelled are the writes until the last label, written those until all was quiet.
	untilLabelled, written writes
	changes                []labelChange
	reports                []speakers.Report // until the last label
	began                  time.Time
	cpuLabelled, cpu       time.Duration // of the controller
	memory, peak           int64
	fairness               string
	idle                   *idle
	server                 time.Duration // CPU of the API server and its store, until the last label
	// bare is the bare client with the writes without which there are no labels, same with all that the controller wrote meanwhile.
	bare, same bareOutcome
}

// idle is what the controller costs when there is nothing to do.
type idle struct {
	cpu time.Duration // per second
	// touches is how often a node changed in a way that matters to nobody, touched the CPU time that each of them cost.
	touches int
	touched time.Duration
	syncs   syncs // of all touches
}

// manyServices is the most with which a cell is repeated: larger ones take too long.
const manyServices = 1000

// ladder measures every cell, and prints those that it could measure.
func (b *bench) ladder(ctx context.Context) error {
	results := map[cell][]outcome{}
	defer func() { b.printLadder(results) }()
	for _, c := range b.cells {
		repetitions := b.repetitions
		if c.services > manyServices {
			repetitions = 1
		}
		for i := range repetitions {
			one, err := b.measure(ctx, c, i == repetitions-1)
			if err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			b.say("%s, %d of %d: all labelled after %.3f s, bare %.3f s, the same writes %.3f s", c, i+1, repetitions,
				one.labelled.Seconds(), one.bare.took.Seconds(), one.same.took.Seconds())
			results[c] = append(results[c], one)
		}
	}
	return nil
}

// measure is one repetition of one cell: ours, and then the bare client, with the two sets of writes.
func (b *bench) measure(ctx context.Context, c cell, withIdle bool) (outcome, error) {
	one, err := b.measureOurs(ctx, c, withIdle)
	if err != nil {
		return one, err
	}
	if one.bare, err = b.measureBare(ctx, c, one, one.untilLabelled.only(upToLabel)); err != nil {
		return one, fmt.Errorf("bare client: %w", err)
	}
	if b.allWrites {
		if one.same, err = b.measureBare(ctx, c, one, one.untilLabelled); err != nil {
			return one, fmt.Errorf("bare client: %w", err)
		}
	}
	return one, nil
}

// measureOurs creates the EgressServices of a cell in a new world and watches the controller.
func (b *bench) measureOurs(ctx context.Context, c cell, withIdle bool) (r outcome, err error) {
	w, err := b.up(ctx, c.services, c.nodes)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	if err := w.addNodes(ctx, c.nodes, speakers.Behaviour{}); err != nil {
		return r, err
	}
	ours, err := w.startController(ctx)
	if err != nil {
		return r, err
	}
	if err := w.warmUp(ctx, ours); err != nil {
		return r, fmt.Errorf("warm-up: %w", err)
	}
	if err := w.create(ctx, ours, &r); err != nil {
		return r, err
	}
	if withIdle {
		if r.idle, err = ours.measureIdle(ctx); err != nil {
			return r, err
		}
	}
	r.memory, r.peak, err = ours.memory()
	return r, err
}

// warmUp takes the spare service all the way, and waits for the end of it.
func (w *world) warmUp(ctx context.Context, c *controller) error {
	labels, err := w.watchLabels(ctx, 1, "")
	if err != nil {
		return err
	}
	defer labels.stop()
	if err := w.admin.Create(ctx, newEgressService(w.services)); err != nil {
		return err
	}
	if err := w.waitLabels(ctx, labels, c); err != nil {
		return err
	}
	_, err = w.quiet(ctx)
	return err
}

// create creates all EgressServices and follows them until nothing is written any more.
func (w *world) create(ctx context.Context, c *controller, r *outcome) error {
	labels, err := w.watchLabels(ctx, w.services, "")
	if err != nil {
		return err
	}
	defer labels.stop()
	before, err := w.count(ctx)
	if err != nil {
		return err
	}
	cpuBefore, err := c.cpu()
	if err != nil {
		return err
	}
	serverBefore, err := w.serverCPU()
	if err != nil {
		return err
	}
	reportsBefore := w.fleet.Writes()
	created := make([]time.Time, w.services)
	r.began = time.Now()
	err = parallel(ctx, w.services, writers, func(ctx context.Context, i int) error {
		created[i] = time.Now()
		return w.admin.Create(ctx, newEgressService(i))
	})
	if err == nil {
		err = w.waitLabels(ctx, labels, c)
	}
	if err != nil {
		return err
	}
	cpuLabelled, cpuErr := c.cpu()
	serverLabelled, serverErr := w.serverCPU()
	after, countErr := w.count(ctx)
	if err := errors.Join(countErr, cpuErr, serverErr); err != nil {
		return err
	}
	r.server = serverLabelled - serverBefore
	seen, last, changes := labels.result()
	r.untilLabelled, r.cpuLabelled, r.changes, r.labelled = after.minus(before), cpuLabelled-cpuBefore, changes, last.Sub(r.began)
	for _, report := range w.fleet.Reports()[reportsBefore:] {
		if !report.At.After(last) {
			r.reports = append(r.reports, report)
		}
	}
	// Those written while the counters were read are not the bare client's business.
	r.untilLabelled[patchReport], r.untilLabelled[patchNode] = len(r.reports), len(changes)
	took := make([]time.Duration, 0, w.services)
	for i, at := range created {
		took = append(took, seen[labelKey(i)].Sub(at))
	}
	r.p50, r.p99 = quantile(took, 0.5), quantile(took, 0.99)
	return w.settle(ctx, c, r, before, cpuBefore)
}

// settle waits until every service is Ready and nothing is written any more.
func (w *world) settle(ctx context.Context, c *controller, r *outcome, before writes, cpuBefore time.Duration) error {
	deadline := time.Now().Add(time.Minute)
	err := poll(ctx, patience, "the conditions Ready", 200*time.Millisecond, func(ctx context.Context) (bool, error) {
		ready, err := w.allReady(ctx)
		if ready {
			r.ready = time.Since(r.began)
		}
		return ready || time.Now().After(deadline), err
	})
	if err != nil {
		return err
	}
	after, err := w.quiet(ctx)
	if err != nil {
		return err
	}
	r.written = after.minus(before)
	cpu, err := c.cpu()
	if err != nil {
		return err
	}
	r.cpu = cpu - cpuBefore
	r.fairness, err = w.fairness(ctx)
	return err
}

func (w *world) allReady(ctx context.Context) (bool, error) {
	var assignments v1alpha1.EgressAssignmentList
	if err := w.admin.List(ctx, &assignments, client.InNamespace(benchNamespace)); err != nil {
		return false, err
	}
	ready := 0
	for _, a := range assignments.Items {
		if meta.IsStatusConditionTrue(a.Status.Conditions, v1alpha1.ConditionReady) {
			ready++
		}
	}
	return ready > w.services, nil
}

// measureIdle looks at a controller that has nothing to do, and then touches a node again and again.
func (c *controller) measureIdle(ctx context.Context) (*idle, error) {
	const window, touches, gap = 10 * time.Second, 20, 250 * time.Millisecond
	spent := func(do func() error) (time.Duration, error) {
		before, err := c.cpu()
		if err != nil {
			return 0, err
		}
		if err := do(); err != nil {
			return 0, err
		}
		after, err := c.cpu()
		return after - before, err
	}
	rest := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	still, err := spent(func() error { return rest(window) })
	if err != nil {
		return nil, err
	}
	found := &idle{cpu: still * time.Second / window, touches: touches}
	before, err := c.syncs(ctx)
	if err != nil {
		return nil, err
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.nodes[len(c.nodes)-1]}}
	spentTouching, err := spent(func() error {
		for i := range touches {
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{"example.com/touched":"%d"}}}`, i)
			if err := errors.Join(c.admin.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch)), rest(gap)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	found.touched = (spentTouching - found.cpu*(touches*gap/time.Second)) / touches
	after, err := c.syncs(ctx)
	found.syncs = after.minus(before)
	return found, err
}

func (s syncs) minus(before syncs) syncs {
	left := syncs{}
	for loop, now := range s {
		now.count -= before[loop].count
		now.seconds -= before[loop].seconds
		left[loop] = now
	}
	return left
}
