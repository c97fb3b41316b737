// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// TestHardCriteria breaks the primary a, which b is better than only because a is not eligible, and
// leaves a service without a node rather than on one that can't serve it.
func TestHardCriteria(t *testing.T) {
	blue := Service{Networks: []string{"blue"}}
	local := Service{LocalNodes: set("b")}
	// EKS: the hostname label is the private DNS name, the node's name is not.
	hostname := func(name string) change { return labeled("kubernetes.io/hostname", name+".internal") }
	tests := []struct {
		name    string
		a       change
		b       change
		service Service
		reason  Reason
	}{
		{name: "U11 not ready: a dead node would keep the service", a: notReady, reason: NotReady},
		{name: "being deleted: the service would move again with the node", a: deleting, reason: Deleting},
		{name: "R4 network unavailable: MetalLB announces nothing there", a: networkUnavailable, reason: NetworkUnavailable},
		{name: "R4 excluded from load balancers: MetalLB announces nothing there", a: excluded, reason: Excluded},
		{
			name:    "selector: the service would leave through the wrong nodes",
			service: Service{Selectors: []labels.Selector{selector("name=b")}}, reason: SelectorMismatch,
		},
		{
			name:    "one of a group's selectors: a member would leave through the wrong nodes",
			service: Service{Selectors: []labels.Selector{selector("name"), selector("name=b")}}, reason: SelectorMismatch,
		},
		{name: "no local endpoint: MetalLB withdraws an ETP=Local service there", service: local, reason: NoLocalEndpoint},
		{
			name: "R3 ETP=Local where the hostname label is not the node name",
			a:    hostname("a"), b: hostname("b"), service: local, reason: NoLocalEndpoint,
		},
		{
			name: "network missing: the traffic would fall through to another network",
			a:    has("red"), b: has("red", "blue"), service: blue, reason: NetworkMissing,
		},
		{
			name: "one of a group's networks missing",
			a:    has("red"), b: has("blue", "red"), service: Service{Networks: []string{"red", "blue"}}, reason: NetworkMissing,
		},
		{name: "U14 shared gateway: the dataplane can't serve there", a: sharedGateway, reason: SharedGatewayMode},
	}
	keep := func(*Node) {}
	for _, test := range tests {
		if test.a == nil {
			test.a = keep
		}
		if test.b == nil {
			test.b = keep
		}
		nodes := []Node{node("a", test.a), node("b", test.b)}
		test.service.Primary = "a"
		moves := test.service
		first := test.service
		first.Primary = ""
		run(t, []row{
			{
				name:  test.name + "/moves",
				nodes: nodes, service: moves,
				want: Result{Primary: "b", Cause: test.reason}, reject: []Rejection{{"a", test.reason}},
			},
			{
				name:  test.name + "/first",
				nodes: nodes, service: first,
				want: Result{Primary: "b"}, reject: []Rejection{{"a", test.reason}},
			},
			{
				name:  test.name + "/alone",
				nodes: nodes[:1], service: moves,
				want: Result{Cause: test.reason}, reject: []Rejection{{"a", test.reason}},
			},
			{name: test.name + "/standby", nodes: nodes, service: Service{
				Selectors: first.Selectors, LocalNodes: first.LocalNodes, Networks: first.Networks, Primary: "b", Standby: "a",
			}, want: Result{Primary: "b"}},
		})
	}
}

func TestEligible(t *testing.T) {
	control := labeled("node-role.kubernetes.io/control-plane", "")
	run(t, []row{
		{name: "no nodes"},
		{name: "no nodes any more", service: Service{Primary: "a", Standby: "b"}, want: Result{Cause: NodeGone}},
		{name: "without a selector a control-plane node serves", nodes: []Node{node("a", control)}, want: Result{Primary: "a"}},
		{
			name:  "a nil selector matches every node",
			nodes: []Node{node("a")}, service: Service{Selectors: []labels.Selector{nil, labels.Everything()}},
			want: Result{Primary: "a"},
		},
		{
			name:  "no node has a local endpoint",
			nodes: []Node{node("a")}, service: Service{LocalNodes: set()},
			reject: []Rejection{{"a", NoLocalEndpoint}},
		},
		{
			name:  "U19 the primary's node is deleted: the standby follows",
			nodes: []Node{node("c"), node("b")}, load: map[string]int{"b": 9}, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "b", Standby: "c", Cause: NodeGone},
		},
		{
			name:  "the standby's node is deleted: another is found, the primary stays",
			nodes: []Node{node("a"), node("c")}, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "a", Standby: "c"},
		},
		{
			name:  "a standby that equals the primary counts for nothing",
			nodes: []Node{node("a"), node("b")}, service: Service{Primary: "a", Standby: "a"},
			want: Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "of several reasons the first is said, ordered by node",
			nodes:   []Node{node("c", sharedGateway, unreported), node("b", sharedGateway, has("red")), node("a", notReady, deleting)},
			service: Service{Networks: []string{"blue"}},
			reject:  []Rejection{{"a", NotReady}, {"b", NetworkMissing}, {"c", SpeakerNotReported}},
		},
	})
}

// TestEgressNodesDeleted is somebody who deletes EgressNodes: nobody knows any more what the nodes
// can do, and nothing is unassigned for that.
func TestEgressNodesDeleted(t *testing.T) {
	blue := []string{"blue"}
	run(t, []row{
		{
			name:    "all: primary and standby stay",
			nodes:   []Node{node("a", unreported), node("b", unreported), node("c", unreported)},
			service: Service{Networks: blue, Primary: "a", Standby: "b"},
			want:    Result{Primary: "a", Standby: "b"}, reject: []Rejection{{"b", SpeakerNotReported}, {"c", SpeakerNotReported}},
		},
		{
			name:    "the primary's: it stays",
			nodes:   []Node{node("a", unreported), node("b", has("blue"))},
			service: Service{Networks: blue, Primary: "a", Standby: "b"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:    "the standby's: it stays",
			nodes:   []Node{node("a", has("blue")), node("b", unreported), node("c", has("blue"))},
			service: Service{Networks: blue, Primary: "a", Standby: "b"},
			want:    Result{Primary: "a", Standby: "b"},
		},
		{
			name:  "R4 a node without a speaker is not chosen",
			nodes: []Node{node("a"), node("c", unreported)},
			want:  Result{Primary: "a"}, reject: []Rejection{{"c", SpeakerNotReported}},
		},
		{
			name:  "a standby without a report does not follow",
			nodes: []Node{node("a", notReady), node("b", unreported), node("c")}, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "c", Standby: "b", Cause: NotReady},
		},
		{
			name:    "a primary without a report still has to fit otherwise",
			nodes:   []Node{node("a", unreported), node("b")},
			service: Service{Selectors: []labels.Selector{selector("name=b")}, Primary: "a"},
			want:    Result{Primary: "b", Cause: SelectorMismatch},
		},
		{
			name:  "a replaced primary without a report is not the standby",
			nodes: []Node{node("a", unreported, cordon), node("b")}, service: Service{Primary: "a", Standby: "b"},
			want: Result{Primary: "b", Cause: Cordoned},
		},
	})
}
