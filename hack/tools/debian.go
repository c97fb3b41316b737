// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// debianFile is a file that something needs, and the Debian package that brings it.
type debianFile struct {
	// name is a program, looked for in programDirs, or an absolute path.
	name string
	pkg  string
}

// programDirs are the folders in which Debian puts programs. PATH is not asked: without root's PATH it lacks sbin.
var programDirs = [...]string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"}

// labFiles are the files that the lab and the privileged tests need.
func labFiles() []debianFile {
	return []debianFile{
		{"ovsdb-server", "openvswitch-switch"},
		{"ovsdb-client", "openvswitch-switch"},
		{"ovsdb-tool", "openvswitch-switch"},
		{"ovs-vswitchd", "openvswitch-switch"},
		{"ovs-vsctl", "openvswitch-switch"},
		{"ovs-ofctl", "openvswitch-switch"},
		{"ovs-appctl", "openvswitch-switch"},
		{"/usr/share/openvswitch/vswitch.ovsschema", "openvswitch-switch"},
		{"ovn-northd", "ovn-central"},
		{"ovn-nbctl", "ovn-central"},
		{"ovn-sbctl", "ovn-central"},
		{"/usr/share/ovn/ovn-nb.ovsschema", "ovn-central"},
		{"/usr/share/ovn/ovn-sb.ovsschema", "ovn-central"},
		{"ovn-controller", "ovn-host"},
		{"/usr/lib/frr/bgpd", "frr"},
		{"/usr/lib/frr/zebra", "frr"},
		{"vtysh", "frr"},
		{"nft", "nftables"},
		{"ip", "iproute2"},
		{"bridge", "iproute2"},
		{"nsenter", "util-linux"},
		{"ethtool", "ethtool"},
		{"tcpdump", "tcpdump"},
		{"conntrack", "conntrack"},
		{"iptables", "iptables"},
		{"curl", "curl"},
		{"sysctl", "procps"},
	}
}

// testFiles are the files that "go test -race" needs: the race detector is linked by a C compiler.
func testFiles() []debianFile {
	return []debianFile{
		{"gcc", "gcc"},
		{"/usr/include/stdlib.h", "libc6-dev"},
	}
}

// installer installs Debian packages.
type installer struct {
	run func(context.Context, command) error
	out *reporter
	// exists tells whether a file of the table is there.
	exists func(name string) bool
	// lockPath keeps two runs from installing at once.
	lockPath func() (string, error)
	// root tells whether we are root; findProgram finds sudo and apt-get.
	root        bool
	findProgram func(name string) (string, error)
}

func newInstaller(out *reporter) *installer {
	return &installer{
		run: runCommand, out: out, exists: fileExists, lockPath: installLock,
		root: os.Geteuid() == 0, findProgram: exec.LookPath,
	}
}

// provide installs the packages whose files are missing. Without the means to do so its error is the line to run.
func (i *installer) provide(ctx context.Context, files []debianFile) error {
	missing := missingPackages(files, i.exists)
	if len(missing) == 0 {
		return nil
	}
	prefix, err := i.rootPrefix(ctx, missing)
	if err != nil {
		return err
	}
	path, err := i.lockPath()
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, path, func() { i.out.printf("another run is installing packages, waiting for it") })
	if err != nil {
		return err
	}
	defer unlock()

	// The run that we waited for may have installed them all.
	if missing = missingPackages(files, i.exists); len(missing) == 0 {
		return nil
	}
	if err := i.install(ctx, prefix, missing); err != nil {
		return err
	}
	if left := missingFiles(files, i.exists); len(left) > 0 {
		return fmt.Errorf("still missing after the install of %s: %s", strings.Join(missing, " "), strings.Join(left, " "))
	}
	return nil
}

// rootPrefix returns what to put before a command so that it runs as root.
func (i *installer) rootPrefix(ctx context.Context, missing []string) ([]string, error) {
	if _, err := i.findProgram("apt-get"); err != nil {
		return nil, fmt.Errorf("missing, and there is no apt-get to install them (names of Debian packages): %s",
			strings.Join(missing, " "))
	}
	if i.root {
		return nil, nil
	}
	if sudo, err := i.findProgram("sudo"); err == nil {
		if i.run(ctx, command{args: []string{sudo, "-n", "true"}}) == nil {
			return []string{sudo, "-n"}, nil
		}
	}
	return nil, errors.New("Debian packages are missing; run this line, then try again:\n" + installLine(missing))
}

func (i *installer) install(ctx context.Context, prefix, packages []string) error {
	names := strings.Join(packages, " ")
	i.out.printf("installing Debian packages: %s", names)
	task := i.out.start("apt-get")
	args := slices.Concat(prefix, []string{"sh", "-c", installScript, "sh"}, packages)
	err := i.run(ctx, command{args: args, output: task})
	took := task.stop()
	if err != nil {
		return fmt.Errorf("installing %s: %w\n%s", names, err, task.tail())
	}
	i.out.printf("installed %d Debian packages in %s (none of their services was started)", len(packages), took)
	return nil
}

// installScript installs the packages given as its arguments and starts none of their services: OVS, OVN and FRR
// would open databases and change routes in the machine's own network, and the lab starts its own in namespaces.
//
// Debian's way to say so is /usr/sbin/policy-rc.d: maintainer scripts ask it before they start or restart anything,
// and 101 means no. A machine that has one keeps it. Elsewhere ours is there during the install only; it carries our
// name, so that the next run can take away one that a killed run left. A service that systemd enables at install may
// still start at the next boot; "systemctl disable" is the admin's answer to that.
//
// "dpkg --configure -a" takes up an install that was interrupted.
const installScript = `
set -eu
policy=/usr/sbin/policy-rc.d
if grep -qs 'made by metallb-egress hack/tools' "$policy"; then rm -f "$policy"; fi
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 130' HUP INT TERM
	printf '#!/bin/sh\n# made by metallb-egress hack/tools, for the time of an install\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
dpkg --configure -a
apt-get update -q
apt-get install -q -y --no-install-recommends \
	-o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold "$@"
`

// installLine is the line that a user without sudo hands to somebody who is root.
func installLine(packages []string) string {
	return "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends " + strings.Join(packages, " ") + "'"
}

// installLock returns the path of the lock for installs, in the cache folder, which it makes.
func installLock() (string, error) {
	root, err := cache.Root()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("cache folder: %w", err)
	}
	return filepath.Join(root, ".install.lock"), nil
}

// missingFiles returns the names of the files that are not there.
func missingFiles(files []debianFile, exists func(string) bool) []string {
	var missing []string
	for _, file := range files {
		if !exists(file.name) {
			missing = append(missing, file.name)
		}
	}
	return missing
}

// missingPackages returns the packages that bring the files that are not there, each once, in the table's order.
func missingPackages(files []debianFile, exists func(string) bool) []string {
	var missing []string
	seen := map[string]bool{}
	for _, file := range files {
		if !seen[file.pkg] && !exists(file.name) {
			seen[file.pkg] = true
			missing = append(missing, file.pkg)
		}
	}
	return missing
}

func countPackages(files []debianFile) int {
	return len(missingPackages(files, func(string) bool { return false }))
}

func fileExists(name string) bool {
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return err == nil
	}
	for _, dir := range programDirs {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}
