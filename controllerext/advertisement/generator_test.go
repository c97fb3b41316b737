// SPDX-License-Identifier: Apache-2.0

package advertisement_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

type spec = advertisement.BGPAdvertisementSpec

// named is an advertisement; each of the changes is made to it.
func named(name string, changes ...func(*spec)) *advertisement.BGPAdvertisement {
	a := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: name, ResourceVersion: "1"}}
	for _, change := range changes {
		change(&a.Spec)
	}
	return a
}

func onNodes(texts ...string) func(*spec) {
	return func(s *spec) { s.NodeSelectors = parsed(texts...) }
}

func forServices(texts ...string) func(*spec) {
	return func(s *spec) { s.ServiceSelectors = parsed(texts...) }
}

func fromPools(names ...string) func(*spec) { return func(s *spec) { s.IPAddressPools = names } }

func poolsBy(texts ...string) func(*spec) {
	return func(s *spec) { s.IPAddressPoolSelectors = parsed(texts...) }
}

func toPeers(names ...string) func(*spec) { return func(s *spec) { s.Peers = names } }

func prefer(localPref uint32) func(*spec) { return func(s *spec) { s.LocalPref = localPref } }

func prepend(times int32) func(*spec) { return func(s *spec) { s.ASPathPrepend = times } }

func with(communities ...string) func(*spec) { return func(s *spec) { s.Communities = communities } }

func aggregate(ipv4, ipv6 int32) func(*spec) {
	return func(s *spec) { s.AggregationLength, s.AggregationLengthV6 = &ipv4, &ipv6 }
}

// parsed are selectors in kubectl's spelling.
func parsed(texts ...string) []metav1.LabelSelector {
	all := make([]metav1.LabelSelector, 0, len(texts))
	for _, text := range texts {
		one, err := metav1.ParseToLabelSelector(text)
		if err != nil {
			panic(err)
		}
		if len(one.MatchLabels) == 0 {
			one.MatchLabels = nil
		}
		if len(one.MatchExpressions) == 0 {
			one.MatchExpressions = nil
		}
		all = append(all, *one)
	}
	return all
}

// dice decide what a cluster is like: by the given bytes, which a fuzzer changes one at a time, and at random when those are used up.
type dice struct {
	bytes []byte
	rest  *rand.Rand
}

func throw(bytes []byte) *dice { return &dice{bytes, rand.New(rand.NewPCG(uint64(len(bytes)), 1))} }

// seeded are dice of which everything is random.
func seeded(seed uint64) *dice { return &dice{nil, rand.New(rand.NewPCG(seed, 2))} }

// roll is 0 to n-1.
func (d *dice) roll(n int) int {
	if len(d.bytes) == 0 {
		return d.rest.IntN(n)
	}
	first := d.bytes[0]
	d.bytes = d.bytes[1:]
	return int(first) % n
}

// chance is true once in n times.
func (d *dice) chance(n int) bool { return d.roll(n) == n-1 }

func pick[T any](d *dice, items ...T) T { return items[d.roll(len(items))] }

// world is a cluster, and what it was like before there were egress services in it, but for the labels of their nodes.
type world struct {
	*advertisement.Cluster
	before *advertisement.Cluster
	known  map[string]end // by the way to run the controller
}

// end is what a cluster comes to.
type end struct {
	*advertisement.Cluster
	plan advertisement.Plan
	err  error
}

// but is another one, where the controller is run in another way.
func (w world) but(change func(*advertisement.Cluster)) world {
	w.Cluster = clone(w.Cluster)
	change(w.Cluster)
	return w
}

const (
	namespace = "metallb-system"
	vrf       = "blue"
)

// generate makes a cluster whose advertisements MetalLB accepts.
func generate(d *dice) world {
	c := &advertisement.Cluster{
		Namespace: namespace, Guarded: d.chance(3), Manage: !d.chance(3), IgnoreExclude: d.chance(4),
		Features: advertisement.Features{ServiceSelectors: !d.chance(6)},
	}
	c.Features.ASPathPrepend = c.Features.ServiceSelectors && d.chance(3)
	for i := range 1 + d.roll(6) {
		c.Nodes = append(c.Nodes, d.node(i))
	}
	for i := range 1 + d.roll(3) {
		c.Pools = append(c.Pools, d.pool(i))
	}
	for i := range 1 + d.roll(3) {
		c.Peers = append(c.Peers, d.peer(i))
	}
	for i := range 1 + d.roll(5) {
		c.Services = append(c.Services, d.service(c, i))
	}
	w := world{c, clone(c), map[string]end{}}
	d.elect(c)
	w.before.Nodes = clone(c).Nodes
	for i := range d.roll(6) {
		a := d.advertisement(c, i)
		c.Advertisements = append(c.Advertisements, a)
		if refused(c) != nil {
			c.Advertisements = c.Advertisements[:len(c.Advertisements)-1]
			continue
		}
		w.before.Advertisements = append(w.before.Advertisements, a.DeepCopy())
	}
	for i := range d.roll(3) {
		c.L2Advertisements = append(c.L2Advertisements, &metallbv1beta1.L2Advertisement{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("l2-%d", i)},
			Spec:       metallbv1beta1.L2AdvertisementSpec{IPAddressPools: pick(d, nil, []string{c.Pools[0].Name})},
		})
	}
	for i, a := range c.Advertisements {
		if !c.Features.ServiceSelectors || lengthOf(a, true) != 32 || lengthOf(a, false) != 128 || !d.chance(4) {
			continue
		}
		if c.Advertisements[i] = editedBefore(a); refused(c) != nil {
			c.Advertisements[i] = a
		}
	}
	if d.chance(3) {
		said := advertisement.Announcement{Node: pick(d, c.Nodes...).Name, Service: pick(d, c.Services...).Key}
		c.BGPAnnouncements, c.L2Announcements = []advertisement.Announcement{said}, []advertisement.Announcement{said}
	}
	return w
}

func (d *dice) node(i int) advertisement.Node {
	n := advertisement.Node{Name: fmt.Sprintf("node%d", i), Labels: map[string]string{
		corev1.LabelHostname: fmt.Sprintf("node%d", i), "zone": pick(d, "a", "b"), "rack": pick(d, "r0", "r1"),
	}}
	if d.chance(8) {
		n.Labels[corev1.LabelNodeExcludeBalancers] = ""
	}
	return n
}

func (d *dice) pool(i int) *metallbv1beta1.IPAddressPool {
	p := &metallbv1beta1.IPAddressPool{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pool%d", i), Labels: map[string]string{"tier": pick(d, "gold", "silver")}},
		Spec:       metallbv1beta1.IPAddressPoolSpec{Addresses: []string{fmt.Sprintf("10.0.%d.0/24", i)}},
	}
	if d.chance(4) {
		p.Spec.Addresses = append(p.Spec.Addresses, fmt.Sprintf("fd00:%d::/64", i))
	}
	return p
}

func (d *dice) peer(i int) *metallbv1beta2.BGPPeer {
	return &metallbv1beta2.BGPPeer{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("peer%d", i)},
		Spec: metallbv1beta2.BGPPeerSpec{
			NodeSelectors: pick(d, nil, nil, nil, parsed("rack=r0"), parsed("zone=a", "rack=r1")), VRFName: pick(d, "", "", "", vrf),
		},
	}
}

func (d *dice) service(c *advertisement.Cluster, i int) advertisement.Service {
	pool := d.roll(len(c.Pools))
	s := advertisement.Service{
		Key:    types.NamespacedName{Namespace: pick(d, "default", "shop"), Name: fmt.Sprintf("svc%d", i)},
		Labels: map[string]string{"app": pick(d, "web", "db")}, Pool: c.Pools[pool].Name,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(pool), byte(i + 1)})},
	}
	if len(c.Pools[pool].Spec.Addresses) > 1 && d.chance(2) {
		s.Addresses, s.DualStack = append(s.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", pool, i+1))), true
	}
	if len(c.Services) > 0 && d.chance(5) {
		s.Pool, s.Addresses = c.Services[0].Pool, slices.Clone(c.Services[0].Addresses)
	}
	if d.chance(12) {
		s.Pool, s.Addresses = "", nil
	}
	if d.chance(12) {
		s.Labels = nil
	}
	if d.chance(12) {
		s.Key.Name = strings.Repeat(s.Key.Name, 15)
	}
	return s
}

// elect makes one to three of the services egress services, of which those with one address have one primary.
func (d *dice) elect(c *advertisement.Cluster) {
	groups := map[netip.Addr][3]int{}
	for i := range c.Services[:min(1+d.roll(3), len(c.Services))] {
		s := &c.Services[i]
		e := advertisement.EgressService{
			Key: s.Key, Digest: lifecycle.Digest(s.Key.Namespace, s.Key.Name), EveryNode: d.chance(6),
			LabelKey: lifecycle.LabelKey(s.Key.Namespace, s.Key.Name, func(string) bool { return false }),
		}
		e.StandbyLabelKey = v1alpha1.StandbyLabelPrefix + strings.TrimPrefix(e.LabelKey, egressv1.LabelPrefix)
		if d.chance(6) {
			e.Network, e.VRF = vrf, true
		}
		// The primary, the standby and whether there is an assignment without a primary. Of nodes, len(c.Nodes) is none.
		nodes := [3]int{d.roll(len(c.Nodes)), d.roll(len(c.Nodes) + 1), d.roll(2)}
		if d.chance(6) {
			nodes[0] = len(c.Nodes)
		}
		if len(s.Addresses) > 0 {
			if before, shared := groups[s.Addresses[0]]; shared {
				nodes = before
			}
			groups[s.Addresses[0]] = nodes
		}
		switch {
		case e.EveryNode || nodes[0] == len(c.Nodes) && nodes[2] == 0:
			e.LabelKey, e.StandbyLabelKey = "", ""
		case nodes[0] < len(c.Nodes):
			e.Primary = c.Nodes[nodes[0]].Name
			c.Nodes[nodes[0]].Labels[e.LabelKey] = ""
			if nodes[1] < len(c.Nodes) && nodes[1] != nodes[0] {
				c.Nodes[nodes[1]].Labels[e.StandbyLabelKey] = ""
			}
		}
		c.EgressServices = append(c.EgressServices, e)
		if c.Features.ServiceSelectors && d.chance(3) {
			s.Labels = maps.Clone(s.Labels)
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[v1alpha1.ServiceLabel] = e.Digest
		}
	}
}

// advertisement is one of a user's.
func (d *dice) advertisement(c *advertisement.Cluster, i int) *advertisement.BGPAdvertisement {
	pools := pick(d, fromPools(), fromPools(), fromPools("pool0"), fromPools("pool1", "pool0"), poolsBy("tier=gold"), poolsBy("tier=silver"))
	label := lifecycle.LabelKey(c.EgressServices[0].Key.Namespace, c.EgressServices[0].Key.Name, func(string) bool { return false })
	nodes := pick(d, onNodes(), onNodes(), onNodes(), onNodes("rack=r0"), onNodes("rack=r1"), onNodes("zone=a", "rack=r0"),
		onNodes("zone in (a),rack notin (r0)"), onNodes(corev1.LabelHostname+"=node0"), onNodes(corev1.LabelHostname+" in (node1,node2)"),
		onNodes("!rack"), onNodes(label), onNodes(label, "zone=b"), onNodes(label+",rack=r0"))
	services := forServices()
	if c.Features.ServiceSelectors {
		services = pick(d, forServices(), forServices(), forServices(), forServices("app=web"), forServices("app in (db,web)"), forServices("app notin (db)"),
			forServices(""), forServices("app=web", "app=db"), forServices("!"+v1alpha1.ServiceLabel), forServices("app=web,!"+v1alpha1.ServiceLabel, "app=db"),
			forServices("app=web,!"+v1alpha1.ServiceLabel, "app=web"))
	}
	peers := pick(d, toPeers(), toPeers(), toPeers("peer0"), toPeers("peer1"), toPeers("peer0", "peer1"))
	a := named(fmt.Sprintf("ad%d", i), pools, nodes, services, peers, prefer(pick[uint32](d, 0, 0, 0, 100, 200)),
		pick(d, with(), with(), with("65000:1"), with("65000:2", "65000:1")))
	if c.Features.ASPathPrepend {
		a.Spec.ASPathPrepend = pick[int32](d, 0, 0, 0, 2)
	}
	if len(a.Spec.ServiceSelectors) == 0 && d.chance(5) {
		pick(d, aggregate(24, 64), aggregate(24, 128), aggregate(24, 128), aggregate(32, 64))(&a.Spec)
	}
	if len(a.Spec.NodeSelectors) == 0 && d.chance(8) {
		a.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: `{"spec":{"nodeSelector":[]}}`}
	}
	return a
}

// editedBefore is what an earlier run of the controller has left: the exclusion, and a mark that says what was there.
func editedBefore(before *advertisement.BGPAdvertisement) *advertisement.BGPAdvertisement {
	a := before.DeepCopy()
	body, err := json.Marshal(a.Spec.ServiceSelectors)
	if err != nil {
		panic(err)
	}
	metav1.SetMetaDataAnnotation(&a.ObjectMeta, v1alpha1.OriginalSelectorsAnnotation, string(body))
	exclusion := metav1.LabelSelectorRequirement{Key: v1alpha1.ServiceLabel, Operator: metav1.LabelSelectorOpDoesNotExist}
	if len(a.Spec.ServiceSelectors) == 0 {
		a.Spec.ServiceSelectors = []metav1.LabelSelector{{}}
	}
	for i := range a.Spec.ServiceSelectors {
		one := &a.Spec.ServiceSelectors[i]
		if !slices.ContainsFunc(one.MatchExpressions, isExclusion) {
			one.MatchExpressions = append(one.MatchExpressions, exclusion)
		}
	}
	return a
}

// isExclusion is true for the requirement that keeps egress services out.
func isExclusion(r metav1.LabelSelectorRequirement) bool {
	return r.Key == v1alpha1.ServiceLabel && r.Operator == metav1.LabelSelectorOpDoesNotExist
}
