// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

const foreignTable = `table inet other {
	set internal4 { type ipv4_addr; elements = { 192.0.2.1 } }
	chain postrouting { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 masquerade; }
}`

// inNamespace runs f on a thread in a new network namespace that holds a table of somebody else.
func inNamespace(t *testing.T, f func(nft knftables.Interface, run func(command string) string)) {
	t.Helper()
	testbed.RequireTools(t, "nft", "ip")
	ns := testbed.NewNamespace(t)
	ns.Run(t, "nft", foreignTable)
	before := ns.Run(t, "nft", "list", "table", "inet", "other")
	ns.Do(t, func() {
		nft, err := knftables.New(Family, Table)
		if err != nil {
			t.Error(err)
			return
		}
		f(nft, func(command string) string { return ns.Run(t, "nft", command) })
	})
	if d := cmp.Diff(before, ns.Run(t, "nft", "list", "table", "inet", "other")); d != "" {
		t.Errorf("the other table (-before +after):\n%s", d)
	}
}

// sync does what a whole Apply does to the table and returns how much it wrote.
func sync(t *testing.T, a *Applier, want dataplane.Host) int {
	ctx := context.Background()
	added, err := a.Add(ctx, want)
	if err != nil {
		t.Errorf("Add: %v", err)
	}
	leaving, err := a.Remove(ctx, want)
	if err != nil {
		t.Errorf("Remove: %v", err)
	}
	if err := a.Forget(ctx, leaving); err != nil {
		t.Errorf("Forget: %v", err)
	}
	return added + len(leaving)
}

func wantContents(t *testing.T, nft knftables.Interface, want dataplane.Host) {
	got, err := list(context.Background(), nft)
	if err != nil {
		t.Errorf("list: %v", err)
		return
	}
	expected := wanted(want)
	for name := range expected.counters {
		expected.counters[name] = ""
	}
	if d := cmp.Diff(expected, *got, cmp.AllowUnexported(contents{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
}

func TestRealTable(t *testing.T) {
	full := nat(pair(pod4, lb4), pair(pod4b, lb4), pair(pod6, lb6))
	wider := full
	wider.Internal = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.18.0.12/32"), netip.MustParsePrefix("fc00::/7"),
	}
	half := host()
	half.Accounts, half.Holds, half.Counted = half.Accounts[:1], nil, half.Counted[:1]
	half.Guards = half.Guards[:1]
	half.Guards[0].Ports = half.Guards[0].Ports[1:]
	steps := []struct {
		name string
		want dataplane.Host
	}{
		{"first", full},
		{"internal destinations that overlap the old ones", wider},
		{"narrower again", full},
		{"another address", nat(pair(pod4, lb4b), pair(pod4b, lb4), pair(pod6, lb6))},
		{"no translation", nat()},
		{"everything", host()},
		{"half of it", half},
		{"nothing again", dataplane.Host{}},
	}
	inNamespace(t, func(nft knftables.Interface, _ func(string) string) {
		a := New(nft)
		for _, step := range steps {
			if sync(t, a, step.want) == 0 {
				t.Errorf("%s: nothing written", step.name)
			}
			wantContents(t, nft, step.want)
			a.Relist()
			if n := sync(t, a, step.want); n != 0 {
				t.Errorf("%s: the second sync wrote %d elements", step.name, n)
			}
		}
		sync(t, a, full)
		if _, err := a.Uninstall(context.Background()); err != nil {
			t.Errorf("Uninstall: %v", err)
		}
		if names, err := nft.ListAll(context.Background()); !knftables.IsNotFound(err) {
			t.Errorf("left: %v, %v", names, err)
		}
	})
}

func TestRealDriftIsRepaired(t *testing.T) {
	want := nat(pair(pod4, lb4), pair(pod6, lb6))
	tests := []struct{ name, drift string }{
		{"an element is gone", "delete element inet metallb-egress snat4 { 10.244.1.5 }"},
		{"an element is too many", "add element inet metallb-egress snat4 { 10.244.9.9 : 172.19.0.100 }"},
		{"an element has another value", "delete element inet metallb-egress snat4 { 10.244.1.5 }; add element inet metallb-egress snat4 { 10.244.1.5 : 172.19.0.9 }"},
		{"an internal destination is gone", "delete element inet metallb-egress internal4 { 10.244.0.0/16 }"},
		{"a range of internal destinations", "add element inet metallb-egress internal4 { 192.0.2.3-192.0.2.9 }"},
		{"a set is emptied", "flush set inet metallb-egress internal6"},
		{"the rules are gone", "flush chain inet metallb-egress postrouting"},
		{"a rule is too many", "insert rule inet metallb-egress postrouting drop"},
		{"the table is gone", "delete table inet metallb-egress"},
	}
	inNamespace(t, func(nft knftables.Interface, run func(string) string) {
		a := New(nft)
		sync(t, a, want)
		for _, test := range tests {
			run(test.drift)
			// Once by a program that goes on, once by one that starts.
			a.Relist()
			sync(t, a, want)
			wantContents(t, nft, want)
			run(test.drift)
			a = New(nft)
			sync(t, a, want)
			wantContents(t, nft, want)
			if t.Failed() {
				t.Errorf("after: %s", test.name)
				return
			}
		}
	})
}

// TestOtherTypes: a table in which something of ours has another type, as another version or somebody else may
// leave it, is replaced; what is leaving is kept.
func TestOtherTypes(t *testing.T) {
	for _, other := range []string{
		"set snat4 { type ipv4_addr; }",
		"map holds4 { type ipv4_addr : verdict; flags interval; }",
		"set ports4 { type ipv4_addr . inet_service; elements = { 172.19.0.100 . 80 }; }",
		"chain postrouting { type nat hook postrouting priority 10; }",
		"chain guard { type filter hook input priority 0; }",
	} {
		inNamespace(t, func(nft knftables.Interface, run func(string) string) {
			run("table inet metallb-egress { set leaving4 { type ipv4_addr . ipv4_addr; elements = { 10.244.9.9 . 172.19.0.100 }; }; " + other + "; }")
			wanted := []dataplane.Translation{pair("10.244.9.9", lb4)}
			if !strings.Contains(other, "snat4") {
				// One that OVN may still send packets for.
				run("add map inet metallb-egress snat4 { type ipv4_addr : ipv4_addr; elements = { 10.244.8.8 : 172.19.0.101 }; }")
				wanted = append([]dataplane.Translation{pair("10.244.8.8", lb4b)}, wanted...)
			}
			a := New(nft)
			if _, err := a.Add(context.Background(), host()); err != nil {
				t.Errorf("%s: %v", other, err)
				return
			}
			if map4 := run("list map inet metallb-egress snat4"); strings.Contains(map4, "10.244.8.8") != (len(wanted) == 2) {
				t.Errorf("%s: %s", other, map4)
			}
			leaving, err := a.Remove(context.Background(), host())
			if d := cmp.Diff(wanted, leaving, byValue); err != nil || d != "" {
				t.Errorf("%s: %v, leaving (-want +got):\n%s", other, err, d)
			}
			if err := a.Forget(context.Background(), leaving); err != nil {
				t.Errorf("Forget: %v", err)
			}
			wantContents(t, nft, host())
			if table := run("list table inet metallb-egress"); !strings.Contains(table, "hook postrouting priority srcnat - 5") || !strings.Contains(table, "hook prerouting priority mangle") {
				t.Errorf("%s: %s", other, table)
			}
		})
	}
}

// TestRulesAreReplacedAtStart: rules with our comments but another text.
func TestRulesAreReplacedAtStart(t *testing.T) {
	inNamespace(t, func(nft knftables.Interface, run func(string) string) {
		sync(t, New(nft), nat())
		ctx := context.Background()
		handles, err := nft.ListRules(ctx, chainPostrouting)
		if err != nil {
			t.Error(err)
			return
		}
		tx := nft.NewTransaction()
		tx.Replace(&knftables.Rule{Chain: chainPostrouting, Handle: handles[0].Handle, Rule: "drop", Comment: handles[0].Comment})
		if err := nft.Run(ctx, tx); err != nil {
			t.Error(err)
			return
		}
		sync(t, New(nft), nat())
		if text := run("list chain inet metallb-egress postrouting"); strings.Contains(text, "drop") {
			t.Errorf("rules:\n%s", text)
		}
	})
}

func TestTenThousandTranslations(t *testing.T) {
	inNamespace(t, func(nft knftables.Interface, _ func(string) string) {
		want := nat()
		for i := range 10_000 {
			want.Translations = append(want.Translations, dataplane.Translation{
				Pod: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Source: netip.MustParseAddr(lb4),
			})
		}
		a := New(nft)
		sync(t, a, want)
		wantContents(t, nft, want)
		sync(t, a, nat())
		wantContents(t, nft, nat())
	})
}
