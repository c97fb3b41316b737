// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// holder in the environment makes the test binary a program that holds services: "<dir> <services> <endpoints>".
const holder = "LADDER_HOLDER"

// TestMain is that program, too.
func TestMain(m *testing.M) {
	var dir string
	var s scene
	if _, err := fmt.Sscanf(os.Getenv(holder), "%s %d %d", &dir, &s.services, &s.endpoints); err != nil {
		os.Exit(m.Run())
	}
	row, err := hold(context.Background(), dir, s)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(row)
}

// memory has a program of its own be the dataplane of the primary.
func (w *world) memory(ctx context.Context, size scene, results *tables) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the signal comes when the thread ends
	defer runtime.UnlockOSThread()
	command := exec.CommandContext(ctx, program)
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", holder, w.dir, size.services, size.endpoints))
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stderr = os.Stderr
	row, err := command.Output()
	results.held = append(results.held, string(row))
	return err
}

// hold tells, as a row of the table, what memory this process needs to hold the services of a primary.
func hold(ctx context.Context, dir string, s scene) (string, error) {
	procs, err := process.Open(dir)
	if err != nil {
		return "", err
	}
	w, err := worldOf(topology.Open(topology.Options{Prefix: prefix, Dir: dir}, procs), procs, dir)
	if err != nil {
		return "", err
	}
	node, err := newOurNode(w.nodes[0])
	if err != nil {
		return "", err
	}
	defer node.Close()
	in := w.input(w.nodes[0].Name, s.of("n1", "n2", ""))
	// Once with everything to do, and then often with nothing, as in an egress-speaker that has run for a while.
	for range 10 {
		if err := node.do(func() error {
			_, err := node.hold(ctx, in)
			return err
		}); err != nil {
			return "", err
		}
	}
	working, err := memoryOf("VmHWM", "VmRSS", "RssAnon")
	if err != nil {
		return "", err
	}
	debug.FreeOSMemory()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	resting, err := memoryOf("VmRSS", "RssAnon")
	if err != nil {
		return "", err
	}
	runtime.KeepAlive(in)
	row := "| " + s.String()
	for _, bytes := range slices.Concat(working, []uint64{heap.HeapAlloc}, resting) {
		row += fmt.Sprintf(" | %.1f MiB", float64(bytes)/(1<<20))
	}
	return row + " |\n", node.do(func() error { return node.Remove(ctx) })
}

// memoryOf reads lines of /proc/self/status, in bytes.
func memoryOf(names ...string) (values []uint64, err error) {
	text, err := os.ReadFile("/proc/self/status")
	for _, name := range names {
		found := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindSubmatch(text)
		if err == nil && found == nil {
			err = fmt.Errorf("no %s in /proc/self/status", name)
		}
		if err != nil {
			return nil, err
		}
		kibibytes, _ := strconv.ParseUint(string(found[1]), 10, 64)
		values = append(values, kibibytes<<10)
	}
	return values, nil
}
