// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-kit/log"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/apply"
	"github.com/metallb-egress/metallb-egress/dataplane/nft"
	"github.com/metallb-egress/metallb-egress/dataplane/ovn"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// ours is the dataplane on each node.
type ours struct {
	world *world
	nodes []ourNode
}

type ourNode struct {
	dataplane.Dataplane
	thread
	planner *dataplane.Planner
	name    string
}

// newOurs starts the dataplanes, and has them hold nothing.
func (w *world) newOurs(ctx context.Context) (side, error) {
	o := &ours{world: w}
	for _, n := range w.nodes {
		node, err := newOurNode(n)
		if err != nil {
			return nil, err
		}
		o.nodes = append(o.nodes, node)
	}
	for _, start := range o.plan(scene{}) {
		if _, err := start(ctx); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func newOurNode(n topology.Node) (node ourNode, err error) {
	node.name, node.planner = n.Name, &dataplane.Planner{}
	if node.thread, err = newThread(n.Netns); err != nil {
		return node, err
	}
	return node, node.do(func() (err error) {
		// The table is read again when the program is idle: the nftables part tells what that takes.
		node.Dataplane, err = apply.New(log.NewNopLogger(), apply.Options{
			NorthboundSocket: n.NorthboundSocket, OpenvSwitchSocket: n.OpenvSwitchSocket, RelistInterval: time.Hour,
		})
		return err
	})
}

func (o *ours) plan(s scene) (jobs []job) {
	for _, n := range o.nodes {
		in := o.world.input(n.name, s)
		jobs = append(jobs, func(ctx context.Context) (installed time.Time, err error) {
			err = n.do(func() (err error) {
				installed, err = n.hold(ctx, in)
				return err
			})
			return installed, err
		})
	}
	return jobs
}

// hold applies as egress-speaker does: again when something has changed, until nothing is left to do.
func (n ourNode) hold(ctx context.Context, in dataplane.Input) (installed time.Time, err error) {
	for sequence := dataplane.Sequence(0); ; {
		before := n.Installed()
		if sequence > 0 && before >= sequence && installed.IsZero() {
			installed = time.Now()
		}
		plan, problems := n.planner.Plan(in)
		if len(problems) > 0 {
			return installed, fmt.Errorf("%d problems, the first is %v", len(problems), problems[0])
		}
		if sequence, err = n.Apply(ctx, plan); err == nil && before >= sequence {
			if installed.IsZero() {
				installed = time.Now()
			}
			return installed, nil
		} else if err != nil && !errors.Is(err, ovn.ErrNotConnected) {
			return installed, err
		}
		select {
		case <-ctx.Done():
			return installed, ctx.Err()
		case <-n.Changed():
		}
	}
}

func (o *ours) host(ctx context.Context, s scene) (start, one figure, err error) {
	n := o.nodes[slices.IndexFunc(o.nodes, func(n ourNode) bool { return n.name == s.primary })]
	plan, _ := dataplane.Compute(o.world.input(n.name, s))
	more, _ := dataplane.Compute(o.world.input(n.name, s.with(s.more+1)))
	return start, one, n.do(func() error {
		tables, err := knftables.New(nft.Family, nft.Table)
		if err != nil {
			return err
		}
		applier := nft.New(tables)
		if start, err = alone(func() error {
			written, err := applier.Add(ctx, plan.Host)
			if err == nil && written != 1 { // the rules, which a program that starts writes in any case
				err = fmt.Errorf("it found %d elements to write", written)
			}
			return err
		}); err != nil {
			return err
		}
		if one, err = alone(func() error {
			_, err := applier.Add(ctx, more.Host)
			return err
		}); err != nil {
			return err
		}
		gone, err := applier.Remove(ctx, plan.Host)
		return errors.Join(err, applier.Forget(ctx, gone))
	})
}

// alone measures what only this process and its commands do.
func alone(do func() error) (taken figure, err error) {
	before, began := own(), time.Now()
	err = do()
	taken.wall = time.Since(began)
	taken.used[len(taken.used)-1] = own() - before
	return taken, err
}

func (o *ours) close(ctx context.Context) error {
	var problems []error
	for _, n := range o.nodes {
		problems = append(problems, n.do(func() error { return n.Remove(ctx) }))
		n.Close()
		close(n.thread)
	}
	return errors.Join(problems...)
}
