// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// netnsDir is where ip-netns(8) keeps named network namespaces.
	netnsDir = "/run/netns"
	// grace is how long a program has between SIGTERM and SIGKILL.
	grace = 5 * time.Second
	// killWait is how long the kernel may take to end a program after SIGKILL.
	killWait = 5 * time.Second
)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)

// Set is the programs of one lab: those whose records lie in one folder. Its methods may be called from several goroutines.
type Set struct {
	dir string
	// starting serializes Start, for the order in the records and the check that a name is free.
	starting sync.Mutex
}

// Spec describes one program.
type Spec struct {
	// Name identifies the program in its Set: lower case letters, digits, dots, dashes and underscores.
	Name string
	// Netns is the name of the network namespace to run in, entered by ip-netns(8), which keeps the pid; empty is the host's.
	Netns string
	// Path is the executable: an absolute path, or a name found in PATH.
	Path string
	Args []string
	// Env is added to the environment of the caller.
	Env []string
	// Dir is the working directory; empty is the caller's.
	Dir string
	// UID and GID are the user and group to run as. Where both are 0 the program keeps the caller's.
	UID, GID uint32
}

// Open returns the Set kept in dir, made where missing: records in dir/process/<name>.json, logs in dir/log/<name>.log.
func Open(dir string) (*Set, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{"process", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return nil, err
		}
	}
	return &Set{dir: dir}, nil
}

// LogPath returns the file to which the program's output is appended.
func (s *Set) LogPath(name string) string {
	return filepath.Join(s.dir, "log", name+".log")
}

// Start runs a program in a session of its own, so that it outlives the caller and its terminal, with /dev/null as its input
// and the log file as its output. It returns when the program exists, not when it is ready, and fails where a program of that
// name is running already.
func (s *Set) Start(ctx context.Context, spec Spec) error {
	if err := s.start(ctx, spec); err != nil {
		return fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return nil
}

func (s *Set) start(ctx context.Context, spec Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !validName.MatchString(spec.Name) {
		return errors.New("not a valid name")
	}
	command, err := commandOf(spec)
	if err != nil {
		return err
	}
	command.Env = append(append(os.Environ(), spec.Env...), markVariable+"="+s.recordPath(spec.Name))

	s.starting.Lock()
	defer s.starting.Unlock()
	if pid, alive := s.PID(spec.Name); alive {
		return fmt.Errorf("already running as pid %d", pid)
	}
	records, err := s.list()
	if err != nil {
		return err
	}
	r := record{Name: spec.Name, Order: 1, Command: command.Args, Spec: spec}
	if len(records) > 0 {
		r.Order = records[0].Order + 1
	}
	// Nothing is made before the record, not even the log: whoever cleans up goes by the records.
	if err := s.announce(r); err != nil {
		return err
	}
	if err := startLogged(command, s.LogPath(spec.Name)); err != nil {
		return errors.Join(err, s.remove(spec.Name))
	}
	r.PID = command.Process.Pid
	// A program that has ended already has remains until it is reaped, but no start time: the record then matches no process.
	r.StartTime, _ = startTimeOf(r.PID)
	return errors.Join(s.complete(r), command.Process.Release())
}

// startLogged starts the command with its output appended to a file.
func startLogged(command *exec.Cmd, path string) error {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	// The program has a descriptor of its own; nothing is written through this one.
	defer func() { _ = log.Close() }()
	command.Stdout, command.Stderr = log, log
	return command.Start()
}

// commandOf builds the command line: the program itself, or ip-netns(8) and setpriv(1) before it, which execute one another
// under one pid.
func commandOf(spec Spec) (*exec.Cmd, error) {
	path, err := exec.LookPath(spec.Path)
	if err != nil {
		return nil, err
	}
	argv := append([]string{path}, spec.Args...)
	attributes := &syscall.SysProcAttr{Setsid: true}
	switchUser := spec.UID != 0 || spec.GID != 0
	switch {
	case spec.Netns != "":
		if _, err := os.Stat(filepath.Join(netnsDir, spec.Netns)); err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		prefix := []string{"ip", "netns", "exec", spec.Netns}
		if switchUser {
			prefix = append(prefix, "setpriv", "--reuid", strconv.FormatUint(uint64(spec.UID), 10),
				"--regid", strconv.FormatUint(uint64(spec.GID), 10), "--clear-groups", "--")
		}
		argv = append(prefix, argv...)
	case switchUser:
		attributes.Credential = &syscall.Credential{Uid: spec.UID, Gid: spec.GID}
	}
	command := exec.Command(argv[0], argv[1:]...)
	command.Dir = spec.Dir
	command.SysProcAttr = attributes
	return command, nil
}

// PID returns the pid of a running program, and false where it has no record, has ended, or its pid belongs to another program.
func (s *Set) PID(name string) (int, bool) {
	r, found, err := s.read(name)
	if err != nil || !found {
		return 0, false
	}
	pid, _, alive := s.locate(r)
	return pid, alive
}

// Alive tells whether the program runs.
func (s *Set) Alive(name string) bool {
	_, alive := s.PID(name)
	return alive
}

// locate finds the process of a record.
func (s *Set) locate(r record) (pid int, startTime uint64, alive bool) {
	if r.PID == 0 {
		return findMarked(s.recordPath(r.Name))
	}
	startTime, alive = startTimeOf(r.PID)
	return r.PID, startTime, alive && startTime == r.StartTime
}

// Stop ends a program with SIGTERM, or SIGKILL where it takes longer than five seconds, waits for its end, and removes its record. A
// program that has ended, or was never started, is no error. Where ctx ends first the record stays, for another Stop.
func (s *Set) Stop(ctx context.Context, name string) error {
	r, found, err := s.read(name)
	if err != nil || !found {
		return err
	}
	if err := s.end(ctx, r); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return s.remove(name)
}

// Restart stops a program, if it still runs, and starts it again as it was started before.
func (s *Set) Restart(ctx context.Context, name string) error {
	r, found, err := s.read(name)
	if err == nil && !found {
		err = errors.New("it was never started")
	}
	if err != nil {
		return fmt.Errorf("restart %s: %w", name, err)
	}
	if err := s.Stop(ctx, name); err != nil {
		return err
	}
	return s.Start(ctx, r.Spec)
}

// Names returns the names of all programs that have a record, newest first, running or not.
func (s *Set) Names() ([]string, error) {
	records, err := s.list()
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(records))
	for _, r := range records {
		names = append(names, r.Name)
	}
	return names, nil
}

// StopAll stops every program of the Set, newest first. It goes on after a failure and returns all of them.
func (s *Set) StopAll(ctx context.Context) error {
	names, err := s.Names()
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, s.Stop(ctx, name))
	}
	return errors.Join(errs...)
}

// end signals the process of a record until it is gone.
func (s *Set) end(ctx context.Context, r record) error {
	pid, startTime, alive := s.locate(r)
	if !alive {
		reap(r.PID)
		return nil
	}
	descriptor, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pid %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(descriptor) }()
	// From here on the descriptor stands for one process. Look again whether it is the recorded one.
	if now, alive := startTimeOf(pid); !alive || now != startTime {
		return nil
	}
	steps := []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killWait}}
	for _, step := range steps {
		if err := unix.PidfdSendSignal(descriptor, step.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pid %d: %w", pid, err)
		}
		ended, err := waitEnd(ctx, descriptor, step.wait)
		if err != nil {
			return fmt.Errorf("pid %d: %w", pid, err)
		}
		if ended {
			reap(pid)
			return nil
		}
	}
	return fmt.Errorf("pid %d: still there %v after SIGKILL", pid, killWait)
}

// waitEnd waits until the process has ended, which makes its descriptor readable (pidfd_open(2)), or the time is over.
func waitEnd(ctx context.Context, descriptor int, limit time.Duration) (ended bool, err error) {
	const slice = 100 * time.Millisecond
	for deadline := time.Now().Add(limit); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		poll := []unix.PollFd{{Fd: int32(descriptor), Events: unix.POLLIN}}
		ready, err := unix.Poll(poll, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, err
		}
		if ready > 0 {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, nil
		}
	}
}

// reap collects the exit status where the process is a child of the caller; of any other it does nothing (ECHILD).
func reap(pid int) {
	if pid > 0 {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}
