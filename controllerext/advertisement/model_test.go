// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// This file is MetalLB v0.16 as it documents itself: which node tells which peer what about a service. It knows nothing of egress services,
// and shares no code with the planner, which the compiler sees to: it is of another package.

// route is what a node tells one peer.
type route struct {
	Prefix netip.Prefix
	Peer   string
}

// attributes are those of a route.
type attributes struct {
	LocalPref     uint32
	ASPathPrepend int32
	Communities   string // ordered, with a blank between two
}

// announced are the routes by which a node announces a service: none when it is silent.
func announced(c *advertisement.Cluster, s *advertisement.Service, n *advertisement.Node) map[route]attributes {
	pool := poolOf(c, s)
	_, kept := n.Labels[corev1.LabelNodeExcludeBalancers]
	if pool == nil || kept && !c.IgnoreExclude {
		return nil
	}
	for _, address := range s.Addresses {
		if !slices.ContainsFunc(prefixesOf(pool), func(p netip.Prefix) bool { return p.Contains(address) }) {
			return nil
		}
	}
	matching := announcers(c, s, n)
	if conflicting(matching, pool) {
		return nil
	}
	found := map[route]attributes{}
	for _, a := range matching {
		for _, peer := range sessions(c, a, n) {
			for _, address := range s.Addresses {
				prefix, _ := address.Prefix(lengthOf(a, address.Is4()))
				to := route{prefix, peer}
				found[to] = attributes{a.Spec.LocalPref, a.Spec.ASPathPrepend, united(found[to].Communities, a.Spec.Communities)}
			}
		}
	}
	return found
}

// hostRoutes are those of them for single addresses; the others are aggregates.
func hostRoutes(all map[route]attributes) map[route]attributes {
	found := map[route]attributes{}
	for to, a := range all {
		if to.Prefix.IsSingleIP() {
			found[to] = a
		}
	}
	return found
}

// announcers are the advertisements by which a node would announce a service, conflicts aside.
func announcers(c *advertisement.Cluster, s *advertisement.Service, n *advertisement.Node) []*advertisement.BGPAdvertisement {
	pool := poolOf(c, s)
	return slices.DeleteFunc(slices.Clone(c.Advertisements), func(a *advertisement.BGPAdvertisement) bool {
		return pool == nil || !takes(a, pool) || !anyMatches(a.Spec.NodeSelectors, n.Labels) || !anyMatches(a.Spec.ServiceSelectors, s.Labels)
	})
}

// conflicting is true where two advertisements ask for different attributes of the same update.
func conflicting(all []*advertisement.BGPAdvertisement, pool *metallbv1beta1.IPAddressPool) bool {
	for i, a := range all {
		if slices.ContainsFunc(all[:i], func(b *advertisement.BGPAdvertisement) bool { return !compatible(a, b, pool) }) {
			return true
		}
	}
	return false
}

// compatible is true unless the advertisements would give a common peer of a common node the same prefix with different attributes. In a
// pool of both families it is enough that one of the lengths is the same, whatever addresses the service has.
func compatible(a, b *advertisement.BGPAdvertisement, pool *metallbv1beta1.IPAddressPool) bool {
	if a.Spec.LocalPref == b.Spec.LocalPref && a.Spec.ASPathPrepend == b.Spec.ASPathPrepend {
		return true
	}
	sameLength := slices.ContainsFunc(prefixesOf(pool), func(p netip.Prefix) bool {
		return lengthOf(a, p.Addr().Is4()) == lengthOf(b, p.Addr().Is4())
	})
	commonPeer := len(a.Spec.Peers) == 0 || len(b.Spec.Peers) == 0 ||
		slices.ContainsFunc(a.Spec.Peers, func(name string) bool { return slices.Contains(b.Spec.Peers, name) })
	return !sameLength || !commonPeer
}

// sessions are the names of the peers that a node tells what the advertisement says.
func sessions(c *advertisement.Cluster, a *advertisement.BGPAdvertisement, n *advertisement.Node) []string {
	var names []string
	for _, p := range c.Peers {
		if anyMatches(p.Spec.NodeSelectors, n.Labels) && (len(a.Spec.Peers) == 0 || slices.Contains(a.Spec.Peers, p.Name)) {
			names = append(names, p.Name)
		}
	}
	return names
}

// takes is true when the advertisement is for the pool.
func takes(a *advertisement.BGPAdvertisement, pool *metallbv1beta1.IPAddressPool) bool {
	names, by := a.Spec.IPAddressPools, a.Spec.IPAddressPoolSelectors
	return len(names) == 0 && len(by) == 0 || slices.Contains(names, pool.Name) || len(by) > 0 && anyMatches(by, pool.Labels)
}

// anyMatches is true when one of the selectors does, or there are none.
func anyMatches(selectors []metav1.LabelSelector, set map[string]string) bool {
	return len(selectors) == 0 || slices.ContainsFunc(selectors, func(s metav1.LabelSelector) bool {
		one, err := metav1.LabelSelectorAsSelector(&s)
		return err == nil && one.Matches(labels.Set(set))
	})
}

func poolOf(c *advertisement.Cluster, s *advertisement.Service) *metallbv1beta1.IPAddressPool {
	if i := slices.IndexFunc(c.Pools, func(p *metallbv1beta1.IPAddressPool) bool { return p.Name == s.Pool }); i >= 0 {
		return c.Pools[i]
	}
	return nil
}

// prefixesOf are a pool's addresses, which are CIDRs in all the tests here.
func prefixesOf(pool *metallbv1beta1.IPAddressPool) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range pool.Spec.Addresses {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// lengthOf is the aggregation length for a family.
func lengthOf(a *advertisement.BGPAdvertisement, ipv4 bool) int {
	length, usual := a.Spec.AggregationLengthV6, 128
	if ipv4 {
		length, usual = a.Spec.AggregationLength, 32
	}
	if length == nil {
		return usual
	}
	return int(*length)
}

func united(before string, more []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(append(strings.Fields(before), more...)))), " ")
}

// refused is why MetalLB's webhook, or the schema of its CRD, does not take the cluster's advertisements; nil when it does.
func refused(c *advertisement.Cluster) error {
	for i, a := range c.Advertisements {
		if err := malformed(a); err != nil {
			return fmt.Errorf("BGPAdvertisement %s: %w", a.Name, err)
		}
		for _, b := range c.Advertisements[:i] {
			if len(a.Spec.ServiceSelectors) == 0 && len(b.Spec.ServiceSelectors) == 0 && contradict(c, a, b) {
				return fmt.Errorf("BGPAdvertisements %s and %s: different attributes for the same updates", a.Name, b.Name)
			}
		}
	}
	return nil
}

// malformed is what is wrong with an advertisement by itself.
func malformed(a *advertisement.BGPAdvertisement) error {
	spec := &a.Spec
	if len(spec.ServiceSelectors) > 0 && (lengthOf(a, true) != 32 || lengthOf(a, false) != 128) {
		return fmt.Errorf("serviceSelectors of an aggregate")
	}
	for what, list := range map[string][]string{
		"peers": spec.Peers, "communities": spec.Communities, "ipAddressPools": spec.IPAddressPools, "nodeSelectors": spelt(spec.NodeSelectors),
		"serviceSelectors": spelt(spec.ServiceSelectors), "ipAddressPoolSelectors": spelt(spec.IPAddressPoolSelectors),
	} {
		if len(slices.Compact(slices.Sorted(slices.Values(list)))) != len(list) {
			return fmt.Errorf("%s holds the same twice: %v", what, list)
		}
	}
	for _, selector := range slices.Concat(spec.NodeSelectors, spec.ServiceSelectors, spec.IPAddressPoolSelectors) {
		all := make([]string, len(selector.MatchExpressions))
		for i, r := range selector.MatchExpressions {
			all[i] = r.String()
		}
		if len(slices.Compact(slices.Sorted(slices.Values(all)))) != len(all) {
			return fmt.Errorf("a selector holds the same requirement twice: %v", all)
		}
	}
	return nil
}

func spelt(selectors []metav1.LabelSelector) []string {
	texts := make([]string, len(selectors))
	for i := range selectors {
		texts[i] = selectors[i].String()
	}
	return texts
}

// contradict is true when two advertisements meet on some pool and node with attributes that are not compatible.
func contradict(c *advertisement.Cluster, a, b *advertisement.BGPAdvertisement) bool {
	return slices.ContainsFunc(c.Pools, func(pool *metallbv1beta1.IPAddressPool) bool {
		return takes(a, pool) && takes(b, pool) && !compatible(a, b, pool) && slices.ContainsFunc(c.Nodes, func(n advertisement.Node) bool {
			return anyMatches(a.Spec.NodeSelectors, n.Labels) && anyMatches(b.Spec.NodeSelectors, n.Labels)
		})
	})
}

// The rest compares this model with what MetalLB's own tests state, and with what config.For was seen to do (reference §1.6, "[ran]").

// TestModel has two nodes, of which a is labelled as the egress node of a labelled service; b is kept out of load balancing.
func TestModel(t *testing.T) {
	const nodeLabel, serviceLabel = "egress-service.k8s.ovn.org/ns-svc", "metallb-egress.io/egress-service"
	ours := []func(*spec){fromPools("pool"), onNodes(nodeLabel), forServices(serviceLabel + "=x")}
	type ads = []*advertisement.BGPAdvertisement
	tests := []struct {
		name string
		ads  ads
		// egress and other are the nodes that announce the labelled service and the other one.
		egress, other string
		refused       bool
	}{
		// config.For of v0.16.1.
		{"the default only", ads{named("a")}, "a b", "a b", false},
		{"default and egress", ads{named("a"), named("b", ours...)}, "a b", "a b", false},
		{"default with exclusion and egress", ads{named("a", forServices("!"+serviceLabel)), named("b", ours...)}, "a", "a b", false},
		{"node label on no node", ads{named("a", onNodes("egress-service.k8s.ovn.org/none"))}, "", "", false},
		{"pool that does not exist", ads{named("a", fromPools("none"))}, "", "", false},
		{"two localPrefs", ads{named("a", prefer(100)), named("b", prefer(200))}, "", "", true},
		{"two localPrefs, one with serviceSelectors", ads{named("a", prefer(100)), named("b", prefer(200), forServices("app=nginx"))}, "", "a b", false},
		{"aggregate with serviceSelectors", ads{named("a", aggregate(24, 128), forServices("app=nginx"))}, "a b", "", true},
		{"selector of everything", ads{named("a", onNodes(""), forServices(""))}, "a b", "a b", false},
		// TestBGPAdsForService, TestShouldAnnounceBGPServiceSelectors.
		{"matching selector", ads{named("a", forServices("app=nginx"))}, "a b", "", false},
		{"non-matching selector", ads{named("a", forServices("app=apache"))}, "", "a b", false},
		{"wrong node", ads{named("a", onNodes("kubernetes.io/hostname=b"))}, "b", "b", false},
		{"some match", ads{named("a", forServices("app=none")), named("b", forServices("app=nginx"))}, "a b", "", false},
		{"one of two selectors matches", ads{named("a", forServices("app=none", "app=nginx"))}, "a b", "", false},
		// TestCheckBGPAdvConflicts; asPathPrepend is of v0.16.2.
		{"same localPref", ads{named("a", prefer(100)), named("b", prefer(100))}, "a b", "a b", false},
		{"nodes are a subset", ads{named("a", prefer(1), onNodes("kubernetes.io/hostname=a"), forServices("app")), named("b", prefer(2))}, "b", "b", false},
		{"no nodes", ads{named("a", prefer(1), onNodes("none")), named("b", prefer(2))}, "a b", "a b", false},
		{"different nodes", ads{
			named("a", prefer(1), onNodes("kubernetes.io/hostname=a")), named("b", prefer(2), onNodes("kubernetes.io/hostname=b")),
		}, "a b", "a b", false},
		{"different peers", ads{named("a", prefer(1), toPeers("p")), named("b", prefer(2), toPeers("q"))}, "a b", "a b", false},
		{"peers are a subset", ads{named("a", prefer(1), toPeers("p")), named("b", prefer(2), toPeers("q", "p"))}, "", "", true},
		{"peers meet", ads{named("a", prefer(1), toPeers("p", "r")), named("b", prefer(2), toPeers("q", "p"), forServices(""))}, "", "", false},
		{"all peers and one", ads{named("a", prefer(1), toPeers("p")), named("b", prefer(2), forServices(""))}, "", "", false},
		{"different prepends", ads{named("a", prepend(1), forServices("")), named("b", prepend(2))}, "", "", false},
		// config_test.go, and TestNodeSelectors for peers: r is of node a only, nobody has s.
		{"different ipv4 lengths", ads{named("a", prefer(1), aggregate(24, 64)), named("b", prefer(2))}, "a b", "a b", false},
		{"different ipv4 lengths only, in a pool of two families", ads{
			named("a", prefer(1), aggregate(24, 128)), named("b", prefer(2)),
		}, "a b", "", true},
		{"pool selector", ads{named("a", poolsBy("tier=gold"))}, "a b", "", false},
		{"pool selector that matches none, and a name", ads{named("a", poolsBy("tier=none"), fromPools("other"))}, "", "a b", false},
		{"peer of one node", ads{named("a", toPeers("r"))}, "a", "a", false},
		{"peer of no node", ads{named("a", toPeers("s"))}, "", "", false},
		{"selectors of nodes are alternatives", ads{named("a", onNodes("kubernetes.io/hostname=a", "kubernetes.io/hostname=b"))}, "a b", "a b", false},
		{"the same selector twice", ads{named("a", onNodes("x", "x"))}, "", "", true},
		{"the same peer twice", ads{named("a", toPeers("p", "p"))}, "a b", "a b", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := modelCluster(nodeLabel, serviceLabel)
			c.Advertisements = test.ads
			if err := refused(c); (err != nil) != test.refused {
				t.Errorf("refused: %v", err)
			}
			if got := nodesOf(c, &c.Services[0]); got != test.egress {
				t.Errorf("the egress service is announced from %q, want %q", got, test.egress)
			}
			if got := nodesOf(c, &c.Services[1]); got != test.other {
				t.Errorf("the other service is announced from %q, want %q", got, test.other)
			}
		})
	}
}

func modelCluster(nodeLabel, serviceLabel string) *advertisement.Cluster {
	pool := func(name, tier string, prefixes ...string) *metallbv1beta1.IPAddressPool {
		return &metallbv1beta1.IPAddressPool{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"tier": tier}}, Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: prefixes},
		}
	}
	peer := func(name string, selectors ...string) *metallbv1beta2.BGPPeer {
		return &metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: metallbv1beta2.BGPPeerSpec{NodeSelectors: parsed(selectors...)}}
	}
	return &advertisement.Cluster{
		Nodes: []advertisement.Node{
			{Name: "a", Labels: map[string]string{"kubernetes.io/hostname": "a", nodeLabel: ""}},
			{Name: "b", Labels: map[string]string{"kubernetes.io/hostname": "b"}},
		},
		Pools: []*metallbv1beta1.IPAddressPool{pool("pool", "gold", "10.20.30.0/24"), pool("other", "silver", "10.20.31.0/24", "fd00::/64")},
		Peers: []*metallbv1beta2.BGPPeer{
			peer("p"), peer("q", "none", "kubernetes.io/hostname"), peer("r", "kubernetes.io/hostname=a"), peer("s", "kubernetes.io/hostname=c"),
		},
		Services: []advertisement.Service{
			{Labels: map[string]string{"app": "nginx", serviceLabel: "x"}, Pool: "pool", Addresses: []netip.Addr{netip.MustParseAddr("10.20.30.1")}},
			{Labels: map[string]string{"app": "apache"}, Pool: "other", Addresses: []netip.Addr{netip.MustParseAddr("10.20.31.1")}},
		},
	}
}

// nodesOf are the names of the nodes that announce a service, with a blank between two.
func nodesOf(c *advertisement.Cluster, s *advertisement.Service) string {
	var names []string
	for i := range c.Nodes {
		if len(announced(c, s, &c.Nodes[i])) > 0 {
			names = append(names, c.Nodes[i].Name)
		}
	}
	return strings.Join(names, " ")
}

func TestModelAttributes(t *testing.T) {
	c := modelCluster("label", "label")
	c.Services[1].Addresses = append(c.Services[1].Addresses, netip.MustParseAddr("fd00::1"))
	c.Advertisements = []*advertisement.BGPAdvertisement{
		named("a", prefer(100), with("1:2", "1:1"), toPeers("p")), named("b", prefer(100), with("1:3", "1:1")),
		named("c", prefer(7), prepend(3), aggregate(24, 64)),
	}
	host, many := attributes{100, 0, "1:1 1:3"}, attributes{7, 3, ""}
	want := map[route]attributes{}
	for _, address := range []string{"10.20.31.1/32", "fd00::1/128"} {
		want[route{netip.MustParsePrefix(address), "p"}] = attributes{100, 0, "1:1 1:2 1:3"}
		want[route{netip.MustParsePrefix(address), "q"}] = host
	}
	for _, prefix := range []string{"10.20.31.0/24", "fd00::/64"} {
		want[route{netip.MustParsePrefix(prefix), "p"}], want[route{netip.MustParsePrefix(prefix), "q"}] = many, many
	}
	got := announced(c, &c.Services[1], &c.Nodes[1])
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(hostRoutes(got)) != 4 {
		t.Errorf("host routes: %v", hostRoutes(got))
	}
	c.Advertisements[2] = named("c", prefer(7), aggregate(24, 128))
	if got := announced(c, &c.Services[1], &c.Nodes[1]); got != nil {
		t.Errorf("one common length in a pool of two families: %v", got)
	}
	c.Nodes[1].Labels[corev1.LabelNodeExcludeBalancers] = ""
	c.Advertisements = c.Advertisements[:2]
	if got := announced(c, &c.Services[1], &c.Nodes[1]); got != nil {
		t.Errorf("excluded from load balancing: %v", got)
	}
	c.IgnoreExclude = true
	if got := announced(c, &c.Services[1], &c.Nodes[1]); len(got) != 4 {
		t.Errorf("excluded from load balancing, which is ignored: %v", got)
	}
	c.Services[1].Addresses[0] = netip.MustParseAddr("192.0.2.1")
	if got := announced(c, &c.Services[1], &c.Nodes[1]); got != nil {
		t.Errorf("address of no pool: %v", got)
	}
}
