// SPDX-License-Identifier: Apache-2.0

package ovnkubernetes

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compareNetip = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestParse(t *testing.T) {
	tests := []struct {
		name        string
		annotations map[string]string
		want        Node
		wantError   string
	}{
		{name: "nothing"},
		{
			name: "dual stack, interconnect",
			annotations: map[string]string{
				NodeSubnets:       `{"default":["10.244.1.0/24","fd00:10:244:2::/64"],"blue":["10.9.0.0/24"]}`,
				TransitSwitchPort: `{"ipv4":"100.88.0.2/16","ipv6":"fd97::2/64"}`,
				HostCIDRs:         `["172.18.0.11/24","fc00::11/64"]`,
				L3GatewayConfig:   `{"default":{"mode":"local","interface-id":"br-ex_n1"}}`,
			},
			want: Node{
				PodSubnets:       []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")},
				TransitAddresses: []netip.Addr{netip.MustParseAddr("100.88.0.2"), netip.MustParseAddr("fd97::2")},
				HostAddresses:    []netip.Prefix{netip.MustParsePrefix("172.18.0.11/24"), netip.MustParsePrefix("fc00::11/64")},
				GatewayMode:      "local",
			},
		},
		{
			name:        "one subnet as a string",
			annotations: map[string]string{NodeSubnets: `{"default":"10.244.1.0/24"}`},
			want:        Node{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		},
		{
			name:        "one bad annotation leaves the others",
			annotations: map[string]string{NodeSubnets: `{"default":["10.244.1.0"]}`, HostCIDRs: `["172.18.0.11/24"]`},
			want:        Node{HostAddresses: []netip.Prefix{netip.MustParsePrefix("172.18.0.11/24")}},
			wantError:   NodeSubnets,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse(test.annotations)
			if diff := cmp.Diff(test.want, got, compareNetip); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if (err == nil) != (test.wantError == "") || err != nil && !strings.Contains(err.Error(), test.wantError) {
				t.Errorf("error %v, want one that names %q", err, test.wantError)
			}
		})
	}
}

func TestManagementAddresses(t *testing.T) {
	node := Node{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}}
	want := []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:1::2")}
	if diff := cmp.Diff(want, node.ManagementAddresses(), compareNetip); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
