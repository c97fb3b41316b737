// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package apply

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

var errCrash = errors.New("crash")

// crash is the call after which the program dies: it is done, and not heard of.
type crash string

func (c crash) after(call string, err error) error {
	if err == nil && call == string(c) {
		return errCrash
	}
	return err
}

type (
	crashingTranslator struct {
		translator
		crash
	}
	crashingRouter struct {
		router
		crash
	}
	crashingConnections struct {
		connections
		crash
	}
)

func (c crashingTranslator) Add(ctx context.Context, want dataplane.Host) (int, error) {
	added, err := c.translator.Add(ctx, want)
	return added, c.after("nft add", err)
}

func (c crashingTranslator) Remove(ctx context.Context, want dataplane.Host) ([]dataplane.Translation, error) {
	leaving, err := c.translator.Remove(ctx, want)
	return leaving, c.after("nft remove", err)
}

func (c crashingTranslator) Forget(ctx context.Context, ended []dataplane.Translation) error {
	return c.after("nft forget", c.translator.Forget(ctx, ended))
}

func (c crashingRouter) Apply(ctx context.Context, want dataplane.OVN) (dataplane.Sequence, error) {
	sequence, err := c.router.Apply(ctx, want)
	return sequence, c.after("ovn", err)
}

func (c crashingConnections) End(pairs []dataplane.Translation) (uint, error) {
	ended, err := c.connections.End(pairs)
	return ended, c.after("conntrack", err)
}

// TestCrashes kills the program after each step of taking one pod out of the service and another one
// in, and starts it again: what there is at the end is the same as without a crash.
func TestCrashes(t *testing.T) {
	calm := ""
	for _, after := range []crash{"", "nft add", "ovn", "nft remove", "conntrack", "nft forget"} {
		t.Run(string("after "+after), func(t *testing.T) {
			l := newLab(t)
			l.host.Run(t, "nft", otherTable)
			l.install(t, l.apply(t, plan(pod)))
			l.wantSource(t, pod, 2000, outside, lb)
			l.wantSource(t, otherPod, 2000, outside, node1)

			want := plan(otherPod)
			if after != "" {
				l.crash(t, want, after)
				l.wantSource(t, otherPod, 2001, node2, node1)
				l.dataplane.Close()
				l.start(t)
			}
			l.install(t, l.apply(t, want))
			l.apply(t, want)
			l.wantSource(t, otherPod, 3000, outside, lb)
			// An older connection keeps its source, one whose translation is over has a new one.
			l.wantSource(t, otherPod, 2000, outside, node1)
			l.wantSource(t, pod, 2000, outside, node1)
			got := l.state(t)
			if after == "" {
				calm = got
			}
			if diff := cmp.Diff(calm, got); diff != "" {
				t.Errorf("(-without a crash +with one):\n%s", diff)
			}
		})
	}
}

// crash applies a plan until the call, a second time if that needs the flows to be there.
func (l *lab) crash(t *testing.T, want dataplane.Plan, after crash) {
	t.Helper()
	n := l.dataplane.(*node)
	n.nft, n.ovn, n.conntrack = crashingTranslator{n.nft, after}, crashingRouter{n.ovn, after}, crashingConnections{n.conntrack, after}
	for range 2 {
		var sequence dataplane.Sequence
		var err error
		l.host.Do(t, func() { sequence, err = l.dataplane.Apply(context.Background(), want) })
		if errors.Is(err, errCrash) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		l.install(t, sequence)
	}
	t.Fatal("it has not crashed")
}

// state is what the database and nftables hold of ours.
func (l *lab) state(t *testing.T) string {
	t.Helper()
	rows := l.nb.Control(t, "--format=csv", "--no-headings", "--columns=priority,match,action,nexthops,external_ids", "list", "Logical_Router_Policy")
	rows += "\n" + l.nb.Control(t, "--format=csv", "--no-headings", "--columns=name,addresses,external_ids", "list", "Address_Set")
	lines := strings.Split(rows+"\n"+l.host.Run(t, "nft", "-s", "list", "table", "inet", "metallb-egress"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
