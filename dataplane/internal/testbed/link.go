// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Wire connects two namespaces by a pair of devices, which are up.
func Wire(t *testing.T, a *Namespace, aName string, b *Namespace, bName string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.FD()))
	a.Run(t, "ip", "link", "set", aName, "up")
	b.Run(t, "ip", "link", "set", bName, "up")
}

// Configure runs commands of ip, one a line.
func (n *Namespace) Configure(t *testing.T, commands string) {
	t.Helper()
	batch := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(batch, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Run(t, "ip", "-batch", batch)
}

// Forward makes the namespace a router.
func (n *Namespace) Forward(t *testing.T) {
	t.Helper()
	n.Do(t, func() {
		for _, setting := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+setting, []byte("1"), 0o644); err != nil {
				t.Errorf("switch on forwarding: %v", err)
			}
		}
	})
}
