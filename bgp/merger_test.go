// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

// TestMerger: whatever goes in and changes is merged anew, and nothing else.
func TestMerger(t *testing.T) {
	t.Parallel()
	password := "one"
	var missing error
	secret := func(string) (string, error) { return password, missing }
	node := testNode
	objects := []FRRConfiguration{
		object(t, 0, peering("a", "203.0.113.1/32", allowAll+"passwordSecret: {name: tor}\n")),
		object(t, 1, peering("b", "203.0.113.2/32", allowAll+"passwordSecret: {name: tor}\n")),
	}
	for i := range objects {
		objects[i].UID, objects[i].ResourceVersion = types.UID(objects[i].Name), "1"
	}
	elsewhere := object(t, 2, peering("c", "203.0.113.3/32", allowAll)+"  nodeSelector: {matchLabels: {rack: z}}\n")
	elsewhere.UID, elsewhere.ResourceVersion = "c", "1"
	var merger Merger
	var before *Neighbor
	for _, step := range []struct {
		name string
		edit func()
		same bool
	}{
		{"first", func() {}, false},
		{"again", func() {}, true},
		{"listed the other way round", func() { slices.Reverse(objects) }, true},
		{"another node's object comes", func() { objects = append(objects, elsewhere) }, true},
		{"and changes", func() { objects[2].ResourceVersion = "2" }, true},
		{"and goes", func() { objects = objects[:2] }, true},
		{"the node is another", func() { node.Labels = map[string]string{"rack": "b"} }, false},
		{"another password", func() { password = "two" }, false},
		{"an object changes", func() { objects[1].ResourceVersion = "2" }, false},
		{"an object is another", func() { objects[1].UID = "d" }, false},
		{"an object goes", func() { objects = objects[:1] }, false},
		{"the node's address", func() { node.Addresses = node.Addresses[:1] }, false},
		{"again at last", func() {}, true},
		{"no password", func() { missing = errors.New("missing") }, false},
		{"no password, again", func() {}, true},
	} {
		step.edit()
		got, problems := merger.Merge(node, objects, secret)
		want, wantProblems := Merge(node, objects, secret)
		if diff := cmp.Diff(want, got, compareAddresses); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(wantProblems, problems); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", step.name, diff)
		}
		var first *Neighbor
		if len(got.Routers) > 0 {
			first = &got.Routers[0].Neighbors[0]
		}
		if (first == before) != step.same {
			t.Errorf("%s: the same result %t, want %t", step.name, first == before, step.same)
		}
		before = first
	}
}
