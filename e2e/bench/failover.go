// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

// loss is one loss of a node.
type loss struct {
	ours, bare time.Duration
	patches    int // of Nodes
	// reports and others are writes meanwhile that the bare client does not issue; others are status and events.
	reports, others int
}

// loseNodes measures, in one world, how long it takes until all services of a node that is lost have their labels elsewhere, and how long
// the same writes take without a controller; by turns.
func (b *bench) loseNodes(ctx context.Context) (err error) {
	if b.failovers == 0 {
		return nil
	}
	w, err := b.up(ctx, b.failover.services, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	// While there is one node, all services go there.
	if err := w.addNodes(ctx, 1, speakers.Behaviour{}); err != nil {
		return err
	}
	ours, err := w.startController(ctx)
	if err != nil {
		return err
	}
	labels, err := w.watchLabels(ctx, w.services, "")
	if err != nil {
		return err
	}
	defer labels.stop()
	err = parallel(ctx, w.services, writers, func(ctx context.Context, i int) error { return w.admin.Create(ctx, newEgressService(i)) })
	if err != nil {
		return err
	}
	if err := w.waitLabels(ctx, labels, ours); err != nil {
		return err
	}
	// The other nodes come while no controller looks: the first of them would become the standby of all.
	if err := ours.stop(ctx); err != nil {
		return err
	}
	if err := w.addNodes(ctx, b.failover.nodes, speakers.Behaviour{}); err != nil {
		return err
	}
	if ours, err = w.startController(ctx); err != nil {
		return err
	}
	var losses []loss
	for i := range b.failovers {
		one, err := w.loseFirst(ctx, ours)
		if err != nil {
			return err
		}
		b.say("loss of a node, %d of %d: ours %.3f s, bare %.3f s", i+1, b.failovers, one.ours.Seconds(), one.bare.Seconds())
		losses = append(losses, one)
		if ours, err = w.startController(ctx); err != nil {
			return err
		}
	}
	b.printLosses(losses)
	return nil
}

// loseFirst loses the node that has all services, and moves them back by the bare client. It leaves no controller running.
func (w *world) loseFirst(ctx context.Context, ours *controller) (one loss, err error) {
	lost := nodeName(0)
	before, err := w.standbysReady(ctx, lost)
	if err != nil {
		return one, err
	}
	labels, err := w.watchLabels(ctx, w.services, lost)
	if err != nil {
		return one, err
	}
	defer labels.stop()
	written, err := w.count(ctx)
	if err != nil {
		return one, err
	}
	began := time.Now()
	w.fleet.Set(lost, speakers.Behaviour{Dead: true})
	if err := w.setReady(ctx, lost, corev1.ConditionUnknown); err != nil {
		return one, err
	}
	if err := w.waitLabels(ctx, labels, ours); err != nil {
		return one, err
	}
	after, err := w.count(ctx)
	if err != nil {
		return one, err
	}
	_, last, changes := labels.result()
	one.ours, one.patches = last.Sub(began), len(changes)
	meanwhile := after.minus(written)
	one.reports = meanwhile[patchReport]
	one.others = meanwhile.total() - one.reports - meanwhile.only([]write{updateAssignment, patchAssignment, patchNode}).total()
	if _, err := w.quiet(ctx); err != nil {
		return one, err
	}
	if err := ours.stop(ctx); err != nil {
		return one, err
	}
	one.bare, err = w.moveBack(ctx, before, changes)
	return one, err
}

// standbysReady waits until every service has its primary on the node and an acknowledged standby elsewhere, and returns the assignments.
func (w *world) standbysReady(ctx context.Context, node string) (assignments v1alpha1.EgressAssignmentList, err error) {
	err = poll(ctx, patience, "the standbys", 200*time.Millisecond, func(ctx context.Context) (bool, error) {
		assignments = v1alpha1.EgressAssignmentList{}
		if err := w.admin.List(ctx, &assignments, client.InNamespace(benchNamespace)); err != nil {
			return false, err
		}
		return len(assignments.Items) == w.services && !slices.ContainsFunc(assignments.Items, func(a v1alpha1.EgressAssignment) bool {
			return a.Spec.Primary != node || a.Spec.Standby == ""
		}), nil
	})
	if err == nil {
		_, err = w.quiet(ctx)
	}
	return assignments, err
}

// setReady writes a Node's condition Ready.
func (w *world) setReady(ctx context.Context, name string, status corev1.ConditionStatus) error {
	node := &corev1.Node{}
	if err := w.admin.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	before := node.DeepCopy()
	for i := range node.Status.Conditions {
		node.Status.Conditions[i].Status = status
	}
	return w.admin.Status().Patch(ctx, node, client.StrategicMergeFrom(before))
}

// moveBack undoes a move with the bare client: one write for each assignment, and the opposite of each label patch. The speakers are
// silent meanwhile.
func (w *world) moveBack(ctx context.Context, before v1alpha1.EgressAssignmentList, changes []labelChange) (time.Duration, error) {
	for _, node := range w.nodes {
		w.fleet.Set(node, speakers.Behaviour{Mute: true})
	}
	if _, err := w.quiet(ctx); err != nil {
		return 0, err
	}
	var now v1alpha1.EgressAssignmentList
	if err := w.admin.List(ctx, &now, client.InNamespace(benchNamespace)); err != nil {
		return 0, err
	}
	bare := &bareClient{world: w}
	var jobs []job
	for i := range now.Items {
		// Lists of the API server are ordered by name.
		assignment, spec := &now.Items[i], before.Items[i].Spec
		jobs = append(jobs, job{do: func(ctx context.Context) error { return bare.promote(ctx, assignment, spec.Primary, spec.Standby) }})
	}
	for _, change := range changes {
		back := map[string]bool{}
		for key, came := range change.keys {
			back[key] = !came
		}
		patch, err := labelPatch(back)
		if err != nil {
			return 0, err
		}
		jobs = append(jobs, job{target: change.node, do: func(ctx context.Context) error { return bare.patchNode(ctx, change.node, patch) }})
	}
	began := time.Now()
	// The node's own change of state, with which our clock starts, counts here too.
	if err := w.setReady(ctx, nodeName(0), corev1.ConditionTrue); err != nil {
		return 0, err
	}
	if err := runJobs(ctx, jobs); err != nil {
		return 0, err
	}
	took := time.Since(began)
	for _, node := range w.nodes {
		w.fleet.Set(node, speakers.Behaviour{})
	}
	return took, nil
}
