// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// memory is what a program has, in bytes: see memoryNames. At rest is after it has given back what it does not use.
type memory [6]uint64

var memoryNames = []string{"peak RSS", "RSS", "anonymous RSS", "heap", "RSS at rest", "anonymous RSS at rest"}

// holder in the environment makes the test binary a program that holds services: "<dir> <services> <endpoints>".
const holder = "LADDER_HOLDER"

// TestMain is that program, too.
func TestMain(m *testing.M) {
	var dir string
	var s scene
	if _, err := fmt.Sscanf(os.Getenv(holder), "%s %d %d", &dir, &s.services, &s.endpoints); err != nil {
		os.Exit(m.Run())
	}
	held, err := hold(context.Background(), dir, s)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(held)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// memory has a program of its own be the dataplane of the primary.
func (w *world) memory(ctx context.Context, size scene) (held memory, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	program, err := os.Executable()
	if err != nil {
		return held, err
	}
	runtime.LockOSThread() // the signal comes when the thread ends
	defer runtime.UnlockOSThread()
	command := exec.CommandContext(ctx, program)
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", holder, w.dir, size.services, size.endpoints))
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return held, err
	}
	return held, json.Unmarshal(output, &held)
}

// hold tells what memory this process needs to hold the services of a primary.
func hold(ctx context.Context, dir string, s scene) (held memory, err error) {
	procs, err := process.Open(dir)
	if err != nil {
		return held, err
	}
	w, err := worldOf(topology.Open(topology.Options{Prefix: prefix, Dir: dir}, procs), procs, dir)
	if err != nil {
		return held, err
	}
	node, err := newOurNode(w.nodes[0])
	if err != nil {
		return held, err
	}
	defer node.Close()
	in := w.input(node.name, s.on(1, node.name, "n2", ""))
	// Once with everything to do, and then often with nothing, as in an egress-speaker that has run for a while.
	for range 10 {
		if err := node.do(func() error {
			_, err := node.hold(ctx, in)
			return err
		}); err != nil {
			return held, err
		}
	}
	held[0], held[1], held[2] = status("VmHWM"), status("VmRSS"), status("RssAnon")
	debug.FreeOSMemory()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	held[3], held[4], held[5] = heap.HeapAlloc, status("VmRSS"), status("RssAnon")
	runtime.KeepAlive(in)
	return held, node.do(func() error { return node.Remove(ctx) })
}

// status is a line of /proc/self/status in bytes, 0 where it has no such line.
func status(name string) uint64 {
	text, _ := os.ReadFile("/proc/self/status")
	found := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindStringSubmatch(string(text))
	if found == nil {
		return 0
	}
	kibibytes, _ := strconv.ParseUint(found[1], 10, 64)
	return kibibytes << 10
}
