// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/bgp"
)

type fakeSpeaker struct {
	bgp.Speaker
	sessions []bgp.Session
	counters []bgp.Counters
}

func (s fakeSpeaker) Sessions() []bgp.Session                 { return s.sessions }
func (s fakeSpeaker) Counters(context.Context) []bgp.Counters { return s.counters }

func TestCollector(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	speaker := fakeSpeaker{
		sessions: []bgp.Session{{Peer: four, State: bgp.Established, BFD: bgp.BFDUp}, {VRF: "red", Peer: six, State: bgp.Active}},
		counters: []bgp.Counters{
			{
				Peer: four, AnnouncedPrefixes: 1, ReceivedPrefixes: 2,
				Sent: bgp.Messages{Opens: 3, Updates: 4, Notifications: 5, Keepalives: 6, RouteRefreshes: 7, Total: 8}, Received: bgp.Messages{Opens: 9, Updates: 10, Keepalives: 11, Total: 12},
				BFDPacketsSent: 13, BFDPacketsReceived: 14, BFDUps: 15, BFDDowns: 16,
			},
			{VRF: "red", Peer: six},
		},
	}
	collector := New(speaker, func() map[types.NamespacedName]int {
		return map[types.NamespacedName]int{{Namespace: "metallb-system", Name: "metallb-n1"}: 17}
	})
	want := `
# HELP egress_speaker_frrconfiguration_problems What of an FRRConfiguration this node does not honor; none: no series.
# TYPE egress_speaker_frrconfiguration_problems gauge
egress_speaker_frrconfiguration_problems{name="metallb-n1",namespace="metallb-system"} 17
# HELP frrk8s_bfd_control_packet_input BFD control packets received.
# TYPE frrk8s_bfd_control_packet_input counter
frrk8s_bfd_control_packet_input{peer="192.0.2.1",vrf="default"} 14
# HELP frrk8s_bfd_control_packet_output BFD control packets sent.
# TYPE frrk8s_bfd_control_packet_output counter
frrk8s_bfd_control_packet_output{peer="192.0.2.1",vrf="default"} 13
# HELP frrk8s_bfd_session_down_events How often BFD went down.
# TYPE frrk8s_bfd_session_down_events counter
frrk8s_bfd_session_down_events{peer="192.0.2.1",vrf="default"} 16
# HELP frrk8s_bfd_session_up BFD session state (1 is up, 0 is down).
# TYPE frrk8s_bfd_session_up gauge
frrk8s_bfd_session_up{peer="192.0.2.1",vrf="default"} 1
# HELP frrk8s_bfd_session_up_events How often BFD came up.
# TYPE frrk8s_bfd_session_up_events counter
frrk8s_bfd_session_up_events{peer="192.0.2.1",vrf="default"} 15
`
	for _, m := range []struct {
		name, help, kind string
		four, six        int
	}{
		{"announced_prefixes_total", "Prefixes that the peer is given now.", "gauge", 1, 0},
		{"keepalives_received", "BGP KEEPALIVE messages received.", "counter", 11, 0},
		{"keepalives_sent", "BGP KEEPALIVE messages sent.", "counter", 6, 0},
		{"notifications_sent", "BGP NOTIFICATION messages sent.", "counter", 5, 0},
		{"opens_received", "BGP OPEN messages received.", "counter", 9, 0},
		{"opens_sent", "BGP OPEN messages sent.", "counter", 3, 0},
		{"received_prefixes_total", "Prefixes that the peer gives now; none is used.", "gauge", 2, 0},
		{"route_refresh_sent", "BGP ROUTE-REFRESH messages sent.", "counter", 7, 0},
		{"session_up", "BGP session state (1 is up, 0 is down).", "gauge", 1, 0},
		{"total_received", "BGP messages received.", "counter", 12, 0},
		{"total_sent", "BGP messages sent.", "counter", 8, 0},
		{"updates_total", "BGP UPDATE messages sent.", "counter", 4, 0},
		{"updates_total_received", "BGP UPDATE messages received.", "counter", 10, 0},
	} {
		want += expected("frrk8s_bgp_"+m.name, m.help, m.kind, m.four, m.six)
	}
	if err := testutil.CollectAndCompare(collector, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// expected is a metric of both sessions.
func expected(name, help, kind string, four, six int) string {
	return fmt.Sprintf("# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n%[1]s{peer=\"192.0.2.1\",vrf=\"default\"} %[4]d\n%[1]s{peer=\"2001:db8::1\",vrf=\"red\"} %[5]d\n", name, help, kind, four, six)
}

// TestMetricsAreDocumented compares the names in docs/metrics.md with those there are.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## BGP sessions")
	section, _, _ = strings.Cut(section, "\n## Alerts")
	documented := regexp.MustCompile("`((frrk8s|egress_speaker)_[a-z_]+)`").FindAllStringSubmatch(section, -1)
	want := map[string]bool{}
	for _, match := range documented {
		want[match[1]] = true
	}
	descriptions := make(chan *prometheus.Desc, 100)
	New(nil, nil).Describe(descriptions)
	NewDataplane(nil, true).Describe(descriptions)
	close(descriptions)
	got := map[string]bool{}
	for d := range descriptions {
		got[regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1]] = true
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 10 {
		t.Errorf("-docs/metrics.md +this package:\n%s", diff)
	}
}
