// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"math"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// FuzzMerge reads anything as two FRRConfigurations. Whatever they say, what comes out can be given to
// GoBGP: every field within its bounds, everything ordered and once, and the older object's word as if
// the younger had not been there, where it was in the way.
func FuzzMerge(f *testing.F) {
	f.Add(stockMetalLB, peering("b", "203.0.113.1/32", allowAll))
	f.Add(peering("a", `203.0.113.1/32, "2001:db8::1/128", ::/0, 0.0.0.0/0`, "dynamicASN: external\nlocalASN: 7\ntoAdvertise:\n  allowed: {prefixes: [0.0.0.0/0]}\n  withLocalPref: [{localPref: 5, prefixes: [0.0.0.0/0, ::/0]}]\n"), stockMetalLB)
	f.Add(bfdPeering("a", "red", "", "{name: p, detectMultiplier: 99}"), bfdPeering("b", "", "", "{name: p}"))
	f.Add(peering("a", "203.0.113.1/32", "asn: 64512\nholdTime: -3s\nkeepaliveTime: 9999999h\nconnectTime: 1ns\nport: 0\n"), "{}")
	f.Add("spec: {bgp: {routers: [{asn: 4294967295, id: 0.0.0.1, vrf: a-very-long-name-of-a-vrf, neighbors: [{address: fe80::1%eth0, asn: 1}, {address: '::ffff:1.2.3.4', asn: 1, password: x}]}]}}", "spec: {raw: {rawConfig: x}}")
	f.Fuzz(func(t *testing.T, one, two string) {
		var objects []FRRConfiguration
		for n, text := range []string{one, two} {
			var object FRRConfiguration
			if yaml.Unmarshal([]byte(text), &object) != nil {
				return
			}
			object.Name, object.CreationTimestamp.Time = string(rune('a'+n)), time.Unix(int64(n), 0)
			objects = append(objects, object)
		}
		config, problems := Merge(testNode, objects, testSecret)
		for _, problem := range problems {
			if problem.Message == "" || problem.Object == "" {
				t.Errorf("problem without a word: %+v", problem)
			}
		}
		check(t, config)
		again, _ := Merge(testNode, []FRRConfiguration{objects[1], objects[0]}, testSecret)
		if !reflect.DeepEqual(config, again) {
			t.Errorf("the order of the list matters:\n%+v\n%+v", config, again)
		}
		alone, _ := Merge(testNode, objects[:1], testSecret)
		for _, router := range alone.Routers {
			i := slices.IndexFunc(config.Routers, func(r Router) bool { return r.VRF == router.VRF })
			if i < 0 || config.Routers[i].ASN != router.ASN {
				t.Fatalf("router of VRF %q of the older object: %+v", router.VRF, config.Routers)
			}
			for _, neighbor := range router.Neighbors {
				j := slices.IndexFunc(config.Routers[i].Neighbors, func(n Neighbor) bool { return n.Address == neighbor.Address })
				if j < 0 || sessionFields(config.Routers[i].Neighbors[j]) != sessionFields(neighbor) {
					t.Errorf("neighbor %s of the older object is another now", neighbor.Address)
				}
			}
		}
		guarded, _ := Guard{Egress: map[netip.Addr]bool{netip.MustParseAddr("203.0.113.1"): false}}.Filter(config)
		if guarded.Offers(netip.MustParseAddr("203.0.113.1")) {
			t.Error("the guard lets a closed address out")
		}
	})
}

// sessionFields are those that a younger object can't change.
func sessionFields(n Neighbor) [8]any {
	return [8]any{n.ASN, n.LocalASN, n.Port, n.Source, n.Password, n.HoldTime, n.KeepaliveTime, n.ConnectTime}
}

func check(t *testing.T, config Config) {
	t.Helper()
	seconds := func(d, least time.Duration) bool { return d >= least && d <= maxTime && d%time.Second == 0 }
	bfd := false
	for i, router := range config.Routers {
		if i > 0 && config.Routers[i-1].VRF >= router.VRF || !router.ID.Is4() || router.ID.IsUnspecified() || router.ASN == 0 || len(router.VRF) > 15 || len(router.Neighbors) == 0 {
			t.Errorf("router %+v", router)
		}
		watched := false
		for j, n := range router.Neighbors {
			if j > 0 && !router.Neighbors[j-1].Address.Less(n.Address) || !n.Address.IsValid() || n.Address.Zone() != "" || n.Address.Is4In6() {
				t.Errorf("neighbor %s", n.Address)
			}
			if n.Port == 0 || !seconds(n.HoldTime, 3*time.Second) || !seconds(n.KeepaliveTime, time.Second) || n.KeepaliveTime > n.HoldTime || !seconds(n.ConnectTime, time.Second) || len(n.Password) > maxPassword {
				t.Errorf("neighbor %s: %+v", n.Address, n)
			}
			watched = watched || n.BFD != (BFD{})
			if n.BFD != (BFD{}) && (n.BFD.Multiplier < 2 || n.BFD.ReceiveInterval < 10*time.Millisecond || n.BFD.TransmitInterval > time.Minute || n.EBGPMultiHop) {
				t.Errorf("neighbor %s: %+v", n.Address, n.BFD)
			}
			for k, r := range n.Routes {
				if k > 0 && ComparePrefixes(n.Routes[k-1].Prefix, r.Prefix) >= 0 || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() || !n.Families.Has(r.Prefix) {
					t.Errorf("route %+v", r)
				}
				if max(len(r.Communities), len(r.LargeCommunities)) > maxCommunities || slices.ContainsFunc(r.LargeCommunities, func(c LargeCommunity) bool { return c.GlobalAdministrator == math.MaxUint32 }) {
					t.Errorf("communities of %s", r.Prefix)
				}
			}
		}
		if watched && bfd {
			t.Error("BFD in two VRFs")
		}
		bfd = bfd || watched
	}
}
