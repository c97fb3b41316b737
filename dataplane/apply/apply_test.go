// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

var errBroken = errors.New("broken")

// parts records the calls that a node makes of its parts, in order, and fails the one named.
type parts struct {
	calls     []string
	fail      string
	leaving   []dataplane.Translation
	sequence  dataplane.Sequence
	installed dataplane.Sequence
}

func (p *parts) call(name string) error {
	p.calls = append(p.calls, name)
	if p.fail == name {
		return errBroken
	}
	return nil
}

type (
	fakeTranslator  struct{ *parts }
	fakeRouter      struct{ *parts }
	fakeConnections struct{ *parts }
)

func (f fakeTranslator) Relist() { _ = f.call("relist") }
func (f fakeTranslator) Add(context.Context, dataplane.Host) (int, error) {
	return 1, f.call("nft add")
}
func (f fakeTranslator) Remove(context.Context, dataplane.Host) ([]dataplane.Translation, error) {
	return f.leaving, f.call("nft remove")
}
func (f fakeTranslator) Forget(context.Context, []dataplane.Translation) error {
	return f.call("nft forget")
}
func (f fakeTranslator) Uninstall(context.Context) ([]dataplane.Translation, error) {
	return f.leaving, f.call("nft uninstall")
}
func (f fakeTranslator) Counters(context.Context) (dataplane.HostCounters, error) {
	return dataplane.HostCounters{Strays: dataplane.Count{Packets: 3}}, nil
}
func (fakeTranslator) Drift() uint64          { return 1 }
func (fakeRouter) Drift() uint64              { return 2 }
func (fakeRouter) Connected() (_, other bool) { return true, false }
func (f fakeRouter) Apply(context.Context, dataplane.OVN) (dataplane.Sequence, error) {
	return f.sequence, f.call("ovn")
}
func (f fakeRouter) Installed() dataplane.Sequence { return f.installed }
func (f fakeRouter) Close()                        {}
func (f fakeConnections) End([]dataplane.Translation) (uint, error) {
	return 1, f.call("conntrack")
}
func (f fakeConnections) EndStrays([]netip.Addr) (uint, error) {
	return 5, f.call("conntrack strays")
}
func (f fakeConnections) Loosen([]netip.Addr, []netip.Prefix) (uint, error) {
	return 1, f.call("conntrack loosen")
}
func (f fakeConnections) Close() {}

func nodeOf(p *parts) *node {
	return &node{
		logger: log.NewNopLogger(), relistInterval: time.Minute, now: func() time.Time { return time.Unix(1, 0) }, listed: time.Unix(1, 0),
		changed: make(chan struct{}, 1), ovn: fakeRouter{p}, nft: fakeTranslator{p}, conntrack: fakeConnections{p},
	}
}

func TestOrder(t *testing.T) {
	leaving := []dataplane.Translation{{Pod: netip.MustParseAddr("10.244.1.5"), Source: netip.MustParseAddr("172.19.0.100")}}
	tests := []struct {
		name  string
		parts parts
		want  dataplane.Sequence
		fails bool
		calls []string
	}{
		{
			name: "the bridge has not caught up", parts: parts{sequence: 5, installed: 4, leaving: leaving}, want: 5,
			calls: []string{"nft add", "ovn"},
		},
		{
			name: "the bridge has caught up", parts: parts{sequence: 5, installed: 5, leaving: leaving}, want: 5,
			calls: []string{"nft add", "ovn", "nft remove", "conntrack", "nft forget"},
		},
		{
			name: "nothing leaves", parts: parts{sequence: 5, installed: 7}, want: 5,
			calls: []string{"nft add", "ovn", "nft remove", "nft forget"},
		},
		{
			name: "nftables fails", parts: parts{sequence: 5, installed: 5, fail: "nft add"}, fails: true,
			calls: []string{"nft add"},
		},
		{
			name: "OVN fails", parts: parts{sequence: 5, installed: 5, fail: "ovn", leaving: leaving}, fails: true,
			calls: []string{"nft add", "ovn"},
		},
		{
			name: "conntrack fails", parts: parts{sequence: 5, installed: 5, fail: "conntrack", leaving: leaving}, fails: true,
			calls: []string{"nft add", "ovn", "nft remove", "conntrack"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := test.parts
			got, err := nodeOf(&p).Apply(context.Background(), dataplane.Plan{})
			if got != test.want || errors.Is(err, errBroken) != test.fails {
				t.Errorf("sequence %d, %v, want %d", got, err, test.want)
			}
			if d := cmp.Diff(test.calls, p.calls); d != "" {
				t.Errorf("calls (-want +got):\n%s", d)
			}
		})
	}
}

func TestCounters(t *testing.T) {
	n := nodeOf(&parts{leaving: make([]dataplane.Translation, 1)})
	plan := dataplane.Plan{Host: dataplane.Host{Guards: make([]dataplane.Guard, 1)}}
	if _, err := n.Apply(context.Background(), plan); err != nil {
		t.Fatal(err)
	}
	got, err := n.Counters(context.Background())
	want := dataplane.Counters{
		HostCounters:     dataplane.HostCounters{Strays: dataplane.Count{Packets: 3}},
		ConnectionsEnded: 6, DriftNFTables: 1, DriftOVN: 2, NorthboundConnected: true,
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// TestTidied: strays of an address are ended once, when it comes to be guarded; whenever the node becomes
// primary or ceases to be, what it remembers of connections is loosened; both at the start of the program, before OVN
// sends packets here, and again after a failure, which keeps the node from nothing.
func TestTidied(t *testing.T) {
	p := parts{sequence: 5, installed: 4}
	n := nodeOf(&p)
	address, pod := netip.MustParseAddr("172.19.0.100"), netip.MustParseAddr("10.244.1.5")
	as := func(epoch int64) dataplane.Plan {
		return dataplane.Plan{Host: dataplane.Host{
			Translations: []dataplane.Translation{{Pod: pod, Source: address}},
			Accounts:     []dataplane.Account{{Source: address, Epoch: epoch}},
			Guards:       []dataplane.Guard{{Address: address}},
		}}
	}
	for _, step := range []struct {
		what  string
		plan  dataplane.Plan
		fail  string
		calls []string
	}{
		{"ending strays fails", as(1), "conntrack strays", []string{"nft add", "conntrack strays", "conntrack loosen", "ovn"}},
		{"loosening fails", as(2), "conntrack loosen", []string{"nft add", "conntrack strays", "conntrack loosen", "ovn"}},
		{"again", as(2), "", []string{"nft add", "conntrack loosen", "ovn"}},
		{"nothing new", as(2), "", []string{"nft add", "ovn"}},
		{"primary until just now", as(0), "", []string{"nft add", "conntrack loosen", "ovn"}},
		{"nothing new", as(0), "", []string{"nft add", "ovn"}},
		{"primary again", as(4), "", []string{"nft add", "conntrack loosen", "ovn"}},
		{"another was primary meanwhile, unseen", as(6), "", []string{"nft add", "conntrack loosen", "ovn"}},
		{"nothing", dataplane.Plan{}, "", []string{"nft add", "ovn"}},
		{"guarded and primary once more", as(8), "", []string{"nft add", "conntrack strays", "conntrack loosen", "ovn"}},
	} {
		p.calls, p.fail = nil, step.fail
		if got, err := n.Apply(context.Background(), step.plan); err != nil || got != p.sequence {
			t.Fatalf("%s: sequence %d, %v", step.what, got, err)
		}
		if d := cmp.Diff(step.calls, p.calls); d != "" {
			t.Errorf("%s: calls (-want +got):\n%s", step.what, d)
		}
	}
}

func TestRemoveOrder(t *testing.T) {
	p := parts{leaving: make([]dataplane.Translation, 1)}
	if err := nodeOf(&p).Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"ovn", "nft uninstall", "conntrack"}, p.calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}

func TestRelist(t *testing.T) {
	p := parts{sequence: 1}
	n := nodeOf(&p)
	now := time.Unix(100, 0)
	n.listed, n.now = time.Time{}, func() time.Time { return now }
	for _, later := range []time.Duration{0, time.Second, 2 * time.Minute} {
		now = now.Add(later)
		if _, err := n.Apply(context.Background(), dataplane.Plan{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"relist", "nft add", "ovn", "nft add", "ovn", "relist", "nft add", "ovn"}
	if d := cmp.Diff(want, p.calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}

func TestChangedKeepsOneToken(t *testing.T) {
	n := nodeOf(&parts{})
	n.signal()
	n.signal()
	<-n.Changed()
	select {
	case <-n.Changed():
		t.Error("two tokens")
	default:
	}
}
