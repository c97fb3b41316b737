// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// capture is a tcpdump on the host behind the ToR.
type capture struct {
	cmd    *exec.Cmd
	mutex  sync.Mutex
	output bytes.Buffer
	read   chan struct{}
}

// capture starts tcpdump and returns once it listens.
func (l *Lab) capture(ctx context.Context, filter string) (*capture, error) {
	c := &capture{read: make(chan struct{})}
	// -U with -l: each packet is printed when it is seen; no -c, the caller says when to end.
	c.cmd = exec.CommandContext(ctx, "ip", "netns", "exec", l.Topology.OutsideNetns(),
		"tcpdump", "-l", "-n", "-i", "any", "--immediate-mode", "-p", filter)
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	listening := make(chan error, 1)
	go awaitListening(stderr, listening)
	go func() {
		defer close(c.read)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			c.mutex.Lock()
			c.output.WriteString(lines.Text() + "\n")
			c.mutex.Unlock()
		}
	}()
	select {
	case err = <-listening:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("tcpdump: %w", err)
	}
	return c, nil
}

func awaitListening(stderr io.Reader, listening chan<- error) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "listening on") {
			listening <- nil
			_, _ = io.Copy(io.Discard, stderr)
			return
		}
	}
	listening <- errors.New("it ended before it listened")
}

// Sources ends the capture and counts the packets by source address.
func (c *capture) Sources() (map[netip.Addr]int, error) {
	c.Close()
	sources := map[netip.Addr]int{}
	for line := range strings.Lines(c.output.String()) {
		_, rest, ok := strings.Cut(line, " IP ")
		if !ok {
			_, rest, ok = strings.Cut(line, " IP6 ")
		}
		if !ok {
			continue
		}
		source, _, _ := strings.Cut(rest, " > ")
		// tcpdump writes <address>.<port>.
		dot := strings.LastIndexByte(source, '.')
		address, err := netip.ParseAddr(source[:max(dot, 0)])
		if err != nil {
			return nil, fmt.Errorf("tcpdump line %q: %w", line, err)
		}
		sources[address]++
	}
	return sources, nil
}

// Close ends tcpdump. It may be called again.
func (c *capture) Close() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGINT)
	<-c.read
	_ = c.cmd.Wait()
}

// sourceUDP asks a server by one datagram, sent again while no answer comes, which source it
// sees.
func (l *Lab) sourceUDP(ctx context.Context, netns string, server netip.AddrPort) (netip.Addr, error) {
	connection, err := topology.DialContext(netns)(ctx, "udp", server.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = connection.Close() }()
	answer := make([]byte, 64)
	for range 3 {
		if _, err = connection.Write([]byte("?")); err != nil {
			return netip.Addr{}, err
		}
		if err = connection.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return netip.Addr{}, err
		}
		var n int
		n, err = connection.Read(answer)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			continue
		}
		if err != nil {
			return netip.Addr{}, err
		}
		seen, err := netip.ParseAddrPort(strings.TrimSpace(string(answer[:n])))
		return seen.Addr(), err
	}
	return netip.Addr{}, fmt.Errorf("no answer from %s: %w", server, err)
}
