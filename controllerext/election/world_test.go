// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

// change makes a node different from a healthy one.
type change = func(*Node)

func node(name string, changes ...change) Node {
	n := Node{
		Name: name, Labels: labels.Set{"name": name}, Ready: true, Reporting: true,
		SessionEstablished: true, SessionHeld: true,
	}
	for _, c := range changes {
		c(&n)
	}
	return n
}

func notReady(n *Node)           { n.Ready = false }
func deleting(n *Node)           { n.Deleting = true }
func networkUnavailable(n *Node) { n.NetworkUnavailable = true }
func excluded(n *Node)           { n.Excluded = true }
func sharedGateway(n *Node)      { n.SharedGateway = true }
func cordon(n *Node)             { n.Cordoned = true }
func silence(n *Node)            { n.Silent = true }
func lose(n *Node)               { n.Silent, n.Lost = true, true }
func held(n *Node)               { n.SessionEstablished = false }
func noSession(n *Node)          { n.SessionEstablished, n.SessionHeld = false, false }
func justBack(n *Node)           { n.SessionEstablished, n.SessionHeld = true, false }
func has(networks ...string) change {
	return func(n *Node) { n.Networks = networks }
}
func zone(z string) change { return func(n *Node) { n.Zone = z } }

// unreported is what is known of a node whose EgressNode was deleted.
func unreported(n *Node) { n.Reporting, n.Networks, n.SessionEstablished = false, nil, false }

func labeled(key, value string) change {
	return func(n *Node) { n.Labels = labels.Merge(n.Labels, labels.Set{key: value}) }
}

func selector(s string) labels.Selector {
	parsed, err := labels.Parse(s)
	if err != nil {
		panic(err)
	}
	return parsed
}

func set(names ...string) map[string]bool {
	found := map[string]bool{}
	for _, name := range names {
		found[name] = true
	}
	return found
}

// row is one election.
type row struct {
	name    string
	nodes   []Node
	load    map[string]int
	service Service
	want    Result
	reject  []Rejection // nil: not compared
}

func run(t *testing.T, tests []row) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.service.Key = "ns/s"
			e := loaded(test.nodes, test.load)
			if diff := cmp.Diff(test.want, e.Elect(test.service)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(test.reject, e.Reject(test.service)); test.reject != nil && diff != "" {
				t.Errorf("rejected: -want +got:\n%s", diff)
			}
		})
	}
}

func loaded(nodes []Node, load map[string]int) *Electorate {
	e := New(nodes)
	for name, services := range load {
		e.Add(name, services)
	}
	return e
}

// first is that of two names which the tie-break of the tables' service prefers.
func first(a, b string) string {
	if weight(hash("ns/s"), hash(a)) > weight(hash("ns/s"), hash(b)) {
		return a
	}
	return b
}
