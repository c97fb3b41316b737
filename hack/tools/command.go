// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// stopDelay is how long a build may take to end after an interruption before it is killed.
const stopDelay = 10 * time.Second

// command is a program to run.
type command struct {
	// dir is the working folder, empty for our own.
	dir  string
	args []string
	// env is added to our own environment, KEY=value.
	env    []string
	output io.Writer
	// ownGroup runs the command in a process group of its own, all of which an interruption ends. Without it the
	// command is asked to end and then waited for, however long it takes: a package manager must not be killed.
	ownGroup bool
}

// runCommand runs a command to its end. When ctx ends first, it stops the command and returns once that is gone.
func runCommand(ctx context.Context, c command) error {
	// The kernel sends the parent-death signal when the *thread* that started the command ends, so stay on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout = c.output
	cmd.Stderr = c.output
	if !c.ownGroup {
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		return cmd.Run()
	}

	// Interrupted, "go build" starts nothing more and removes its working folder.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = stopDelay
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// Compilers that outlive "go build" would still use the machine; usually none is left.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return err
}

// lock takes the file lock at path, which is released when the process ends, however it ends. It calls waiting once if
// another process holds it, and gives up when ctx ends.
func lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	unlock = func() { _ = file.Close() }

	err = flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		waiting()
		err = waitForLock(ctx, file)
	}
	if err != nil {
		unlock()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return unlock, nil
}

// waitForLock asks for the lock four times a second: a call that blocks could not be interrupted.
func waitForLock(ctx context.Context, file *os.File) error {
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		err := flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
	}
}

func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
