// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// parse reads the sources of a folder, without their tests.
func parse(t *testing.T, folder string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no sources in %s: %v", folder, err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// constants returns the values of string constants that are wanted, by the comment of their group,
// their name, and their type, which the ones before them in the group give them.
func constants(t *testing.T, folder string, wanted func(group, name, kind string) bool) words {
	t.Helper()
	var found words
	for _, file := range parse(t, folder) {
		for _, declaration := range file.Decls {
			group, ok := declaration.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				value := spec.(*ast.ValueSpec)
				kind := ""
				if name, ok := value.Type.(*ast.Ident); ok {
					kind = name.Name
				}
				for i, name := range value.Names {
					if i < len(value.Values) && wanted(group.Doc.Text(), name.Name, kind) {
						found = append(found, text(value.Values[i]))
					}
				}
			}
		}
	}
	return found
}

// text is the value of a string literal, or empty.
func text(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return ""
	}
	value, err := strconv.Unquote(literal.Value)
	if err != nil {
		return ""
	}
	return value
}

func sorted(list words) words {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// The lists are the constants of the packages that the words come from: one that is added there has to
// be added here, or is counted as Other.
func TestWordsAreTheConstants(t *testing.T) {
	const api = "../../api/v1alpha1"
	withHost := words{v1alpha1.ReasonAssigned, v1alpha1.ReasonEveryNode}
	tests := []struct {
		name string
		got  words
		want words
	}{
		{"condition types", conditionTypes, constants(t, api, func(_, name, _ string) bool { return strings.HasPrefix(name, "Condition") })},
		{
			"reasons of being unassigned", append(slices.Clone(unassignedReasons), withHost...),
			append(constants(t, api, func(group, name, _ string) bool {
				return strings.HasPrefix(name, "Reason") && strings.HasPrefix(group, "Reasons of NodeAssigned")
			}), v1alpha1.ReasonNodeNotLabeled),
		},
		{"reasons of the election", electionReasons, constants(t, "../election", func(_, _, kind string) bool { return kind == "Reason" })},
		{
			"causes of a move", moveCauses,
			slices.Concat(constants(t, api, func(_, name, _ string) bool { return strings.HasPrefix(name, "Cause") }), unassignedReasons, electionReasons),
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if len(test.want) < 2 {
				t.Fatalf("the sources have only %v: are they still read right?", test.want)
			}
			if diff := cmp.Diff(sorted(test.want), sorted(test.got)); diff != "" {
				t.Errorf("-sources +this package:\n%s", diff)
			}
			if len(test.got) != len(sorted(test.got)) {
				t.Errorf("a word is there twice: %v", test.got)
			}
		})
	}
}

// The table in the documentation has exactly these metrics, with their types and labels.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	own, _, _ := strings.Cut(string(page), "## BGP sessions") // that is the speaker's
	type metric struct{ kind, labels string }
	documented, got := map[string]metric{}, map[string]metric{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(egress_[a-z_]+)` \\| ([a-z]+)[^|]* \\|([^|]*)\\|").FindAllStringSubmatch(own, -1) {
		labels := strings.FieldsFunc(row[3], func(r rune) bool { return strings.ContainsRune(" ,`", r) })
		documented[row[1]] = metric{row[2], strings.Join(sorted(labels), " ")}
	}
	m := New(true)
	fill(m, 100, 3)
	registry := prometheus.NewRegistry()
	if err := m.Register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		var labels words
		for _, label := range family.Metric[0].Label {
			labels = append(labels, label.GetName())
		}
		got[family.GetName()] = metric{strings.ToLower(family.GetType().String()), strings.Join(sorted(labels), " ")}
	}
	if diff := cmp.Diff(documented, got, cmp.AllowUnexported(metric{})); diff != "" {
		t.Errorf("-docs/metrics.md +this package:\n%s", diff)
	}
}
