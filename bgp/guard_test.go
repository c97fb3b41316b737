// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// compareAddresses lets cmp look at Configs.
var compareAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func routes(prefixes ...string) []Route {
	var list []Route
	for _, prefix := range prefixes {
		list = append(list, Route{Prefix: netip.MustParsePrefix(prefix)})
	}
	return list
}

func addresses(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func TestGuardFilter(t *testing.T) {
	t.Parallel()
	const lb, other, lb6 = "203.0.113.5", "203.0.113.6", "2001:db8::5"
	host, otherHost, host6 := lb+"/32", other+"/32", lb6+"/128"
	one := func(prefixes ...string) Config {
		return Config{Routers: []Router{{ASN: 64513, Neighbors: []Neighbor{{ASN: 64512, Password: "p", Routes: routes(prefixes...)}}}}}
	}
	preference := uint32(7)
	for _, test := range []struct {
		name     string
		egress   map[string]bool
		in, want Config
		withheld []netip.Addr
	}{
		{name: "no egress services", in: one(host), want: one(host)},
		{name: "open", egress: map[string]bool{lb: true}, in: one(host), want: one(host)},
		{name: "closed", egress: map[string]bool{lb: false}, in: one(host), want: one(), withheld: addresses(lb)},
		{name: "closed, nobody offers it", egress: map[string]bool{lb: false}, in: one(otherHost), want: one(otherHost)},
		{
			name: "one open, one closed, one unknown", egress: map[string]bool{lb: false, other: true},
			in: one(host, otherHost, "203.0.113.7/32"), want: one(otherHost, "203.0.113.7/32"), withheld: addresses(lb),
		},
		{
			name: "aggregates that cover a closed address", egress: map[string]bool{lb: false},
			in: one("0.0.0.0/0", "203.0.113.0/24", "203.0.113.4/31", host), want: one("0.0.0.0/0", "203.0.113.0/24", "203.0.113.4/31"),
			withheld: addresses(lb),
		},
		{
			name: "IPv6", egress: map[string]bool{lb6: false},
			in: one(host, host6, "2001:db8::/64"), want: one(host, "2001:db8::/64"), withheld: addresses(lb6),
		},
		{name: "mapped spelling of an address", egress: map[string]bool{"::ffff:" + lb: false}, in: one(host), want: one(), withheld: addresses(lb)},
		{name: "mapped spelling of a route", egress: map[string]bool{lb: false}, in: one("::ffff:" + lb + "/128"), want: one(), withheld: addresses(lb)},
		{name: "both spellings, closed wins", egress: map[string]bool{"::ffff:" + lb: true, lb: false}, in: one(host), want: one(), withheld: addresses(lb)},
		{
			name: "several neighbors and VRFs, attributes kept, each address told once", egress: map[string]bool{lb: false, lb6: false},
			in: Config{Routers: []Router{
				{ASN: 1, Neighbors: []Neighbor{
					{Port: 1, Routes: append(routes(host), Route{Prefix: netip.MustParsePrefix(otherHost), LocalPref: &preference, Communities: []Community{1}})},
					{Port: 2, Routes: routes(host6)},
				}},
				{VRF: "red", ASN: 2, Neighbors: []Neighbor{{Port: 3, Routes: routes(host, host6)}}},
			}},
			want: Config{Routers: []Router{
				{ASN: 1, Neighbors: []Neighbor{
					{Port: 1, Routes: []Route{{Prefix: netip.MustParsePrefix(otherHost), LocalPref: &preference, Communities: []Community{1}}}},
					{Port: 2},
				}},
				{VRF: "red", ASN: 2, Neighbors: []Neighbor{{Port: 3}}},
			}},
			withheld: addresses(lb, lb6),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			guard := Guard{Egress: map[netip.Addr]bool{}}
			for address, open := range test.egress {
				guard.Egress[netip.MustParseAddr(address)] = open
			}
			before := cmp.Diff(Config{}, test.in, compareAddresses)
			allowed, withheld := guard.Filter(test.in)
			if diff := cmp.Diff(test.want, allowed, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("allowed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.withheld, withheld, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("withheld (-want +got):\n%s", diff)
			}
			if after := cmp.Diff(Config{}, test.in, compareAddresses); after != before {
				t.Errorf("Filter changed its input:\n%s", after)
			}
			for _, address := range withheld {
				if !test.in.Offers(address) || allowed.Offers(address) {
					t.Errorf("Offers(%s): %t before, %t after", address, test.in.Offers(address), allowed.Offers(address))
				}
			}
		})
	}
}

func TestOffers(t *testing.T) {
	t.Parallel()
	config := Config{Routers: []Router{
		{Neighbors: []Neighbor{{}, {Routes: routes("203.0.113.0/24", "203.0.113.5/32")}}},
		{VRF: "red", Neighbors: []Neighbor{{Routes: routes("2001:db8::5/128")}}},
	}}
	for address, want := range map[string]bool{
		"203.0.113.5": true, "::ffff:203.0.113.5": true, "2001:db8::5": true,
		"203.0.113.0": false, "203.0.113.6": false, "2001:db8::6": false,
	} {
		if got := config.Offers(netip.MustParseAddr(address)); got != want {
			t.Errorf("Offers(%s) = %t", address, got)
		}
	}
}
