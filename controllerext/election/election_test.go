// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

func TestCount(t *testing.T) {
	tests := []struct {
		name     string
		rejected []Rejection
		want     string
	}{
		{
			"per reason",
			[]Rejection{{"a", NotReady}, {"b", SelectorMismatch}, {"c", SelectorMismatch}},
			"2 NodeSelectorMismatch, 1 NotReady",
		},
		{"nobody to reject", nil, "the cluster has no nodes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Count(test.rejected)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestElectLeavesItsInputAlone(t *testing.T) {
	nodes := []Node{node("c"), node("a", unreported), node("b")}
	before := slices.Clone(nodes)
	e := New(nodes)
	service := Service{Key: "ns/s", Selectors: []labels.Selector{selector("name!=x")}, Avoid: set("c")}
	e.Add("gone", 3)
	want := e.Elect(service)
	for range 3 {
		if diff := cmp.Diff(want, e.Elect(service)); diff != "" {
			t.Fatalf("an election changed the next one: -first +next:\n%s", diff)
		}
	}
	if diff := cmp.Diff(before, nodes); diff != "" {
		t.Errorf("New changed its argument: -before +after:\n%s", diff)
	}
}

func TestTiesSpread(t *testing.T) {
	var nodes []Node
	for i := range 10 {
		nodes = append(nodes, node(fmt.Sprintf("node-%d", i)))
	}
	e := New(nodes)
	primaries, standbys := map[string]int{}, map[string]int{}
	for i := range 1000 {
		got := e.Elect(Service{Key: fmt.Sprintf("ns/service-%d", i)})
		primaries[got.Primary]++
		standbys[got.Standby]++
	}
	for _, n := range nodes {
		for what, count := range map[string]int{"primary": primaries[n.Name], "standby": standbys[n.Name]} {
			if count < 60 || count > 140 {
				t.Errorf("%s is %s of %d of 1000 services, want about 100", n.Name, what, count)
			}
		}
	}
}
