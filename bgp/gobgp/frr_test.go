// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package gobgp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	insideEnv = "METALLB_EGRESS_TEST_NETNS"
	frrDir    = "/usr/lib/frr"

	nodeAddress, torAddress   = "192.0.2.11", "192.0.2.1"
	nodeAddress6, torAddress6 = "2001:db8:ffff::11", "2001:db8:ffff::1"
	nodeDevice                = "uplink"
)

// TestMain runs the tests as another process in a network namespace of its own, the node, which
// goes when that process does.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "the loopback device: %v: %s\n", err, out)
			os.Exit(1)
		}
	}
	if os.Getenv(insideEnv) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "running the tests in a network namespace:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// tor is a router with FRR's zebra and bgpd, in a network namespace of its own.
type tor struct {
	t   *testing.T
	pid int // of the process that holds the namespace
	dir string
}

// newTor connects a router with the node and runs FRR there. config is put into bgpd.conf.
func newTor(t *testing.T, config string) *tor {
	t.Helper()
	return newTorAt(t, nodeDevice, nodeAddress, torAddress, nodeAddress6, torAddress6, config)
}

// newOtherTor is a second one, on a link of its own. Its config is that of the first with the
// addresses replaced.
func newOtherTor(t *testing.T, config string) *tor {
	t.Helper()
	config = strings.ReplaceAll(config, "192.0.2.", "198.51.100.")
	return newTorAt(t, "uplink2", "198.51.100.11", otherTorAddress, "2001:db8:fffe::11", "2001:db8:fffe::1", config)
}

const otherTorAddress = "198.51.100.1"

func newTorAt(t *testing.T, nodeDevice, nodeAddress, torAddress, nodeAddress6, torAddress6, config string) *tor {
	t.Helper()
	require(t, filepath.Join(frrDir, "bgpd"), filepath.Join(frrDir, "zebra"), "vtysh", "ip", "nsenter")
	r := &tor{t: t}
	holder := r.start(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}, "sleep", "infinity")
	r.pid = holder.Process.Pid

	run(t, "ip", "link", "add", nodeDevice, "type", "veth", "peer", "name", "node", "netns", strconv.Itoa(r.pid))
	t.Cleanup(func() { run(t, "ip", "link", "delete", nodeDevice) })
	for _, at := range []struct {
		run                     func(...string) string
		device, address, prefix string
	}{
		{func(a ...string) string { return run(t, a...) }, nodeDevice, nodeAddress, nodeAddress6},
		{r.run, "node", torAddress, torAddress6},
	} {
		at.run("ip", "address", "add", at.address+"/24", "dev", at.device)
		at.run("ip", "address", "add", at.prefix+"/64", "dev", at.device, "nodad")
		at.run("ip", "link", "set", at.device, "up")
	}
	r.run("ip", "link", "set", "lo", "up")
	r.frr(config)
	return r
}

// frr starts zebra and bgpd.
func (r *tor) frr(config string) {
	r.t.Helper()
	var err error
	if r.dir, err = os.MkdirTemp("", "bgp-tor-"); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(r.dir) })
	owner, err := user.Lookup("frr")
	if err != nil {
		r.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	for name, text := range map[string]string{"zebra.conf": "", "bfdd.conf": "", "bgpd.conf": config} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.Chown(r.dir, uid, gid); err != nil {
		r.t.Fatal(err)
	}
	daemons := []string{"zebra", "bgpd"}
	if strings.Contains(config, " bfd") {
		daemons = []string{"zebra", "bfdd", "bgpd"}
	}
	for _, daemon := range daemons {
		arguments := []string{
			"-u", "frr", "-g", "frr", "-f", filepath.Join(r.dir, daemon+".conf"), "-i", filepath.Join(r.dir, daemon+".pid"),
			"-z", filepath.Join(r.dir, "zserv.api"), "--vty_socket", r.dir, "-P", "0",
		}
		r.start(&syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, r.inside(append([]string{filepath.Join(frrDir, daemon)}, arguments...)...)...)
		socket := filepath.Join(r.dir, daemon+".vty")
		eventually(r.t, daemon+" answers", func() bool { _, err := os.Stat(socket); return err == nil })
	}
}

// start starts a process that ends with the test.
func (r *tor) start(attributes *syscall.SysProcAttr, command ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = attributes
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if r.t.Failed() {
			r.t.Logf("%s:\n%s", command, output.String())
		}
	})
	return cmd
}

func (r *tor) inside(command ...string) []string {
	return append([]string{"nsenter", "--net=/proc/" + strconv.Itoa(r.pid) + "/ns/net"}, command...)
}

func (r *tor) run(command ...string) string {
	r.t.Helper()
	return run(r.t, r.inside(command...)...)
}

// vtysh asks FRR and reads its JSON into answer.
func (r *tor) vtysh(command string, answer any) {
	r.t.Helper()
	text := r.run("vtysh", "--vty_socket", r.dir, "-c", command)
	if answer != nil {
		if err := json.Unmarshal([]byte(text), answer); err != nil {
			r.t.Fatalf("%s: %v in %s", command, err, text)
		}
	}
}

// torPath is one path of FRR's table.
type torPath struct {
	Valid    bool   `json:"valid"`
	Stale    bool   `json:"stale"`
	Path     string `json:"path"`
	LocPrf   uint32 `json:"locPrf"`
	Nexthops []struct {
		IP    string `json:"ip"`
		Scope string `json:"scope"`
	} `json:"nexthops"`
}

// table returns FRR's table of a family, ipv4 or ipv6.
func (r *tor) table(family string) map[string][]torPath {
	r.t.Helper()
	var answer struct {
		Routes map[string][]torPath `json:"routes"`
	}
	r.vtysh("show bgp "+family+" unicast json", &answer)
	return answer.Routes
}

// prefixes returns those of FRR's table, ordered.
func (r *tor) prefixes(family string) []string {
	r.t.Helper()
	list := []string{}
	for prefix := range r.table(family) {
		list = append(list, prefix)
	}
	slices.Sort(list)
	return list
}

// communities returns a path's communities and large communities.
func (r *tor) communities(prefix string) (communities, large string) {
	r.t.Helper()
	var answer struct {
		Paths []struct {
			Community      struct{ String string } `json:"community"`
			LargeCommunity struct{ String string } `json:"largeCommunity"`
		} `json:"paths"`
	}
	r.vtysh("show bgp ipv4 unicast "+prefix+" json", &answer)
	if len(answer.Paths) != 1 {
		r.t.Fatalf("%d paths to %s", len(answer.Paths), prefix)
	}
	return answer.Paths[0].Community.String, answer.Paths[0].LargeCommunity.String
}

// kernel returns the destinations of the routes that FRR has given the kernel, ordered.
func (r *tor) kernel(family string) []string {
	r.t.Helper()
	var routes []struct {
		Dst string `json:"dst"`
	}
	text := r.run("ip", "-j", family, "route", "show", "proto", "bgp")
	if err := json.Unmarshal([]byte(text), &routes); err != nil {
		r.t.Fatalf("%v in %s", err, text)
	}
	list := []string{}
	for _, route := range routes {
		list = append(list, netip.MustParseAddr(route.Dst).String())
	}
	slices.Sort(list)
	return list
}

// state returns FRR's state of the session with the node.
func (r *tor) state() string {
	r.t.Helper()
	var answer map[string]struct {
		State string `json:"bgpState"`
	}
	r.vtysh("show bgp neighbors json", &answer)
	return answer[nodeAddress].State
}

// require looks for tools.
func require(t *testing.T, tools ...string) {
	t.Helper()
	missing := []string{}
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	switch {
	case len(missing) == 0:
	case os.Getenv("CI") == "true":
		t.Fatalf("missing: %v", missing)
	default:
		t.Skipf("SKIPPED, NOT TESTED. Missing: %v", missing)
	}
}

func run(t *testing.T, command ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, output, stderr.String())
	}
	return string(output)
}

// eventually polls a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(testTimeout)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not after %s: %s", testTimeout, what)
		}
	}
}
