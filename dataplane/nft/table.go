// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

const (
	// Family is the table's.
	Family = knftables.InetFamily
	// Table is its name. All of it is ours.
	Table = "metallb-egress"

	// managementPort is the host's end of the pod network.
	managementPort = "ovn-k8s-mp0"
)

// The chains. Numbers are what nft shows for the priorities.
const (
	// chainGuard is after connection tracking (-200) and before the translation of destinations
	// (-100): what it drops leaves no entry behind.
	chainGuard    = "guard"
	priorityGuard = "-150"
	// chainGuarded is where chainGuard sends packets to a guarded address.
	chainGuarded = "guarded"
	// chainHold is in hook forward, before everybody's filters.
	chainHold    = "hold"
	priorityHold = "-5"
	// chainPostrouting translates sources. Its priority is before srcnat (100), where kube-proxy
	// and OVN-Kubernetes masquerade: the first translation of a connection holds.
	chainPostrouting = "postrouting"
	postrouting      = knftables.SNATPriority + "-5"
	// chainLeave sees packets as they leave, after all translation.
	chainLeave    = "leave"
	priorityLeave = "300"
)

// Counters that belong to no service.
const (
	counterInvalid   = "guard_invalid"
	counterMidstream = "guard_midstream"
	counterClosed    = "guard_closed"
	counterStrays    = "strays"
)

func counters() []string {
	return []string{counterInvalid, counterMidstream, counterClosed, counterStrays}
}

// The counters of a service begin with these, and go on with its hash.
const (
	translatedPrefix = "translated_"
	heldPrefix       = "held_"
)

// set is a set or a map of one address family.
type set struct {
	name string
	kind string // nft's word: set or map
	// kindOf is the type of its keys, and of its values after a colon.
	kindOf   string
	interval bool
	goes     phase
	// pair, where it is set, is what to note in the set leaving when an element goes.
	pair    func(key, value string) string
	leaving string
}

// phase is when elements go that the plan lacks.
type phase int

const (
	early phase = iota // at once
	late               // when nothing sends packets here for them any more
	told               // when Forget is told so
)

// names are the sets of one address family.
type names struct {
	internal, snat, accounts, holds, pods, ownPods, guarded, ports, leaving set

	protocol string // nftables' word for the IP version
}

func of(a netip.Addr) *names {
	if a.Is4() {
		return names4
	}
	return names6
}

var (
	names4 = namesOf("4", "ipv4_addr", "ip", netip.IPv4Unspecified())
	names6 = namesOf("6", "ipv6_addr", "ip6", netip.IPv6Unspecified())
)

// namesOf takes the unspecified address, which stands for all pods.
func namesOf(suffix, address, protocol string, everyPod netip.Addr) *names {
	leaving := "leaving" + suffix
	return &names{
		internal: set{name: "internal" + suffix, kind: "set", kindOf: address, interval: true},
		snat: set{
			name: "snat" + suffix, kind: "map", kindOf: address + " : " + address, goes: late,
			leaving: leaving, pair: func(pod, source string) string { return key(pod, source) },
		},
		accounts: set{
			name: "accounts" + suffix, kind: "map", kindOf: address + " : counter", goes: late,
			leaving: leaving, pair: func(source, _ string) string { return key(everyPod.String(), source) },
		},
		holds:    set{name: "holds" + suffix, kind: "map", kindOf: address + " : counter", goes: late},
		pods:     set{name: "pods" + suffix, kind: "set", kindOf: address, interval: true},
		ownPods:  set{name: "own_pods" + suffix, kind: "set", kindOf: address, interval: true},
		guarded:  set{name: "guarded" + suffix, kind: "set", kindOf: address},
		ports:    set{name: "ports" + suffix, kind: "set", kindOf: address + " . inet_proto . inet_service"},
		leaving:  set{name: leaving, kind: "set", kindOf: address + " . " + address, goes: told},
		protocol: protocol,
	}
}

// sets are all of the table.
func sets() []set {
	var all []set
	for _, n := range []*names{names4, names6} {
		all = append(all, n.internal, n.snat, n.accounts, n.holds, n.pods, n.ownPods, n.guarded, n.ports, n.leaving)
	}
	return all
}

// rules are those of all chains, in order. Their comments tell whether they are in place: nftables
// doesn't give the text of a rule back as it was written.
func rules() []*knftables.Rule {
	var list []*knftables.Rule
	add := func(chain, comment string, parts ...any) {
		list = append(list, &knftables.Rule{Chain: chain, Rule: knftables.Concat(parts...), Comment: knftables.PtrTo(comment)})
	}
	both := func(each func(n *names)) {
		each(names4)
		each(names6)
	}
	both(func(n *names) {
		add(chainGuard, n.protocol+" to a LoadBalancer IP", n.protocol, "daddr @"+n.guarded.name, "jump", chainGuarded)
	})
	add(chainGuarded, "connections that are known", "ct state established,related,untracked return")
	add(chainGuarded, "no connection", "ct state invalid counter name", counterInvalid, "drop")
	add(chainGuarded, "TCP that does not begin", "meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn counter name", counterMidstream, "drop")
	both(func(n *names) {
		add(chainGuarded, n.protocol+" ports of Services", n.protocol, "daddr . meta l4proto . th dport @"+n.ports.name, "return")
	})
	add(chainGuarded, "no port of a Service", "counter name", counterClosed, "drop")

	add(chainHold, "replies", "ct direction reply return")
	both(func(n *names) {
		add(chainHold, n.protocol+" inside the cluster", n.protocol, "daddr @"+n.internal.name, "return")
	})
	// A packet whose source the map lacks does not get to the verdict.
	both(func(n *names) {
		add(chainHold, n.protocol+" held", "counter name", n.protocol, "saddr map @"+n.holds.name, "drop")
	})

	both(func(n *names) {
		add(chainPostrouting, n.protocol+" inside the cluster", n.protocol, "daddr @"+n.internal.name, "return")
	})
	both(func(n *names) {
		add(chainPostrouting, n.protocol+" LoadBalancer IP", "snat", n.protocol, "to", n.protocol, "saddr map @"+n.snat.name)
	})

	both(func(n *names) {
		add(chainLeave, n.protocol+" translated", "ct direction original counter name", n.protocol, "saddr map @"+n.accounts.name)
	})
	// What comes from elsewhere, other tunnels for example, is not ours to judge.
	add(chainLeave, "not from the pod network", "iifname !=", managementPort, "return")
	add(chainLeave, "to the pod network", "oifname", managementPort, "return")
	both(func(n *names) {
		add(chainLeave, n.protocol+" inside the cluster", n.protocol, "daddr @"+n.internal.name, "return")
	})
	both(func(n *names) {
		add(chainLeave, n.protocol+" of no connection", n.protocol, "saddr @"+n.pods.name, "ct state invalid counter name", counterStrays, "drop")
	})
	both(func(n *names) {
		add(chainLeave, n.protocol+" of another node's pod", n.protocol, "saddr @"+n.pods.name, n.protocol, "saddr != @"+n.ownPods.name,
			"ct direction original counter name", counterStrays, "drop")
	})
	return list
}

// chains are all of the table, those that others jump to first.
func chains() []*knftables.Chain {
	base := func(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) *knftables.Chain {
		return &knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority}
	}
	return []*knftables.Chain{
		{Name: chainGuarded},
		base(chainGuard, knftables.FilterType, knftables.PreroutingHook, priorityGuard),
		base(chainHold, knftables.FilterType, knftables.ForwardHook, priorityHold),
		base(chainPostrouting, knftables.NATType, knftables.PostroutingHook, postrouting),
		base(chainLeave, knftables.FilterType, knftables.PostroutingHook, priorityLeave),
	}
}

// addBase adds what is neither an element nor of one service. Adding what is there already changes
// nothing, and the rules are replaced within the transaction.
func addBase(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("source addresses of egress services, kept by egress-speaker")})
	for _, name := range counters() {
		tx.Add(&knftables.Counter{Name: name})
	}
	for _, s := range sets() {
		var flags []knftables.SetFlag
		if s.interval {
			flags = []knftables.SetFlag{knftables.IntervalFlag}
		}
		if s.kind == "map" {
			tx.Add(&knftables.Map{Name: s.name, Type: s.kindOf, Flags: flags})
		} else {
			tx.Add(&knftables.Set{Name: s.name, Type: s.kindOf, Flags: flags})
		}
	}
	for _, c := range chains() {
		tx.Add(c)
		tx.Flush(&knftables.Chain{Name: c.Name})
	}
	for _, r := range rules() {
		tx.Add(r)
	}
}

// separator is between the parts of a key, as nft writes it.
const separator = " . "

// key joins the parts of an element's key, each as nft would print it.
func key(parts ...string) string {
	for i, part := range parts {
		parts[i] = canonical(part)
	}
	return strings.Join(parts, separator)
}

// canonical is an address as netip writes it, a prefix of one address without its length, a
// protocol by its number, and anything else as it is.
func canonical(part string) string {
	if a, err := netip.ParseAddr(part); err == nil {
		return a.String()
	}
	if p, err := netip.ParsePrefix(part); err == nil {
		if p.IsSingleIP() {
			return p.Addr().String()
		}
		return p.String()
	}
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		if part == p.String() {
			return strconv.Itoa(int(p))
		}
	}
	return part
}

func element(s set, key, value string) *knftables.Element {
	e := &knftables.Element{Key: strings.Split(key, separator)}
	if s.kind == "map" {
		e.Map, e.Value = s.name, []string{value}
	} else {
		e.Set = s.name
	}
	return e
}

func pairKey(t dataplane.Translation) string { return key(t.Pod.String(), t.Source.String()) }

// pairOf reads a key of a set leaving.
func pairOf(key string) (dataplane.Translation, bool) {
	first, second, _ := strings.Cut(key, separator)
	pod, podErr := netip.ParseAddr(first)
	source, sourceErr := netip.ParseAddr(second)
	return dataplane.Translation{Pod: pod, Source: source}, podErr == nil && sourceErr == nil
}
