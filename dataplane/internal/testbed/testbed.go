// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

const deadline = 15 * time.Second

// RequireTools fails the test in CI, and skips it elsewhere, when a program is missing or the
// test doesn't run as root.
func RequireTools(t *testing.T, names ...string) {
	t.Helper()
	missing := func(what string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s, and this is CI", what)
		}
		t.Skipf("SKIPPED, NOTHING WAS TESTED: %s", what)
	}
	if os.Geteuid() != 0 {
		missing("not root")
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing(name + " is not installed")
		}
	}
}

// Eventually waits until the condition holds.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %s in vain until %s", deadline, what)
		case <-tick.C:
		}
	}
}

// Namespace is a network namespace without a name, which goes away with the test.
type Namespace struct {
	handle netns.NsHandle
}

// NewNamespace makes one with its loopback interface up.
func NewNamespace(t *testing.T) *Namespace {
	t.Helper()
	n := &Namespace{}
	onThread(func() {
		var err error
		if n.handle, err = netns.New(); err != nil {
			t.Errorf("new network namespace: %v", err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { _ = n.handle.Close() })
	n.Do(t, func() {
		// Addresses are usable at once: nobody else could have them.
		for _, of := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+of+"/accept_dad", []byte("0"), 0o644); err != nil {
				t.Errorf("switch off duplicate address detection: %v", err)
			}
		}
	})
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

// Do calls f on a thread that is in the namespace. Sockets opened and programs started by f are
// in it too; goroutines started by f are not.
func (n *Namespace) Do(t *testing.T, f func()) {
	t.Helper()
	onThread(func() {
		if err := netns.Set(n.handle); err != nil {
			t.Errorf("enter network namespace: %v", err)
			return
		}
		f()
	})
}

// Run runs a program in the namespace and returns what it printed.
func (n *Namespace) Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	n.Do(t, func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// FD is for netlink and ip: /proc/<pid>/fd/<FD> is the namespace.
func (n *Namespace) FD() int { return int(n.handle) }

// onThread runs f on a thread of its own, which ends with it, whatever namespace f leaves it in.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}
