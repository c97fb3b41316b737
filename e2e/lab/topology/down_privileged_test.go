// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package topology

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// TestMain is the killed command of TestDownAfterKilledUp where the environment says so.
func TestMain(m *testing.M) {
	prefix, dir := os.Getenv("TEST_UP_PREFIX"), os.Getenv("TEST_UP_DIR")
	if prefix == "" {
		os.Exit(m.Run())
	}
	procs, err := process.Open(dir)
	if err == nil {
		_, err = Up(context.Background(), Options{Prefix: prefix, Dir: dir}, procs, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// testDown takes everything down, with a stranger's command in a pod, and twice.
func testDown(t *testing.T, l lab) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stray := exec.CommandContext(ctx, "ip", "netns", "exec", l.options.podNetns("a"), "sleep", "600")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 2 {
		if err := Down(t.Context(), l.options, l.procs); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("down twice in %v", time.Since(began))
	if err := stray.Wait(); err == nil || ctx.Err() != nil {
		t.Errorf("the command in the pod was not killed: %v", err)
	}
	// The echo servers of the pods and hosts were the test's; their namespaces went, and they with them.
	if err := l.procs.StopAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(l.options.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string(nil), l.left(t)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// moments are spread over the time that Up takes.
var moments = []time.Duration{0, 30 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 350 * time.Millisecond,
	500 * time.Millisecond, 700 * time.Millisecond, time.Second, 1500 * time.Millisecond}

// An Up that ends somewhere on its way leaves nothing that Down does not find.
func TestDownAfterPartialUp(t *testing.T) {
	l := newLab(t, "cut")
	for _, after := range moments {
		t.Run(after.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if _, err := Up(ctx, l.options, l.procs, nil); err == nil {
				t.Log("up was faster")
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline", err)
			}
			l.downLeavesNothing(t)
		})
	}
}

// The command that runs Up is killed.
func TestDownAfterKilledUp(t *testing.T) {
	l := newLab(t, "kill")
	for _, after := range moments {
		t.Run(after.String(), func(t *testing.T) {
			// Loading and starting the test binary takes a moment, too.
			ctx, cancel := context.WithTimeout(t.Context(), after+20*time.Millisecond)
			defer cancel()
			command := exec.CommandContext(ctx, os.Args[0])
			command.Env = append(os.Environ(), "TEST_UP_PREFIX="+l.options.Prefix, "TEST_UP_DIR="+l.options.Dir)
			output, err := command.CombinedOutput()
			if err == nil {
				t.Log("up was faster")
			} else if ctx.Err() == nil {
				t.Errorf("up: %v: %s", err, output)
			}
			l.downLeavesNothing(t)
		})
	}
}

// downLeavesNothing runs Down as a later command would, with the records alone.
func (l lab) downLeavesNothing(t *testing.T) {
	t.Helper()
	procs, err := process.Open(l.options.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cut short with %d programs", len(l.programs(t)))
	if err := Down(t.Context(), Options{Prefix: l.options.Prefix, Dir: l.options.Dir, Nodes: 1}, procs); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string(nil), l.left(t)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func (l lab) programs(t *testing.T) []string {
	t.Helper()
	names, err := l.procs.Names()
	if err != nil {
		t.Fatal(err)
	}
	return names
}
