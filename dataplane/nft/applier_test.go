// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func pair(pod, source string) dataplane.Translation {
	return dataplane.Translation{Pod: netip.MustParseAddr(pod), Source: netip.MustParseAddr(source)}
}

func nat(pairs ...dataplane.Translation) dataplane.Host {
	return dataplane.Host{
		Internal: []netip.Prefix{
			netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("172.18.0.11/32"),
			netip.MustParsePrefix("fc00:18::11/128"), netip.MustParsePrefix("fd00:10:244::/48"),
		},
		Translations: pairs,
	}
}

// host is a plan with something in every set.
func host() dataplane.Host {
	h := nat(pair(pod4, lb4), pair(pod6, lb6))
	h.Accounts = []dataplane.Account{{Source: netip.MustParseAddr(lb4), Service: "ns/a"}, {Source: netip.MustParseAddr(lb6), Service: "ns/a"}}
	h.Holds = []dataplane.Hold{{Pod: netip.MustParseAddr(pod4b), Service: "ns/b"}, {Pod: netip.MustParseAddr(pod6b), Service: "ns/b"}}
	h.Counted = []string{"ns/a", "ns/b"}
	h.Pods = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	h.OwnPods = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}
	ports := []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}, {Protocol: dataplane.UDP, Number: 53}, {Protocol: dataplane.SCTP, Number: 3868}}
	h.Guards = []dataplane.Guard{{Address: netip.MustParseAddr(lb4), Ports: ports}, {Address: netip.MustParseAddr(lb6), Ports: ports}}
	return h
}

func snatElement(t dataplane.Translation) *knftables.Element {
	return element(of(t.Pod).snat, t.Pod.String(), t.Source.String())
}

func internalElement(p netip.Prefix) *knftables.Element {
	return element(of(p.Addr()).internal, p.String(), "")
}

const (
	pod4, pod4b = "10.244.1.5", "10.244.2.5"
	pod6, pod6b = "fd00:10:244:1::5", "fd00:10:244:2::5"
	lb4, lb4b   = "172.19.0.100", "172.19.0.101"
	lb6         = "fd00:19::100"
)

// fakeWith returns an applier whose table holds a plan.
func fakeWith(t *testing.T, want dataplane.Host) (*Applier, *knftables.Fake) {
	t.Helper()
	fake := knftables.NewFake(Family, Table)
	a := New(fake)
	if _, err := a.Add(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	return a, fake
}

// TestTable compares the whole table with what testdata/table.nft says.
func TestTable(t *testing.T) {
	_, fake := fakeWith(t, host())
	want, err := os.ReadFile("testdata/table.nft")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), fake.Dump()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSteps(t *testing.T) {
	ctx := context.Background()
	full := nat(pair(pod4, lb4), pair(pod4b, lb4))
	tests := []struct {
		name    string
		next    dataplane.Host
		added   int
		leaving []dataplane.Translation
		snat    []string // the map's elements after Add and after Remove
		after   []string
	}{
		{
			name: "the same again", next: full,
			snat: []string{pod4 + " " + lb4, pod4b + " " + lb4}, after: []string{pod4 + " " + lb4, pod4b + " " + lb4},
		},
		{
			name: "an endpoint goes", next: nat(pair(pod4, lb4)),
			leaving: []dataplane.Translation{pair(pod4b, lb4)},
			snat:    []string{pod4 + " " + lb4, pod4b + " " + lb4}, after: []string{pod4 + " " + lb4},
		},
		{
			name: "an endpoint gets another address", next: nat(pair(pod4, lb4), pair(pod4b, lb4b)), added: 3,
			leaving: []dataplane.Translation{pair(pod4b, lb4)},
			snat:    []string{pod4 + " " + lb4, pod4b + " " + lb4b}, after: []string{pod4 + " " + lb4, pod4b + " " + lb4b},
		},
		{
			name: "everything goes", next: nat(),
			leaving: []dataplane.Translation{pair(pod4, lb4), pair(pod4b, lb4)},
			snat:    []string{pod4 + " " + lb4, pod4b + " " + lb4},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, fake := fakeWith(t, full)
			added, err := a.Add(ctx, test.next)
			if err != nil || added != test.added {
				t.Errorf("Add wrote %d elements, %v, want %d", added, err, test.added)
			}
			if d := cmp.Diff(test.snat, elementsOf(t, fake, "map", "snat4")); d != "" {
				t.Errorf("after Add (-want +got):\n%s", d)
			}
			leaving, err := a.Remove(ctx, test.next)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(test.leaving, leaving, byValue, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("leaving (-want +got):\n%s", d)
			}
			if d := cmp.Diff(test.after, elementsOf(t, fake, "map", "snat4")); d != "" {
				t.Errorf("after Remove (-want +got):\n%s", d)
			}
			// A program that starts now finds what is left to do.
			again, err := New(fake).Remove(ctx, test.next)
			if d := cmp.Diff(leaving, again, byValue); err != nil || d != "" {
				t.Errorf("%v, leaving for the next program (-want +got):\n%s", err, d)
			}
			if err := a.Forget(ctx, leaving); err != nil {
				t.Fatal(err)
			}
			if got := elementsOf(t, fake, "set", "leaving4"); len(got) > 0 {
				t.Errorf("still leaving: %v", got)
			}
			fake.LastTransaction = nil
			if _, err := a.Add(ctx, test.next); err != nil {
				t.Fatal(err)
			}
			if leaving, err = a.Remove(ctx, test.next); err != nil || len(leaving) > 0 {
				t.Errorf("second Remove: %v, %v", leaving, err)
			}
			if err := a.Forget(ctx, leaving); err != nil {
				t.Fatal(err)
			}
			if fake.LastTransaction != nil {
				t.Errorf("the second sync wrote:\n%s", fake.LastTransaction)
			}
		})
	}
}

// TestEndpointComesBack: connections of a pair that is wanted again are not ended.
func TestEndpointComesBack(t *testing.T) {
	ctx := context.Background()
	a, fake := fakeWith(t, nat(pair(pod4, lb4)))
	if _, err := a.Remove(ctx, nat()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Add(ctx, nat(pair(pod4, lb4))); err != nil {
		t.Fatal(err)
	}
	leaving, err := a.Remove(ctx, nat(pair(pod4, lb4)))
	if err != nil || len(leaving) > 0 {
		t.Errorf("leaving %v, %v", leaving, err)
	}
	if got := elementsOf(t, fake, "set", "leaving4"); len(got) > 0 {
		t.Errorf("still leaving: %v", got)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	want := nat(pair(pod4, lb4), pair(pod4b, lb4))
	_, pristine := fakeWith(t, want)
	tests := []struct {
		name  string
		drift func(*knftables.Transaction)
	}{
		{"an element is gone", func(tx *knftables.Transaction) { tx.Delete(snatElement(pair(pod4, lb4))) }},
		{"an element has another value", func(tx *knftables.Transaction) {
			tx.Delete(snatElement(pair(pod4, lb4)))
			tx.Add(snatElement(pair(pod4, lb4b)))
		}},
		{"an element is too many", func(tx *knftables.Transaction) { tx.Add(snatElement(pair("10.244.9.9", lb4))) }},
		{"an internal destination is gone", func(tx *knftables.Transaction) {
			tx.Delete(internalElement(netip.MustParsePrefix("10.244.0.0/16")))
		}},
		{"an internal destination is too many", func(tx *knftables.Transaction) {
			tx.Add(internalElement(netip.MustParsePrefix("198.51.100.0/24")))
		}},
		{"the rules are gone", func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: chainPostrouting}) }},
		{"the chain is gone", func(tx *knftables.Transaction) {
			tx.Flush(&knftables.Chain{Name: chainPostrouting})
			tx.Delete(&knftables.Chain{Name: chainPostrouting})
		}},
		{"the table is gone", func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx := context.Background()
			a, fake := fakeWith(t, want)
			tx := fake.NewTransaction()
			test.drift(tx)
			if err := fake.Run(ctx, tx); err != nil {
				t.Fatal(err)
			}
			a.Relist()
			if _, err := a.Add(ctx, want); err != nil {
				t.Fatal(err)
			}
			leaving, err := a.Remove(ctx, want)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Forget(ctx, leaving); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(sortedLines(pristine.Dump()), sortedLines(fake.Dump())); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestUnexpectedDrift: an element that was deleted since it was read fails the transaction, which
// is then described again from what the table really holds.
func TestUnexpectedDrift(t *testing.T) {
	ctx := context.Background()
	a, fake := fakeWith(t, nat(pair(pod4, lb4)))
	tx := fake.NewTransaction()
	tx.Delete(snatElement(pair(pod4, lb4)))
	if err := fake.Run(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Remove(ctx, nat()); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestErrorIsReported(t *testing.T) {
	a := New(failing{knftables.NewFake(Family, Table)})
	if _, err := a.Add(context.Background(), nat()); !errors.Is(err, errBroken) {
		t.Errorf("Add: %v", err)
	}
}

func TestUninstall(t *testing.T) {
	ctx := context.Background()
	a, fake := fakeWith(t, nat(pair(pod4, lb4), pair(pod4b, lb4), pair(pod6, lb6)))
	if _, err := a.Remove(ctx, nat(pair(pod4, lb4), pair(pod6, lb6))); err != nil {
		t.Fatal(err)
	}
	leaving, err := a.Uninstall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []dataplane.Translation{pair(pod4, lb4), pair(pod4b, lb4), pair(pod6, lb6)}
	if d := cmp.Diff(want, leaving, byValue); d != "" {
		t.Errorf("leaving (-want +got):\n%s", d)
	}
	if got := fake.Dump(); got != "" {
		t.Errorf("left:\n%s", got)
	}
	if _, err := a.Uninstall(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
}

var errBroken = errors.New("broken")

type failing struct{ *knftables.Fake }

func (failing) Run(context.Context, *knftables.Transaction) error { return errBroken }

func elementsOf(t *testing.T, nft knftables.Interface, kind, name string) []string {
	t.Helper()
	found, err := nft.ListElements(context.Background(), kind, name)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range found {
		list = append(list, strings.Join(append(e.Key, e.Value...), " "))
	}
	return sortedLines(strings.Join(list, "\n"))
}

func sortedLines(text string) []string {
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return lines
}
