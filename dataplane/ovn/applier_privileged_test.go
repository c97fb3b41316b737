// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package ovn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

const (
	foreignMatch = "ip4.src == 10.244.1.5"
	gwJoin       = "100.64.0.2"
)

// zone is an applier with both its databases.
type zone struct {
	*Applier
	nb, vs  *testbed.Database
	changed chan struct{}
}

// newZone starts a zone with the rows of others that every test must find unchanged.
func newZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{nb: testbed.NewNorthbound(t), vs: testbed.NewOpenvSwitch(t), changed: make(chan struct{}, 1)}
	setUpRouter(t, z.nb)
	z.vs.Control(t, "add-br", "br-int", "--", "add-br", "br-ex", "--", "set", "bridge", "br-ex", "external_ids:ovn-nb-cfg=77")
	a, err := New(log.NewNopLogger(), Options{
		NorthboundSocket: z.nb.Socket, OpenvSwitchSocket: z.vs.Socket, IntegrationBridge: "br-int",
		Changed: func() {
			select {
			case z.changed <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	z.Applier = a
	t.Cleanup(a.Close)
	z.connected(t)
	z.wantChanged(t) // told of the connection: whatever it tells from now on is news
	return z
}

func setUpRouter(t *testing.T, nb *testbed.Database) {
	t.Helper()
	nb.Control(t, "lr-add", dataplane.ClusterRouter, "--", "lr-add", "GR_n1",
		"--", "lr-policy-add", dataplane.ClusterRouter, "101", foreignMatch, "reroute", "10.244.1.2",
		"--", "lr-policy-add", dataplane.ClusterRouter, "109", "ip4.src == 10.244.1.77", "drop",
		"--", "--policy=src-ip", "lr-route-add", dataplane.ClusterRouter, "10.244.1.0/24", gwJoin,
		"--", "create", "Address_Set", "name=a123", "addresses=10.244.1.5")
}

func (z *zone) connected(t *testing.T) {
	t.Helper()
	testbed.Eventually(t, "both databases are connected", func() bool {
		return z.northbound.session() != nil && z.vswitch.session() != nil
	})
}

// apply applies and returns the sequence.
func (z *zone) apply(t *testing.T, want dataplane.OVN) dataplane.Sequence {
	t.Helper()
	seq, err := z.Apply(context.Background(), want)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// wantRows compares the database with the plan, as ovn-nbctl sees it: our rows, their number, and
// that the rows of others are as they were.
func (z *zone) wantRows(t *testing.T, want dataplane.OVN) {
	t.Helper()
	count := func(table string, args ...string) int {
		return len(strings.Fields(z.nb.Control(t, append([]string{"--bare", "--columns=_uuid", "find", table}, args...)...)))
	}
	got := map[string]int{
		"policies":       count("Logical_Router_Policy"),
		"our policies":   count("Logical_Router_Policy", "external_ids:metallb-egress=egress-speaker"),
		"sets":           count("Address_Set"),
		"our sets":       count("Address_Set", "external_ids:metallb-egress=egress-speaker"),
		"routes":         count("Logical_Router_Static_Route"),
		"101":            count("Logical_Router_Policy", "priority=101", "match=\""+foreignMatch+"\"", "nexthops=10.244.1.2"),
		"foreign at 109": count("Logical_Router_Policy", "priority=109", "match=\"ip4.src == 10.244.1.77\"", "action=drop"),
		"foreign set":    count("Address_Set", "name=a123", "addresses=10.244.1.5"),
	}
	expected := map[string]int{
		"policies": len(want.Policies) + 2, "our policies": len(want.Policies), "sets": len(want.AddressSets) + 1,
		"our sets": len(want.AddressSets), "routes": len(want.SourceRoutes) + 1, "101": 1, "foreign at 109": 1, "foreign set": 1,
	}
	if d := cmp.Diff(expected, got); d != "" {
		t.Errorf("number of rows (-want +got):\n%s", d)
	}
	for _, p := range want.Policies {
		args := []string{"priority=" + strconv.Itoa(p.Priority), fmt.Sprintf("match=%q", p.Match), "action=" + string(p.Action)}
		if p.NextHop.IsValid() {
			args = append(args, fmt.Sprintf("nexthops=%q", p.NextHop))
		} else {
			args = append(args, "nexthops=[]")
		}
		if p.PacketMark != 0 {
			args = append(args, fmt.Sprintf(`options={pkt_mark="%d"}`, p.PacketMark))
		} else {
			args = append(args, "options={}")
		}
		if n := count("Logical_Router_Policy", args...); n != 1 {
			t.Errorf("%d policies %v", n, args)
		}
	}
	for _, s := range want.AddressSets {
		addresses := ""
		for _, a := range s.Addresses {
			addresses += fmt.Sprintf("%q,", a)
		}
		if n := count("Address_Set", "name="+s.Name, "addresses="+addresses[:len(addresses)-1]); n != 1 {
			t.Errorf("%d address sets %s with %s", n, s.Name, addresses)
		}
	}
	for _, r := range want.SourceRoutes {
		if n := count("Logical_Router_Static_Route", "policy=src-ip", fmt.Sprintf("ip_prefix=%q", r.Prefix), fmt.Sprintf("nexthop=%q", r.NextHop)); n != 1 {
			t.Errorf("%d source routes %s to %s", n, r.Prefix, r.NextHop)
		}
	}
}

func (z *zone) nbCfg(t *testing.T) dataplane.Sequence {
	t.Helper()
	n, err := strconv.ParseInt(z.nb.Control(t, "get", "NB_Global", ".", "nb_cfg"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return dataplane.Sequence(n)
}

// drain empties Changed, so that the next signal is a new one.
func (z *zone) drain() {
	select {
	case <-z.changed:
	default:
	}
}

func (z *zone) wantChanged(t *testing.T) {
	t.Helper()
	testbed.Eventually(t, "Changed fires", func() bool {
		select {
		case <-z.changed:
			return true
		default:
			return false
		}
	})
}

// plan is n1's, which translates for a dual-stack service.
func plan(change func(*dataplane.Service)) dataplane.OVN {
	in := dataplane.Input{
		Node: "n1",
		Nodes: map[string]dataplane.NodeFacts{
			"n1": {
				Addresses:           []netip.Prefix{netip.MustParsePrefix("172.18.0.11/24"), netip.MustParsePrefix("fc00:18::11/64")},
				ManagementAddresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")},
			},
			"n2": {TransitAddresses: []netip.Addr{netip.MustParseAddr("100.88.0.3"), netip.MustParseAddr("fd97::3")}},
		},
		Cluster: dataplane.Cluster{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}},
	}
	s := dataplane.Service{
		Key: "ns/a", Role: dataplane.RolePrimary, Primary: "n1",
		SourceIPs: []netip.Addr{netip.MustParseAddr("172.19.0.100"), netip.MustParseAddr("fd00:19::100")},
		Endpoints: []dataplane.Endpoint{
			{Node: "n1", Address: netip.MustParseAddr("10.244.1.5")},
			{Node: "n1", Address: netip.MustParseAddr("fd00:10:244:1::5")},
			{Node: "n2", Address: netip.MustParseAddr("10.244.2.5")},
			{Node: "n2", Address: netip.MustParseAddr("fd00:10:244:2::5")},
		},
	}
	if change != nil {
		change(&s)
	}
	in.Services = []dataplane.Service{s}
	p, _ := dataplane.Compute(in)
	return p.OVN
}

func asStandby(s *dataplane.Service) {
	s.Role, s.Primary, s.Standby = dataplane.RoleStandby, "n2", "n1"
}

func TestApply(t *testing.T) {
	z := newZone(t)
	steps := []struct {
		name string
		want dataplane.OVN
	}{
		{"a service comes", plan(nil)},
		{"it moves to n2", plan(asStandby)},
		{"its primary goes", plan(func(s *dataplane.Service) { s.Role, s.Standby, s.Primary = dataplane.RoleStandby, "n1", "" })},
		{"an endpoint goes", plan(func(s *dataplane.Service) { s.Endpoints = s.Endpoints[:2] })},
		{"a family goes", plan(func(s *dataplane.Service) { s.SourceIPs = s.SourceIPs[:1] })},
		{"the service goes", dataplane.OVN{}},
	}
	var last dataplane.Sequence
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			seq := z.apply(t, step.want)
			if seq != last+1 || seq != z.nbCfg(t) {
				t.Errorf("sequence %d after %d, nb_cfg is %d", seq, last, z.nbCfg(t))
			}
			last = seq
			z.wantRows(t, step.want)
			if again := z.apply(t, step.want); again != seq || z.nbCfg(t) != seq {
				t.Errorf("second Apply: sequence %d, nb_cfg %d, want %d", again, z.nbCfg(t), seq)
			}
		})
	}
}

// TestMoveKeepsRows: a move changes the existing rows, so that there is no moment without one.
func TestMoveKeepsRows(t *testing.T) {
	z := newZone(t)
	find := func() string {
		return z.nb.Control(t, "--bare", "--columns=_uuid", "find", "Logical_Router_Policy", "external_ids:metallb-egress-row=steer-ip4")
	}
	z.apply(t, plan(nil))
	before := find()
	z.apply(t, plan(asStandby))
	if after := find(); after != before || before == "" {
		t.Errorf("row %q became %q", before, after)
	}
}

func TestFirstApplyCounts(t *testing.T) {
	z := newZone(t)
	seq := z.apply(t, plan(nil))
	z.Close()
	b, err := New(log.NewNopLogger(), Options{NorthboundSocket: z.nb.Socket, OpenvSwitchSocket: z.vs.Socket, IntegrationBridge: "br-int", Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	testbed.Eventually(t, "the database is connected", func() bool { return b.northbound.session() != nil })
	got, err := b.Apply(context.Background(), plan(nil))
	if err != nil || got != seq+1 {
		t.Errorf("the next program's first Apply: %d, %v, want %d", got, err, seq+1)
	}
}

func TestInstalled(t *testing.T) {
	z := newZone(t)
	seq := z.apply(t, plan(nil))
	if got := z.Installed(); got != 0 {
		t.Errorf("installed %d before ovn-controller reported", got)
	}
	z.drain()
	z.vs.Control(t, "set", "bridge", "br-int", fmt.Sprintf("external_ids:ovn-nb-cfg=%d", seq))
	z.wantChanged(t)
	if got := z.Installed(); got != seq {
		t.Errorf("installed %d, want %d", got, seq)
	}
	z.vs.Stop(t)
	testbed.Eventually(t, "the loss is noticed", func() bool { return z.vswitch.session() == nil })
	if got := z.Installed(); got != seq {
		t.Errorf("installed %d with the database away, want %d", got, seq)
	}
	z.vs.Start(t)
	z.connected(t)
	z.vs.Control(t, "set", "bridge", "br-int", "external_ids:ovn-nb-cfg=9")
	testbed.Eventually(t, "the next value is seen", func() bool { return z.Installed() == 9 })
	z.vs.Control(t, "del-br", "br-int")
	testbed.Eventually(t, "the loss of the bridge is seen", func() bool { return z.Installed() == 0 })
}

func TestReconnect(t *testing.T) {
	z := newZone(t)
	want := plan(nil)
	seq := z.apply(t, want)
	z.nb.Stop(t)
	testbed.Eventually(t, "the loss is noticed", func() bool {
		_, err := z.Apply(context.Background(), want)
		return errors.Is(err, ErrNotConnected)
	})
	z.drain()
	z.nb.Start(t)
	z.wantChanged(t)
	z.connected(t)
	if got := z.apply(t, want); got != seq {
		t.Errorf("sequence %d of an unchanged database, want %d", got, seq)
	}
	z.wantRows(t, want)
}

// TestWipedDatabase: the sequence after a wipe must not be one that the bridge still shows from
// before.
func TestWipedDatabase(t *testing.T) {
	z := newZone(t)
	want := plan(nil)
	z.nb.Control(t, "set", "NB_Global", ".", "nb_cfg=500")
	seq := z.apply(t, want)
	z.vs.Control(t, "set", "bridge", "br-int", fmt.Sprintf("external_ids:ovn-nb-cfg=%d", seq))
	testbed.Eventually(t, "the bridge is seen", func() bool { return z.Installed() == seq })
	z.nb.Stop(t)
	z.nb.Wipe(t)
	z.drain()
	z.nb.Start(t)
	testbed.Eventually(t, "the empty database is refused", func() bool {
		_, err := z.Apply(context.Background(), want)
		return errors.Is(err, ErrNotReady)
	})
	z.drain()
	setUpRouter(t, z.nb)
	z.wantChanged(t)
	if got := z.apply(t, want); got <= z.Installed() {
		t.Errorf("sequence %d is already installed (%d)", got, z.Installed())
	}
	z.wantRows(t, want)
}

// TestSetBackDatabase: the rows are as wanted, but the counter isn't.
func TestSetBackDatabase(t *testing.T) {
	z := newZone(t)
	z.nb.Control(t, "set", "NB_Global", ".", "nb_cfg=500")
	seq := z.apply(t, plan(nil))
	z.nb.Control(t, "set", "NB_Global", ".", "nb_cfg=3")
	testbed.Eventually(t, "the cache is current", func() bool { return readRows(z.northbound.session().cache).global.NBCfg == 3 })
	if got := z.apply(t, plan(nil)); got != 4 {
		t.Errorf("sequence %d after %d and a set-back to 3, want 4", got, seq)
	}
}

// TestForeignSourceRoute: ours is there only while nobody else's covers it.
func TestForeignSourceRoute(t *testing.T) {
	z := newZone(t)
	want := plan(nil)
	z.apply(t, want)
	z.drain()
	z.nb.Control(t, "--policy=src-ip", "lr-route-add", dataplane.ClusterRouter, "10.0.0.0/8", gwJoin)
	z.wantChanged(t)
	z.apply(t, want)
	if out := z.nb.Control(t, "lr-route-list", dataplane.ClusterRouter); strings.Contains(out, "10.244.0.0/16") || !strings.Contains(out, "10.0.0.0/8") || !strings.Contains(out, "fd00:10:244::/48") {
		t.Errorf("routes:\n%s", out)
	}
	z.drain()
	z.nb.Control(t, "--policy=src-ip", "lr-route-del", dataplane.ClusterRouter, "10.0.0.0/8")
	z.wantChanged(t)
	z.apply(t, want)
	z.wantRows(t, want)
}

func TestNotConnected(t *testing.T) {
	testbed.RequireTools(t)
	a, err := New(log.NewNopLogger(), Options{NorthboundSocket: "/nonexistent/nb", OpenvSwitchSocket: "/nonexistent/vs", IntegrationBridge: "br-int", Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Apply(context.Background(), dataplane.OVN{}); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Apply: %v", err)
	}
	a.Close()
}

func TestTenThousandEndpoints(t *testing.T) {
	z := newZone(t)
	many := func(n int) dataplane.OVN {
		return plan(func(s *dataplane.Service) {
			s.Endpoints = nil
			for i := range n {
				s.Endpoints = append(s.Endpoints, dataplane.Endpoint{Node: "n2", Address: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})})
			}
		})
	}
	z.apply(t, many(10_000))
	want := many(10_001)
	z.apply(t, want)
	if got := readRows(z.northbound.session().cache); len(difference(want, got)) > 0 {
		t.Error("differs after Apply")
	}
}
