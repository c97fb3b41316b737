// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/tracer"
)

var byValue = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// cluster is three dual-stack nodes n1, n2, n3.
func cluster() dataplane.Input {
	in := dataplane.Input{
		Nodes: map[string]dataplane.NodeFacts{},
		Cluster: dataplane.Cluster{
			PodSubnets:        prefixes("10.244.0.0/16", "fd00:10:244::/48"),
			ServiceSubnets:    prefixes("10.96.0.0/16", "fd00:10:96::/112"),
			JoinSubnets:       prefixes("100.64.0.0/16", "fd98::/64"),
			TransitSubnets:    prefixes("100.88.0.0/16", "fd97::/64"),
			MasqueradeSubnets: prefixes("169.254.0.0/17", "fd69::/112"),
		},
	}
	for i := 1; i <= 3; i++ {
		in.Nodes[fmt.Sprintf("n%d", i)] = dataplane.NodeFacts{
			Addresses:           prefixes(fmt.Sprintf("172.18.0.1%d/24", i), fmt.Sprintf("fc00:18::1%d/64", i)),
			ManagementAddresses: addrs(fmt.Sprintf("10.244.%d.2", i), fmt.Sprintf("fd00:10:244:%d::2", i)),
			TransitAddresses:    addrs(fmt.Sprintf("100.88.0.%d", i+1), fmt.Sprintf("fd97::%d", i+1)),
			PodSubnets:          prefixes(fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%d::/64", i)),
		}
	}
	return in
}

// service has a pod with host part 5 on each node, in both families.
func service(key string, sources ...string) dataplane.Service {
	s := dataplane.Service{Key: key, SourceIPs: addrs(sources...)}
	for i := 1; i <= 3; i++ {
		node := fmt.Sprintf("n%d", i)
		s.Endpoints = append(s.Endpoints,
			dataplane.Endpoint{Address: addr(fmt.Sprintf("10.244.%d.5", i)), Node: node},
			dataplane.Endpoint{Address: addr(fmt.Sprintf("fd00:10:244:%d::5", i)), Node: node})
	}
	return s
}

// compute plans every node, with the roles that follow from primary, standby and previous.
func compute(in dataplane.Input, previous string) (tracer.Cluster, map[string][]dataplane.Problem) {
	nodes, problems := tracer.Cluster{}, map[string][]dataplane.Problem{}
	for name, facts := range in.Nodes {
		mine := in
		mine.Node = name
		mine.Services = nil
		for _, s := range in.Services {
			switch name {
			case s.Primary:
				s.Role = dataplane.RolePrimary
			case s.Standby:
				s.Role = dataplane.RoleStandby
			case previous:
				s.Role = dataplane.RolePrevious
			}
			mine.Services = append(mine.Services, s)
		}
		plan, p := dataplane.Compute(mine)
		nodes[name] = tracer.Node{Facts: facts, Plan: plan}
		if len(p) > 0 {
			problems[name] = p
		}
	}
	return nodes, problems
}

func with(s dataplane.Service, change func(*dataplane.Service)) dataplane.Service {
	change(&s)
	return s
}

// TestPackets says, for each state of a service, what happens to packets of its pods.
func TestPackets(t *testing.T) {
	const outside, outside6 = "198.51.100.7", "2001:db8::7"
	placed := func(primary, standby string) func(*dataplane.Service) {
		return func(s *dataplane.Service) { s.Primary, s.Standby = primary, standby }
	}
	dual := service("ns/a", "172.19.0.100", "fd00:19::100")
	type packet struct{ node, src, dst, want string }
	tests := []struct {
		name     string
		services []dataplane.Service
		previous string
		packets  []packet
	}{
		{
			name:     "primary and standby",
			services: []dataplane.Service{with(dual, placed("n1", "n2"))},
			packets: []packet{
				{"n1", "10.244.1.5", outside, "outside from n1 as 172.19.0.100"},
				{"n2", "10.244.2.5", outside, "outside from n1 as 172.19.0.100"},
				{"n3", "10.244.3.5", outside, "outside from n1 as 172.19.0.100"},
				{"n1", "fd00:10:244:1::5", outside6, "outside from n1 as fd00:19::100"},
				{"n2", "fd00:10:244:2::5", outside6, "outside from n1 as fd00:19::100"},
				{"n3", "fd00:10:244:3::5", outside6, "outside from n1 as fd00:19::100"},
			},
		},
		{
			name:     "destinations in the cluster",
			services: []dataplane.Service{with(dual, placed("n1", "n2"))},
			packets: []packet{
				{"n2", "10.244.2.5", "10.244.1.6", "inside from n1 as 10.244.2.5"},
				{"n2", "10.244.2.5", "10.244.3.6", "inside from n3 as 10.244.2.5"},
				{"n1", "10.244.1.5", "10.244.1.6", "inside from n1 as 10.244.1.5"},
				{"n2", "10.244.2.5", "10.96.0.10", "inside from n2 as 10.244.2.5"},
				{"n1", "10.244.1.5", "10.96.0.10", "inside from n1 as 10.244.1.5"},
				{"n2", "10.244.2.5", "172.18.0.12", "inside from n2 as 10.244.2.5"},
				{"n2", "10.244.2.5", "172.18.0.11", "inside from n2 as 10.244.2.5"},
				{"n1", "10.244.1.5", "172.18.0.13", "inside from n1 as 10.244.1.5"},
				{"n2", "10.244.2.5", "100.64.0.3", "inside from n2 as 10.244.2.5"},
				{"n2", "fd00:10:244:2::5", "fd00:10:244:1::6", "inside from n1 as fd00:10:244:2::5"},
				{"n2", "fd00:10:244:2::5", "fc00:18::11", "inside from n2 as fd00:10:244:2::5"},
			},
		},
		{
			name:     "neighbors of the nodes are outside",
			services: []dataplane.Service{with(dual, placed("n1", "n2"))},
			packets:  []packet{{"n2", "10.244.2.5", "172.18.0.100", "outside from n1 as 172.19.0.100"}},
		},
		{
			name:     "other pods are left alone",
			services: []dataplane.Service{with(dual, placed("n1", "n2"))},
			packets: []packet{
				{"n1", "10.244.1.9", outside, "outside from n1 as 10.244.1.9"},
				{"n3", "10.244.3.9", outside, "outside from n3 as 10.244.3.9"},
			},
		},
		{
			name:     "being programmed: standby, no primary yet",
			services: []dataplane.Service{with(dual, placed("", "n2"))},
			packets: []packet{
				{"n1", "10.244.1.5", outside, "dropped on n1: hold for ns/a"},
				{"n2", "10.244.2.5", outside, "dropped on n2: hold for ns/a"},
				{"n2", "fd00:10:244:2::5", outside6, "dropped on n2: hold for ns/a"},
				{"n2", "10.244.2.5", "10.244.1.6", "inside from n1 as 10.244.2.5"},
			},
		},
		{
			name:     "nobody elected, fail open",
			services: []dataplane.Service{dual},
			previous: "n1",
			packets: []packet{
				{"n1", "10.244.1.5", outside, "outside from n1 as 10.244.1.5"},
				{"n2", "10.244.2.5", outside, "outside from n2 as 10.244.2.5"},
			},
		},
		{
			name:     "nobody elected, fail closed",
			services: []dataplane.Service{with(dual, func(s *dataplane.Service) { s.FailClosed = true })},
			packets: []packet{
				{"n1", "10.244.1.5", outside, "dropped on n1: hold for ns/a"},
				{"n3", "fd00:10:244:3::5", outside6, "dropped on n3: hold for ns/a"},
				{"n1", "10.244.1.5", "10.96.0.10", "inside from n1 as 10.244.1.5"},
			},
		},
		{
			name:     "just moved from n1 to n2",
			services: []dataplane.Service{with(dual, placed("n2", "n3"))},
			previous: "n1",
			packets: []packet{
				{"n1", "10.244.1.5", outside, "outside from n2 as 172.19.0.100"},
				{"n3", "10.244.3.5", outside, "outside from n2 as 172.19.0.100"},
			},
		},
		{
			name:     "one family has no LoadBalancer IP",
			services: []dataplane.Service{with(service("ns/a", "172.19.0.100"), placed("n1", "n2"))},
			packets: []packet{
				{"n2", "10.244.2.5", outside, "outside from n1 as 172.19.0.100"},
				{"n2", "fd00:10:244:2::5", outside6, "outside from n2 as fd00:10:244:2::5"},
			},
		},
		{
			name:     "no LoadBalancer IP at all",
			services: []dataplane.Service{with(service("ns/a"), placed("n1", "n2"))},
			packets: []packet{
				{"n1", "10.244.1.5", outside, "dropped on n1: hold for ns/a"},
				{"n2", "10.244.2.5", outside, "dropped on n1: hold for ns/a"},
				{"n2", "fd00:10:244:2::5", outside6, "dropped on n1: hold for ns/a"},
			},
		},
		{
			name: "a pod in two services belongs to the older one",
			services: []dataplane.Service{
				with(service("ns/older", "172.19.0.100"), placed("n1", "n2")),
				with(service("ns/younger", "172.19.0.101"), placed("n3", "n2")),
			},
			packets: []packet{
				{"n1", "10.244.1.5", outside, "outside from n1 as 172.19.0.100"},
				{"n2", "10.244.2.5", outside, "outside from n1 as 172.19.0.100"},
				{"n3", "10.244.3.5", outside, "outside from n1 as 172.19.0.100"},
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := cluster()
			in.Services = test.services
			nodes, _ := compute(in, test.previous)
			for _, p := range test.packets {
				got, err := nodes.Send(p.node, addr(p.src), addr(p.dst))
				if err != nil {
					t.Errorf("%s: %s > %s: %v", p.node, p.src, p.dst, err)
				} else if got.String() != p.want {
					t.Errorf("%s: %s > %s: %s, want %s", p.node, p.src, p.dst, got, p.want)
				}
			}
		})
	}
}

// TestLaggingZone sends packets by a plan of before the move to nodes that have the new one.
func TestLaggingZone(t *testing.T) {
	in := cluster()
	before := service("ns/a", "172.19.0.100")
	before.Primary, before.Standby = "n1", "n2"
	in.Services = []dataplane.Service{before}
	nodes, _ := compute(in, "")
	old := nodes["n3"]

	after := before
	after.Primary, after.Standby = "n2", ""
	in.Services = []dataplane.Service{after}
	nodes, _ = compute(in, "n1")
	nodes["n3"] = old
	got, err := nodes.Send("n3", addr("10.244.3.5"), addr("198.51.100.7"))
	if want := "outside from n1 as 172.19.0.100"; err != nil || got.String() != want {
		t.Errorf("lagging endpoint node: %s, %v, want %s", got, err, want)
	}

	// The other way about: n3 knows that n2 is primary, n2 still thinks it is the standby.
	in.Services = []dataplane.Service{before}
	lagging, _ := compute(in, "")
	in.Services = []dataplane.Service{after}
	nodes, _ = compute(in, "n1")
	nodes["n2"] = lagging["n2"]
	got, err = nodes.Send("n3", addr("10.244.3.5"), addr("198.51.100.7"))
	if want := "outside from n2 as 172.19.0.100"; err != nil || got.String() != want {
		t.Errorf("lagging standby: %s, %v, want %s", got, err, want)
	}
}

// TestStrays: packets of endpoints that the primary does not know of, or no longer does.
func TestStrays(t *testing.T) {
	in := cluster()
	s := service("ns/a", "172.19.0.100", "fd00:19::100")
	s.Primary, s.Standby = "n1", "n2"
	in.Services = []dataplane.Service{s}
	aware, _ := compute(in, "")
	send := func(nodes tracer.Cluster, src, dst, want string) {
		t.Helper()
		got, err := nodes.Send("n3", addr(src), addr(dst))
		if err != nil || got.String() != want {
			t.Errorf("%s > %s: %s, %v, want %s", src, dst, got, err, want)
		}
	}
	unaware := func() tracer.Cluster {
		less := s
		less.Endpoints = s.Endpoints[:2] // n1's
		in.Services = []dataplane.Service{less}
		nodes, _ := compute(in, "")
		nodes["n3"] = aware["n3"]
		return nodes
	}
	nodes := unaware()
	send(nodes, "10.244.3.5", "198.51.100.7", "dropped on n1: stray")
	send(nodes, "fd00:10:244:3::5", "2001:db8::7", "dropped on n1: stray")
	send(nodes, "10.244.3.5", "10.244.1.6", "inside from n1 as 10.244.3.5")

	in.StraysPass = true
	send(unaware(), "10.244.3.5", "198.51.100.7", "outside from n1 as 10.244.3.5")
	in.StraysPass = false

	// n1 is not the primary any more, and no longer the previous one; n3 has not seen that.
	later := s
	later.Primary, later.Standby = "n2", ""
	in.Services = []dataplane.Service{later}
	nodes, _ = compute(in, "")
	nodes["n3"] = aware["n3"]
	send(nodes, "10.244.3.5", "198.51.100.7", "dropped on n1: stray")

	// A node that does not know its own subnet of a family must not take its own pods for others'.
	n := in.Nodes["n1"]
	n.PodSubnets = n.PodSubnets[:1]
	in.Nodes["n1"] = n
	nodes, _ = compute(in, "")
	if d := cmp.Diff(prefixes("10.244.0.0/16"), nodes["n1"].Plan.Host.Pods, byValue); d != "" {
		t.Errorf("pods (-want +got):\n%s", d)
	}
}

func TestPlanText(t *testing.T) {
	s := service("ns/a", "172.19.0.100")
	s.Endpoints = s.Endpoints[:4] // n1 and n2
	s.Primary, s.Standby, s.Epoch = "n1", "n2", 7
	in := cluster()
	in.Services = []dataplane.Service{s}
	in.Guards = []dataplane.Guard{
		{Address: addr("172.19.0.100"), Ports: []dataplane.Port{{Protocol: dataplane.UDP, Number: 53}, {Protocol: dataplane.TCP, Number: 80}}},
		{Address: addr("::ffff:172.19.0.100"), Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}}},
	}
	nodes, problems := compute(in, "")
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	common := `internal 10.96.0.0/16
internal 10.244.0.0/16
internal 100.64.0.0/16
internal 100.88.0.0/16
internal 169.254.0.0/17
internal 172.18.0.11/32
internal 172.18.0.12/32
internal 172.18.0.13/32
internal fc00:18::11/128
internal fc00:18::12/128
internal fc00:18::13/128
internal fd00:10:96::/112
internal fd00:10:244::/48
internal fd69::/112
internal fd97::/64
internal fd98::/64
`
	shared := `address_set metallb_egress_internal_ip4 {10.96.0.0/16 10.244.0.0/16 100.64.0.0/16 100.88.0.0/16 169.254.0.0/17}
`
	nodeSet := `address_set metallb_egress_nodes_ip4 {172.18.0.11 172.18.0.12 172.18.0.13}
`
	exempt := `policy 111 "ip4.src == $metallb_egress_served_ip4 && ip4.dst == $metallb_egress_internal_ip4" allow
policy 111 "ip4.src == $metallb_egress_served_ip4 && ip4.dst == $metallb_egress_nodes_ip4" allow pkt_mark=1008
`
	translate := `translate 10.244.1.5 172.19.0.100
translate 10.244.2.5 172.19.0.100
`
	stopped := `pods 10.244.0.0/16
pods fd00:10:244::/48
own_pods 10.244.N.0/24
own_pods fd00:10:244:N::/64
guard 172.19.0.100 tcp/80 udp/53
`
	want := map[string]string{
		"n1": "address_set metallb_egress_arriving_SUM_ip4 {10.244.2.5} for ns/a\n" + shared + nodeSet + `address_set metallb_egress_own_SUM_ip4 {10.244.1.5} for ns/a
address_set metallb_egress_served_ip4 {10.244.1.5 10.244.2.5}
` + exempt + `policy 110 "inport == \"rtots-n1\" && ip4.src == $metallb_egress_arriving_SUM_ip4" reroute 10.244.1.2 for ns/a
policy 109 "ip4.src == $metallb_egress_own_SUM_ip4" reroute 10.244.1.2 for ns/a
source_route 10.244.0.0/16 10.244.1.2
` + common + translate + "account 172.19.0.100 for ns/a epoch 7\n" + stopped,
		"n2": "address_set metallb_egress_arriving_SUM_ip4 {10.244.1.5} for ns/a\n" + shared + nodeSet + `address_set metallb_egress_own_SUM_ip4 {10.244.2.5} for ns/a
address_set metallb_egress_served_ip4 {10.244.1.5 10.244.2.5}
` + exempt + `policy 110 "inport == \"rtots-n2\" && ip4.src == $metallb_egress_arriving_SUM_ip4" reroute 10.244.2.2 for ns/a
policy 109 "ip4.src == $metallb_egress_own_SUM_ip4" reroute 100.88.0.2 for ns/a
source_route 10.244.0.0/16 10.244.2.2
` + common + translate + stopped,
		"n3": "address_set metallb_egress_elsewhere_ip4 {10.244.1.5 10.244.2.5}\n" + shared + `policy 6 "inport == \"rtots-n3\" && ip4.dst == $metallb_egress_internal_ip4" allow
policy 5 "inport == \"rtots-n3\" && ip4.src == $metallb_egress_elsewhere_ip4" reroute 10.244.3.2
` + common + stopped,
	}
	for name, w := range want {
		w = strings.ReplaceAll(w, "SUM", "09ac74bb56f19d2c7ed9313d323ae561")
		w = strings.ReplaceAll(w, "N", name[1:])
		if d := cmp.Diff(w, nodes[name].Plan.Dump()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestGuardOfAHost: an address that is a host's, or lies in the cluster, is not guarded: nobody would reach
// the host any more.
func TestGuardOfAHost(t *testing.T) {
	in := cluster()
	in.Node = "n1"
	for _, a := range []string{"172.18.0.12", "10.96.0.1", "fc00:18::11", "172.19.0.100"} {
		in.Guards = append(in.Guards, dataplane.Guard{Address: addr(a), Service: "ns/a"})
	}
	plan, problems := dataplane.Compute(in)
	if d := cmp.Diff([]dataplane.Guard{{Address: addr("172.19.0.100")}}, plan.Host.Guards, byValue); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if len(problems) != 3 || problems[0].Service != "ns/a" || !strings.Contains(problems[1].Message, "172.18.0.12 is an address of a node") {
		t.Errorf("problems %v", problems)
	}
}

func TestProblems(t *testing.T) {
	placed := service("ns/a", "172.19.0.100")
	placed.Primary = "n1"
	tests := []struct {
		name   string
		change func(*dataplane.Input)
		node   string
		want   []dataplane.Problem
	}{
		{
			name:   "none",
			change: func(*dataplane.Input) {},
			node:   "n2",
		},
		{
			name: "unknown transit address of the primary",
			change: func(in *dataplane.Input) {
				n := in.Nodes["n1"]
				n.TransitAddresses = addrs("fd97::2")
				in.Nodes["n1"] = n
			},
			node: "n2",
			want: []dataplane.Problem{{"ns/a", "primary n1 has no known ip4 transit address, packets are dropped"}},
		},
		{
			name:   "unknown primary",
			change: func(in *dataplane.Input) { in.Services[0].Primary = "gone" },
			node:   "n2",
			want:   []dataplane.Problem{{"ns/a", "primary gone has no known ip4 transit address, packets are dropped"}},
		},
		{
			name: "no management address",
			change: func(in *dataplane.Input) {
				n := in.Nodes["n1"]
				n.ManagementAddresses = nil
				in.Nodes["n1"] = n
			},
			node: "n1",
			want: []dataplane.Problem{{"ns/a", "node n1 has no ip4 management address, packets are dropped"}},
		},
		{
			name: "no LoadBalancer IP",
			change: func(in *dataplane.Input) {
				in.Services[0].SourceIPs = nil
				in.Services[0].Endpoints = in.Services[0].Endpoints[:1]
			},
			node: "n1",
			want: []dataplane.Problem{{"ns/a", "it has no LoadBalancer IP, its pods' ip4 packets to the outside are dropped"}},
		},
		{
			name: "pods of an older service",
			change: func(in *dataplane.Input) {
				younger := in.Services[0]
				younger.Key = "ns/b"
				in.Services = append(in.Services, younger)
			},
			node: "n2",
			want: []dataplane.Problem{{"ns/b", "3 endpoint addresses are served by the older service ns/a, the first is 10.244.1.5"}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := cluster()
			in.Services = []dataplane.Service{placed}
			test.change(&in)
			_, problems := compute(in, "")
			if d := cmp.Diff(test.want, problems[test.node]); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestUnreachablePrimary: a packet that has no way to the right source is dropped.
func TestUnreachablePrimary(t *testing.T) {
	in := cluster()
	s := service("ns/a", "172.19.0.100")
	s.Primary = "gone"
	in.Services = []dataplane.Service{s}
	nodes, _ := compute(in, "")
	got, err := nodes.Send("n2", addr("10.244.2.5"), addr("198.51.100.7"))
	if want := "dropped on n2: hold for ns/a"; err != nil || got.String() != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

func TestManyEndpointsTakeNoMorePolicies(t *testing.T) {
	count := func(endpoints int) (policies, translations int) {
		in := cluster()
		s := dataplane.Service{Key: "ns/a", Primary: "n1", SourceIPs: addrs("172.19.0.100", "fd00:19::100")}
		for i := range endpoints {
			s.Endpoints = append(s.Endpoints,
				dataplane.Endpoint{Node: fmt.Sprintf("n%d", 1+i%3), Address: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})},
				dataplane.Endpoint{Node: fmt.Sprintf("n%d", 1+i%3), Address: netip.MustParseAddr(fmt.Sprintf("fd00:10:244:2::%x", i+1))})
		}
		in.Services = []dataplane.Service{s}
		nodes, _ := compute(in, "")
		return len(nodes["n1"].Plan.OVN.Policies), len(nodes["n1"].Plan.Host.Translations)
	}
	one, oneTranslations := count(3)
	many, manyTranslations := count(10_000)
	if one != many || one != 8 {
		t.Errorf("%d policies for one endpoint on each node, %d for 10,000, want 8", one, many)
	}
	if oneTranslations != 6 || manyTranslations != 20_000 {
		t.Errorf("%d and %d translations, want 6 and 20000", oneTranslations, manyTranslations)
	}
}

// TestOrderDoesNotMatter: the same facts in another order give the same plan.
func TestOrderDoesNotMatter(t *testing.T) {
	in := cluster()
	s := service("ns/a", "fd00:19::100", "172.19.0.100")
	s.Primary = "n1"
	in.Services = []dataplane.Service{s}
	nodes, _ := compute(in, "")
	reversed := s
	reversed.Endpoints = nil
	for i := range s.Endpoints {
		e := s.Endpoints[len(s.Endpoints)-1-i]
		// As a slice of IPv4-mapped addresses would have it, and twice.
		if e.Address.Is4() {
			e.Address = netip.AddrFrom16(e.Address.As16())
		}
		reversed.Endpoints = append(reversed.Endpoints, e, e)
	}
	in.Services = []dataplane.Service{reversed}
	again, _ := compute(in, "")
	for name := range nodes {
		if d := cmp.Diff(nodes[name].Plan, again[name].Plan, byValue); d != "" {
			t.Errorf("%s (-first +reversed):\n%s", name, d)
		}
	}
}

// TestOverlappingInternal: host addresses inside the cluster's subnets and subnets within
// subnets must not make two exemptions, or two interval elements, cover the same address.
func TestOverlappingInternal(t *testing.T) {
	in := cluster()
	n := in.Nodes["n1"]
	n.Addresses = append(n.Addresses, prefixes("10.244.1.2/24", "127.0.0.1/8", "fe80::1/64", "172.18.0.11/32", "::ffff:172.18.0.11/128")...)
	in.Nodes["n1"] = n
	in.Cluster.PodSubnets = append(in.Cluster.PodSubnets, prefixes("10.244.3.0/24", "10.244.0.0/16")...)
	s := service("ns/a", "172.19.0.100")
	s.Primary = "n1"
	in.Services = []dataplane.Service{s}
	nodes, _ := compute(in, "")
	for i, p := range nodes["n1"].Plan.Host.Internal {
		for _, q := range nodes["n1"].Plan.Host.Internal[i+1:] {
			if p.Overlaps(q) {
				t.Errorf("%s overlaps %s", p, q)
			}
		}
	}
	got, err := nodes.Send("n2", addr("10.244.2.5"), addr("10.244.1.2"))
	if want := "inside from n1 as 10.244.2.5"; err != nil || got.String() != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}
