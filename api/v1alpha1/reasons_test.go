// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Everything that a user can read in a condition, an event or a metric is in the reference.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Conditions, reasons and events\n")
	if !found {
		t.Fatal("the reference has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, source := range []struct {
		file string
		is   func(name string) bool
	}{
		{"reasons.go", func(name string) bool {
			return strings.HasPrefix(name, "Condition") || strings.HasPrefix(name, "Reason") || strings.HasPrefix(name, "Cause") || strings.HasPrefix(name, "Event")
		}},
		{"../../controllerext/election/reasons.go", func(string) bool { return true }},
	} {
		constants := constantsOf(t, source.file)
		if len(constants) < 5 {
			t.Errorf("%s has only %d constants: is it still read right?", source.file, len(constants))
		}
		for name, value := range constants {
			if !source.is(name) {
				t.Errorf("%s: %s is no condition, reason, cause or event", source.file, name)
			}
			if !strings.Contains(section, "`"+value+"`") {
				t.Errorf("docs/reference.md does not mention %s, %q of %s", name, value, source.file)
			}
		}
	}
}

// constantsOf returns the string constants of a source file by name.
func constantsOf(t *testing.T, file string) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]string{}
	for _, declaration := range parsed.Decls {
		group, ok := declaration.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, spec := range group.Specs {
			value := spec.(*ast.ValueSpec)
			for i, name := range value.Names {
				literal, ok := value.Values[i].(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING {
					t.Fatalf("%s: %s is not written as a text", file, name.Name)
				}
				if constants[name.Name], err = strconv.Unquote(literal.Value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return constants
}
