// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var testNode = NodeView{
	Name:      "node-1",
	Labels:    map[string]string{"kubernetes.io/hostname": "node-1", "rack": "a"},
	Addresses: addresses("192.0.2.11", "2001:db8:ffff::11"),
}

// object parses an FRRConfiguration; the n-th of a test is n minutes younger than the first.
func object(t *testing.T, n int, text string) FRRConfiguration {
	t.Helper()
	var object FRRConfiguration
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	object.Namespace = "metallb-system"
	object.CreationTimestamp = metav1.NewTime(time.Unix(1_000_000+int64(n)*60, 0))
	return object
}

// base is a neighbor with defaults.
func base(change func(*Neighbor)) Neighbor {
	n := Neighbor{
		Address: netip.MustParseAddr("192.0.2.1"), Port: 179, ASN: 64512,
		HoldTime: 180 * time.Second, KeepaliveTime: 60 * time.Second, ConnectTime: 10 * time.Second,
		Families: Families{IPv4: true},
	}
	if change != nil {
		change(&n)
	}
	return n
}

func routerWith(neighbors ...Neighbor) Config {
	return Config{Routers: []Router{{ASN: 64513, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: neighbors}}}
}

func withRoutes(prefixes ...string) func(*Neighbor) {
	return func(n *Neighbor) { n.Routes = routes(prefixes...) }
}

// peering is an object named name with one neighbor; the lines of extra are the neighbor's.
func peering(name, prefixes, extra string) string {
	return `
metadata: {name: ` + name + `}
spec:
  bgp:
    routers:
    - asn: 64513
      prefixes: [` + prefixes + `]
      neighbors:
      - address: 192.0.2.1
` + indent(extra, 8)
}

// bfdPeering is an object with BFD profiles and one neighbor that names the profile p.
func bfdPeering(name, vrf, address, profiles string) string {
	text := peering(name, "", "asn: 64512\nbfdProfile: p\n")
	if address != "" {
		text = strings.ReplaceAll(text, "192.0.2.1\n", address+"\n")
	}
	text = strings.ReplaceAll(text, "  bgp:\n", "  bgp:\n    bfdProfiles: ["+profiles+"]\n")
	return strings.ReplaceAll(text, "- asn: 64513\n", "- asn: 64513\n      vrf: \""+vrf+"\"\n")
}

func at(address string) func(*Neighbor) {
	return func(n *Neighbor) { n.Address = netip.MustParseAddr(address) }
}

func indent(text string, by int) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString(strings.Repeat(" ", by) + strings.TrimPrefix(line, "\t"))
	}
	return out.String()
}

const allowAll = "asn: 64512\ntoAdvertise: {allowed: {mode: all}}\n"

// stockMetalLB is what stock MetalLB v0.16 writes for a node: every BFD profile there is, routers
// and neighbors with their ports, allowed prefixes without a mode, a neighbor without prefixes.
const stockMetalLB = `
metadata: {name: metallb-node-1}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node-1}}
  bgp:
    bfdProfiles:
    - {name: echo, echoMode: true, receiveInterval: 50}
    - {name: plain, receiveInterval: 100, transmitInterval: 200, detectMultiplier: 5, echoInterval: 50, minimumTtl: 254, echoMode: false}
    routers:
    - asn: 64513
      prefixes: [203.0.113.5/32, 203.0.113.6/32, 2001:db8::5/128]
      neighbors:
      - address: 192.0.2.1
        asn: 64512
        port: 179
        holdTime: 1m30s
        keepaliveTime: 30s
        passwordSecret: {name: tor-password, namespace: metallb-system}
        enableGracefulRestart: true
        bfdProfile: plain
        toAdvertise:
          allowed: {prefixes: [203.0.113.5/32, 203.0.113.6/32], mode: filtered}
          withLocalPref: [{localPref: 200, prefixes: [203.0.113.5/32]}]
          withCommunity:
          - {community: "64512:7", prefixes: [203.0.113.5/32]}
          - {community: "large:64512:1:2", prefixes: [203.0.113.5/32, 203.0.113.6/32]}
        toReceive: {allowed: {mode: filtered}}
      - address: 192.0.2.2
        asn: 64513
        port: 1790
        connectTime: 5s
        ebgpMultiHop: true
        bfdProfile: plain
        toAdvertise: {allowed: {mode: filtered}}
      - address: 2001:db8:ffff::1
        asn: 64512
        port: 179
        toAdvertise: {allowed: {prefixes: ["2001:db8::5/128"], mode: filtered}}
`

func TestMergeStockMetalLB(t *testing.T) {
	t.Parallel()
	preference := uint32(200)
	large := []LargeCommunity{{64512, 1, 2}}
	want := routerWith(
		base(func(n *Neighbor) {
			n.HoldTime, n.KeepaliveTime = 90*time.Second, 30*time.Second
			n.Password, n.GracefulRestart = "of tor-password", true
			n.BFD = BFD{100 * time.Millisecond, 200 * time.Millisecond, 5}
			n.Routes = []Route{
				{Prefix: netip.MustParsePrefix("203.0.113.5/32"), LocalPref: &preference, Communities: []Community{64512<<16 | 7}, LargeCommunities: large},
				{Prefix: netip.MustParsePrefix("203.0.113.6/32"), LargeCommunities: large},
			}
		}),
		base(func(n *Neighbor) {
			n.Address, n.ASN, n.Port = netip.MustParseAddr("192.0.2.2"), 64513, 1790
			n.ConnectTime, n.EBGPMultiHop = 5*time.Second, true
		}),
		base(func(n *Neighbor) {
			n.Address, n.Families = netip.MustParseAddr("2001:db8:ffff::1"), Families{IPv6: true}
			n.Routes = routes("2001:db8::5/128")
		}))
	got, problems := Merge(testNode, []FRRConfiguration{object(t, 0, stockMetalLB)}, testSecret)
	if diff := cmp.Diff(want, got, compareAddresses); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	wantProblems := []Problem{{
		Object: "metallb-system/metallb-node-1", Neighbor: "192.0.2.2",
		Message: `bfdProfile "plain": ebgpMultiHop: BFD over several hops is not supported; the session runs without BFD`,
	}}
	if diff := cmp.Diff(wantProblems, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}

	// The same object on another node.
	other := testNode
	other.Labels = map[string]string{"kubernetes.io/hostname": "node-2"}
	got, problems = Merge(other, []FRRConfiguration{object(t, 0, stockMetalLB)}, testSecret)
	if diff := cmp.Diff(Config{}, got, compareAddresses); diff != "" || problems != nil {
		t.Errorf("another node's object: %s %v", diff, problems)
	}
}

func testSecret(name string) (string, error) {
	if name == "missing" {
		return "", errors.New("not found")
	}
	return "of " + name, nil
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		objects []string
		want    Config
		// problems are substrings of the problems' lines, in order.
		problems []string
	}{
		{name: "nothing"},
		{
			name: "selectors: none, matching, other, invalid",
			objects: []string{
				peering("a", "203.0.113.1/32", allowAll),
				peering("b", "203.0.113.2/32", allowAll) + "  nodeSelector: {matchLabels: {rack: a}}\n",
				peering("c", "203.0.113.3/32", allowAll) + "  nodeSelector: {matchLabels: {rack: b}}\n",
				peering("d", "203.0.113.4/32", allowAll) + "  nodeSelector: {matchExpressions: [{key: rack, operator: Near}]}\n",
			},
			want:     routerWith(base(withRoutes("203.0.113.1/32", "203.0.113.2/32"))),
			problems: []string{"metallb-system/d: nodeSelector is invalid"},
		},
		{
			name:    "prefixes: masked, unique, ordered; nonsense refused alone",
			objects: []string{peering("a", `203.0.113.9/32, 203.0.113.8/24, 203.0.113.0/24, "::ffff:203.0.113.1/128", 203.0.113.1/33, x`, allowAll)},
			want:    routerWith(base(withRoutes("203.0.113.0/24", "203.0.113.9/32"))),
			problems: []string{
				`prefixes: "::ffff:203.0.113.1/128" is not a prefix`, `prefixes: "203.0.113.1/33" is not`, `prefixes: "x" is not`,
			},
		},
		{
			name: "each object is self-contained: allowed must be the router's own, attributes among the allowed",
			objects: []string{
				peering("a", "203.0.113.1/32, 203.0.113.2/32", "asn: 64512\ntoAdvertise:\n  allowed: {prefixes: [203.0.113.1/32, 203.0.113.9/32]}\n"+
					"  withLocalPref: [{localPref: 1, prefixes: [203.0.113.2/32]}]\n  withCommunity: [{community: '1:2', prefixes: [203.0.113.2/32]}]\n"),
				peering("b", "203.0.113.9/32", allowAll),
			},
			want: routerWith(base(withRoutes("203.0.113.1/32", "203.0.113.9/32"))),
			problems: []string{
				"a, neighbor 192.0.2.1: toAdvertise.allowed.prefixes: 203.0.113.9/32 is not among the router's",
				`toAdvertise.withLocalPref: "203.0.113.2/32" is not among`, `toAdvertise.withCommunity: "203.0.113.2/32" is not among`,
			},
		},
		{
			name: "attributes are united, the older local preference stays",
			objects: []string{
				peering("a", "203.0.113.1/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n  withLocalPref: [{localPref: 5, prefixes: [203.0.113.1/32]}, {localPref: 6, prefixes: [203.0.113.1/32]}]\n"+
					"  withCommunity: [{community: '1:3', prefixes: [203.0.113.1/32]}, {community: '1:2', prefixes: [203.0.113.1/32]}]\n"),
				peering("b", "203.0.113.1/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n  withLocalPref: [{localPref: 7, prefixes: [203.0.113.1/32]}]\n"+
					"  withCommunity: [{community: '1:2', prefixes: [203.0.113.1/32]}, {community: 'large:1:2:3', prefixes: [203.0.113.1/32]}]\n"),
			},
			want: routerWith(base(func(n *Neighbor) {
				five := uint32(5)
				n.Routes = []Route{{
					Prefix: netip.MustParsePrefix("203.0.113.1/32"), LocalPref: &five,
					Communities: []Community{1<<16 | 2, 1<<16 | 3}, LargeCommunities: []LargeCommunity{{1, 2, 3}},
				}}
			})),
			problems: []string{"a, neighbor 192.0.2.1: toAdvertise.withLocalPref: 203.0.113.1/32 has local preference 5 already, 6", "b, neighbor 192.0.2.1: toAdvertise.withLocalPref: 203.0.113.1/32 has local preference 5 by an older object, 7"},
		},
		{
			name: "communities that are none",
			objects: []string{peering("a", "203.0.113.1/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n  withCommunity:\n"+
				"  - {community: '65536:1', prefixes: [203.0.113.1/32]}\n  - {community: 'no-export', prefixes: [203.0.113.1/32]}\n"+
				"  - {community: 'tiny:1:2:3', prefixes: [203.0.113.1/32]}\n  - {community: 'large:4294967295:0:0', prefixes: [203.0.113.1/32]}\n"+
				"  - {community: 'large:1:-2:0', prefixes: [203.0.113.1/32]}\n")},
			want:     routerWith(base(withRoutes("203.0.113.1/32"))),
			problems: []string{`"65536:1"`, `"no-export"`, `"tiny:1:2:3"`, "reserved AS number", `"-2" is not a number`},
		},
		{
			name: "routers: another AS number is refused, another ID ignored, VRFs apart",
			objects: []string{
				peering("a", "203.0.113.1/32", allowAll),
				strings.ReplaceAll(peering("b", "203.0.113.2/32", allowAll), "64513", "64999"),
				strings.ReplaceAll(peering("c", "203.0.113.3/32", allowAll), "- asn: 64513", "- asn: 64513\n      id: 192.0.2.77"),
				strings.ReplaceAll(peering("d", "203.0.113.4/32", allowAll), "- asn: 64513", "- asn: 64513\n      id: 192.0.2.78"),
				strings.ReplaceAll(peering("e", "203.0.113.5/32", allowAll), "- asn: 64513", "- asn: 64513\n      id: node"),
				strings.ReplaceAll(peering("f", "203.0.113.6/32", allowAll), "- asn: 64513", "- asn: 64514\n      vrf: red"),
				strings.ReplaceAll(peering("g", "203.0.113.6/32", allowAll), "- asn: 64513", "- asn: 64514\n      vrf: red/blue"),
				strings.ReplaceAll(peering("h", "203.0.113.6/32", allowAll), "- asn: 64513", "- asn: 0"),
			},
			want: Config{Routers: []Router{
				{ASN: 64513, ID: netip.MustParseAddr("192.0.2.77"), Neighbors: []Neighbor{base(withRoutes("203.0.113.1/32", "203.0.113.3/32", "203.0.113.4/32", "203.0.113.5/32"))}},
				{VRF: "red", ASN: 64514, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{base(withRoutes("203.0.113.6/32"))}},
			}},
			problems: []string{
				"b: router of VRF \"\": AS number 64999 contradicts 64513 of the older metallb-system/a", "d: router of VRF \"\": id 192.0.2.78 contradicts",
				`e: router of VRF "": id "node" is not`, `g: router of VRF "red/blue": not a valid device name`, "h: router of VRF \"\": AS number 0",
			},
		},
		{
			name: "a neighbor that contradicts is refused, an attribute that contradicts is ignored",
			objects: []string{
				peering("a", "203.0.113.1/32", allowAll),
				peering("b", "203.0.113.2/32", strings.ReplaceAll(allowAll, "64512", "64511")),
				peering("c", "203.0.113.3/32", allowAll+"port: 1790\n"),
				peering("d", "203.0.113.4/32", allowAll+"password: other\n"),
				peering("e", "203.0.113.5/32", allowAll+"sourceaddress: 192.0.2.11\n"),
				peering("f", "203.0.113.6/32", allowAll+"localASN: 64600\n"),
				peering("g", `203.0.113.7/32, "2001:db8::7/128"`, allowAll+"holdTime: 9s\nkeepaliveTime: 3s\nconnectTime: 7s\nebgpMultiHop: true\nenableGracefulRestart: true\ndualStackAddressFamily: true\n"),
			},
			want: routerWith(base(withRoutes("203.0.113.1/32", "203.0.113.7/32"))),
			problems: []string{
				"b, neighbor 192.0.2.1: asn contradicts", "c, neighbor 192.0.2.1: port contradicts", "d, neighbor 192.0.2.1: password contradicts",
				"e, neighbor 192.0.2.1: sourceaddress contradicts", "f, neighbor 192.0.2.1: localASN contradicts",
				"g, neighbor 192.0.2.1: holdTime contradicts", "keepaliveTime contradicts", "connectTime contradicts", "ebgpMultiHop contradicts",
				"enableGracefulRestart contradicts", "dualStackAddressFamily contradicts",
			},
		},
		{
			name: "neighbors that can't be",
			objects: []string{`
metadata: {name: a}
spec:
  bgp:
    routers:
    - asn: 64513
      prefixes: [203.0.113.1/32]
      neighbors:
      - {interface: eth0, asn: 64512}
      - {address: tor, asn: 64512}
      - {address: "fe80::1%eth0", asn: 64512}
      - {address: 224.0.0.1, asn: 64512}
      - {address: 192.0.2.3}
      - {address: 192.0.2.3, asn: 64512, dynamicASN: internal}
      - {address: 192.0.2.3, dynamicASN: any}
      - {address: 192.0.2.3, asn: 64513, localASN: 64600}
      - {address: 192.0.2.3, asn: 64512, sourceaddress: eth0}
      - {address: 192.0.2.3, asn: 64512, sourceaddress: "2001:db8::1"}
      - {address: 192.0.2.3, asn: 64512, password: a, passwordSecret: {name: b}}
      - {address: 192.0.2.3, asn: 64512, passwordSecret: {name: missing}}
      - {address: 192.0.2.3, asn: 64512, addressFamilies: [evpn]}
      - {address: 192.0.2.3, asn: 64512, password: ` + strings.Repeat("x", 81) + `}
      - {address: 192.0.2.1, asn: 64512, toAdvertise: {allowed: {mode: all}}}
`},
			want: routerWith(base(withRoutes("203.0.113.1/32"))),
			problems: []string{
				`neighbor eth0: interface "eth0": unnumbered`, "neighbor tor: address", "neighbor fe80::1%eth0: address", "neighbor 224.0.0.1: address",
				"neither asn nor dynamicASN", "exclude each other", `dynamicASN "any"`, "localASN 64600: the session is internal",
				`sourceaddress "eth0": only IP`, "can't be the source", "password and passwordSecret", `passwordSecret "missing": not found`,
				"addressFamilies: evpn", "81 bytes",
			},
		},
		{
			name: "fields that are honored",
			objects: []string{`
metadata: {name: a}
spec:
  bgp:
    routers:
    - asn: 64513
      id: 192.0.2.99
      prefixes: [203.0.113.1/32, "2001:db8::1/128"]
      neighbors:
      - address: 192.0.2.1
        dynamicASN: internal
        sourceaddress: 192.0.2.11
        password: secret
        disableMP: true
        addressFamilies: [unicast]
        dualStackAddressFamily: true
        toAdvertise: {allowed: {mode: all}}
      - address: 192.0.2.2
        asn: 64512
        localASN: 64600
        port: 0
        dualStackAddressFamily: true
        toAdvertise: {allowed: {mode: all}, nextHop: {ipv4: 192.0.2.50, ipv6: "2001:db8::50"}}
`},
			want: Config{Routers: []Router{{ASN: 64513, ID: netip.MustParseAddr("192.0.2.99"), Neighbors: []Neighbor{
				base(func(n *Neighbor) {
					n.ASN, n.Source, n.Password, n.Families = 64513, netip.MustParseAddr("192.0.2.11"), "secret", Families{true, true}
					n.Routes = routes("203.0.113.1/32", "2001:db8::1/128")
					n.Routes[1].NextHop = netip.MustParseAddr("2001:db8:ffff::11")
				}),
				base(func(n *Neighbor) {
					n.Address, n.LocalASN, n.Families = netip.MustParseAddr("192.0.2.2"), 64600, Families{true, true}
					n.Routes = routes("203.0.113.1/32", "2001:db8::1/128")
					n.Routes[0].NextHop, n.Routes[1].NextHop = netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("2001:db8::50")
				}),
			}}}},
		},
		{
			name: "fields that are not honored leave the session up",
			objects: []string{`
metadata: {name: a}
spec:
  raw: {rawConfig: "debug bgp"}
  bgp:
    routers:
    - asn: 64513
      imports: [{vrf: red}]
      evpn: {advertiseSVI: true}
      prefixes: [203.0.113.1/32]
      neighbors:
      - address: 192.0.2.1
        asn: 64512
        addressFamilies: [unicast, evpn]
        holdTime: 0s
        keepaliveTime: 0s
        connectTime: 1500ms
        bfdProfile: none-such
        allowAsIn: origin
        toAdvertise: {allowed: {mode: all}, nextHop: {ipv4: "2001:db8::1", ipv6: node}}
        toReceive: {allowed: {mode: all}}
`},
			want: routerWith(base(withRoutes("203.0.113.1/32"))),
			problems: []string{
				"a: raw is not supported", "imports is not supported", "evpn is not supported", "addressFamilies: evpn", "holdTime 0", "connectTime 1.5s",
				`bfdProfile "none-such"`, "allowAsIn", "toReceive", "toAdvertise.nextHop.ipv4", "toAdvertise.nextHop.ipv6",
			},
		},
		{
			name: "BFD: the object's own profile, defaults, what can't be done; the session comes up in any case",
			objects: []string{
				bfdPeering("a", "", "", "{name: p}"),
				bfdPeering("b", "red", "", "{name: p}"),
				bfdPeering("c", "", "192.0.2.2", "{name: other}"),
				bfdPeering("d", "", "192.0.2.3", "{name: p, echoMode: true}"),
				bfdPeering("e", "", "192.0.2.4", "{name: p, passiveMode: true}"),
				bfdPeering("f", "", "192.0.2.5", "{name: p, receiveInterval: 9}"),
				bfdPeering("g", "", "192.0.2.6", "{name: p, transmitInterval: 60001}"),
				bfdPeering("h", "", "192.0.2.7", "{name: p, detectMultiplier: 256}"),
				bfdPeering("i", "", "192.0.2.8", "{name: p}") + "        sourceaddress: 192.0.2.11\n",
				bfdPeering("j", "", "", "{name: p, receiveInterval: 50}"),
				bfdPeering("k", "", "", "{name: p, receiveInterval: 300}"),
				peering("l", "203.0.113.1/32", allowAll),
				bfdPeering("m", "", "192.0.2.9", "{name: q, echoMode: true}, {name: p, receiveInterval: 10, transmitInterval: 60000, detectMultiplier: 2}"),
			},
			want: Config{Routers: []Router{
				{ASN: 64513, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{
					base(func(n *Neighbor) {
						n.BFD, n.Routes = BFD{300 * time.Millisecond, 300 * time.Millisecond, 3}, routes("203.0.113.1/32")
					}),
					base(at("192.0.2.2")), base(at("192.0.2.3")), base(at("192.0.2.4")), base(at("192.0.2.5")), base(at("192.0.2.6")), base(at("192.0.2.7")),
					base(func(n *Neighbor) {
						n.Address, n.Source = netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("192.0.2.11")
					}),
					base(func(n *Neighbor) {
						n.Address, n.BFD = netip.MustParseAddr("192.0.2.9"), BFD{10 * time.Millisecond, 60 * time.Second, 2}
					}),
				}},
				{VRF: "red", ASN: 64513, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{base(nil)}},
			}},
			problems: []string{
				`c, neighbor 192.0.2.2: bfdProfile "p": the object has no such profile; the session runs without`, "d, neighbor 192.0.2.3: bfdProfile \"p\": echoMode", "e, neighbor 192.0.2.4: bfdProfile \"p\": passiveMode",
				"f, neighbor 192.0.2.5: bfdProfile \"p\": an interval of 9 ms", "g, neighbor 192.0.2.6: bfdProfile \"p\": an interval of 60001 ms", "h, neighbor 192.0.2.7: bfdProfile \"p\": detectMultiplier 256",
				"i, neighbor 192.0.2.8: bfdProfile \"p\": sourceaddress", "j, neighbor 192.0.2.1: bfdProfile contradicts that of the older metallb-system/a",
				`b, neighbor 192.0.2.1: bfdProfile: BFD runs in one VRF of a node, here in ""`,
			},
		},
		{
			name: "AS path prepended, where the CRD has it",
			objects: []string{
				peering("a", "203.0.113.1/32, 203.0.113.2/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n"+
					"  withAsPathPrepend: [{asPathPrepend: 3, prefixes: [203.0.113.1/32]}, {asPathPrepend: 4, prefixes: [203.0.113.1/32]}, {asPathPrepend: 11, prefixes: [203.0.113.2/32]}, {asPathPrepend: 1, prefixes: [203.0.113.9/32]}]\n"),
				peering("b", "203.0.113.1/32, 203.0.113.2/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n"+
					"  withAsPathPrepend: [{asPathPrepend: 5, prefixes: [203.0.113.1/32, 203.0.113.2/32]}]\n"),
			},
			want: routerWith(base(func(n *Neighbor) {
				n.Routes = routes("203.0.113.1/32", "203.0.113.2/32")
				n.Routes[0].Prepend, n.Routes[1].Prepend = 3, 5
			})),
			problems: []string{
				"a, neighbor 192.0.2.1: toAdvertise.withAsPathPrepend: 203.0.113.1/32 is prepended 3 times already, 4", "11 is not between 1 and 10", `"203.0.113.9/32" is not among the allowed`,
				"b, neighbor 192.0.2.1: toAdvertise.withAsPathPrepend: 203.0.113.1/32 is prepended 3 times by an older object, 5",
			},
		},
		{
			name: "BFD: the oldest object's VRF has it; not across hops that an older object has",
			objects: []string{
				bfdPeering("a", "red", "", "{name: p}"),
				bfdPeering("b", "", "", "{name: p}"),
				peering("c", "", "asn: 64512\nebgpMultiHop: true\n"),
				strings.ReplaceAll(peering("d", "", "asn: 64512\nebgpMultiHop: true\n"), "192.0.2.1\n", "192.0.2.2\n"),
				bfdPeering("e", "", "192.0.2.2", "{name: p}"),
			},
			want: Config{Routers: []Router{
				{ASN: 64513, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{base(nil), base(func(n *Neighbor) {
					n.Address, n.EBGPMultiHop = netip.MustParseAddr("192.0.2.2"), true
				})}},
				{VRF: "red", ASN: 64513, ID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{base(func(n *Neighbor) {
					n.BFD = BFD{300 * time.Millisecond, 300 * time.Millisecond, 3}
				})}},
			}},
			problems: []string{
				"c, neighbor 192.0.2.1: ebgpMultiHop contradicts", "e, neighbor 192.0.2.2: ebgpMultiHop contradicts", "e, neighbor 192.0.2.2: bfdProfile: ebgpMultiHop, of the older metallb-system/d",
				`b, neighbor 192.0.2.1: bfdProfile: BFD runs in one VRF of a node, here in "red"`,
			},
		},
		{
			name:    "AS path prepending that can't be read",
			objects: []string{peering("a", "203.0.113.1/32", "asn: 64512\ntoAdvertise:\n  allowed: {mode: all}\n  withAsPathPrepend: [{asPathPrepend: often, prefixes: [203.0.113.1/32]}]\n")},
			want:    routerWith(base(withRoutes("203.0.113.1/32"))), problems: []string{"a: toAdvertise.withAsPathPrepend can't be read, ignored"},
		},
		{
			name: "an AS number that is any but the own",
			objects: []string{
				peering("a", "", "dynamicASN: external\nlocalASN: 64600\n"),
				peering("b", "", "asn: 64512\nlocalASN: 64600\n"),
			},
			want:     routerWith(base(func(n *Neighbor) { n.ASN, n.LocalASN = 0, 64600 })),
			problems: []string{"b, neighbor 192.0.2.1: asn contradicts"},
		},
		{
			name: "timers that can't be",
			objects: []string{
				peering("a", "203.0.113.1/32", allowAll+"holdTime: 2s\nkeepaliveTime: 1s\n"),
				peering("b", "203.0.113.1/32", allowAll+"holdTime: 9s\nkeepaliveTime: 10s\n"),
				peering("c", "203.0.113.1/32", allowAll+"holdTime: 9s\n"),
				peering("d", "203.0.113.1/32", allowAll+"holdTime: 9s\nkeepaliveTime: 300ms\n"),
			},
			want:     routerWith(base(withRoutes("203.0.113.1/32"))),
			problems: []string{"a, neighbor 192.0.2.1: holdTime 2s", "b, neighbor 192.0.2.1: keepaliveTime 10s", "c, neighbor 192.0.2.1: holdTime and keepaliveTime must", "d, neighbor 192.0.2.1: keepaliveTime 300ms"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var objects []FRRConfiguration
			for n, text := range test.objects {
				objects = append(objects, object(t, n, text))
			}
			got, problems := Merge(testNode, objects, testSecret)
			if diff := cmp.Diff(test.want, got, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
			compareProblems(t, test.problems, problems)

			// The order in which objects are listed says nothing.
			slices.Reverse(objects)
			again, _ := Merge(testNode, objects, testSecret)
			if diff := cmp.Diff(got, again, compareAddresses); diff != "" {
				t.Errorf("listed the other way round (-one +other):\n%s", diff)
			}
		})
	}
}

func compareProblems(t *testing.T, want []string, got []Problem) {
	t.Helper()
	for n, problem := range got {
		if n >= len(want) || !strings.Contains(problem.String(), want[n]) {
			t.Errorf("problem %d: %s", n, problem)
		}
	}
	if len(got) < len(want) {
		t.Errorf("problems missing: %q", want[len(got):])
	}
}

// TestMergeWithoutNodeAddresses is about what comes from the node where the objects are silent.
func TestMergeWithoutNodeAddresses(t *testing.T) {
	t.Parallel()
	text := peering("a", `203.0.113.1/32, "2001:db8::1/128", "2001:db8::2/128"`, allowAll+"dualStackAddressFamily: true\n")
	objects := []FRRConfiguration{object(t, 0, text)}
	one, problems := Merge(NodeView{Name: "node-1", Addresses: addresses("fe80::1")}, objects, testSecret)
	two, _ := Merge(NodeView{Name: "node-2"}, objects, testSecret)
	compareProblems(t, []string{"2 IPv6 prefixes are not announced"}, problems)
	if diff := cmp.Diff(routes("203.0.113.1/32"), one.Routers[0].Neighbors[0].Routes, compareAddresses); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if one.Routers[0].ID == two.Routers[0].ID || !one.Routers[0].ID.Is4() {
		t.Errorf("router IDs %s and %s, want two IPv4 addresses", one.Routers[0].ID, two.Routers[0].ID)
	}
}

// TestMergeManyCommunities: more than fit into an UPDATE are refused, and a younger object can't take an
// older one's route away by them.
func TestMergeManyCommunities(t *testing.T) {
	t.Parallel()
	with := func(name string, n int, count int) FRRConfiguration {
		text := allowAll
		text = strings.Replace(text, "{allowed: {mode: all}}", "\n  allowed: {mode: all}\n  withCommunity:", 1)
		for k := range count {
			text += fmt.Sprintf("  - {community: '%d:%d', prefixes: [203.0.113.1/32]}\n", n, k)
		}
		return object(t, n, peering(name, "203.0.113.1/32, 203.0.113.2/32", text))
	}
	got, problems := Merge(testNode, []FRRConfiguration{with("a", 1, maxCommunities), with("b", 2, 1)}, testSecret)
	if routes := got.Routers[0].Neighbors[0].Routes; len(routes) != 2 || len(routes[0].Communities) != maxCommunities {
		t.Errorf("routes %v", routes)
	}
	compareProblems(t, []string{"b, neighbor 192.0.2.1: toAdvertise.withCommunity: with those of older objects 203.0.113.1/32 would have more than 100"}, problems)

	got, problems = Merge(testNode, []FRRConfiguration{with("a", 1, maxCommunities+1)}, testSecret)
	if routes := got.Routers[0].Neighbors[0].Routes; len(routes) != 1 || routes[0].Prefix.String() != "203.0.113.2/32" {
		t.Errorf("routes %v", routes)
	}
	compareProblems(t, []string{"a, neighbor 192.0.2.1: 1 prefixes are not announced: they have more than 100 communities"}, problems)
}

// TestMergeSameAge lets the name decide.
func TestMergeSameAge(t *testing.T) {
	t.Parallel()
	objects := []FRRConfiguration{
		object(t, 0, peering("b", "203.0.113.2/32", strings.ReplaceAll(allowAll, "64512", "64511"))),
		object(t, 0, peering("a", "203.0.113.1/32", allowAll)),
	}
	got, problems := Merge(testNode, objects, testSecret)
	if diff := cmp.Diff(routerWith(base(withRoutes("203.0.113.1/32"))), got, compareAddresses); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	compareProblems(t, []string{"b, neighbor 192.0.2.1: asn contradicts that of the older metallb-system/a"}, problems)
}
