// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// TestLab builds the whole lab, checks every line of the documented example as "make lab" does
// for people, and then restarts the programs under it.
func TestLab(t *testing.T) {
	l := up(t, "mlt")
	t.Run("demo", func(t *testing.T) {
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
		for _, name := range programs() {
			if !l.Processes.Alive(name) {
				t.Errorf("%s has ended", name)
			}
		}
	})
	// From here on, all of it in both families.
	t.Run("dual-stack", func(t *testing.T) { testDualStack(t, l) })
	t.Run("bgp", func(t *testing.T) { testBGP(t, l) })
	t.Run("dataplane", func(t *testing.T) { testDataplane(t, l) })
	t.Run("speaker killed and started again", func(t *testing.T) { testRestart(t, l, syscall.SIGKILL) })
	t.Run("speaker ended and started again", func(t *testing.T) { testRestart(t, l, syscall.SIGTERM) })
	t.Run("controller started again", func(t *testing.T) { testController(t, l) })
}

// testRestart ends the speaker of the elected node: the ToR must never lack the path, and the
// pods must go on leaving with the LoadBalancer IP, before, while and after it starts again. No
// packet may be lost, in either direction, and no connection.
func testRestart(t *testing.T, l *lab.Lab, signal syscall.Signal) {
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conversations := startConversations(t, l, l.Topology.Nodes(), shortWord)
	datagrams := map[string]func() (sent, lost int){}
	for _, f := range families {
		datagrams[f.Name] = startDatagrams(t, f, examplePod(l, l.Topology.Nodes()[0]))
	}
	watch := watchPath(t, l, node, families...)
	name := lab.SpeakerProcess(node.Name)
	pid, ok := l.Processes.PID(name)
	if !ok {
		t.Fatalf("%s does not run", name)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
	if err := l.Processes.Stop(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	leaveWithService(t, l)
	if err := l.StartSpeaker(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) (string, error) {
		for _, f := range families {
			paths, err := l.Topology.TorRoutes(ctx, f.Prefix())
			if err == nil && (len(paths) != 1 || paths[0].Stale) {
				err = fmt.Errorf("paths %+v", paths)
			}
			if err != nil {
				return "", err
			}
		}
		return "", nil
	}); err != nil {
		t.Fatalf("the ToR's path is not fresh again: %v", err)
	}
	leaveWithService(t, l)
	if looks, err := watch(); err != nil {
		t.Errorf("after %d looks: %v", looks, err)
	}
	for family, end := range datagrams {
		if sent, lost := end(); lost > 0 || sent < 100 {
			t.Errorf("%s: %d of %d datagrams were lost", family, lost, sent)
		}
	}
	conversations.goOn(t)
	conversations.end(t)
}

// testController starts the controller again: the service must keep its epoch and its node.
func testController(t *testing.T, l *lab.Lab) {
	before, err := assignment(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	watch := watchPath(t, l, node, families...)
	conversations := startConversations(t, l, l.Topology.Nodes(), shortWord)
	if err := l.Processes.Stop(t.Context(), lab.ControllerProcess); err != nil {
		t.Fatal(err)
	}
	// Its first work: a label that somebody took away while it was gone.
	if _, err := l.Topology.Exec(t.Context(), l.Topology.ControlNetns(), kubectl(t, l, "label", "service", "-n", "example-namespace", "example-service", v1alpha1.ServiceLabel+"-")...); err != nil {
		t.Fatal(err)
	}
	if err := l.StartController(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) (string, error) {
		var service corev1.Service
		err := l.Client.Get(ctx, lab.ExampleService, &service)
		if err == nil && service.Labels[v1alpha1.ServiceLabel] == "" {
			err = errors.New("the Service is not labeled again")
		}
		return "", err
	}); err != nil {
		t.Fatal(err)
	}
	after, err := assignment(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.Spec, after.Spec); diff != "" {
		t.Errorf("the assignment changed: -before +after:\n%s", diff)
	}
	if looks, err := watch(); err != nil {
		t.Errorf("after %d looks: %v", looks, err)
	}
	conversations.end(t)
}

func assignment(ctx context.Context, l *lab.Lab) (*v1alpha1.EgressAssignment, error) {
	a := &v1alpha1.EgressAssignment{}
	return a, l.Client.Get(ctx, lab.ExampleService, a)
}

func kubectl(t *testing.T, l *lab.Lab, args ...string) []string {
	t.Helper()
	argv, err := l.Kubectl(args...)
	if err != nil {
		t.Fatal(err)
	}
	return argv
}

// leaveWithService checks the source that the outside sees of every pod of the service.
func leaveWithService(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := leave(t.Context(), l, as(theService, examplePods(l)...)...); err != nil {
		t.Error(err)
	}
}

// watchPath looks at the ToR all the time, until the returned function is called: it returns
// how often it looked, and an error when a path through the node was ever missing.
func watchPath(t *testing.T, l *lab.Lab, node topology.Node, families ...lab.Family) func() (int, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	looks := 0
	go func() {
		for ctx.Err() == nil {
			if err := paths(ctx, l, node, families...); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
			looks++
		}
		done <- nil
	}()
	return func() (int, error) {
		cancel()
		err := <-done
		if err == nil && looks == 0 {
			err = errors.New("it never looked")
		}
		return looks, err
	}
}

// TestKilledUp kills "lab up" in the middle of each of its steps, without mercy, and builds the
// lab again each time; at last nothing may be left of it.
func TestKilledUp(t *testing.T) {
	o := options(t, "mlk")
	t.Cleanup(func() { down(t, o) })
	for _, step := range []string{"[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(o.Programs, "lab"), "-prefix", o.Prefix, "-root", o.Root, "up")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		reached := false
		for lines := bufio.NewScanner(stderr); !reached && lines.Scan(); {
			reached = strings.Contains(lines.Text(), step)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if !reached {
			t.Fatalf("it ended before step %s", step)
		}
	}
	if _, err := lab.Up(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	down(t, o)
	namespaces, err := exec.CommandContext(t.Context(), "ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(namespaces), o.Prefix+"-") {
		t.Errorf("namespaces left:\n%s", namespaces)
	}
	if _, err := os.Stat(filepath.Join("/run/metallb-egress", o.Prefix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lab's folder is left: %v", err)
	}
}

// programs are the names of this project's processes.
func programs() []string {
	return []string{lab.ControllerProcess, lab.SpeakerProcess("n1"), lab.SpeakerProcess("n2"), lab.SpeakerProcess("n3")}
}

// options describes a lab of its own with programs built for it.
func options(t *testing.T, prefix string) lab.Options {
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
	return lab.Options{Root: root, Prefix: prefix, Programs: build(t, root), Log: t.Logf}
}

func down(t *testing.T, o lab.Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := lab.Down(ctx, o); err != nil {
		t.Errorf("down: %v", err)
	}
}

// up builds a lab that is removed when the test ends, and shows the programs' logs of a test
// that failed.
func up(t *testing.T, prefix string) *lab.Lab {
	t.Helper()
	o := options(t, prefix)
	t.Cleanup(func() { down(t, o) })
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, name := range programs() {
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
