// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// plan is what has to be built.
type plan struct {
	steps []step
	// total counts every program asked for, the ones that are there already included.
	total int
}

// step is one program to build.
type step struct {
	program cache.Program
	version string
	// moduleDir is where "go build" runs.
	moduleDir string
	// dir is the folder of the group; the binary gets its name in there when it is whole.
	dir string
	// number is the place of the program among all that were asked for, from 1.
	number int
}

// target is the path of the whole binary.
func (s step) target() string { return filepath.Join(s.dir, s.program.Name) }

// newPlan compares what the groups hold with what is in the cache folder, by looking at files alone.
func newPlan(repoRoot string, groups []string) (plan, error) {
	var pending plan
	for _, name := range groups {
		group, err := cache.FindGroup(name)
		if err != nil {
			return plan{}, err
		}
		dir, err := cache.Dir(repoRoot, name)
		if err != nil {
			return plan{}, err
		}
		for _, program := range group.Programs {
			pending.total++
			version, err := program.Version(repoRoot)
			if err != nil {
				return plan{}, err
			}
			next := step{
				program: program, version: version, moduleDir: program.ModuleDir(repoRoot), dir: dir, number: pending.total,
			}
			if !cache.Present(next.target()) {
				pending.steps = append(pending.steps, next)
			}
		}
	}
	return pending, nil
}
