// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// row is one row of the catalogue.
type row struct {
	id, upstream string
	// tests are the names that the row gives, in backquotes.
	tests []string
	// issue is the one that the row is left to, as "issue 6", or empty.
	issue string
}

var (
	// id is a row's: its table's letter, a number, and a letter for a later step.
	id = regexp.MustCompile(`^[TCULR][0-9]+[a-z]?$`)
	// leading are the ids at the start of a script's or subtest's name.
	leading = regexp.MustCompile(`^[TCULR][0-9]+[a-z]?(?:[ -][TCULR][0-9]+[a-z]?)*[ :-]`)
	// function are those of a test function's name.
	function = regexp.MustCompile(`^Test((?:[TCULR][0-9]+[a-z]?)+)(?:[A-Z_]|$)`)
	one      = regexp.MustCompile(`[TCULR][0-9]+[a-z]?`)

	quoted   = regexp.MustCompile("`([^`]+)`")
	assigned = regexp.MustCompile(`issue [0-9]+`)
)

// parse reads the tables: id, what upstream does, what happens here, the tests.
func parse(text string) ([]row, error) {
	var rows []row
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "|") || !id.MatchString(strings.TrimSpace(cells[0])) {
			continue
		}
		r := row{id: strings.TrimSpace(cells[0])}
		if len(cells) != 4 {
			return nil, fmt.Errorf("row %s has %d cells, not 4", r.id, len(cells))
		}
		if seen[r.id] {
			return nil, fmt.Errorf("row %s is there twice", r.id)
		}
		seen[r.id] = true
		r.upstream, r.issue = strings.TrimSpace(cells[1]), assigned.FindString(cells[3])
		for _, match := range quoted.FindAllStringSubmatch(cells[3], -1) {
			r.tests = append(r.tests, match[1])
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		return nil, errors.New("it has no rows")
	}
	return rows, nil
}

// ids are those that a name begins with.
func ids(name string) []string {
	if match := function.FindStringSubmatch(name); match != nil {
		return one.FindAllString(match[1], -1)
	}
	return one.FindAllString(leading.FindString(name), -1)
}

// testNames are the names of all scripts and test functions, and all strings in test files that may be
// the names of subtests because they begin with an id.
func testNames(repository fs.FS) (map[string]bool, error) {
	names := map[string]bool{}
	err := fs.WalkDir(repository, ".", func(file string, entry fs.DirEntry, err error) error {
		switch name := path.Base(file); {
		case err != nil:
			return err
		case entry.IsDir() && (file == "hack/rows" || name != "." && strings.HasPrefix(name, ".")):
			// The tests of this program say nothing of the product.
			return fs.SkipDir
		case strings.HasSuffix(name, ".txtar"):
			names[strings.TrimSuffix(name, ".txtar")] = true
		case strings.HasSuffix(name, "_test.go"):
			return namesIn(repository, file, names)
		}
		return nil
	})
	return names, err
}

// namesIn adds those of one test file.
func namesIn(repository fs.FS, file string, names map[string]bool) error {
	text, err := fs.ReadFile(repository, file)
	if err != nil {
		return err
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(parsed, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && strings.HasPrefix(n.Name.Name, "Test") {
				names[n.Name.Name] = true
			}
		case *ast.BasicLit:
			if n.Kind != token.STRING {
				break
			}
			if value, err := strconv.Unquote(n.Value); err == nil && leading.MatchString(value) {
				names[value] = true
			}
		}
		return true
	})
	return nil
}
