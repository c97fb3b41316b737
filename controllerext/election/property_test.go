// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

// random makes worlds in which everything happens, most of it seldom.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 7))} }

// oneIn is true once in n times.
func (r random) oneIn(n int) bool { return r.IntN(n) == 0 }

func (r random) node(name string, rare int) Node {
	n := Node{
		Name: name, Labels: labels.Set{"rack": fmt.Sprint(r.IntN(3)), "disk": fmt.Sprint(r.IntN(2))},
		Zone:  [...]string{"", "x", "y"}[r.IntN(3)],
		Ready: !r.oneIn(rare), Deleting: r.oneIn(4 * rare), NetworkUnavailable: r.oneIn(4 * rare), Excluded: r.oneIn(4 * rare),
		Reporting: !r.oneIn(rare), Cordoned: r.oneIn(rare), Silent: r.oneIn(rare),
		SessionEstablished: !r.oneIn(rare), SessionHeld: !r.oneIn(rare),
	}
	n.Lost = n.Silent && r.oneIn(2)
	if n.Reporting {
		n.SharedGateway = r.oneIn(4 * rare)
		n.Networks = [...][]string{{"blue", "red"}, {"red", "blue"}, {"red"}}[r.IntN(3)]
	}
	return n
}

func (r random) service(i int, names []string) Service {
	s := Service{Key: fmt.Sprintf("ns/s%d", i)}
	for _, text := range []string{"rack!=1", "disk=0", "rack in (0,2)"} {
		if r.oneIn(8) {
			s.Selectors = append(s.Selectors, selector(text))
		}
	}
	if r.oneIn(8) {
		s.LocalNodes = r.some(names)
	}
	if r.oneIn(8) {
		s.Networks = []string{"blue", "red"}[:1+r.IntN(2)]
	}
	if r.oneIn(4) {
		s.Avoid = r.some(names)
	}
	return s
}

// some of the names, or all, or none.
func (r random) some(names []string) map[string]bool {
	found, n := map[string]bool{}, 1+r.IntN(4)
	for _, name := range names {
		if !r.oneIn(n) {
			found[name] = true
		}
	}
	return found
}

// cluster has so many nodes at most, and services that may have any places in force.
func (r random) cluster(nodes, services int) *cluster {
	c := &cluster{}
	rare := []int{2, 5, 20}[r.IntN(3)]
	names := []string{"gone"}
	for i := range r.IntN(nodes + 1) {
		name := fmt.Sprintf("n%d", i)
		names = append(names, name)
		c.nodes = append(c.nodes, r.node(name, rare))
	}
	for i := range services {
		s := r.service(i, names)
		if !r.oneIn(3) {
			s.Primary = names[r.IntN(len(names))]
		}
		if !r.oneIn(3) {
			s.Standby = names[r.IntN(len(names))]
		}
		c.services = append(c.services, s)
	}
	return c
}

// settled is a cluster after an election.
func (r random) settled(nodes, services int) *cluster {
	c := r.cluster(nodes, services)
	c.elect()
	return c
}

// worlds runs a property for many seeds; a failure names the seed.
func worlds(t *testing.T, n uint64, property func(*testing.T, random)) {
	t.Helper()
	for seed := range n {
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			property(t, newRandom(seed))
		}()
		if t.Failed() {
			return
		}
	}
}

// oracle is the election again, slow and plain: it lists whoever may take a place and takes the
// first in order.
type oracle struct {
	nodes []Node
	load  map[string]int
	Service
}

// eligible says whether a node may have a place; inPlace, that it has it already.
func (o *oracle) eligible(n Node, inPlace bool) bool {
	fits := n.Ready && !n.Deleting && !n.NetworkUnavailable && !n.Excluded && !n.SharedGateway &&
		(n.Reporting || inPlace) && (o.LocalNodes == nil || o.LocalNodes[n.Name])
	for _, s := range o.Selectors {
		fits = fits && s.Matches(n.Labels)
	}
	for _, network := range o.Networks {
		fits = fits && (slices.Contains(n.Networks, network) || !n.Reporting)
	}
	return fits
}

func order(bad ...bool) string {
	text := ""
	for _, b := range bad {
		text += map[bool]string{false: "0", true: "1"}[b]
	}
	return text
}

func (o *oracle) rank(n Node) string { return order(n.Silent, !n.SessionHeld, n.Cordoned) }

// choose picks from the nodes of which a claimed one, unless others are better, comes first.
func (o *oracle) choose(from []Node, claimed string, beside *Node) string {
	if len(from) == 0 {
		return ""
	}
	key := hash(o.Key)
	first := slices.MinFunc(from, func(a, b Node) int {
		elsewhere := func(n Node) bool {
			return beside != nil && beside.Zone != "" && n.Zone != "" && n.Zone != beside.Zone
		}
		full := func(n Node) string {
			return order(o.Avoid[n.Name]) + o.rank(n) + order(n.Name != claimed, !n.SessionEstablished, !elsewhere(n))
		}
		return cmp.Or(
			cmp.Compare(full(a), full(b)), cmp.Compare(o.load[a.Name], o.load[b.Name]),
			cmp.Compare(weight(key, hash(b.Name)), weight(key, hash(a.Name))), cmp.Compare(a.Name, b.Name),
		)
	})
	return first.Name
}

func (o *oracle) elect() (primary, standby string) {
	var serving *Node
	var followers []Node
	for _, n := range o.nodes {
		if n.Name == o.Primary && o.eligible(n, true) {
			serving = &n
		}
		if o.eligible(n, false) {
			followers = append(followers, n)
		}
	}
	if serving != nil {
		own := order(serving.Lost, !serving.SessionHeld, serving.Cordoned)
		followers = slices.DeleteFunc(followers, func(n Node) bool { return o.Avoid[n.Name] || o.rank(n) >= own })
	}
	primary = o.choose(followers, o.Standby, nil)
	if primary == "" && serving != nil {
		primary = serving.Name
	}
	var chosen *Node
	var others []Node
	for _, n := range o.nodes {
		switch {
		case n.Name == primary:
			chosen = &n
		case o.eligible(n, n.Name == o.Standby):
			others = append(others, n)
		}
	}
	if chosen != nil {
		standby = o.choose(others, o.Standby, chosen)
	}
	return primary, standby
}

func TestPropertyAsTheOracleSays(t *testing.T) {
	worlds(t, 1500, func(t *testing.T, r random) {
		c := r.cluster(12, 20)
		load := map[string]int{}
		for _, n := range c.nodes {
			load[n.Name] = r.IntN(4)
		}
		e := loaded(c.nodes, load)
		for _, s := range c.services {
			o := &oracle{c.nodes, load, s}
			var want Result
			want.Primary, want.Standby = o.elect()
			got := e.Elect(s)
			if want.Cause = got.Cause; got != want {
				t.Fatalf("%+v\nof %+v\nload %v: got %+v, want %+v", s, c.nodes, load, got, want)
			}
			if moved := s.Primary != "" && got.Primary != s.Primary; moved != (got.Cause != "") {
				t.Fatalf("%+v: moved %v, but the cause is %q", s, moved, got.Cause)
			}
		}
	})
}

func TestPropertyElectedAreEligible(t *testing.T) {
	worlds(t, 1500, func(t *testing.T, r random) {
		c := r.cluster(12, 20)
		e := c.electorate()
		for _, s := range c.services {
			got, rejected := e.Elect(s), map[string]Reason{}
			for _, rejection := range e.Reject(s) {
				rejected[rejection.Node] = rejection.Reason
			}
			if got.Primary != "" && (rejected[got.Primary] != "" || got.Primary == got.Standby) {
				t.Fatalf("%+v: %+v, rejected %v", s, got, rejected)
			}
			if reason := rejected[got.Standby]; reason != "" && (got.Standby != s.Standby || reason != SpeakerNotReported) {
				t.Fatalf("%+v: %+v, rejected %v", s, got, rejected)
			}
			if (got.Primary == "") != (len(rejected) == len(c.nodes)) || got.Primary == "" && got.Standby != "" {
				t.Fatalf("%+v: %+v, but %d of %d nodes are rejected", s, got, len(rejected), len(c.nodes))
			}
		}
	})
}

func TestPropertyStable(t *testing.T) {
	worlds(t, 1500, func(t *testing.T, r random) {
		c := r.settled(12, 20)
		if diff := gocmp.Diff(c.inForce(), c.elect()); diff != "" {
			t.Errorf("-first +again:\n%s", diff)
		}
	})
}

func TestPropertyNodeOrderDoesNotMatter(t *testing.T) {
	worlds(t, 500, func(t *testing.T, r random) {
		c := r.cluster(12, 20)
		shuffled := &cluster{nodes: slices.Clone(c.nodes), services: slices.Clone(c.services)}
		r.Shuffle(len(shuffled.nodes), func(i, j int) {
			shuffled.nodes[i], shuffled.nodes[j] = shuffled.nodes[j], shuffled.nodes[i]
		})
		e, other := c.electorate(), shuffled.electorate()
		for _, s := range c.services {
			if diff := gocmp.Diff(e.Reject(s), other.Reject(s)); diff != "" {
				t.Fatalf("-one +another:\n%s", diff)
			}
		}
		if diff := gocmp.Diff(c.elect(), shuffled.elect()); diff != "" {
			t.Errorf("-one +another:\n%s", diff)
		}
	})
}

func TestPropertyIrrelevantChange(t *testing.T) {
	// worst is better than no incumbent.
	worst := func(n *Node) {
		noSession(n)
		lose(n)
		cordon(n)
	}
	tests := []struct {
		name   string
		change func(random, *cluster)
		// fills: a standby that is missing, or to be avoided, may be replaced.
		fills bool
	}{
		{name: "a label that nobody selects on", change: func(r random, c *cluster) {
			for i := range c.nodes {
				labeled("irrelevant", fmt.Sprint(r.IntN(2)))(&c.nodes[i])
			}
		}},
		{name: "load of others", change: func(r random, c *cluster) {
			for i, n := range c.nodes {
				for range r.IntN(5) {
					c.services = append(c.services, Service{Key: fmt.Sprintf("other/%d", i), Primary: n.Name})
				}
			}
		}},
		{name: "zones", change: func(r random, c *cluster) {
			for i := range c.nodes {
				c.nodes[i].Zone = fmt.Sprint(r.IntN(3))
			}
		}},
		{name: "sessions on hold", change: func(r random, c *cluster) {
			for i := range c.nodes {
				c.nodes[i].SessionEstablished = r.oneIn(2)
			}
		}},
		{name: "a new node that is no better", fills: true, change: func(r random, c *cluster) {
			c.nodes = slices.Insert(c.nodes, r.IntN(len(c.nodes)+1), node("new", worst))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			worlds(t, 400, func(t *testing.T, r random) {
				c := r.settled(12, 20)
				was := slices.Clone(c.services)
				before := c.inForce()
				test.change(r, c)
				for i, got := range c.elect()[:len(before)] {
					if before[i].Primary == "" && test.fills {
						continue
					}
					if held := before[i].Standby; test.fills && (held == "" || was[i].Avoid[held]) {
						got.Standby = held
					}
					if diff := gocmp.Diff(before[i], got); diff != "" {
						t.Fatalf("%+v: -before +after:\n%s", was[i], diff)
					}
				}
			})
		})
	}
}

// TestPropertyHealthyIncumbentsStay adds the best of all nodes: who does well goes on.
func TestPropertyHealthyIncumbentsStay(t *testing.T) {
	worlds(t, 400, func(t *testing.T, r random) {
		c := r.settled(12, 20)
		healthy := map[string]bool{}
		for _, n := range c.nodes {
			healthy[n.Name] = !n.Silent && n.SessionHeld && !n.Cordoned
		}
		was, before := slices.Clone(c.services), c.inForce()
		c.nodes = append(c.nodes, node("best", has("blue", "red"), labeled("rack", "0"), labeled("disk", "0"), zone("z")))
		for i, got := range c.elect() {
			if healthy[before[i].Primary] && got.Primary != before[i].Primary {
				t.Fatalf("%+v: %+v", was[i], got)
			}
			if held := before[i].Standby; healthy[before[i].Primary] && healthy[held] && !was[i].Avoid[held] && got.Standby != held {
				t.Fatalf("%+v: %+v", was[i], got)
			}
		}
	})
}

func TestPropertyOneNodeLessMovesOnlyItsServices(t *testing.T) {
	worlds(t, 40, func(t *testing.T, r random) {
		c := r.settled(20, 200)
		for _, gone := range c.nodes {
			after := c.without(gone.Name)
			for i, got := range after.elect() {
				was := c.services[i]
				switch {
				case was.Primary == gone.Name:
					if got.Cause != NodeGone {
						t.Fatalf("%s goes: %+v: %+v", gone.Name, was, got)
					}
				case got.Primary != was.Primary || got.Cause != "" || was.Standby != gone.Name && got.Standby != was.Standby:
					t.Fatalf("%s goes: %+v: %+v", gone.Name, was, got)
				}
			}
		}
	})
}
