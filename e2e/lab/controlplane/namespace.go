// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"

	"github.com/vishvananda/netns"
)

// inNamespace runs f in a thread that is in the named network namespace; in this process's own where the name is empty. Sockets that f
// makes stay in it.
func inNamespace(name string, f func() error) error {
	if name == "" {
		return f()
	}
	namespace, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer func() { _ = namespace.Close() }()
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, nobody else gets one that is in another namespace.
		runtime.LockOSThread()
		if err := netns.Set(namespace); err != nil {
			result <- fmt.Errorf("network namespace %s: %w", name, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// freePorts returns ports at an address in a namespace where nobody listens now.
func freePorts(namespace string, address netip.Addr, count int) ([]int, error) {
	var listeners []net.Listener
	// Held until all are found, so that no port is found twice.
	defer func() {
		for _, listener := range listeners {
			_ = listener.Close()
		}
	}()
	ports := make([]int, 0, count)
	err := inNamespace(namespace, func() error {
		for range count {
			listener, err := net.Listen("tcp", net.JoinHostPort(address.String(), "0"))
			if err != nil {
				return err
			}
			listeners = append(listeners, listener)
			ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
		}
		return nil
	})
	return ports, err
}

// portFree tells whether one could listen at a port.
func portFree(namespace string, address netip.Addr, port int) error {
	return inNamespace(namespace, func() error {
		listener, err := net.Listen("tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
		if err != nil {
			return err
		}
		return listener.Close()
	})
}
