// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package topology

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// lab is a topology that goes with its test.
type lab struct {
	options Options
	procs   *process.Set
}

// newLab prepares a topology with names of its own. A tool that is missing fails the test in CI and skips it elsewhere.
func newLab(t *testing.T, suffix string) lab {
	t.Helper()
	if err := checkTools(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT TESTED: ", err)
	}
	// Short: the paths of unix sockets are limited.
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	procs, err := process.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := lab{options: Options{Prefix: fmt.Sprintf("t%x%s", os.Getpid(), suffix), Dir: dir}, procs: procs}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
		}
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := errors.Join(Down(ctx, l.options, procs), procs.StopAll(ctx), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l lab) showLogs(t *testing.T) {
	names, err := l.procs.Names()
	if err != nil {
		t.Log(err)
	}
	for _, name := range names {
		t.Logf("%s (alive: %v): %s", name, l.procs.Alive(name), tail(l.procs.LogPath(name)))
	}
}

// left is everything that a topology may leave: namespaces, processes, files.
func (l lab) left(t *testing.T) []string {
	t.Helper()
	left, err := namespacesOf(l.options)
	if err != nil {
		t.Fatal(err)
	}
	marks, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, mark := range marks {
		environment, err := os.ReadFile(mark)
		if err == nil && strings.Contains(string(environment), l.options.Dir) {
			left = append(left, mark)
		}
	}
	for _, folder := range []string{l.options.Dir, l.options.routerFolder()} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				left = append(left, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return left
}

const port = 8080

// whoami builds the echo server.
func whoami(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "whoami")
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../cmd/whoami").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return path
}

// serve runs the echo server in a namespace and waits until it answers there.
func (l lab) serve(t *testing.T, program, netns string) {
	t.Helper()
	spec := process.Spec{Name: "whoami-" + netns, Netns: netns, Path: program, Args: []string{"-listen", fmt.Sprintf("[::]:%d", port)}}
	if err := l.procs.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		if _, err := ask(ctx, netns, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: the echo server does not answer", netns)
		case <-tick.C:
		}
	}
}

// ask returns the source address that an echo server sees of a client in a namespace.
func ask(ctx context.Context, netns, protocol string, server netip.AddrPort) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	get := askTCP
	if protocol == "udp" {
		get = askUDP
	}
	line, err := get(ctx, netns, server)
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddrPort(strings.TrimSpace(line))
	return seen.Addr(), err
}

func askTCP(ctx context.Context, netns string, server netip.AddrPort) (string, error) {
	client := http.Client{Transport: &http.Transport{DialContext: DialContext(netns), DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+server.String(), http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	return string(body), errors.Join(err, response.Body.Close())
}

func askUDP(ctx context.Context, netns string, server netip.AddrPort) (string, error) {
	connection, err := DialContext(netns)(ctx, "udp", server.String())
	if err != nil {
		return "", err
	}
	defer func(c net.Conn) { _ = c.Close() }(connection)
	// A datagram may be lost, above all the first on a way: it is sent again until one is answered.
	answer := make([]byte, 100)
	for {
		if _, err := connection.Write([]byte("?")); err != nil {
			return "", err
		}
		if err := connection.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return "", err
		}
		n, err := connection.Read(answer)
		if err == nil || ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return string(answer[:n]), err
		}
	}
}
