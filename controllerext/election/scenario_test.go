// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

// cluster is nodes and services with the places in force, elected one after the other.
type cluster struct {
	nodes    []Node
	services []Service
}

func newCluster(services int, nodes ...Node) *cluster {
	c := &cluster{nodes: nodes}
	for i := range services {
		c.services = append(c.services, Service{Key: fmt.Sprintf("ns/s%d", i)})
	}
	c.elect()
	return c
}

// elect runs an election for every service, puts the outcomes in force and returns them.
func (c *cluster) elect() []Result {
	e := c.electorate()
	results := make([]Result, len(c.services))
	for i := range c.services {
		s := &c.services[i]
		results[i] = e.Elect(*s)
		e.Add(s.Primary, -1)
		s.Primary, s.Standby = results[i].Primary, results[i].Standby
		e.Add(s.Primary, 1)
	}
	return results
}

// electorate is loaded with the primaries in force.
func (c *cluster) electorate() *Electorate {
	e := New(c.nodes)
	for _, s := range c.services {
		e.Add(s.Primary, 1)
	}
	return e
}

// inForce are the places as they would come out if nothing changed.
func (c *cluster) inForce() []Result {
	results := make([]Result, len(c.services))
	for i, s := range c.services {
		results[i] = Result{Primary: s.Primary, Standby: s.Standby}
	}
	return results
}

// without is the same cluster with a node less.
func (c *cluster) without(name string) *cluster {
	return &cluster{
		nodes:    slices.DeleteFunc(slices.Clone(c.nodes), func(n Node) bool { return n.Name == name }),
		services: slices.Clone(c.services),
	}
}

func (c *cluster) change(by change, names ...string) {
	for i := range c.nodes {
		if len(names) == 0 || slices.Contains(names, c.nodes[i].Name) {
			by(&c.nodes[i])
		}
	}
}

// TestNothingMoves are events that befall all nodes, or one after the other, and are no reason to
// move anything.
func TestNothingMoves(t *testing.T) {
	type step struct {
		name  string
		by    change
		names []string // none: all
	}
	back := func(name string) step { return step{name + "'s session is back", justBack, []string{name}} }
	tests := []struct {
		name  string
		steps []step
	}{
		{"the router reboots", []step{
			{"sessions gone, held", held, nil},
			{"sessions gone", noSession, nil},
			back("c"), back("a"), back("d"), back("b"),
			{"all count again", func(n *Node) { n.SessionHeld = true }, nil},
		}},
		{"all speakers silent: the API server was away", []step{
			{"silent", silence, nil},
			{"lost", lose, nil},
			{"alive", func(n *Node) { n.Silent, n.Lost = false, false }, nil},
		}},
		{"all speakers restart", []step{
			{"silent, no sessions on hold", func(n *Node) { n.Silent, n.SessionEstablished = true, false }, nil},
			{"alive", func(n *Node) { n.Silent = false }, nil},
			{"sessions", justBack, nil},
		}},
		{"EgressNodes are deleted and written again", []step{
			{"a", unreported, []string{"a"}},
			{"all", unreported, nil},
			{"c is back", func(n *Node) { n.Reporting = true }, []string{"c"}},
			{"all are back", func(n *Node) { n.Reporting, n.SessionEstablished = true, true }, nil},
		}},
		{"all nodes are cordoned for an upgrade", []step{
			{"cordoned", cordon, nil},
			{"uncordoned", func(n *Node) { n.Cordoned = false }, nil},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(40, node("a"), node("b"), node("c"), node("d"))
			before := c.inForce()
			for _, s := range test.steps {
				c.change(s.by, s.names...)
				if diff := cmp.Diff(before, c.elect()); diff != "" {
					t.Fatalf("%s: -before +after:\n%s", s.name, diff)
				}
			}
		})
	}
}

func TestLoad(t *testing.T) {
	tests := []struct {
		name     string
		services int
		then     func(*cluster)
		want     []int // services per node, most first
	}{
		{name: "U9 three services, three nodes: one each", services: 3, want: []int{1, 1, 1}},
		{name: "U9 the fourth goes to a least loaded one", services: 4, want: []int{2, 1, 1}},
		{name: "U9 the fifth goes to a least loaded one", services: 5, want: []int{2, 2, 1}},
		{
			name: "U9 a new node does not rebalance", services: 9,
			then: func(c *cluster) { c.nodes = append(c.nodes, node("new")) },
			want: []int{3, 3, 3, 0},
		},
		{
			name: "U9 the new node has the next services", services: 6,
			then: func(c *cluster) {
				c.nodes = append(c.nodes, node("new"))
				c.services = append(c.services, Service{Key: "ns/next"}, Service{Key: "ns/after"})
			},
			want: []int{2, 2, 2, 2},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(test.services, node("a"), node("b"), node("c"))
			before := c.inForce()
			if test.then != nil {
				test.then(c)
			}
			if diff := cmp.Diff(before, c.elect()[:len(before)]); diff != "" {
				t.Errorf("moved: -before +after:\n%s", diff)
			}
			count := map[string]int{}
			for _, s := range c.services {
				count[s.Primary]++
			}
			var got []int
			for _, n := range c.nodes {
				got = append(got, count[n.Name])
			}
			slices.SortFunc(got, func(a, b int) int { return b - a })
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("services per node: -want +got:\n%s", diff)
			}
		})
	}
}

// TestDeadNodeIsShared says that the services of a dead node go to their standbys, which are spread
// over all the others.
func TestDeadNodeIsShared(t *testing.T) {
	c := newCluster(400, node("a"), node("b"), node("c"), node("d"), node("e"))
	before := c.inForce()
	c.change(notReady, "a")
	count := map[string]int{}
	for i, got := range c.elect() {
		was := before[i]
		if was.Primary != "a" {
			continue
		}
		if got.Primary != was.Standby || got.Cause != NotReady {
			t.Errorf("%s: primary %s because of %q, want its standby %s", c.services[i].Key, got.Primary, got.Cause, was.Standby)
		}
		count[got.Primary]++
	}
	for _, name := range []string{"b", "c", "d", "e"} {
		if count[name] < 10 {
			t.Errorf("node %s took over %d of the 80 services, want about 20", name, count[name])
		}
	}
}

func TestGroupSharesANode(t *testing.T) {
	rack, disk := labeled("rack", "1"), labeled("disk", "ssd")
	nodes := []Node{node("a", rack), node("b", rack, disk), node("c", disk)}
	both := Service{Key: "ns/s", Selectors: []labels.Selector{selector("rack=1"), selector("disk=ssd")}}
	e := New(nodes)
	if diff := cmp.Diff(Result{Primary: "b"}, e.Elect(both)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	want := []Rejection{{"a", SelectorMismatch}, {"c", SelectorMismatch}}
	if diff := cmp.Diff(want, e.Reject(both)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
