// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"strings"
)

// Plan is what one node must hold. All lists are ordered, so equal plans compare equal.
type Plan struct {
	OVN OVN
	NAT NAT
}

// OVN is the part that belongs into the zone's northbound database.
type OVN struct {
	// AddressSets, ordered by name.
	AddressSets []AddressSet
	// Policies of the logical router ClusterRouter, ordered by priority, highest first, and ID.
	Policies []Policy
	// SourceRoutes of ClusterRouter, ordered by prefix. Each is wanted only while no source
	// route of somebody else covers its prefix.
	SourceRoutes []SourceRoute
}

// RowID tells rows of ours apart. It is kept in the row's external_ids and stays the same while
// everything else of the row may change.
type RowID struct {
	// Row says what the row is for, for example "steer-ip4".
	Row string
	// Service is the key of the service that the row belongs to, or empty.
	Service string
}

// AddressSet is a row of table Address_Set.
type AddressSet struct {
	ID   RowID
	Name string
	// Addresses are addresses or CIDRs, in order, without duplicates.
	Addresses []string
}

// Action is an action of a logical router policy.
type Action string

const (
	// ActionAllow leaves the packet to ordinary routing.
	ActionAllow Action = "allow"
	// ActionDrop drops it.
	ActionDrop Action = "drop"
	// ActionReroute sends it to the policy's next hop.
	ActionReroute Action = "reroute"
)

// Policy is a row of table Logical_Router_Policy.
type Policy struct {
	ID       RowID
	Priority int
	Match    string
	Action   Action
	// NextHop is valid with ActionReroute only.
	NextHop netip.Addr
	// PacketMark is set on the packet when it is not 0.
	PacketMark uint32
}

// SourceRoute is a row of table Logical_Router_Static_Route with policy src-ip.
type SourceRoute struct {
	ID      RowID
	Prefix  netip.Prefix
	NextHop netip.Addr
}

// NAT is the part that belongs into the node's nftables table.
type NAT struct {
	// Internal are the destinations that are never translated: no prefix of the list lies
	// within another. Ordered.
	Internal []netip.Prefix
	// Translations, ordered by pod, one per pod address.
	Translations []Translation
}

// Translation gives the connections that a pod opens to the outside their source.
type Translation struct {
	Pod    netip.Addr
	Source netip.Addr
}

// Dump is the plan as text, one object a line, for logs and tests.
func (p Plan) Dump() string {
	var b strings.Builder
	for _, s := range p.OVN.AddressSets {
		fmt.Fprintf(&b, "address_set %s {%s}%s\n", s.Name, strings.Join(s.Addresses, " "), forService(s.ID))
	}
	for _, r := range p.OVN.Policies {
		fmt.Fprintf(&b, "policy %d %q %s", r.Priority, r.Match, r.Action)
		if r.NextHop.IsValid() {
			fmt.Fprintf(&b, " %s", r.NextHop)
		}
		if r.PacketMark != 0 {
			fmt.Fprintf(&b, " pkt_mark=%d", r.PacketMark)
		}
		fmt.Fprintf(&b, "%s\n", forService(r.ID))
	}
	for _, r := range p.OVN.SourceRoutes {
		fmt.Fprintf(&b, "source_route %s %s\n", r.Prefix, r.NextHop)
	}
	for _, n := range p.NAT.Internal {
		fmt.Fprintf(&b, "internal %s\n", n)
	}
	for _, t := range p.NAT.Translations {
		fmt.Fprintf(&b, "translate %s %s\n", t.Pod, t.Source)
	}
	return b.String()
}

func forService(id RowID) string {
	if id.Service == "" {
		return ""
	}
	return " for " + id.Service
}
