// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// TestDemo builds the whole lab and checks every line of the documented example, as "make lab"
// does for people.
func TestDemo(t *testing.T) {
	l := up(t, "mlt")
	err := l.Demo(t.Context(), func(line lab.Line, seen string, err error, took time.Duration) {
		t.Run(line.Number, func(t *testing.T) {
			if err != nil {
				t.Errorf("%s: %v", line.Claim, err)
				return
			}
			t.Logf("%s (%.1f s): %s", line.Claim, took.Seconds(), seen)
		})
	})
	if err != nil {
		t.Log(err)
	}
	for _, name := range []string{lab.ControllerProcess, lab.SpeakerProcess("n1"), lab.SpeakerProcess("n2"), lab.SpeakerProcess("n3")} {
		if !l.Processes.Alive(name) {
			t.Errorf("%s has ended", name)
		}
	}
}

// up builds a lab that is removed when the test ends, and shows the programs' logs of a test
// that failed.
func up(t *testing.T, prefix string) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the lab needs root")
		}
		t.Skip("SKIPPED: the lab needs root")
	}
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	programs := build(t, root)
	o := lab.Options{Root: root, Prefix: prefix, Programs: programs, Log: t.Logf}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lab.Down(ctx, o); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, name := range []string{lab.ControllerProcess, lab.SpeakerProcess("n1"), lab.SpeakerProcess("n2"), lab.SpeakerProcess("n3")} {
			content, err := os.ReadFile(l.Processes.LogPath(name))
			if err != nil {
				t.Log(err)
			}
			t.Logf("log of %s, its end:\n%s", name, content[max(0, len(content)-8000):])
		}
	})
	return l
}

// build builds this repository's programs for the lab.
func build(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir,
		"./cmd/egress-controller", "./cmd/egress-speaker", "./e2e/lab/cmd/lab", "./e2e/lab/cmd/whoami")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	if _, err := os.Stat(filepath.Join(dir, "lab")); err != nil {
		t.Fatal(err)
	}
	return dir
}
