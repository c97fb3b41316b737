// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"golang.org/x/sys/unix"
)

// ownProcess tells the topology's programs, and what else was started for a node under a name of this kind, from other programs of
// the same Set, and gives the place that a program belongs to.
var ownProcess = regexp.MustCompile(`^(tor|n[0-9]+)\..`)

// Down removes everything of a topology: programs, namespaces with whatever still runs in them, files. It needs no complete record,
// so it cleans up too after an Up that failed or was killed; where nothing is left it does nothing. The number of nodes in the
// options does not matter.
func Down(ctx context.Context, o Options, procs *process.Set) error {
	o, err := o.complete()
	if err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	if err := down(ctx, o, procs); err != nil {
		return fmt.Errorf("topology %s: %w", o.Prefix, err)
	}
	return nil
}

func down(ctx context.Context, o Options, procs *process.Set) error {
	if err := stopPrograms(ctx, procs); err != nil {
		return err
	}
	namespaces, err := namespacesOf(o)
	if err != nil {
		return err
	}
	if err := removeNamespaces(ctx, namespaces); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(o.folder()), os.RemoveAll(o.routerFolder())); err != nil {
		return err
	}
	// The parent is shared with other prefixes: it goes with the last of them.
	if err := os.Remove(filepath.Dir(o.routerFolder())); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// stopPrograms stops the programs of each node, newest first, the nodes at the same time, and removes their logs.
func stopPrograms(ctx context.Context, procs *process.Set) error {
	names, err := procs.Names()
	if err != nil {
		return err
	}
	places := map[string][]string{}
	for _, name := range names {
		if match := ownProcess.FindStringSubmatch(name); match != nil {
			places[match[1]] = append(places[match[1]], name)
		}
	}
	var group sync.WaitGroup
	var mutex sync.Mutex
	var errs []error
	for _, programs := range places {
		group.Go(func() {
			for _, name := range programs {
				err := procs.Stop(ctx, name)
				if err == nil {
					err = os.Remove(procs.LogPath(name))
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					mutex.Lock()
					errs = append(errs, err)
					mutex.Unlock()
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// namespacesOf returns the names of all namespaces with the topology's prefix.
func namespacesOf(o Options) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var namespaces []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), o.namespacePrefix()) {
			namespaces = append(namespaces, entry.Name())
		}
	}
	return namespaces, nil
}

// removeNamespaces ends what runs in the namespaces and removes them. Those that are not there are no error.
func removeNamespaces(ctx context.Context, namespaces []string) error {
	inodes := map[string]bool{}
	var lines []string
	for _, netns := range namespaces {
		var status unix.Stat_t
		err := unix.Stat(filepath.Join(netnsDir, netns), &status)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", netns, err)
		}
		inodes[fmt.Sprintf("net:[%d]", status.Ino)] = true
		lines = append(lines, "netns del "+netns)
	}
	if len(lines) == 0 {
		return nil
	}
	if err := killInside(ctx, inodes); err != nil {
		return err
	}
	_, err := run(ctx, strings.Join(lines, "\n")+"\n", "ip", "-force", "-batch", "-")
	return err
}

// killInside kills every process in these namespaces until none is left: shells and commands of the lab's users, and programs without
// a record. The namespaces are the lab's, so nobody else's process is in them. The caller's own is spared.
func killInside(ctx context.Context, inodes map[string]bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	const rounds = 500
	for range rounds {
		found, err := killOnce(inodes)
		if err != nil || !found {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return errors.New("processes in the namespaces do not end")
}

// killOnce sends SIGKILL to every process in these namespaces and tells whether there was one.
func killOnce(inodes map[string]bool) (found bool, err error) {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return false, err
	}
	for _, link := range links {
		if !isInside(link, inodes) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(link, "/proc/%d/", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		descriptor, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return true, fmt.Errorf("pid %d: %w", pid, err)
		}
		// The descriptor stands for one process: is it the one that was seen?
		if isInside(link, inodes) {
			found = true
			err = unix.PidfdSendSignal(descriptor, unix.SIGKILL, nil, 0)
		}
		if err := errors.Join(err, unix.Close(descriptor)); err != nil && !errors.Is(err, unix.ESRCH) {
			return true, fmt.Errorf("pid %d: %w", pid, err)
		}
	}
	return found, nil
}

// isInside tells whether /proc/<pid>/ns/net names one of the namespaces. A zombie has none any more.
func isInside(link string, inodes map[string]bool) bool {
	target, err := os.Readlink(link)
	return err == nil && inodes[target]
}
