// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T) *Set {
	t.Helper()
	set, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		if err := set.StopAll(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return set
}

func start(t *testing.T, set *Set, spec Spec) int {
	t.Helper()
	t.Cleanup(func() { killStarted(set, spec.Name) })
	if err := set.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	pid, alive := set.PID(spec.Name)
	if !alive {
		t.Fatalf("%s is not alive after Start", spec.Name)
	}
	return pid
}

// killStarted is the safety net of a failing test.
func killStarted(set *Set, name string) {
	if pid, alive := set.PID(name); alive {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}

func sleeper(name string) Spec {
	return Spec{Name: name, Path: "sleep", Args: []string{"600"}}
}

// eventually polls a condition, as there is nothing to wait on for what another process does.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatal("not in 10 s: ", what)
		case <-tick.C:
		}
	}
}

func TestStartDetachesAndLogs(t *testing.T) {
	set := open(t)
	pid := start(t, set, Spec{Name: "talker", Path: "sh", Args: []string{"-c", `echo "$GREETING from $PWD"; cat; echo end; exec sleep 600`},
		Env: []string{"GREETING=hello"}, Dir: "/"})
	eventually(t, "the log has the output, and an empty input", func() bool {
		text, err := os.ReadFile(set.LogPath("talker"))
		return err == nil && string(text) == "hello from /\nend\n"
	})
	session, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 || int(session) != pid {
		t.Errorf("session of pid %d is %d, want its own (%v)", pid, session, errno)
	}
	if err := set.Start(t.Context(), sleeper("talker")); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("second Start: %v, want already running", err)
	}
}

func TestStartFails(t *testing.T) {
	tests := map[string]Spec{
		"no such program":   {Name: "a", Path: "/no/such/program"},
		"no such namespace": {Name: "a", Path: "sleep", Netns: "no-such-namespace"},
		"no such folder":    {Name: "a", Path: "sleep", Dir: "/no/such/folder"},
		"bad name":          {Name: "../a", Path: "sleep"},
	}
	for name, spec := range tests {
		t.Run(name, func(t *testing.T) {
			set := open(t)
			if err := set.Start(t.Context(), spec); err == nil {
				t.Fatal("no error")
			}
			records, err := set.list()
			if err != nil || len(records) != 0 {
				t.Errorf("records left: %v, %v", records, err)
			}
		})
	}
}

func TestStop(t *testing.T) {
	tests := map[string]struct {
		spec    Spec
		atLeast time.Duration
	}{
		"obeys SIGTERM":   {spec: sleeper("a")},
		"ignores SIGTERM": {spec: Spec{Name: "a", Path: "sh", Args: []string{"-c", "trap '' TERM; echo ready; exec sleep 600"}}, atLeast: grace},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := open(t)
			pid := start(t, set, test.spec)
			if test.atLeast > 0 {
				eventually(t, "the program is ready", func() bool {
					text, err := os.ReadFile(set.LogPath("a"))
					return err == nil && string(text) == "ready\n"
				})
			}
			began := time.Now()
			if err := set.Stop(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < test.atLeast {
				t.Errorf("took %v, want at least %v", took, test.atLeast)
			}
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("pid %d after Stop: %v", pid, err)
			}
			if _, found, err := set.read("a"); found || err != nil {
				t.Errorf("record left (%v)", err)
			}
			if err := set.Stop(t.Context(), "a"); err != nil {
				t.Errorf("second Stop: %v", err)
			}
		})
	}
}

// A later command knows the programs by their records alone.
func TestStopFromAnotherSet(t *testing.T) {
	set := open(t)
	start(t, set, sleeper("a"))
	other, err := Open(set.dir)
	if err != nil {
		t.Fatal(err)
	}
	if !other.Alive("a") {
		t.Error("not alive for the other Set")
	}
	if err := other.StopAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if set.Alive("a") {
		t.Error("still alive")
	}
}

func TestReusedPIDIsNotSignaled(t *testing.T) {
	set := open(t)
	bystander := exec.Command("sleep", "600")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	})
	started, alive := startTimeOf(bystander.Process.Pid)
	if !alive {
		t.Fatal("the bystander is not alive")
	}
	// As if the recorded program had ended, and the bystander been given its pid.
	if err := set.complete(record{Name: "a", PID: bystander.Process.Pid, StartTime: started - 1}); err != nil {
		t.Fatal(err)
	}
	if set.Alive("a") {
		t.Error("the bystander is taken for the program")
	}
	if err := set.Stop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, alive := startTimeOf(bystander.Process.Pid); !alive {
		t.Error("the bystander was stopped")
	}
	if _, found, _ := set.read("a"); found {
		t.Error("record left")
	}
}

// The command was killed after it made the program and before it wrote down the pid.
func TestIncompleteRecord(t *testing.T) {
	tests := map[string]string{
		"announced":      `{"name": "a", "order": 1}`,
		"half announced": `{"name": "a`,
		"empty":          "",
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			set := open(t)
			pid := start(t, set, sleeper("a"))
			for _, path := range []string{set.recordPath("a"), set.temporaryPath("a")} {
				if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, alive := set.PID("a"); !alive || got != pid {
				t.Fatalf("PID is %d, %v, want %d", got, alive, pid)
			}
			if err := set.Stop(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if _, alive := startTimeOf(pid); alive {
				t.Error("still alive")
			}
			left, err := os.ReadDir(set.dir + "/process")
			if err != nil || len(left) != 0 {
				t.Errorf("left: %v (%v)", left, err)
			}
		})
	}
}

func TestStopAllNewestFirst(t *testing.T) {
	set := open(t)
	names := []string{"c", "a", "b"}
	// Each says in one file of all that it ends.
	ends := set.dir + "/ends"
	for _, name := range names {
		script := fmt.Sprintf(`trap 'echo %s >>%s; exit' TERM; echo ready; while :; do sleep 0.05; done`, name, ends)
		start(t, set, Spec{Name: name, Path: "sh", Args: []string{"-c", script}})
		eventually(t, name+" is ready", func() bool {
			text, err := os.ReadFile(set.LogPath(name))
			return err == nil && string(text) == "ready\n"
		})
	}
	if err := set.StopAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(ends)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(names)
	if diff := cmp.Diff(names, strings.Fields(string(text))); diff != "" {
		t.Errorf("order of ends (-want +got):\n%s", diff)
	}
}

// A program that ended by itself can be started again under its name.
func TestRestartAfterEnd(t *testing.T) {
	set := open(t)
	if err := set.Start(t.Context(), Spec{Name: "a", Path: "true"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program has ended", func() bool { return !set.Alive("a") })
	start(t, set, sleeper("a"))
}

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 19"
	tests := map[string]struct {
		text      string
		state     string
		startTime uint64
		fails     bool
	}{
		"plain":                   {text: "12 (sleep) S" + tail, state: "S", startTime: 777},
		"parentheses in the name": {text: "12 (a) Z (b) R" + tail, state: "R", startTime: 777},
		"short":                   {text: "12 (sleep) S 1 2", fails: true},
		"empty":                   {fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			state, startTime, err := parseStat(test.text)
			if state != test.state || startTime != test.startTime || (err != nil) != test.fails {
				t.Errorf("got %q %d %v", state, startTime, err)
			}
		})
	}
}
