// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// partialSuffix ends the name of a binary that is being built. Only a holder of the folder's lock makes or removes
// such files.
const partialSuffix = ".partial"

// builder carries out a plan.
type builder struct {
	run func(context.Context, command) error
	out *reporter
}

// build builds the plan's programs one after the other (the compiler itself uses every core) and returns how many it
// built. A program that another run built in the meantime is left as it is.
func (b *builder) build(ctx context.Context, pending plan) (int, error) {
	built := 0
	for len(pending.steps) > 0 {
		dir := pending.steps[0].dir
		end := slices.IndexFunc(pending.steps, func(s step) bool { return s.dir != dir })
		if end < 0 {
			end = len(pending.steps)
		}
		count, err := b.buildFolder(ctx, dir, pending.steps[:end], pending.total)
		built += count
		if err != nil {
			return built, err
		}
		pending.steps = pending.steps[end:]
	}
	return built, nil
}

// buildFolder builds the programs of one folder under the folder's lock.
func (b *builder) buildFolder(ctx context.Context, dir string, steps []step, total int) (built int, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, fmt.Errorf("cache folder: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, ".lock"), func() {
		b.out.printf("another run is building %s, waiting for it", filepath.Base(dir))
	})
	if err != nil {
		return 0, err
	}
	defer unlock()

	if err := removePartials(dir); err != nil {
		return 0, err
	}
	for _, each := range steps {
		if cache.Present(each.target()) {
			continue
		}
		if err := b.buildOne(ctx, each, total); err != nil {
			return built, err
		}
		built++
	}
	return built, nil
}

// buildOne builds a program under a temporary name, which it takes away again unless the binary is whole.
func (b *builder) buildOne(ctx context.Context, each step, total int) error {
	title := fmt.Sprintf("%s %s", each.program.Name, each.version)
	// The process id keeps us apart from the compiler of a run that was killed outright and may still be writing.
	partial := filepath.Join(each.dir, fmt.Sprintf(".%s.%d%s", each.program.Name, os.Getpid(), partialSuffix))
	defer os.Remove(partial) // after the rename there is nothing to remove

	args := append([]string{"go", "build"}, each.program.BuildFlags(each.version)...)
	args = append(args, "-o", partial, each.program.Package)
	b.out.printf("%d of %d: building %s", each.number, total, title)
	task := b.out.start(title)
	err := b.run(ctx, command{
		dir:      each.moduleDir,
		args:     args,
		env:      cache.BuildEnvironment(),
		output:   task,
		ownGroup: true,
	})
	took := task.stop()
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted while building %s; the next run goes on there", title)
		}
		return fmt.Errorf("building %s: %w\n%s", title, err, task.tail())
	}
	if err := os.Rename(partial, each.target()); err != nil {
		return fmt.Errorf("building %s: %w", title, err)
	}
	b.out.printf("%d of %d: built %s in %s", each.number, total, title, took)
	return nil
}

// removePartials removes what an earlier run left when it was killed.
func removePartials(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".*"+partialSuffix))
	if err != nil {
		return fmt.Errorf("cache folder %s: %w", dir, err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("cache folder: %w", err)
		}
	}
	return nil
}
