// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"golang.org/x/sync/errgroup"
)

// Topology is a handle to a running topology.
type Topology struct {
	options Options
	nodes   []Node
	procs   *process.Set
}

// Open returns a handle to a topology that an earlier Up made with the same options. It does not look whether it runs.
func Open(o Options, procs *process.Set) *Topology {
	if completed, err := o.complete(); err == nil {
		o = completed
	}
	return &Topology{options: o, nodes: o.nodes(), procs: procs}
}

// Up builds the topology and returns when its traffic flows, except for BGP sessions, whose peers are not part of it. It tells its
// steps to log, which may be nil. Where it fails or ctx ends, what it has made stays, for Down. It refuses to build where something
// of the prefix exists already.
func Up(ctx context.Context, o Options, procs *process.Set, log func(format string, args ...any)) (*Topology, error) {
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	if log == nil {
		log = func(string, ...any) {}
	}
	t := Open(o, procs)
	if err := t.up(ctx, log); err != nil {
		return nil, fmt.Errorf("topology %s: %w", o.Prefix, err)
	}
	return t, nil
}

func (t *Topology) up(ctx context.Context, log func(format string, args ...any)) error {
	if err := checkTools(); err != nil {
		return err
	}
	existing, err := namespacesOf(t.options)
	if err != nil {
		return err
	}
	if len(existing) > 0 {
		return fmt.Errorf("exists already, or what is left of it: %s", strings.Join(existing, " "))
	}
	if err := os.MkdirAll(t.options.podFolder(), 0o755); err != nil {
		return err
	}
	began := time.Now()
	step := func(what string) { log("%s (%.1f s)", what, time.Since(began).Seconds()) }
	if err := fabric(ctx, t.options, t.nodes); err != nil {
		return err
	}
	step("network namespaces and wires")
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := startRouter(groupCtx, t.options, t.procs); err != nil {
			return err
		}
		step("tor: FRR")
		return nil
	})
	for _, n := range t.nodes {
		group.Go(func() error {
			if err := startNode(groupCtx, n, t.procs); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			step(n.Name + ": Open vSwitch and OVN")
			if err := buildZone(groupCtx, n, t.nodes); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			step(n.Name + ": logical topology")
			return nil
		})
	}
	return group.Wait()
}

// Nodes returns the nodes in the order of their numbers.
func (t *Topology) Nodes() []Node {
	return append([]Node(nil), t.nodes...)
}

// Node returns the node of this name.
func (t *Topology) Node(name string) (Node, error) {
	for _, n := range t.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("no node %q", name)
}

// RouterNetns is the ToR's namespace.
func (t *Topology) RouterNetns() string {
	return t.options.routerNetns()
}

// OutsideNetns is the outside host's namespace.
func (t *Topology) OutsideNetns() string {
	return t.options.outsideNetns()
}

// ControlNetns is the control plane's namespace.
func (t *Topology) ControlNetns() string {
	return t.options.controlNetns()
}

// Exec runs a command in a namespace to its end and returns its output. The error carries what it said on stderr.
func (t *Topology) Exec(ctx context.Context, netns string, argv ...string) (stdout []byte, err error) {
	return run(ctx, "", inNetns(netns, argv...)...)
}
