// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package ovn

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/internal/testbed"
)

// newTracedZone is a zone in the shape that OVN-Kubernetes gives n1's with interconnect and local
// gateway mode, dual-stack, with an ovn-northd.
func newTracedZone(t *testing.T) (*zone, *testbed.Database) {
	t.Helper()
	z := newZone(t)
	sb := testbed.NewSouthbound(t, z.nb)
	r := dataplane.ClusterRouter
	z.nb.Control(t, "--policy=src-ip", "lr-route-del", r, "10.244.1.0/24")
	z.nb.Control(t, "ls-add", "n1",
		"--", "lrp-add", r, "rtos-n1", "0a:58:0a:f4:01:01", "10.244.1.1/24", "fd00:10:244:1::1/64",
		"--", "lsp-add", "n1", "stor-n1", "--", "lsp-set-type", "stor-n1", "router", "--", "lsp-set-addresses", "stor-n1", "router",
		"--", "lsp-set-options", "stor-n1", "router-port=rtos-n1",
		"--", "lsp-add", "n1", "k8s-n1", "--", "lsp-set-addresses", "k8s-n1", "0a:58:0a:f4:01:02 10.244.1.2 fd00:10:244:1::2",
		"--", "lsp-add", "n1", "pod", "--", "lsp-set-addresses", "pod", "0a:58:0a:f4:01:05 10.244.1.5 fd00:10:244:1::5",
		"--", "lsp-add", "n1", "other", "--", "lsp-set-addresses", "other", "0a:58:0a:f4:01:09 10.244.1.9 fd00:10:244:1::9",
		"--", "ls-add", "transit_switch",
		"--", "lrp-add", r, "rtots-n1", "0a:58:64:58:00:02", "100.88.0.2/16", "fd97::2/64",
		"--", "lsp-add", "transit_switch", "tstor-n1", "--", "lsp-set-type", "tstor-n1", "router", "--", "lsp-set-addresses", "tstor-n1", "router",
		"--", "lsp-set-options", "tstor-n1", "router-port=rtots-n1",
		"--", "lsp-add", "transit_switch", "tstor-n2", "--", "lsp-set-type", "tstor-n2", "remote",
		"--", "lsp-set-addresses", "tstor-n2", "0a:58:64:58:00:03 100.88.0.3/16 fd97::3/64",
		"--", "lr-route-add", r, "10.244.2.0/24", "100.88.0.3", "--", "lr-route-add", r, "fd00:10:244:2::/64", "fd97::3",
		"--", "--policy=src-ip", "lr-route-add", r, "10.244.1.0/24", "10.244.1.2",
		"--", "--policy=src-ip", "lr-route-add", r, "fd00:10:244:1::/64", "fd00:10:244:1::2",
		// OVN-Kubernetes' own policy for the same pod, which ours have to win over.
		"--", "lr-policy-add", r, "102", "ip4.src == 10.244.0.0/16 && ip4.dst == 10.244.0.0/16", "allow")
	return z, sb
}

var outputTo = regexp.MustCompile(`output\("([^"]+)"\)`)

// trace returns the logical port that a packet leaves by, with the packet mark if it has one, or
// "dropped".
func trace(t *testing.T, sb *testbed.Database, inport, src, dst string) string {
	t.Helper()
	network, macs := "n1", `eth.src == 0a:58:0a:f4:01:05 && eth.dst == 0a:58:0a:f4:01:01`
	switch inport {
	case "tstor-n2":
		network, macs = "transit_switch", `eth.src == 0a:58:64:58:00:03 && eth.dst == 0a:58:64:58:00:02`
	case "other":
		macs = `eth.src == 0a:58:0a:f4:01:09 && eth.dst == 0a:58:0a:f4:01:01`
	}
	version := "ip4"
	if strings.Contains(src, ":") {
		version = "ip6"
	}
	flow := `inport == "` + inport + `" && ` + macs + ` && ip.ttl == 64 && ` + version + `.src == ` + src + ` && ` + version + `.dst == ` + dst
	out, err := exec.Command("ovn-trace", "--db=unix:"+sb.Socket, "--minimal", network, flow).CombinedOutput()
	if err != nil {
		t.Fatalf("ovn-trace: %v\n%s", err, out)
	}
	found := outputTo.FindStringSubmatch(string(out))
	if found == nil {
		return "dropped"
	}
	if strings.Contains(string(out), "pkt.mark = 0x3f0") || strings.Contains(string(out), "pkt.mark = 1008") {
		return found[1] + " marked"
	}
	return found[1]
}

// TestTrace asks OVN itself what our rows do to packets.
func TestTrace(t *testing.T) {
	const outside, outside6 = "198.51.100.7", "2001:db8::7"
	type packet struct{ inport, src, dst, want string }
	inCluster := []packet{
		{"pod", "10.244.1.5", "10.244.1.9", "other"},
		{"pod", "10.244.1.5", "10.244.2.9", "tstor-n2"},
		{"pod", "10.244.1.5", "172.18.0.11", "k8s-n1 marked"},
		{"pod", "fd00:10:244:1::5", "fd00:10:244:2::9", "tstor-n2"},
		{"pod", "fd00:10:244:1::5", "fc00:18::11", "k8s-n1 marked"},
		{"other", "10.244.1.9", outside, "k8s-n1"},
		{"tstor-n2", "10.244.2.5", "10.244.1.9", "other"},
	}
	tests := []struct {
		name    string
		want    dataplane.OVN
		packets []packet
	}{
		{"primary", plan(nil), append([]packet{
			{"pod", "10.244.1.5", outside, "k8s-n1"},
			{"pod", "fd00:10:244:1::5", outside6, "k8s-n1"},
			{"tstor-n2", "10.244.2.5", outside, "k8s-n1"},
		}, inCluster...)},
		{"standby", plan(asStandby), append([]packet{
			{"pod", "10.244.1.5", outside, "tstor-n2"},
			{"pod", "fd00:10:244:1::5", outside6, "tstor-n2"},
			{"tstor-n2", "10.244.2.5", outside, "k8s-n1"},
		}, inCluster...)},
		{"standby without a primary", plan(func(s *dataplane.Service) { asStandby(s); s.Primary = "" }), append([]packet{
			// The host holds them.
			{"pod", "10.244.1.5", outside, "k8s-n1"},
			{"pod", "fd00:10:244:1::5", outside6, "k8s-n1"},
			{"tstor-n2", "10.244.2.5", outside, "k8s-n1"},
		}, inCluster...)},
		{"endpoints only", plan(func(s *dataplane.Service) { s.Role, s.Primary = dataplane.RoleNone, "n2" }), append([]packet{
			{"pod", "10.244.1.5", outside, "tstor-n2"},
			{"pod", "fd00:10:244:1::5", outside6, "tstor-n2"},
		}, inCluster...)},
		{"nothing", dataplane.OVN{}, []packet{
			{"pod", "10.244.1.5", "10.244.2.9", "tstor-n2"},
			{"pod", "fd00:10:244:1::5", outside6, "k8s-n1"},
			// What our source route is for.
			{"tstor-n2", "10.244.2.5", outside, "dropped"},
		}},
	}
	z, sb := newTracedZone(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			z.apply(t, test.want)
			z.nb.Control(t, "--wait=sb", "sync")
			for _, p := range test.packets {
				if got := trace(t, sb, p.inport, p.src, p.dst); got != p.want {
					t.Errorf("%s: %s > %s leaves by %s, want %s", p.inport, p.src, p.dst, got, p.want)
				}
			}
		})
	}
}

// TestTraceStrays: where somebody else's source route gives arrivals a way out past the host, as
// OVN-Kubernetes' to the gateway router does for EgressIP, an endpoint that its own node sends here by
// mistake goes to the host all the same, and nobody else's pod does.
func TestTraceStrays(t *testing.T) {
	const outside, endpoint, ordinary = "198.51.100.7", "10.244.2.5", "10.244.2.77"
	z, sb := newTracedZone(t)
	z.nb.Control(t, "--policy=src-ip", "lr-route-add", dataplane.ClusterRouter, "10.244.0.0/16", "10.244.1.9")
	for _, step := range []struct {
		name  string
		want  dataplane.OVN
		stray string
	}{
		{"no service", dataplane.OVN{}, "other"},
		{"standby", plan(asStandby), "k8s-n1"},
		{"endpoints only", plan(func(s *dataplane.Service) { s.Role, s.Primary = dataplane.RoleNone, "n2" }), "k8s-n1"},
	} {
		z.apply(t, step.want)
		z.nb.Control(t, "--wait=sb", "sync")
		for _, p := range []struct{ src, dst, want string }{
			{endpoint, outside, step.stray},
			{endpoint, "10.244.1.9", "other"},
			{ordinary, outside, "other"},
			{ordinary, "10.244.1.9", "other"},
		} {
			if got := trace(t, sb, "tstor-n2", p.src, p.dst); got != p.want {
				t.Errorf("%s: %s > %s leaves by %s, want %s", step.name, p.src, p.dst, got, p.want)
			}
		}
	}
}
