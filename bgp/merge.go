// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// NodeView is what Merge has to know of the node.
type NodeView struct {
	Name   string
	Labels map[string]string
	// Addresses are the node's own, most important first. The first IPv4 address is the router ID
	// of routers that have none; the first IPv6 address is the next hop of IPv6 routes on sessions
	// over IPv4.
	Addresses []netip.Addr
}

// Problem is one thing of one FRRConfiguration that is not honored.
type Problem struct {
	// Object is <namespace>/<name> of the FRRConfiguration.
	Object string
	// Neighbor is the neighbor's address or interface as written there; empty when the problem is
	// not one neighbor's.
	Neighbor string
	// Message names the field, the reason, and what happens instead.
	Message string
}

// String is one line.
func (p Problem) String() string {
	if p.Neighbor == "" {
		return fmt.Sprintf("FRRConfiguration %s: %s", p.Object, p.Message)
	}
	return fmt.Sprintf("FRRConfiguration %s, neighbor %s: %s", p.Object, p.Neighbor, p.Message)
}

// Merge joins the FRRConfigurations that select node, by the rules of frr-k8s: each object is self
// contained, routers are joined by VRF, neighbors by address, and prefixes and communities are
// united. Where objects contradict each other the older one wins, by creation time and then by
// name; the younger one's neighbor or attribute is refused. Refusals are in the order of objects.
//
// secret returns the password in a Secret of the objects' namespace. objects is not changed.
func Merge(node NodeView, objects []FRRConfiguration, secret func(name string) (password string, err error)) (Config, []Problem) {
	m := merger{node: node, secret: secret, routers: map[string]*routerMerge{}}
	for age, object := range byAge(objects) {
		m.age = age
		m.addObject(object)
	}
	return m.config(), m.problems
}

// merger is the state of one Merge.
type merger struct {
	node     NodeView
	secret   func(string) (string, error)
	routers  map[string]*routerMerge // by VRF
	problems []Problem
	// neighbors counts those of all routers.
	neighbors int
	age       int // of the object that is read: 0 is the oldest
}

// routerMerge is what the objects so far say about one VRF.
type routerMerge struct {
	asn       uint32
	id        netip.Addr
	object    string // that set asn
	neighbors map[netip.Addr]*neighborMerge
}

// maxNeighbors bounds what one node's FRRConfigurations can ask for: every session has its
// goroutines and buffers.
const maxNeighbors = 512

// source is one FRRConfiguration while it is read.
type source struct {
	reporter
	profiles map[string]*frrk8sv1beta1.BFDProfile
	prepends func(neighbor int) []ASPathPrepend // of the router that is read
}

// byAge orders objects from the oldest to the youngest.
func byAge(objects []FRRConfiguration) []*FRRConfiguration {
	ordered := make([]*FRRConfiguration, len(objects))
	for i := range objects {
		ordered[i] = &objects[i]
	}
	slices.SortFunc(ordered, func(a, b *FRRConfiguration) int {
		return cmp.Or(
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name),
		)
	})
	return ordered
}

func (m *merger) addObject(object *FRRConfiguration) {
	report := reporter{merger: m, object: object.Namespace + "/" + object.Name}
	selector, err := metav1.LabelSelectorAsSelector(&object.Spec.NodeSelector)
	if err != nil {
		report.problem("nodeSelector is invalid, the object selects no node: %v", err)
		return
	}
	if !selector.Matches(labels.Set(m.node.Labels)) {
		return
	}
	if object.Spec.Raw.Config != "" {
		report.problem("raw is not supported: it is FRR's own syntax, and no FRR runs here; ignored")
	}
	if object.unread != nil {
		report.problem("%v", object.unread)
	}
	from := source{reporter: report, profiles: map[string]*frrk8sv1beta1.BFDProfile{}}
	for i := range object.Spec.BGP.BFDProfiles {
		profile := &object.Spec.BGP.BFDProfiles[i]
		from.profiles[profile.Name] = profile
	}
	for i := range object.Spec.BGP.Routers {
		from.prepends = func(neighbor int) []ASPathPrepend { return object.asPathPrepends(i, neighbor) }
		m.addRouter(from, &object.Spec.BGP.Routers[i])
	}
}

func (m *merger) addRouter(report source, router *frrk8sv1beta1.Router) {
	if router.ASN == 0 {
		report.problem("router of VRF %q: AS number 0 is not valid, the router is refused", router.VRF)
		return
	}
	if !validInterfaceName(router.VRF) {
		report.problem("router of VRF %q: not a valid device name, the router is refused", router.VRF)
		return
	}
	id, ok := parseRouterID(router.ID)
	if !ok {
		report.problem("router of VRF %q: id %q is not an IPv4 address, ignored", router.VRF, router.ID)
	}
	if len(router.Imports) > 0 {
		report.problem("router of VRF %q: imports is not supported, routes do not pass between VRFs; ignored", router.VRF)
	}
	if router.EVPN != nil {
		report.problem("router of VRF %q: evpn is not supported; ignored", router.VRF)
	}

	into := m.routers[router.VRF]
	if into == nil {
		into = &routerMerge{asn: router.ASN, object: report.object, neighbors: map[netip.Addr]*neighborMerge{}}
		m.routers[router.VRF] = into
	}
	if into.asn != router.ASN {
		report.problem("router of VRF %q: AS number %d contradicts %d of the older %s, its neighbors are refused",
			router.VRF, router.ASN, into.asn, into.object)
		return
	}
	if !into.id.IsValid() {
		into.id = id
	} else if id.IsValid() && id != into.id {
		report.problem("router of VRF %q: id %s contradicts %s of an older object, ignored", router.VRF, id, into.id)
	}
	prefixes := newOwnPrefixes(report.reporter, router.Prefixes)
	for i := range router.Neighbors {
		m.addNeighbor(report, into, prefixes, &router.Neighbors[i], report.prepends(i))
	}
}

func (m *merger) addNeighbor(report source, router *routerMerge, prefixes *ownPrefixes, neighbor *frrk8sv1beta1.Neighbor, prepends []ASPathPrepend) {
	report.neighbor = cmp.Or(neighbor.Address, neighbor.Interface)
	next, ok := m.convert(report, router.asn, neighbor)
	if !ok {
		return
	}
	next.advertise(report.reporter, prefixes, &neighbor.ToAdvertise)
	for _, entry := range prepends {
		next.withASPathPrepend(report.reporter, entry)
	}
	if older := router.neighbors[next.Address]; older != nil {
		older.join(report.reporter, next)
		return
	}
	if m.neighbors == maxNeighbors {
		report.problem("the node has %d neighbors already, the neighbor is refused", maxNeighbors)
		return
	}
	m.neighbors++
	router.neighbors[next.Address] = next
}

// config puts together what has been merged. A router without neighbors says nothing to anybody
// and is left out.
func (m *merger) config() Config {
	var config Config
	bfdVRF, bfd := m.bfdVRF()
	for _, vrf := range slices.Sorted(maps.Keys(m.routers)) {
		merged := m.routers[vrf]
		router := Router{VRF: vrf, ASN: merged.asn, ID: merged.id}
		if !router.ID.IsValid() {
			router.ID = m.node.routerID()
		}
		for _, address := range slices.SortedFunc(maps.Keys(merged.neighbors), netip.Addr.Compare) {
			neighbor := m.finish(merged.neighbors[address])
			if neighbor.BFD != (BFD{}) && bfd && bfdVRF != vrf {
				merged.neighbors[address].report.problem("bfdProfile: BFD runs in one VRF of a node, here in %q; the session runs without BFD", bfdVRF)
				neighbor.BFD = BFD{}
			}
			router.Neighbors = append(router.Neighbors, neighbor)
		}
		if len(router.Neighbors) > 0 {
			config.Routers = append(config.Routers, router)
		}
	}
	return config
}

// bfdVRF is the one VRF that has BFD: that of the oldest object which asks for it, false when none does.
func (m *merger) bfdVRF() (vrf string, ok bool) {
	oldest := 0
	for _, name := range slices.Sorted(maps.Keys(m.routers)) {
		for _, neighbor := range m.routers[name].neighbors {
			if neighbor.BFD != (BFD{}) && (!ok || neighbor.bfdAge < oldest) {
				vrf, ok, oldest = name, true, neighbor.bfdAge
			}
		}
	}
	return vrf, ok
}

// routerID is the node's first IPv4 address, or else a number made from its name: the same after
// every restart, and different on every node.
func (n NodeView) routerID() netip.Addr {
	for _, address := range n.Addresses {
		if address.Unmap().Is4() {
			return address.Unmap()
		}
	}
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(n.Name)) // never fails
	sum := hash.Sum32() | 1           // 0 is not a valid identifier
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// ipv6 is the node's first IPv6 address that other hosts can reach, or the zero Addr.
func (n NodeView) ipv6() netip.Addr {
	for _, address := range n.Addresses {
		if address.Is6() && !address.Is4In6() && !address.IsLinkLocalUnicast() && !address.IsLoopback() {
			return address
		}
	}
	return netip.Addr{}
}

func parseRouterID(text string) (id netip.Addr, ok bool) {
	if text == "" {
		return netip.Addr{}, true
	}
	id, err := netip.ParseAddr(text)
	if err != nil || !id.Is4() || id.IsUnspecified() {
		return netip.Addr{}, false
	}
	return id, true
}

// validInterfaceName follows the kernel's dev_valid_name; the empty name is the default VRF.
func validInterfaceName(name string) bool {
	return len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00")
}

// reporter knows whose problem a problem is.
type reporter struct {
	merger   *merger
	object   string
	neighbor string
}

func (r reporter) problem(format string, arguments ...any) {
	r.merger.problems = append(r.merger.problems, Problem{
		Object:   r.object,
		Neighbor: r.neighbor,
		Message:  fmt.Sprintf(format, arguments...),
	})
}
