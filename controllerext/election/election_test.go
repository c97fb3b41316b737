// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

func ready(name string, change ...func(*Node)) Node {
	n := Node{Name: name, Labels: labels.Set{"name": name}, Ready: true, Reporting: true, SessionEstablished: true}
	for _, c := range change {
		c(&n)
	}
	return n
}

func selector(t *testing.T, s string) labels.Selector {
	t.Helper()
	parsed, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestElect(t *testing.T) {
	notReady := func(n *Node) { n.Ready = false }
	zone := func(z string) func(*Node) { return func(n *Node) { n.Zone = z } }
	tests := []struct {
		name    string
		nodes   []Node
		load    map[string]int
		service Service
		want    Result
	}{
		{name: "no nodes"},
		{
			name:  "every reason, and nobody left",
			nodes: []Node{ready("h", func(n *Node) { n.SharedGateway = true }), ready("g", func(n *Node) { n.Reporting = false }), ready("a", notReady), ready("b", func(n *Node) { n.Deleting = true }), ready("c", func(n *Node) { n.NetworkUnavailable = true }), ready("d", func(n *Node) { n.Excluded = true }), ready("e"), ready("f")},
			service: Service{
				Key: "ns/s", Selector: selector(t, "name!=e"), LocalNodes: map[string]bool{"e": true, "g": true, "h": true},
			},
			want: Result{Rejected: []Rejection{{"a", NotReady}, {"b", Deleting}, {"c", NetworkUnavailable}, {"d", Excluded}, {"e", SelectorMismatch}, {"f", NoLocalEndpoint}, {"g", SpeakerNotReported}, {"h", SharedGatewayMode}}},
		},
		{
			name:    "fewest primaries first, standby next",
			nodes:   []Node{ready("a"), ready("b"), ready("c")},
			load:    map[string]int{"a": 2, "b": 0, "c": 1},
			service: Service{Key: "ns/s"},
			want:    Result{Primary: "b", Standby: "c"},
		},
		{
			name:    "the primary stays although another has less to do",
			nodes:   []Node{ready("a"), ready("b")},
			load:    map[string]int{"a": 9},
			service: Service{Key: "ns/s", Primary: "a"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "a cordoned primary without a session stays while it is eligible",
			nodes:   []Node{ready("a", func(n *Node) { n.Cordoned, n.SessionEstablished = true, false }), ready("b")},
			service: Service{Key: "ns/s", Primary: "a"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "the standby follows a dead primary, whatever its load",
			nodes:   []Node{ready("a", notReady), ready("b"), ready("c")},
			load:    map[string]int{"b": 7},
			service: Service{Key: "ns/s", Primary: "a", Standby: "b"},
			want:    Result{Primary: "b", Standby: "c", Rejected: []Rejection{{"a", NotReady}}},
		},
		{
			name:    "a standby to be avoided does not follow while another can",
			nodes:   []Node{ready("a", notReady), ready("b"), ready("c")},
			service: Service{Key: "ns/s", Primary: "a", Standby: "b", Avoid: map[string]bool{"b": true}},
			want:    Result{Primary: "c", Standby: "b", Rejected: []Rejection{{"a", NotReady}}},
		},
		{
			name:    "the only node is taken although it is to be avoided",
			nodes:   []Node{ready("b")},
			service: Service{Key: "ns/s", Avoid: map[string]bool{"b": true}},
			want:    Result{Primary: "b"},
		},
		{
			name:    "a node with a session and not cordoned is preferred",
			nodes:   []Node{ready("a", func(n *Node) { n.SessionEstablished = false }), ready("b", func(n *Node) { n.Cordoned = true }), ready("c")},
			load:    map[string]int{"c": 5},
			service: Service{Key: "ns/s"},
			want:    Result{Primary: "c", Standby: "b"},
		},
		{
			name:    "the standby is sought in another zone",
			nodes:   []Node{ready("a", zone("x")), ready("b", zone("x")), ready("c", zone("y"))},
			load:    map[string]int{"a": 0, "b": 1, "c": 5},
			service: Service{Key: "ns/s"},
			want:    Result{Primary: "a", Standby: "c"},
		},
		{
			name:    "a changed selector moves the primary and keeps nothing of the old",
			nodes:   []Node{ready("a"), ready("b")},
			service: Service{Key: "ns/s", Primary: "a", Selector: selector(t, "name=b")},
			want:    Result{Primary: "b", Rejected: []Rejection{{"a", SelectorMismatch}}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Elect(test.nodes, test.load, test.service)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestElectTiesSpreadAndMoveLittle(t *testing.T) {
	var nodes []Node
	for i := range 10 {
		nodes = append(nodes, ready(fmt.Sprintf("node-%d", i)))
	}
	count := map[string]int{}
	for i := range 1000 {
		service := Service{Key: fmt.Sprintf("ns/service-%d", i)}
		before := Elect(nodes, nil, service).Primary
		count[before]++
		if after := Elect(nodes[:9], nil, service).Primary; before != "node-9" && after != before {
			t.Fatalf("%s moved from %s to %s because node-9 went", service.Key, before, after)
		}
	}
	for name, n := range count {
		if n < 60 || n > 140 {
			t.Errorf("%s is primary of %d of 1000 services, want about 100", name, n)
		}
	}
}
