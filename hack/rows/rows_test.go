// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

func TestIDs(t *testing.T) {
	tests := []struct {
		name string
		want []string
	}{
		{"U7-host-networked-endpoints", []string{"U7"}},
		{"C4-C4b-C4c-R21-label-follows", []string{"C4", "C4b", "C4c", "R21"}},
		{"R4 no BGP session: the address would not be announced", []string{"R4"}},
		{"U8 R5 not serving", []string{"U8", "R5"}},
		{"TestR23SharedAddress", []string{"R23"}},
		{"TestU18R2Ambiguous", []string{"U18", "R2"}},
		{"TestC3b", []string{"C3b"}},
		{"TestCount", nil},
		{"TestL4a", []string{"L4a"}},
		{"R4", nil},
		{"R4x", nil},
		{"X9 is no table", nil},
		{"no R4 at the start", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ids(test.name)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

const example = "# Title\n\n| Id | Upstream | Here | Test |\n| --- | --- | --- | --- |\n" +
	"| U1 | one | a | `U1-script` |\n" +
	"| U2 | two | b | issue 6 |\n" +
	"| U3 | three | c | |\n" +
	"| R4 | four | d | `TestGone`, `R4 sub: test` |\n"

func TestReport(t *testing.T) {
	repository := fstest.MapFS{
		"a/testdata/script/U1-script.txtar": {},
		"a/a_test.go":                       {Data: []byte("package a\nfunc TestU9(t *testing.T) { run(\"R4 sub: test\", `U8 raw`) }\nvar x = \"U3\"")},
		"a/a.go":                            {Data: []byte("package a\nvar y = \"U3 of the product\"")},
		"hack/rows/rows_test.go":            {Data: []byte("package a\nvar z = \"U3 is only spoken of\"")},
		".git/U3-hidden.txtar":              {},
	}
	names, err := testNames(repository)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"U1-script": true, "TestU9": true, "R4 sub: test": true, "U8 raw": true}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Fatalf("names: -want +got:\n%s", diff)
	}
	tests := []struct {
		name, table, want string
		complete          bool
	}{
		{name: "everything wrong", table: example, want: "U2   left to issue 6: two\n" +
			"U3   FORGOTTEN, neither tested nor left to an issue: three\n" +
			"R4   names the test \"TestGone\", which does not exist\n4 rows, 2 of them with a test\n"},
		{name: "complete", table: "| U1 | one | a | b |\n| U2 | two | b | issue 6 |\n", complete: true,
			want: "U2   left to issue 6: two\n2 rows, 1 of them with a test\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rows, err := parse(test.table)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			complete, err := report(&text, rows, names)
			if err != nil || complete != test.complete {
				t.Errorf("complete %v, error %v", complete, err)
			}
			if diff := cmp.Diff(test.want, text.String()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ name, table, want string }{
		{"no rows", "# Title\n", "no rows"},
		{"a cell too few", "| U1 | one | a |\n", "row U1 has 3 cells"},
		{"a row twice", "| U1 | one | a | b |\n| U1 | one | a | b |\n", "row U1 is there twice"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := parse(test.table); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}

// No row of the catalogue is forgotten.
func TestCatalogueIsComplete(t *testing.T) {
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	complete, err := run(root, &text)
	if err != nil {
		t.Fatal(err)
	}
	if !complete {
		t.Error(text.String())
	}
}
