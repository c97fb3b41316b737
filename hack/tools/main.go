// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const usage = `usage: go run ./hack/tools lab|test|lint|generate|all|kubernetes|metallb|metallb-0.15
       go run ./hack/tools path [lab|GROUP]
       go run ./hack/tools list
`

// errUsage is returned for a command line that says nothing we know.
var errUsage = errors.New("unknown command")

func main() {
	// The terminal's Ctrl-C, a supervisor's stop and a closed terminal all end the build in the same orderly way.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) error {
	if len(arguments) == 0 {
		return errUsage
	}
	repoRoot, err := cache.RepoRoot(".")
	if err != nil {
		return err
	}
	switch command, rest := arguments[0], arguments[1:]; {
	case command == "help" || command == "-h" || command == "--help":
		return flag.ErrHelp
	case command == "path" && len(rest) == 0:
		return printPath(repoRoot, "lab", stdout)
	case command == "path" && len(rest) == 1:
		return printPath(repoRoot, rest[0], stdout)
	case command == "list" && len(rest) == 0:
		return printList(repoRoot, stdout)
	case len(rest) == 0:
		wanted, ok := selections()[command]
		if !ok {
			return errUsage
		}
		return provide(ctx, repoRoot, command, wanted, stderr)
	}
	return errUsage
}

// selection is what one command asks for.
type selection struct {
	files  []debianFile
	groups []string
}

// selections returns what each command asks for: the four named sets, and each group by its name.
func selections() map[string]selection {
	lab := []string{cache.Kubernetes, cache.MetalLB}
	labAndTest := append(labFiles(), testFiles()...)
	all := map[string]selection{
		"lab":  {files: labFiles(), groups: lab},
		"test": {files: labAndTest, groups: append(slices.Clone(lab), cache.OldMetalLB)},
		"all":  {files: labAndTest},
	}
	for _, group := range cache.Groups() {
		all[group.Name] = selection{groups: []string{group.Name}}
		everything := all["all"]
		everything.groups = append(everything.groups, group.Name)
		all["all"] = everything
	}
	return all
}

// provide makes a selection available, Debian packages first: they are quick, and may need the user.
func provide(ctx context.Context, repoRoot, name string, wanted selection, stderr io.Writer) error {
	out := newReporter(stderr)
	if err := newInstaller(out).provide(ctx, wanted.files); err != nil {
		return err
	}
	pending, err := newPlan(repoRoot, wanted.groups)
	if err != nil {
		return err
	}
	built, err := (&builder{run: runCommand, out: out}).build(ctx, pending)
	if err != nil {
		return err
	}
	out.printf("%s is complete: Debian packages %d, programs %d, built now %d, took %s",
		name, countPackages(wanted.files), pending.total, built, out.elapsed())
	return nil
}

func printPath(repoRoot, name string, stdout io.Writer) error {
	wanted, ok := selections()[name]
	if !ok {
		return errUsage
	}
	var dirs []string
	for _, group := range wanted.groups {
		dir, err := cache.Dir(repoRoot, group)
		if err != nil {
			return err
		}
		dirs = append(dirs, dir)
	}
	_, err := fmt.Fprintln(stdout, strings.Join(dirs, string(os.PathListSeparator)))
	return err
}

func printList(repoRoot string, stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, group := range cache.Groups() {
		pending, err := newPlan(repoRoot, []string{group.Name})
		if err != nil {
			return err
		}
		missing := map[string]bool{}
		for _, each := range pending.steps {
			missing[each.program.Name] = true
		}
		for _, program := range group.Programs {
			version, err := program.Version(repoRoot)
			if err != nil {
				return err
			}
			state := "there"
			if missing[program.Name] {
				state = "missing"
			}
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", group.Name, program.Name, version, state)
		}
	}
	for _, file := range append(labFiles(), testFiles()...) {
		state := "there"
		if !fileExists(file.name) {
			state = "missing"
		}
		_, _ = fmt.Fprintf(table, "debian\t%s\t%s\t%s\n", file.name, file.pkg, state)
	}
	return table.Flush()
}
