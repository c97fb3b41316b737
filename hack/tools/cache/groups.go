// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names of the groups.
const (
	Kubernetes = "kubernetes"
	MetalLB    = "metallb"
	OldMetalLB = "metallb-0.15"
	Lint       = "lint"
	Generate   = "generate"
)

// Group is a set of programs that are built together and kept in one folder.
type Group struct {
	Name     string
	Programs []Program
}

// Program is one binary, built from one of the nested modules.
type Program struct {
	// Name is the file name of the binary.
	Name string
	// Module is the folder of the nested module below hack/tools.
	Module string
	// Package is the import path of the main package.
	Package string
	// Origin is the module path that holds Package; its version in go.mod is the program's version.
	Origin string
	// Stamped are packages whose variables gitVersion, gitMajor and gitMinor tell the program its own version.
	// Kubernetes calls itself v0.0.0-master without them, and its components compare their versions.
	Stamped []string
}

// Groups returns every group, in the order in which they are best built: small ones first.
func Groups() []Group {
	stamped := []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"}
	kubernetes := func(name string) Program {
		return Program{
			Name: name, Module: "kubernetes", Package: "k8s.io/kubernetes/cmd/" + name,
			Origin: "k8s.io/kubernetes", Stamped: stamped,
		}
	}
	metallb := func(module, name string) Program {
		return Program{
			Name: module + "-" + name, Module: module, Package: "go.universe.tf/metallb/" + name,
			Origin: "go.universe.tf/metallb",
		}
	}
	return []Group{
		{Name: Generate, Programs: []Program{{
			Name: "controller-gen", Module: "generate", Package: "sigs.k8s.io/controller-tools/cmd/controller-gen",
			Origin: "sigs.k8s.io/controller-tools",
		}}},
		{Name: Kubernetes, Programs: []Program{
			{
				Name: "etcd", Module: "etcd", Package: "go.etcd.io/etcd/server/v3",
				Origin: "go.etcd.io/etcd/server/v3",
			},
			kubernetes("kube-apiserver"),
			kubernetes("kube-controller-manager"),
			kubernetes("kube-proxy"),
			kubernetes("kubectl"),
		}},
		{Name: MetalLB, Programs: []Program{metallb(MetalLB, "controller"), metallb(MetalLB, "speaker")}},
		// The last one without serviceSelectors.
		{Name: OldMetalLB, Programs: []Program{metallb(OldMetalLB, "controller"), metallb(OldMetalLB, "speaker")}},
		{Name: Lint, Programs: []Program{{
			Name: "golangci-lint", Module: "lint", Package: "github.com/golangci/golangci-lint/v2/cmd/golangci-lint",
			Origin: "github.com/golangci/golangci-lint/v2",
		}}},
	}
}

// FindGroup returns the group of that name.
func FindGroup(name string) (Group, error) {
	for _, group := range Groups() {
		if group.Name == name {
			return group, nil
		}
	}
	return Group{}, fmt.Errorf("no group of tools is called %q", name)
}

// ModuleDir returns the folder of the program's nested module.
func (p Program) ModuleDir(repoRoot string) string {
	return filepath.Join(repoRoot, "hack", "tools", p.Module)
}

// Version returns the version of the program, as the go.mod of its nested module requires it, for example v1.37.2.
func (p Program) Version(repoRoot string) (string, error) {
	path := filepath.Join(p.ModuleDir(repoRoot), "go.mod")
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", p.Name, err)
	}
	version, ok := requiredVersion(content, p.Origin)
	if !ok {
		return "", fmt.Errorf("version of %s: %s does not require %s", p.Name, path, p.Origin)
	}
	return version, nil
}

// BuildFlags returns the flags of "go build" that decide what the binary is; -o, which does not, is not among them.
// The Go build cache is missed altogether when one of them differs.
func (p Program) BuildFlags(version string) []string {
	linker := []string{"-s", "-w"}
	if len(p.Stamped) > 0 {
		major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
		minor, _, _ := strings.Cut(rest, ".")
		for _, pkg := range p.Stamped {
			linker = append(linker,
				"-X", pkg+".gitVersion="+version, "-X", pkg+".gitMajor="+major, "-X", pkg+".gitMinor="+minor)
		}
	}
	return []string{"-mod=readonly", "-trimpath", "-ldflags", strings.Join(linker, " ")}
}

// BuildEnvironment returns the variables that every build sets, KEY=value. Checksum verification is whatever the
// caller's environment says, which by default is on.
func BuildEnvironment() []string {
	return []string{"CGO_ENABLED=0", "GOWORK=off"}
}

// requiredVersion finds the version that a go.mod requires of a module, in a block or on a line of its own.
func requiredVersion(gomod []byte, module string) (string, bool) {
	lines := bufio.NewScanner(bytes.NewReader(gomod))
	for lines.Scan() {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "require "))
		if len(fields) >= 2 && fields[0] == module && strings.HasPrefix(fields[1], "v") {
			return fields[1], true
		}
	}
	return "", false
}
