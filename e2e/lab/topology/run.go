// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

const (
	// readyTimeout is how long a program may take from its start until it answers, on a busy machine.
	readyTimeout = 60 * time.Second
	// toolTimeout, in seconds, is the same for OVN's and Open vSwitch's tools, which wait for their daemons.
	toolTimeout = "--timeout=60"
)

// run executes a command to its end and returns its output. The error carries what it said on stderr. The command does not outlive
// its caller: a killed Up must not go on making things while Down removes them.
func run(ctx context.Context, input string, argv ...string) ([]byte, error) {
	// The kernel sends the signal when the thread ends that made the command (PR_SET_PDEATHSIG, prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.WaitDelay = time.Second
	command.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		// The context says better than "signal: killed" why the command ended.
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", shorten(strings.Join(argv, " "), 160), err, shorten(strings.TrimSpace(stderr.String()), 2000))
	}
	return stdout.Bytes(), nil
}

func shorten(line string, limit int) string {
	if len(line) <= limit {
		return line
	}
	return line[:limit] + "…"
}

// inNetns is the command line that runs another one in a namespace.
func inNetns(netns string, argv ...string) []string {
	return append([]string{"ip", "netns", "exec", netns}, argv...)
}

// ipBatch runs lines of ip(8) in a namespace, one after the other, up to the first failure.
func ipBatch(ctx context.Context, netns string, lines ...string) error {
	_, err := run(ctx, strings.Join(lines, "\n")+"\n", "ip", "-n", netns, "-batch", "-")
	return err
}

// settings writes kernel settings in a namespace: "net.ipv4.ip_forward=1".
func settings(ctx context.Context, netns string, assignments ...string) error {
	_, err := run(ctx, "", inNetns(netns, append([]string{"sysctl", "-q", "-e", "-w"}, assignments...)...)...)
	return err
}

// leaveToDatapath keeps the kernel quiet on an interface whose frames are Open vSwitch's. The userspace datapath gets copies; the kernel
// would still answer, with this interface's MAC address, for every address of the host (arp_ignore, ip-sysctl).
func leaveToDatapath(ctx context.Context, netns string, device string) error {
	return settings(ctx, netns, "net.ipv4.conf."+device+".arp_ignore=8", "net.ipv6.conf."+device+".disable_ipv6=1")
}

// offloadOff makes the kernel fill in the checksums of what leaves by an interface: the userspace datapath, at the other end, takes
// frames as they are.
func offloadOff(ctx context.Context, netns string, device string) error {
	_, err := run(ctx, "", inNetns(netns, "ethtool", "-K", device, "tx", "off")...)
	return err
}

// oneTransaction makes one invocation of an OVN or Open vSwitch tool, which is one transaction, of many commands.
func oneTransaction(commands [][]string) []string {
	var argv []string
	for i, command := range commands {
		if i > 0 {
			argv = append(argv, "--")
		}
		argv = append(argv, command...)
	}
	return argv
}

func (n Node) northbound(ctx context.Context, argv ...string) ([]byte, error) {
	return run(ctx, "", append([]string{"ovn-nbctl", "--db=unix:" + n.NorthboundSocket, toolTimeout}, argv...)...)
}

func (n Node) southbound(ctx context.Context, argv ...string) ([]byte, error) {
	return run(ctx, "", append([]string{"ovn-sbctl", "--db=unix:" + n.southboundSocket(), toolTimeout}, argv...)...)
}

func (n Node) openvswitch(ctx context.Context, argv ...string) ([]byte, error) {
	return run(ctx, "", append([]string{"ovs-vsctl", "--db=unix:" + n.OpenvSwitchSocket, toolTimeout}, argv...)...)
}

// waitSocket waits until a program accepts connections on a unix socket, or has ended.
func waitSocket(ctx context.Context, procs *process.Set, name, socket string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready in %v", readyTimeout))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		if !procs.Alive(name) {
			return fmt.Errorf("%s has ended: %s", name, tail(procs.LogPath(name)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", name, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// tail returns the end of a log, for an error message.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const limit = 1000
	if len(text) > limit {
		text = text[len(text)-limit:]
	}
	return strings.TrimSpace(string(text))
}

// checkTools looks for every program that the topology is made of.
func checkTools() error {
	var missing []string
	for _, tool := range []string{"ip", "sysctl", "ethtool", "nft", "vtysh", "ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl",
		"ovs-ofctl", "ovs-appctl", "ovn-northd", "ovn-controller", "ovn-nbctl", "ovn-sbctl",
		filepath.Join(frrPrograms, "zebra"), filepath.Join(frrPrograms, "bgpd")} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing programs: %s", strings.Join(missing, " "))
	}
	if os.Geteuid() != 0 {
		return errors.New("only root can make network namespaces")
	}
	return nil
}
