// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) keeps named network namespaces.
const netnsDir = "/run/netns"

// DialContext returns a function that dials from inside a namespace, for use where a net.Dialer's is wanted. The address has to be
// an IP address with a port: names would be resolved elsewhere.
func DialContext(netns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return DialFrom(netns, 0)
}

// DialFrom is DialContext for a connection from this UDP port; 0 is any, and any protocol.
func DialFrom(netns string, port uint16) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return nil, err
		}
		var connection net.Conn
		err := withNetns(netns, func() error {
			// Without a fallback the dialer makes its socket in the calling goroutine: on this thread, in this namespace.
			dialer := net.Dialer{FallbackDelay: -1}
			if port != 0 {
				dialer.LocalAddr = &net.UDPAddr{Port: int(port)}
			}
			var err error
			connection, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return connection, err
	}
}

// Listen listens inside a namespace, at an IP address with a port.
func Listen(netns, network, address string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err
	}
	var listener net.Listener
	err := withNetns(netns, func() error {
		var err error
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// withNetns calls a function on a thread that is in the namespace meanwhile. What the function makes has to be made by its own
// goroutine. A socket stays in the namespace where it was made.
func withNetns(netns string, call func() error) (err error) {
	target, err := unix.Open(filepath.Join(netnsDir, netns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", netns, err)
	}
	// Closing a descriptor that was only read from cannot fail in a way that matters.
	defer func() { _ = unix.Close(target) }()

	runtime.LockOSThread()
	original, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(original) }()
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace %s: %w", netns, err)
	}
	defer func() {
		if back := unix.Setns(original, unix.CLONE_NEWNET); back != nil {
			// The thread stays locked, so that nothing else runs on it: it ends with the goroutine.
			err = errors.Join(err, fmt.Errorf("back from network namespace %s: %w", netns, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return call()
}
