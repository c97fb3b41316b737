// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// machine stands in for the machine that packages are installed on.
type machine struct {
	t *testing.T
	// absent are the files of the table that are not there; an install brings them, unless it is broken.
	absent   []string
	broken   bool
	programs []string
	root     bool
	sudoFree bool
	ran      [][]string
}

func (m *machine) installer() *installer {
	dir := m.t.TempDir()
	return &installer{
		run:      m.run,
		out:      newReporter(io.Discard),
		exists:   func(name string) bool { return !slices.Contains(m.absent, name) },
		lockPath: func() (string, error) { return filepath.Join(dir, "lock"), nil },
		root:     m.root,
		findProgram: func(name string) (string, error) {
			if slices.Contains(m.programs, name) {
				return "/usr/bin/" + name, nil
			}
			return "", exec.ErrNotFound
		},
	}
}

func (m *machine) run(_ context.Context, c command) error {
	var shown []string
	for _, word := range c.args {
		if word == installScript {
			word = "SCRIPT"
		}
		shown = append(shown, word)
	}
	m.ran = append(m.ran, shown)
	if slices.Equal(shown, []string{"/usr/bin/sudo", "-n", "true"}) {
		if !m.sudoFree {
			return errors.New("exit status 1")
		}
		return nil
	}
	if !m.broken {
		m.absent = nil
	}
	return nil
}

func TestInstall(t *testing.T) {
	absent := []string{"vtysh", "/usr/lib/frr/bgpd", "conntrack"}
	const line = "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends frr conntrack'"
	asRoot := []string{"sh", "-c", "SCRIPT", "sh", "frr", "conntrack"}
	askSudo := []string{"/usr/bin/sudo", "-n", "true"}
	tests := []struct {
		name    string
		machine machine
		ran     [][]string
		// err is contained in the error; empty for none.
		err string
	}{
		{"nothing missing runs nothing", machine{root: true, programs: []string{"apt-get"}}, nil, ""},
		{"root", machine{absent: absent, root: true, programs: []string{"apt-get"}}, [][]string{asRoot}, ""},
		{
			"sudo without a password",
			machine{absent: absent, programs: []string{"apt-get", "sudo"}, sudoFree: true},
			[][]string{askSudo, append([]string{"/usr/bin/sudo", "-n"}, asRoot...)}, "",
		},
		{"sudo with a password", machine{absent: absent, programs: []string{"apt-get", "sudo"}}, [][]string{askSudo}, line},
		{"no sudo", machine{absent: absent, programs: []string{"apt-get"}}, nil, line},
		{"not Debian", machine{absent: absent, root: true}, nil, "there is no apt-get"},
		{
			"the install does not bring the file",
			machine{absent: absent, root: true, programs: []string{"apt-get"}, broken: true},
			[][]string{asRoot}, "still missing after the install of frr conntrack: /usr/lib/frr/bgpd vtysh conntrack",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := test.machine
			m.t = t
			err := m.installer().provide(t.Context(), labFiles())
			switch {
			case test.err == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("error %v, want one with %q", err, test.err)
			}
			if diff := cmp.Diff(test.ran, m.ran); diff != "" {
				t.Errorf("commands (-want +got):\n%s", diff)
			}
		})
	}
}

// TestInstallScript runs the script with stand-ins for the package tools and a policy-rc.d in a folder of the test's.
func TestInstallScript(t *testing.T) {
	const ours = "made by metallb-egress hack/tools"
	tests := []struct {
		name string
		// before is the content of policy-rc.d, empty for no file.
		before string
		// apt is what apt-get does.
		apt string
		// during is contained in policy-rc.d while apt-get runs; after is its whole content in the end.
		during, after string
		fails         bool
	}{
		{"none before", "", "true", ours, "", false},
		{"the admin's own is kept", "#!/bin/sh\nexit 0\n", "true", "exit 0", "#!/bin/sh\nexit 0\n", false},
		{"one left by a killed run", "# " + ours + "\nexit 101\n", "true", ours, "", false},
		{"a failed install cleans up", "", "exit 100", ours, "", true},
		{"an interrupted install cleans up", "", "kill -INT $PPID", ours, "", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			policy := filepath.Join(dir, "policy-rc.d")
			during := filepath.Join(dir, "during")
			write := func(name, content string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			write("dpkg", "#!/bin/sh\n")
			write("apt-get", "#!/bin/sh\ncp "+policy+" "+during+"\n"+test.apt+"\n")
			if test.before != "" {
				write("policy-rc.d", test.before)
			}
			script := strings.ReplaceAll(installScript, "/usr/sbin/policy-rc.d", policy)
			var output bytes.Buffer
			err := runCommand(t.Context(), command{
				args: []string{"sh", "-c", script, "sh", "frr"}, env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
				output: &output,
			})
			if (err != nil) != test.fails {
				t.Fatalf("script: %v, want failure %t; output: %s", err, test.fails, output.String())
			}
			if content, _ := os.ReadFile(during); !strings.Contains(string(content), test.during) {
				t.Errorf("policy during the install is %q, want one with %q", content, test.during)
			}
			after, err := os.ReadFile(policy)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.after, string(after)); diff != "" {
				t.Errorf("policy after the install (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSelections(t *testing.T) {
	got := map[string][]string{}
	for name, each := range selections() {
		got[name] = append([]string{}, each.groups...)
		if len(each.files) > 0 {
			got[name] = append(got[name], "debian")
		}
	}
	want := map[string][]string{
		"lab":        {cache.Kubernetes, cache.MetalLB, "debian"},
		"test":       {cache.Kubernetes, cache.MetalLB, cache.OldMetalLB, "debian"},
		"all":        {cache.Generate, cache.Kubernetes, cache.MetalLB, cache.OldMetalLB, cache.Lint, "debian"},
		"generate":   {cache.Generate},
		"kubernetes": {cache.Kubernetes},
		"metallb":    {cache.MetalLB},

		"metallb-0.15": {cache.OldMetalLB},
		"lint":         {cache.Lint},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selections (-want +got):\n%s", diff)
	}
}

func TestPathAndUsage(t *testing.T) {
	f := newFixture(t)
	tests := []struct {
		name string
		args []string
		want string
		err  error
	}{
		{"path of the lab", []string{"path"}, f.path("kubernetes", "") + ":" + f.path("metallb", "") + "\n", nil},
		{"path of a group", []string{"path", "lint"}, f.path("lint", "") + "\n", nil},
		{"no command", nil, "", errUsage},
		{"unknown command", []string{"nonesuch"}, "", errUsage},
		{"unknown group", []string{"path", "nonesuch"}, "", errUsage},
		{"too much", []string{"lab", "lint"}, "", errUsage},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := run(t.Context(), test.args, &out, io.Discard); !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.want, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}
