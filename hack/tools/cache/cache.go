// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// moduleLine is the first line of the go.mod at the root of the repository.
const moduleLine = "module github.com/metallb-egress/metallb-egress\n"

// keyLength is the number of hexadecimal digits of a key: enough that no two sets of versions meet.
const keyLength = 12

// Root returns the folder that holds everything, $XDG_CACHE_HOME/metallb-egress/tools or the same below ~/.cache.
// All of it may be deleted at any time.
func Root() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache folder: %w", err)
	}
	return filepath.Join(base, "metallb-egress", "tools"), nil
}

// Dir returns the folder of a group's binaries for the versions that this repository asks for. The folder need not
// exist.
func Dir(repoRoot, group string) (string, error) {
	found, err := FindGroup(group)
	if err != nil {
		return "", err
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	key, err := found.Key(repoRoot)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, found.Name+"-"+key), nil
}

// Binary returns the path of a program, for example "kube-apiserver". Where it has not been built yet, the error
// matches fs.ErrNotExist and says which command builds it.
func Binary(repoRoot, name string) (string, error) {
	for _, group := range Groups() {
		for _, program := range group.Programs {
			if program.Name != name {
				continue
			}
			dir, err := Dir(repoRoot, group.Name)
			if err != nil {
				return "", err
			}
			path := filepath.Join(dir, name)
			if !Present(path) {
				return "", fmt.Errorf("%s is not built yet, run \"go run ./hack/tools %s\": %w", path, group.Name, fs.ErrNotExist)
			}
			return path, nil
		}
	}
	return "", fmt.Errorf("no tool is called %q", name)
}

// Present tells whether a binary is there. A binary gets its name only when it is whole, so a look is enough.
func Present(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 && info.Size() > 0
}

// RepoRoot returns the root of the repository that holds the folder start.
func RepoRoot(start string) (string, error) {
	dir, err := filepath.Abs(start)
	if err != nil {
		return "", fmt.Errorf("repository root: %w", err)
	}
	for {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(content, []byte(moduleLine)) {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("repository root: %w", err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("repository root: %s is not inside a checkout of metallb-egress", start)
		}
		dir = parent
	}
}

// Key returns a short hash of everything that decides what the group's binaries are: the go.mod and go.sum of its
// modules, the Go version, the platform and the build flags.
func (g Group) Key(repoRoot string) (string, error) {
	hash := sha256.New()
	// Every part is written with its length, so that no two lists of parts read the same.
	add := func(part string) { _, _ = fmt.Fprintf(hash, "%d:%s\n", len(part), part) }

	for _, part := range []string{runtime.Version(), runtime.GOOS, runtime.GOARCH} {
		add(part)
	}
	for _, variable := range BuildEnvironment() {
		add(variable)
	}
	hashed := map[string]bool{}
	for _, program := range g.Programs {
		version, err := program.Version(repoRoot)
		if err != nil {
			return "", err
		}
		add(program.Name)
		add(program.Package)
		for _, flag := range program.BuildFlags(version) {
			add(flag)
		}
		if hashed[program.Module] {
			continue
		}
		hashed[program.Module] = true
		for _, file := range []string{"go.mod", "go.sum"} {
			if err := addFile(hash, filepath.Join(program.ModuleDir(repoRoot), file)); err != nil {
				return "", fmt.Errorf("key of %s: %w", g.Name, err)
			}
		}
	}
	return hex.EncodeToString(hash.Sum(nil))[:keyLength], nil
}

func addFile(hash io.Writer, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(hash, "%d:%s\n", len(content), content)
	return err
}
