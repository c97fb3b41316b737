// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: -want +got:\n%s", path, diff)
	}
}

func TestPool(t *testing.T) {
	tests := []struct {
		name        string
		annotations map[string]string
		want        string
	}{
		{"none", nil, ""},
		{"current", map[string]string{"metallb.io/ip-allocated-from-pool": "a", "metallb.universe.tf/ip-allocated-from-pool": "b"}, "a"},
		{"deprecated", map[string]string{"metallb.universe.tf/ip-allocated-from-pool": "b"}, "b"},
		{"no name of an object", map[string]string{"metallb.io/ip-allocated-from-pool": "A b"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Pool(test.annotations); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
