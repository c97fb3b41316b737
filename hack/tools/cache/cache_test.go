// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// checkout makes a small repository with the nested modules of every group.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "go.mod"), "module github.com/metallb-egress/metallb-egress\n\ngo 1.26.0\n")
	versions := map[string]string{
		"etcd":       "require go.etcd.io/etcd/server/v3 v3.7.3 // indirect\n",
		"kubernetes": "require (\n\tk8s.io/kubernetes/other v1.0.0\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n",
		"metallb":    "require go.universe.tf/metallb v0.16.1\n",

		"metallb-0.15": "require go.universe.tf/metallb v0.15.2\n",
		"lint":         "require github.com/golangci/golangci-lint/v2 v2.15.0\n",
		"generate":     "require sigs.k8s.io/controller-tools v0.23.0\n",
	}
	for module, require := range versions {
		dir := filepath.Join(root, "hack", "tools", module)
		writeFile(t, filepath.Join(dir, "go.mod"), "module example.org/"+module+"\n\n"+require)
		writeFile(t, filepath.Join(dir, "go.sum"), module+" h1:abc=\n")
	}
	return root
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFollowsWhatDecidesTheBinaries(t *testing.T) {
	tests := []struct {
		name string
		file string
		// changed are the groups whose key must change with the file; all others must keep theirs.
		changed []string
	}{
		{"nothing", "", nil},
		{"go.sum of a group's only module", "hack/tools/metallb/go.sum", []string{"metallb"}},
		{"go.mod of a group's only module", "hack/tools/lint/go.mod", []string{"lint"}},
		{"go.sum of a group's first module", "hack/tools/etcd/go.sum", []string{"kubernetes"}},
		{"go.sum of a group's second module", "hack/tools/kubernetes/go.sum", []string{"kubernetes"}},
		{"the repository's own go.mod", "go.mod", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := checkout(t)
			before := keys(t, root)
			if test.file != "" {
				path := filepath.Join(root, test.file)
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, path, string(content)+"// more\n")
			}
			var changed []string
			for _, group := range cache.Groups() {
				if before[group.Name] != keys(t, root)[group.Name] {
					changed = append(changed, group.Name)
				}
			}
			if diff := cmp.Diff(test.changed, changed); diff != "" {
				t.Errorf("groups with another key (-want +got):\n%s", diff)
			}
		})
	}
}

func keys(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, group := range cache.Groups() {
		key, err := group.Key(root)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(key) {
			t.Errorf("key of %s is %q, want 12 hexadecimal digits", group.Name, key)
		}
		all[group.Name] = key
	}
	return all
}

func TestBuildFlagsStampTheVersion(t *testing.T) {
	root := checkout(t)
	got := map[string]string{}
	for _, group := range cache.Groups() {
		for _, program := range group.Programs {
			version, err := program.Version(root)
			if err != nil {
				t.Fatal(err)
			}
			got[program.Name] = strings.Join(program.BuildFlags(version), " ")
		}
	}
	const plain = "-mod=readonly -trimpath -ldflags -s -w"
	const stamped = plain +
		" -X k8s.io/component-base/version.gitVersion=v1.37.2" +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" +
		" -X k8s.io/client-go/pkg/version.gitVersion=v1.37.2" +
		" -X k8s.io/client-go/pkg/version.gitMajor=1 -X k8s.io/client-go/pkg/version.gitMinor=37"
	want := map[string]string{
		"controller-gen": plain, "golangci-lint": plain, "etcd": plain,
		"metallb-controller": plain, "metallb-speaker": plain, "metallb-0.15-controller": plain, "metallb-0.15-speaker": plain,
		"kube-apiserver": stamped, "kube-controller-manager": stamped, "kube-proxy": stamped, "kubectl": stamped,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
}

func TestDir(t *testing.T) {
	root := checkout(t)
	key := keys(t, root)["lint"]
	tests := []struct {
		name, xdg, home, want string
	}{
		{"XDG_CACHE_HOME", "/var/cache/of/mine", "/home/someone", "/var/cache/of/mine/metallb-egress/tools/lint-" + key},
		{"home", "", "/home/someone", "/home/someone/.cache/metallb-egress/tools/lint-" + key},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("XDG_CACHE_HOME", test.xdg)
			t.Setenv("HOME", test.home)
			got, err := cache.Dir(root, "lint")
			if err != nil || got != test.want {
				t.Errorf("Dir = %q, %v, want %q", got, err, test.want)
			}
		})
	}
	if _, err := cache.Dir(root, "nonesuch"); err == nil {
		t.Error("Dir of a group that does not exist: no error")
	}
}

func TestBinary(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	root := checkout(t)
	dir, err := cache.Dir(root, "kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "etcd"), "binary")
	writeFile(t, filepath.Join(dir, "kube-proxy"), "")

	got, err := cache.Binary(root, "etcd")
	if want := filepath.Join(dir, "etcd"); err != nil || got != want {
		t.Errorf("Binary(etcd) = %q, %v, want %q", got, err, want)
	}
	for _, name := range []string{"kubectl", "kube-proxy"} {
		_, err := cache.Binary(root, name)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "go run ./hack/tools kubernetes") {
			t.Errorf("Binary(%s), which is absent or empty: error %v, want one that says what to run", name, err)
		}
	}
	if _, err := cache.Binary(root, "nonesuch"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Binary of an unknown name: error %v, want one that is not \"not built\"", err)
	}
}

func TestRepoRoot(t *testing.T) {
	root := checkout(t)
	for _, start := range []string{"", "hack", "hack/tools/etcd"} {
		got, err := cache.RepoRoot(filepath.Join(root, start))
		if err != nil || got != root {
			t.Errorf("RepoRoot from %q = %q, %v, want %q: a nested module is not the root", start, got, err, root)
		}
	}
	if got, err := cache.RepoRoot(t.TempDir()); err == nil {
		t.Errorf("RepoRoot outside a checkout = %q, want an error", got)
	}
}

// TestRealModules reads the modules that are built in earnest: each program's version must be found in them.
func TestRealModules(t *testing.T) {
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range cache.Groups() {
		for _, program := range group.Programs {
			if _, err := program.Version(root); err != nil {
				t.Error(err)
			}
		}
	}
}
