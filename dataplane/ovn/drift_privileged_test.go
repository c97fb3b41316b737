// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package ovn

import (
	"strings"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

func TestDriftIsSeenAndRepaired(t *testing.T) {
	const ours = "external_ids:metallb-egress-row=steer-ip4"
	tests := []struct {
		name  string
		drift func(t *testing.T, nb *testbed.Database)
	}{
		{"a policy is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "lr-policy-del", dataplane.ClusterRouter, "109", steerMatch())
		}},
		{"a policy's next hop is changed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "set", "Logical_Router_Policy", policyUUID(t, nb, ours), "nexthops=10.244.1.99")
		}},
		{"a policy's priority is changed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "set", "Logical_Router_Policy", policyUUID(t, nb, ours), "priority=500")
		}},
		{"a policy's mark is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "clear", "Logical_Router_Policy", policyUUID(t, nb, ours), "external_ids")
		}},
		{"a policy is doubled", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "--id=@p", "create", "Logical_Router_Policy", "priority=109", "action=drop", "match=\"ip4\"",
				"external_ids={metallb-egress=egress-speaker,metallb-egress-row=steer-ip4,metallb-egress-service=\"ns/a\"}",
				"--", "add", "Logical_Router", dataplane.ClusterRouter, "policies", "@p")
		}},
		{"a policy of a service that is gone", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "--id=@p", "create", "Logical_Router_Policy", "priority=109", "action=drop", "match=\"ip4\"",
				"external_ids={metallb-egress=egress-speaker,metallb-egress-row=steer-ip4,metallb-egress-service=\"ns/gone\"}",
				"--", "add", "Logical_Router", dataplane.ClusterRouter, "policies", "@p")
		}},
		{"an address set is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "destroy", "Address_Set", "metallb_egress_served_ip4")
		}},
		{"an address is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "remove", "Address_Set", "metallb_egress_served_ip4", "addresses", "10.244.2.5")
		}},
		{"an address is added", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "add", "Address_Set", "metallb_egress_served_ip4", "addresses", "10.244.2.66")
		}},
		{"an address set's mark is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "clear", "Address_Set", "metallb_egress_served_ip4", "external_ids")
		}},
		{"the source route is removed", func(t *testing.T, nb *testbed.Database) {
			nb.Control(t, "--policy=src-ip", "lr-route-del", dataplane.ClusterRouter, "10.244.0.0/16")
		}},
	}
	z := newZone(t)
	want := plan(nil)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seq := z.apply(t, want)
			z.drain()
			test.drift(t, z.nb)
			z.wantChanged(t)
			if again := z.apply(t, want); again <= seq {
				t.Errorf("sequence %d after %d", again, seq)
			}
			z.wantRows(t, want)
		})
	}
}

// TestEveryMarkIsSeen: a policy that lost its mark is seen whatever it is for, and taken away with the rest.
func TestEveryMarkIsSeen(t *testing.T) {
	z := newZone(t)
	primary := plan(nil)
	elsewhere := plan(func(s *dataplane.Service) { s.Role, s.Primary = dataplane.RoleNone, "n2" })
	for _, want := range []dataplane.OVN{primary, elsewhere} {
		z.apply(t, want)
		for range want.Policies {
			uuid := strings.Fields(z.nb.Control(t, "--bare", "--columns=_uuid", "find", tablePolicy, "external_ids:metallb-egress=egress-speaker"))[0]
			z.nb.Control(t, "clear", "Logical_Router_Policy", uuid, "external_ids")
			z.drain()
			z.apply(t, want)
		}
		z.nb.Control(t, "clear", "Logical_Router_Policy", strings.Fields(z.nb.Control(t, "--bare", "--columns=_uuid", "find", tablePolicy, "external_ids:metallb-egress=egress-speaker"))[0], "external_ids")
		testbed.Eventually(t, "nothing of ours is left", func() bool {
			z.apply(t, dataplane.OVN{})
			return !strings.Contains(z.nb.Control(t, "list", tablePolicy), dataplane.AddressSetPrefix)
		})
	}
}

// TestOwnCommitsAreNoDrift: what the applier commits, and what others do with rows of their own,
// is no reason to apply again.
func TestOwnCommitsAreNoDrift(t *testing.T) {
	z := newZone(t)
	z.apply(t, plan(nil))
	z.drain()
	z.apply(t, plan(asStandby))
	z.nb.Control(t, "lr-policy-add", "GR_n1", "109", "ip4.src == 10.244.1.78", "drop")
	z.nb.Control(t, "lr-policy-del", "GR_n1", "109", "ip4.src == 10.244.1.78")
	// A drift made last is seen last: once it is, everything before it was looked at.
	z.watched(t)
	select {
	case <-z.changed:
		t.Error("Changed fired")
	default:
	}
}

// watched waits until the applier has looked at all rows.
func (z *zone) watched(t *testing.T) {
	t.Helper()
	z.nb.Control(t, "set", "NB_Global", ".", "nb_cfg=4711")
	testbed.Eventually(t, "the cache is current", func() bool {
		return readRows(z.northbound.session().cache).global.NBCfg == 4711 && len(z.rowChanged) == 0
	})
	z.mu.Lock() // drifted holds it
	defer z.mu.Unlock()
}

// steerMatch is the match of the policy that the drift tests spoil.
func steerMatch() string {
	for _, p := range plan(nil).Policies {
		if p.ID.Row == "steer-ip4" {
			return p.Match
		}
	}
	return ""
}

func policyUUID(t *testing.T, nb *testbed.Database, condition string) string {
	t.Helper()
	uuid := nb.Control(t, "--bare", "--columns=_uuid", "find", tablePolicy, condition, "priority=109")
	if uuid == "" {
		t.Fatalf("no policy with %s", condition)
	}
	return uuid
}
