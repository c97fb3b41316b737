// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/dataplane"
)

// withPorts is a Service with an address and ports such as "80", "53/UDP".
func withPorts(namespace, name, address string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: ports},
		Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: address}, {Hostname: "name"}}}},
	}
}

// TestGuards: every node guards the addresses of all EgressServices of the LoadBalancerIP kind, and
// lets in what any Service with such an address is asked for.
func TestGuards(t *testing.T) {
	r := newRig(t,
		withPorts("other", "shares-it", lbIP.String(), corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Port: 3868, Protocol: corev1.ProtocolSCTP}),
		withPorts("other", "ordinary", "172.19.0.200", corev1.ServicePort{Port: 80}),
		withPorts("ns", "unassigned", "172.19.0.201", corev1.ServicePort{Port: 443}),
		&egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "unassigned"}},
		withPorts("ns", "network", "172.19.0.202", corev1.ServicePort{Port: 80}),
		&egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "network"}, Spec: egressv1.EgressServiceSpec{SourceIPBy: egressv1.SourceIPNetwork}},
	)
	change(r, key, &corev1.Service{}, func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}} })
	for _, node := range []string{"n1", "n2"} {
		r.Node = node
		r.sync()
		want := []dataplane.Guard{
			{Address: netip.MustParseAddr("172.19.0.201"), Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 443}}},
			{Address: lbIP, Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}, {Protocol: dataplane.UDP, Number: 53}, {Protocol: dataplane.SCTP, Number: 3868}}},
		}
		if diff := cmp.Diff(want, r.dataplane.plan.Host.Guards, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", node, diff)
		}
	}
}

// TestWideSubnet: a node that calls the whole world its pod subnet must not make it one.
func TestWideSubnet(t *testing.T) {
	r := newRig(t)
	change(r, types.NamespacedName{Name: "n2"}, &corev1.Node{}, func(n *corev1.Node) {
		n.Annotations[ovnkubernetes.NodeSubnets] = `{"default":["0.0.0.0/0"]}`
	})
	r.sync()
	outside := netip.MustParseAddr("198.51.100.7")
	if i := slices.IndexFunc(r.dataplane.plan.Host.Internal, func(p netip.Prefix) bool { return p.Contains(outside) }); i >= 0 {
		t.Errorf("%s counts as inside", r.dataplane.plan.Host.Internal[i])
	}
	if !slices.ContainsFunc(r.ledger.allProblems(), func(p string) bool { return strings.Contains(p, "n2: its pod subnet 0.0.0.0/0 is too wide") }) {
		t.Errorf("problems %q", r.ledger.allProblems())
	}
}

func TestHostAndSyncsAreReported(t *testing.T) {
	r := newRig(t)
	r.HostProblems = func() []string { return []string{"a setting is wrong"} }
	syncs := 0
	r.ObserveSync = func(time.Duration, error) { syncs++ }
	r.StraysPass = true
	r.sync()
	if !slices.Contains(r.ledger.allProblems(), "a setting is wrong") || syncs == 0 {
		t.Errorf("problems %q, %d syncs", r.ledger.allProblems(), syncs)
	}
	if r.dataplane.plan.Host.Pods != nil {
		t.Error("strays are dropped though they may pass")
	}
}
