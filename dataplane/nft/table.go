// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

const (
	// Family is the table's.
	Family = knftables.InetFamily
	// Table is its name. All of it is ours.
	Table = "metallb-egress"

	// chainPostrouting translates sources. Its priority is before srcnat (100), where kube-proxy
	// and OVN-Kubernetes masquerade: the first translation of a connection holds.
	chainPostrouting = "postrouting"
	postrouting      = knftables.SNATPriority + "-5"
)

// names are the objects of one address family.
type names struct {
	// internal holds the destinations that are never translated.
	internal string
	// snat maps a pod to its source.
	snat string
	// leaving holds pairs of pod and source that are no longer in snat and whose connections are
	// still to be ended.
	leaving  string
	address  string // nftables' type
	protocol string // nftables' word for the IP version
}

func of(a netip.Addr) names {
	if a.Is4() {
		return names4()
	}
	return names6()
}

func names4() names {
	return names{internal: "internal4", snat: "snat4", leaving: "leaving4", address: "ipv4_addr", protocol: "ip"}
}

func names6() names {
	return names{internal: "internal6", snat: "snat6", leaving: "leaving6", address: "ipv6_addr", protocol: "ip6"}
}

// rules of the chain. Their comments tell whether they are in place: nftables doesn't give the
// text of a rule back as it was written.
func rules() []*knftables.Rule {
	var list []*knftables.Rule
	for _, n := range []names{names4(), names6()} {
		list = append(list, &knftables.Rule{
			Chain:   chainPostrouting,
			Rule:    knftables.Concat(n.protocol, "daddr", "@", n.internal, "return"),
			Comment: knftables.PtrTo(n.protocol + " inside the cluster"),
		})
	}
	for _, n := range []names{names4(), names6()} {
		list = append(list, &knftables.Rule{
			Chain:   chainPostrouting,
			Rule:    knftables.Concat("snat", n.protocol, "to", n.protocol, "saddr map", "@", n.snat),
			Comment: knftables.PtrTo(n.protocol + " LoadBalancer IP"),
		})
	}
	return list
}

// addBase adds what is not an element. Adding what is there already changes nothing, and the
// rules are replaced within the transaction.
func addBase(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("source addresses of egress services, kept by egress-speaker")})
	for _, n := range []names{names4(), names6()} {
		tx.Add(&knftables.Set{Name: n.internal, Type: n.address, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
		tx.Add(&knftables.Map{Name: n.snat, Type: n.address + " : " + n.address})
		tx.Add(&knftables.Set{Name: n.leaving, Type: n.address + " . " + n.address})
	}
	tx.Add(&knftables.Chain{
		Name:     chainPostrouting,
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(postrouting),
	})
	tx.Flush(&knftables.Chain{Name: chainPostrouting})
	for _, r := range rules() {
		tx.Add(r)
	}
}

func internalElement(p netip.Prefix) *knftables.Element {
	return &knftables.Element{Set: of(p.Addr()).internal, Key: []string{p.String()}}
}

func snatElement(t dataplane.Translation) *knftables.Element {
	return &knftables.Element{Map: of(t.Pod).snat, Key: []string{t.Pod.String()}, Value: []string{t.Source.String()}}
}

func leavingElement(t dataplane.Translation) *knftables.Element {
	return &knftables.Element{Set: of(t.Pod).leaving, Key: []string{t.Pod.String(), t.Source.String()}}
}
