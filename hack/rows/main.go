// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	root := flag.String("root", ".", "the repository's `folder`")
	flag.Parse()
	complete, err := run(*root, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rows:", err)
		os.Exit(2)
	}
	if !complete {
		os.Exit(1)
	}
}

// catalogue is the file of the rows, in the repository.
const catalogue = "docs/upstream.md"

// run reports on the repository in a folder. Complete is true when no row is forgotten.
func run(root string, to io.Writer) (complete bool, err error) {
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(catalogue)))
	if err != nil {
		return false, err
	}
	rows, err := parse(string(text))
	if err != nil {
		return false, fmt.Errorf("%s: %w", catalogue, err)
	}
	names, err := testNames(os.DirFS(root))
	if err != nil {
		return false, err
	}
	return report(to, rows, names)
}

// report writes one line for each row without a test, and for each test that the catalogue names in vain.
func report(to io.Writer, rows []row, names map[string]bool) (complete bool, err error) {
	tested := map[string]bool{}
	for name := range names {
		for _, id := range ids(name) {
			tested[id] = true
		}
	}
	var lines []string
	complete = true
	count := 0
	for _, r := range rows {
		for _, name := range r.tests {
			if !names[name] {
				complete = false
				lines = append(lines, fmt.Sprintf("%-4s names the test %q, which does not exist", r.id, name))
			}
		}
		switch {
		case tested[r.id]:
			count++
		case r.issue != "":
			lines = append(lines, fmt.Sprintf("%-4s left to %s: %s", r.id, r.issue, r.upstream))
		default:
			complete = false
			lines = append(lines, fmt.Sprintf("%-4s FORGOTTEN, neither tested nor left to an issue: %s", r.id, r.upstream))
		}
	}
	lines = append(lines, fmt.Sprintf("%d rows, %d of them with a test", len(rows), count))
	_, err = fmt.Fprintln(to, strings.Join(lines, "\n"))
	return complete, err
}
