// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// fixture is this repository with an empty cache folder of the test's own.
type fixture struct {
	t        *testing.T
	repoRoot string
	// commands are the main packages that the fake compiler was asked for, in order.
	commands []string
	// failOn is the main package at which the fake compiler fails, after it wrote half a binary.
	failOn string
	// onFail happens then.
	onFail func()
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	repoRoot, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, repoRoot: repoRoot}
}

// compile stands in for "go build": it writes the file after -o.
func (f *fixture) compile(_ context.Context, c command) error {
	f.t.Helper()
	main := c.args[len(c.args)-1]
	f.commands = append(f.commands, main)
	output := c.args[len(c.args)-2]
	if c.args[len(c.args)-3] != "-o" {
		f.t.Fatalf("command %q does not end with -o FILE PACKAGE", c.args)
	}
	content := "whole"
	if main == f.failOn {
		content = "half"
	}
	if err := os.WriteFile(output, []byte(content), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if main == f.failOn {
		_, _ = io.WriteString(c.output, "go: downloading example.org/a v1.0.0\nmain.go:1: does not compile\n")
		if f.onFail != nil {
			f.onFail()
		}
		return errors.New("exit status 1")
	}
	return nil
}

func (f *fixture) build(ctx context.Context, groups ...string) (int, error) {
	f.t.Helper()
	pending, err := newPlan(f.repoRoot, groups)
	if err != nil {
		f.t.Fatal(err)
	}
	f.commands = nil
	return (&builder{run: f.compile, out: newReporter(io.Discard)}).build(ctx, pending)
}

func (f *fixture) path(group, name string) string {
	f.t.Helper()
	dir, err := cache.Dir(f.repoRoot, group)
	if err != nil {
		f.t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func (f *fixture) write(path, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// files lists a group's folder, with the content of each file but the lock.
func (f *fixture) files(group string) map[string]string {
	f.t.Helper()
	entries, err := os.ReadDir(f.path(group, ""))
	if err != nil {
		f.t.Fatal(err)
	}
	found := map[string]string{}
	for _, entry := range entries {
		if entry.Name() == ".lock" {
			continue
		}
		content, err := os.ReadFile(f.path(group, entry.Name()))
		if err != nil {
			f.t.Fatal(err)
		}
		found[entry.Name()] = string(content)
	}
	return found
}

const metallbController, metallbSpeaker = "go.universe.tf/metallb/controller", "go.universe.tf/metallb/speaker"

func TestPlan(t *testing.T) {
	tests := []struct {
		name string
		// present are "group/program" with their content.
		present map[string]string
		groups  []string
		want    []string
		total   int
	}{
		{
			name:   "empty cache",
			groups: []string{cache.Generate, cache.MetalLB},
			want:   []string{"1 controller-gen", "2 metallb-controller", "3 metallb-speaker"},
			total:  3,
		},
		{
			name:    "one there, numbers count it",
			present: map[string]string{"metallb/metallb-controller": "binary"},
			groups:  []string{cache.MetalLB},
			want:    []string{"2 metallb-speaker"},
			total:   2,
		},
		{
			name:    "an empty file is not a binary",
			present: map[string]string{"generate/controller-gen": ""},
			groups:  []string{cache.Generate},
			want:    []string{"1 controller-gen"},
			total:   1,
		},
		{
			name:    "half a binary under its temporary name is not there",
			present: map[string]string{"generate/.controller-gen.7.partial": "half"},
			groups:  []string{cache.Generate},
			want:    []string{"1 controller-gen"},
			total:   1,
		},
		{
			name:    "complete",
			present: map[string]string{"generate/controller-gen": "binary"},
			groups:  []string{cache.Generate},
			total:   1,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			for name, content := range test.present {
				group, program, _ := strings.Cut(name, "/")
				f.write(f.path(group, program), content)
			}
			pending, err := newPlan(f.repoRoot, test.groups)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, each := range pending.steps {
				got = append(got, string(rune('0'+each.number))+" "+each.program.Name)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if pending.total != test.total {
				t.Errorf("total = %d, want %d", pending.total, test.total)
			}
		})
	}
}

func TestBuildThenNothingMore(t *testing.T) {
	f := newFixture(t)
	built, err := f.build(t.Context(), cache.Generate, cache.MetalLB)
	if err != nil || built != 3 {
		t.Fatalf("first run: built %d, %v, want 3", built, err)
	}
	want := map[string]string{"metallb-controller": "whole", "metallb-speaker": "whole"}
	if diff := cmp.Diff(want, f.files(cache.MetalLB)); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}

	built, err = f.build(t.Context(), cache.Generate, cache.MetalLB)
	if err != nil || built != 0 || len(f.commands) != 0 {
		t.Errorf("second run: built %d, %v, ran %q, want nothing", built, err, f.commands)
	}
}

func TestInterruptedBuildIsTakenUp(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.failOn, f.onFail = metallbSpeaker, cancel
	built, err := f.build(ctx, cache.MetalLB)
	if err == nil || !strings.Contains(err.Error(), "interrupted while building metallb-speaker") || built != 1 {
		t.Fatalf("interrupted run: built %d, error %v", built, err)
	}
	if diff := cmp.Diff(map[string]string{"metallb-controller": "whole"}, f.files(cache.MetalLB)); diff != "" {
		t.Errorf("folder after the interruption (-want +got):\n%s", diff)
	}

	f.failOn = ""
	built, err = f.build(t.Context(), cache.MetalLB)
	if err != nil || built != 1 {
		t.Fatalf("next run: built %d, %v, want 1", built, err)
	}
	if diff := cmp.Diff([]string{metallbSpeaker}, f.commands); diff != "" {
		t.Errorf("next run built (-want +got):\n%s", diff)
	}
}

func TestKilledBuildIsTakenUp(t *testing.T) {
	f := newFixture(t)
	f.write(f.path(cache.MetalLB, "metallb-controller"), "from before")
	f.write(f.path(cache.MetalLB, ".metallb-speaker.123.partial"), "half")

	if built, err := f.build(t.Context(), cache.MetalLB); err != nil || built != 1 {
		t.Fatalf("built %d, %v, want 1", built, err)
	}
	want := map[string]string{"metallb-controller": "from before", "metallb-speaker": "whole"}
	if diff := cmp.Diff(want, f.files(cache.MetalLB)); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}
}

func TestFailedBuildShowsWhy(t *testing.T) {
	f := newFixture(t)
	f.failOn = metallbController
	_, err := f.build(t.Context(), cache.MetalLB)
	const want = "building metallb-controller v0.16.1: exit status 1\nmain.go:1: does not compile"
	if err == nil || err.Error() != want {
		t.Errorf("error = %v, want %q", err, want)
	}
	if diff := cmp.Diff(map[string]string{}, f.files(cache.MetalLB)); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}
}

func TestBuildWaitsForAnotherRun(t *testing.T) {
	f := newFixture(t)
	f.write(f.path(cache.MetalLB, "metallb-controller"), "whole")
	unlock, err := lock(t.Context(), f.path(cache.MetalLB, ".lock"), func() { t.Error("nobody else holds the lock") })
	if err != nil {
		t.Fatal(err)
	}

	// The other run finishes as soon as we say that we are waiting for it.
	var progress bytes.Buffer
	out := newReporter(writerFunc(func(line []byte) (int, error) {
		if bytes.Contains(line, []byte("waiting")) {
			f.write(f.path(cache.MetalLB, "metallb-speaker"), "of the other run")
			unlock()
		}
		return progress.Write(line)
	}))
	pending, err := newPlan(f.repoRoot, []string{cache.MetalLB})
	if err != nil {
		t.Fatal(err)
	}
	built, err := (&builder{run: f.compile, out: out}).build(t.Context(), pending)
	if err != nil || built != 0 || len(f.commands) != 0 {
		t.Errorf("built %d, %v, ran %q, want nothing built twice", built, err, f.commands)
	}
	if !strings.Contains(progress.String(), "another run is building metallb-") {
		t.Errorf("progress does not say what is waited for: %q", progress.String())
	}
}

func TestWaitForLockEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := lock(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want that of the context", err)
	}
}

// TestInterruptStopsTheWholeGroup runs a shell with a child of its own; both hold the write end of a pipe, so that its
// end shows that both are gone.
func TestInterruptStopsTheWholeGroup(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- runCommand(ctx, command{args: []string{"sh", "-c", "echo up; sleep 600 & wait"}, output: writer, ownGroup: true})
		_ = writer.Close()
	}()
	if _, err := io.ReadFull(reader, make([]byte, len("up\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := reader.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); err != nil {
		t.Errorf("still running 5 s after the interruption: read %q, %v", rest, err)
	}
	if err := <-done; err == nil {
		t.Error("an interrupted command reports success")
	}
}

func TestProgressAtIntervals(t *testing.T) {
	lines := make(chan string, 1)
	out := newReporter(writerFunc(func(line []byte) (int, error) {
		select {
		case lines <- string(line):
		default:
		}
		return len(line), nil
	}))
	out.every = time.Millisecond
	task := out.start("etcd v3.7.3")
	defer task.stop()
	_, _ = io.WriteString(task, "go: downloading a v1\ngo: downloading b v1\nnote: kept")
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line := <-lines:
			if strings.HasPrefix(line, "tools: etcd v3.7.3: at work for ") && strings.HasSuffix(line, ", 2 modules downloaded\n") {
				if diff := cmp.Diff("note: kept", task.tail()); diff != "" {
					t.Errorf("tail (-want +got):\n%s", diff)
				}
				return
			}
		case <-deadline:
			t.Fatal("no line about the work in progress")
		}
	}
}

// writerFunc makes an io.Writer of a function.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(piece []byte) (int, error) { return f(piece) }
