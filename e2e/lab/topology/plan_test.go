// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOptions(t *testing.T) {
	tests := map[string]struct {
		options Options
		want    string
	}{
		"defaults":         {options: Options{Prefix: "mle", Dir: "/run/mle"}},
		"no prefix":        {options: Options{Dir: "/run/mle"}, want: "prefix"},
		"dash in prefix":   {options: Options{Prefix: "a-b", Dir: "/run/mle"}, want: "prefix"},
		"no folder":        {options: Options{Prefix: "mle"}, want: "no folder"},
		"shared gateway":   {options: Options{Prefix: "mle", Dir: "/run/mle", Gateway: Shared}, want: "local only"},
		"unknown gateway":  {options: Options{Prefix: "mle", Dir: "/run/mle", Gateway: "other"}, want: "unknown"},
		"too many nodes":   {options: Options{Prefix: "mle", Dir: "/run/mle", Nodes: 81}, want: "81 nodes"},
		"folder too long":  {options: Options{Prefix: "mle", Dir: "/" + strings.Repeat("d", 100)}, want: "too long"},
		"as many as fit":   {options: Options{Prefix: "mle", Dir: "/run/mle", Nodes: 80}},
		"local said aloud": {options: Options{Prefix: "mle", Dir: "/run/mle", Gateway: Local}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.options.complete()
			if test.want == "" {
				if err != nil || got.Gateway != Local || got.Nodes == 0 {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestNodePlan(t *testing.T) {
	n := Options{Prefix: "mle", Dir: "/run/mle", Gateway: Local}.node(1)
	got := map[string]string{
		"name": n.Name, "netns": n.Netns, "address": n.Address.String(), "uplink": n.UplinkMAC.String(), "pods": n.PodSubnet.String(),
		"management": n.ManagementAddress.String(), "management MAC": n.ManagementMAC.String(), "transit": n.TransitAddress.String(),
		"address6": n.Address6.String(), "pods6": n.PodSubnet6.String(), "management6": n.ManagementAddress6.String(),
		"transit6": n.TransitAddress6.String(), "join6": n.JoinAddress6.String(),
		"join": n.JoinAddress.String(), "control": n.ControlAddress.String(), "northbound": n.NorthboundSocket, "openvswitch": n.OpenvSwitchSocket,
	}
	want := map[string]string{
		"name": "n1", "netns": "mle-n1", "address": "172.18.0.11", "uplink": "02:00:ac:12:00:0b", "pods": "10.244.1.0/24",
		"management": "10.244.1.2", "management MAC": "0a:58:0a:f4:01:02", "transit": "100.88.0.2", "join": "100.64.0.2", "control": "10.250.0.11",
		"address6": "fd00:18::11", "pods6": "fd00:10:244:1::/64", "management6": "fd00:10:244:1::2", "transit6": "fd97::2", "join6": "fd98::2",
		"northbound": "/run/mle/topology/n1/nb.sock", "openvswitch": "/run/mle/topology/n1/ovs.sock",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	annotations := map[string]string{
		"k8s.ovn.org/zone-name":                       "n1",
		"k8s.ovn.org/remote-zone-migrated":            "n1",
		"k8s.ovn.org/node-id":                         "2",
		"k8s.ovn.org/node-chassis-id":                 "n1",
		"k8s.ovn.org/network-ids":                     `{"default":"0"}`,
		"k8s.ovn.org/node-encap-ips":                  `["172.18.0.11"]`,
		"k8s.ovn.org/node-primary-ifaddr":             `{"ipv4":"172.18.0.11/24","ipv6":"fd00:18::11/64"}`,
		"k8s.ovn.org/host-cidrs":                      `["172.18.0.11/24","fd00:18::11/64","10.250.0.11/24"]`,
		"k8s.ovn.org/node-subnets":                    `{"default":["10.244.1.0/24","fd00:10:244:1::/64"]}`,
		"k8s.ovn.org/node-mgmt-port-mac-addresses":    `{"default":"0a:58:0a:f4:01:02"}`,
		"k8s.ovn.org/node-transit-switch-port-ifaddr": `{"ipv4":"100.88.0.2/16","ipv6":"fd97::2/64"}`,
		"k8s.ovn.org/node-gateway-router-lrp-ifaddr":  `{"ipv4":"100.64.0.2/16","ipv6":"fd98::2/64"}`,
		"k8s.ovn.org/node-gateway-router-lrp-ifaddrs": `{"default":{"ipv4":"100.64.0.2/16","ipv6":"fd98::2/64"}}`,
		"k8s.ovn.org/node-masquerade-subnet":          `{"ipv4":"169.254.0.0/17","ipv6":"fd69::/112"}`,
		"k8s.ovn.org/l3-gateway-config": `{"default":{"bridge-id":"br-ex","interface-id":"br-ex_n1","ip-addresses":["172.18.0.11/24","fd00:18::11/64"],` +
			`"mac-address":"02:00:ac:12:00:0b","mode":"local","next-hops":["172.18.0.100","fd00:18::100"],"node-port-enable":"true","vlan-id":"0"}}`,
	}
	if diff := cmp.Diff(annotations, n.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

// Whatever a zone has in IPv4 it has in IPv6.
func TestZoneInBothFamilies(t *testing.T) {
	o := Options{Prefix: "mle", Dir: "/run/mle", Gateway: Local}
	n, other := o.node(1), o.node(2)
	var got []string
	for _, command := range append(zoneCommands(n), remoteZoneCommands(other)...) {
		line := strings.Join(command, " ")
		for _, word := range []string{"lrp-add ", "lsp-set-addresses ", "lr-route-add ", "lr-policy-add ", "lr-nat-add "} {
			if strings.Contains(line, word) && !strings.HasSuffix(line, " router") && !strings.HasSuffix(line, " unknown") {
				got = append(got, line)
			}
		}
	}
	want := []string{
		"lrp-add ovn_cluster_router rtoj-ovn_cluster_router 0a:58:64:40:00:01 100.64.0.1/16 fd98::1/64",
		"lrp-add ovn_cluster_router rtos-n1 0a:58:0a:f4:01:01 10.244.1.1/24 fd00:10:244:1::1/64",
		"lsp-set-addresses k8s-n1 0a:58:0a:f4:01:02 10.244.1.2 fd00:10:244:1::2",
		"lrp-add GR_n1 rtoj-GR_n1 0a:58:64:40:00:02 100.64.0.2/16 fd98::2/64",
		"lrp-add GR_n1 rtoe-GR_n1 02:00:ac:12:00:0b 172.18.0.11/24 fd00:18::11/64",
		"lr-route-add GR_n1 10.244.0.0/16 100.64.0.1",
		"lr-route-add GR_n1 0.0.0.0/0 172.18.0.100 rtoe-GR_n1",
		"lr-nat-add GR_n1 snat 172.18.0.11 10.244.0.0/16",
		"lr-route-add GR_n1 fd00:10:244::/48 fd98::1",
		"lr-route-add GR_n1 ::/0 fd00:18::100 rtoe-GR_n1",
		"lr-nat-add GR_n1 snat fd00:18::11 fd00:10:244::/48",
		"lrp-add ovn_cluster_router rtots-n1 0a:58:64:58:00:02 100.88.0.2/16 fd97::2/64",
		"--policy=src-ip lr-route-add ovn_cluster_router 10.244.1.0/24 10.244.1.2",
		"lr-route-add ovn_cluster_router 100.64.0.2 100.64.0.2",
		"lr-policy-add ovn_cluster_router 1005 ip4.src == 10.244.1.2 && ip4.dst == 172.18.0.11 /* n1 */ reroute 10.244.1.2",
		`lr-policy-add ovn_cluster_router 1004 inport == "rtos-n1" && ip4.dst == 172.18.0.11 /* n1 */ reroute 10.244.1.2`,
		`lr-policy-add ovn_cluster_router 1004 inport == "rtos-n1" && ip4.dst == 10.250.0.11 /* n1 */ reroute 10.244.1.2`,
		"--policy=src-ip lr-route-add ovn_cluster_router fd00:10:244:1::/64 fd00:10:244:1::2",
		"lr-route-add ovn_cluster_router fd98::2 fd98::2",
		"lr-policy-add ovn_cluster_router 1005 ip6.src == fd00:10:244:1::2 && ip6.dst == fd00:18::11 /* n1 */ reroute fd00:10:244:1::2",
		`lr-policy-add ovn_cluster_router 1004 inport == "rtos-n1" && ip6.dst == fd00:18::11 /* n1 */ reroute fd00:10:244:1::2`,
		"lsp-set-addresses tstor-n2 0a:58:64:58:00:03 100.88.0.3/16 fd97::3/64",
		"lr-route-add ovn_cluster_router 10.244.2.0/24 100.88.0.3",
		"lr-route-add ovn_cluster_router 100.64.0.3 100.88.0.3",
		"lr-route-add ovn_cluster_router fd00:10:244:2::/64 fd97::3",
		"lr-route-add ovn_cluster_router fd98::3 fd97::3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAddressesOfManyNodes(t *testing.T) {
	last := Options{Prefix: "mle", Dir: "/run/mle"}.node(maxNodes)
	if got, want := last.Address6.String()+" "+last.PodSubnet6.String(), "fd00:18::60 fd00:10:244:50::/64"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if addresses := last.Addresses(); len(addresses) != 2 || addresses[0] != last.Address || addresses[1] != last.Address6 {
		t.Errorf("addresses %v", addresses)
	}
}

func TestHostOf(t *testing.T) {
	tests := []struct {
		subnet string
		number int
		want   string
	}{
		{"172.18.0.0/24", 0, "172.18.0.0"},
		{"172.18.0.77/24", 11, "172.18.0.11"},
		{"10.244.0.0/16", 3 << 8, "10.244.3.0"},
		{"10.0.0.255/32", 1, "10.0.1.0"},
		{"fd00:18::7/64", 0x11, "fd00:18::11"},
	}
	for _, test := range tests {
		if got := hostOf(netip.MustParsePrefix(test.subnet), test.number).String(); got != test.want {
			t.Errorf("%s number %d is %s, want %s", test.subnet, test.number, got, test.want)
		}
	}
}

func TestParsePaths(t *testing.T) {
	tests := map[string]struct {
		output string
		want   []BGPPath
		fails  bool
	}{
		"no route": {output: "{}", want: []BGPPath{}},
		"two": {
			output: `{"prefix":"172.19.0.100/32","paths":[
				{"valid":true,"multipath":true,"bestpath":{"overall":true,"selectionReason":"Router ID"},"nexthops":[{"ip":"172.18.0.11","afi":"ipv4","used":true}]},
				{"valid":true,"stale":true,"nexthops":[{"ip":"172.18.0.12"}]}]}`,
			want: []BGPPath{
				{NextHop: netip.MustParseAddr("172.18.0.11"), Valid: true, Best: true, Multipath: true},
				{NextHop: netip.MustParseAddr("172.18.0.12"), Valid: true, Stale: true},
			},
		},
		"IPv6, with a link-local next hop too": {
			output: `{"prefix":"fd00:19::100/128","paths":[{"valid":true,"bestpath":{"overall":true},"nexthops":[
				{"ip":"fd00:18::11","afi":"ipv6","scope":"global"},{"ip":"fe80::acff:fe12:b","afi":"ipv6","scope":"link-local","used":true}]}]}`,
			want: []BGPPath{{NextHop: netip.MustParseAddr("fd00:18::11"), Valid: true, Best: true}},
		},
		"no next hop": {output: `{"paths":[{"valid":true}]}`, fails: true},
		"no JSON":     {output: "% Network not in table", fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parsePaths([]byte(test.output))
			if (err != nil) != test.fails {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, compareAddresses); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

var compareAddresses = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestParseCounters(t *testing.T) {
	const output = `{"nftables": [{"metainfo": {"json_schema_version": 1}}, {"set": {"family": "bridge", "name": "to_node", "elem": [
		{"elem": {"val": {"concat": ["up-n1", "172.18.0.11"]}, "counter": {"packets": 7, "bytes": 700}}},
		{"elem": {"val": {"concat": ["up-n2", "172.19.0.100"]}, "counter": {"packets": 3, "bytes": 300}}},
		{"elem": {"val": {"concat": ["up-n1", "fd00:18::11"]}, "counter": {"packets": 5, "bytes": 500}}}]}}]}`
	tests := []struct {
		device, address string
		want            uint64
	}{
		{"up-n1", "172.18.0.11", 7},
		{"up-n2", "172.19.0.100", 3},
		{"up-n1", "172.19.0.100", 0},
		{"up-n1", "fd00:18::11", 5},
	}
	for _, test := range tests {
		got, err := parseCounters([]byte(output), test.device, netip.MustParseAddr(test.address))
		if err != nil || got != test.want {
			t.Errorf("%s %s: %d (%v), want %d", test.device, test.address, got, err, test.want)
		}
	}
	if got, err := parseCounters([]byte(`{"nftables": [{"set": {"name": "to_node"}}]}`), "up-n1", netip.MustParseAddr("10.0.0.1")); err != nil || got != 0 {
		t.Errorf("empty set: %d (%v)", got, err)
	}
}

func TestBalancerCommands(t *testing.T) {
	dns := LoadBalancer{Name: "dns", Protocol: "udp", VIP: netip.MustParseAddrPort("10.96.0.10:53"),
		Backends: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.3:5353"), netip.MustParseAddrPort("10.244.2.3:5353")}}
	overTCP := LoadBalancer{Name: "dns", Protocol: "tcp", VIP: dns.VIP}
	columns := []string{`name="dns"`, "protocol=udp", `vips={"10.96.0.10:53"="10.244.1.3:5353,10.244.2.3:5353"}`,
		`options={reject="true",hairpin_snat_ip="169.254.0.5 fd69::5"}`, `external_ids={"lab-load-balancer"="udp/10.96.0.10:53"}`}
	tests := map[string]struct {
		existing map[string]string
		wanted   []LoadBalancer
		want     [][]string
	}{
		"nothing": {},
		"new": {
			wanted: []LoadBalancer{dns},
			want: [][]string{append([]string{"--id=@lb0", "create", "Load_Balancer"}, columns...),
				{"add", "Logical_Switch", "n1", "load_balancer", "@lb0"}},
		},
		"there already": {
			existing: map[string]string{"udp/10.96.0.10:53": "uuid-1"},
			wanted:   []LoadBalancer{dns, dns},
			want:     [][]string{append([]string{"set", "Load_Balancer", "uuid-1"}, columns...)},
		},
		"gone": {
			existing: map[string]string{"udp/10.96.0.10:53": "uuid-2", "tcp/10.96.0.11:53": "uuid-1"},
			want:     [][]string{{"lb-del", "uuid-1"}, {"lb-del", "uuid-2"}},
		},
		"IPv6": {
			wanted: []LoadBalancer{{Name: "dns", Protocol: "udp", VIP: netip.MustParseAddrPort("[fd00:10:96::a]:53"),
				Backends: []netip.AddrPort{netip.MustParseAddrPort("[fd00:10:244:1::3]:5353")}}},
			want: [][]string{{"--id=@lb0", "create", "Load_Balancer", `name="dns"`, "protocol=udp", `vips={"[fd00:10:96::a]:53"="[fd00:10:244:1::3]:5353"}`,
				columns[3], `external_ids={"lab-load-balancer"="udp/[fd00:10:96::a]:53"}`}, {"add", "Logical_Switch", "n1", "load_balancer", "@lb0"}},
		},
		"no backends": {
			wanted: []LoadBalancer{overTCP},
			want: [][]string{{"--id=@lb0", "create", "Load_Balancer", `name="dns"`, "protocol=tcp", `vips={"10.96.0.10:53"=""}`, columns[3],
				`external_ids={"lab-load-balancer"="tcp/10.96.0.10:53"}`}, {"add", "Logical_Switch", "n1", "load_balancer", "@lb0"}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, balancerCommands("n1", test.existing, test.wanted)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseBalancers(t *testing.T) {
	const output = `{"headings":["_uuid","external_ids"],"data":[
		[["uuid","uuid-1"],["map",[["lab-load-balancer","udp/10.96.0.10:53"],["other","value"]]]],
		[["uuid","uuid-2"],["map",[]]]]}`
	got, err := parseBalancers([]byte(output))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"udp/10.96.0.10:53": "uuid-1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Down stops the nodes' and the ToR's programs, and leaves those of others in the same Set.
func TestOwnProcess(t *testing.T) {
	tests := map[string]string{
		"n1.ovn-northd": "n1", "n12.ovsdb-nb": "n12", "tor.bgpd": "tor",
		"etcd": "", "kube-apiserver": "", "n1": "", "monitor.x": "", "an1.x": "",
	}
	for name, want := range tests {
		var got string
		if match := ownProcess.FindStringSubmatch(name); match != nil {
			got = match[1]
		}
		if got != want {
			t.Errorf("%s belongs to %q, want %q", name, got, want)
		}
	}
}
