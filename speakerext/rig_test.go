// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
	"github.com/metallb-egress/metallb-egress/dataplane"
)

// fakeDataplane takes plans; a test decides when the integration bridge has them.
type fakeDataplane struct {
	plan      dataplane.Plan
	sequence  dataplane.Sequence
	installed dataplane.Sequence
	err       error
}

func (d *fakeDataplane) Counters(context.Context) (dataplane.Counters, error) {
	return dataplane.Counters{}, nil
}

func (d *fakeDataplane) Apply(_ context.Context, plan dataplane.Plan) (dataplane.Sequence, error) {
	if d.err != nil {
		return 0, d.err
	}
	if !cmp.Equal(d.plan.Dump(), plan.Dump()) || d.sequence == 0 {
		d.sequence++
	}
	d.plan = plan
	return d.sequence, nil
}
func (d *fakeDataplane) Installed() dataplane.Sequence { return d.installed }
func (d *fakeDataplane) Changed() <-chan struct{}      { return nil }
func (d *fakeDataplane) Remove(context.Context) error  { return nil }
func (d *fakeDataplane) Close()                        {}

// fakeBGP holds what it was given, and its one session is established unless sessions says otherwise.
type fakeBGP struct {
	config   bgp.Config
	sessions []bgp.Session
}

func (b *fakeBGP) Apply(_ context.Context, want bgp.Config) error {
	b.config = want
	return nil
}
func (b *fakeBGP) Sessions() []bgp.Session {
	if b.sessions != nil {
		return b.sessions
	}
	return []bgp.Session{{Peer: netip.MustParseAddr("172.18.0.100"), State: bgp.Established, GracefulRestart: true}}
}
func (b *fakeBGP) Counters(context.Context) []bgp.Counters  { return nil }
func (b *fakeBGP) Announced(p netip.Prefix) bool            { return b.config.Offers(p.Addr()) }
func (b *fakeBGP) Changed() <-chan struct{}                 { return nil }
func (b *fakeBGP) Stop(context.Context, bgp.StopMode) error { return nil }

// rig is the speaker of node n1 over a fake API server.
type rig struct {
	*testing.T
	*Speaker
	dataplane *fakeDataplane
	bgp       *fakeBGP
	events    *events.FakeRecorder
	now       time.Time
}

var (
	lbIP = netip.MustParseAddr("192.0.2.1")
	key  = types.NamespacedName{Namespace: "ns", Name: "s"}
)

const label = "egress-service.k8s.ovn.org/ns-s"

func newRig(t *testing.T, objects ...client.Object) *rig {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme, bgp.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(cluster(), objects...)...).WithStatusSubresource(&v1alpha1.EgressNode{}, &frrk8sv1beta1.BGPSessionState{}).Build()
	r := &rig{T: t, dataplane: &fakeDataplane{}, bgp: &fakeBGP{}, events: events.NewFakeRecorder(100), now: time.Unix(1000, 0)}
	r.Speaker = New(Options{
		Node: "n1", Version: "test", FRRNamespace: "metallb-system", Client: c, Recorder: r.events,
		Subnets:   Subnets{Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}},
		Dataplane: r.dataplane, BGP: r.bgp, Logger: log.NewNopLogger(), Now: func() time.Time { return r.now },
	})
	return r
}

// cluster has two nodes, a service with a pod on each, its EgressService, an assignment with
// n1 as primary, and n1's FRRConfiguration with the service's and another address.
func cluster() []client.Object {
	meta := func(kind string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "ns", Name: "s", UID: types.UID("uid-of-" + kind)}
	}
	yes := true
	assignment := meta("assignment")
	assignment.Generation = 7
	assignment.OwnerReferences = []metav1.OwnerReference{{APIVersion: "k8s.ovn.org/v1", Kind: "EgressService", Name: "s", UID: "uid-of-egress", Controller: &yes}}
	return []client.Object{
		aNode("n1", "1"), aNode("n2", "2"), aPod("ns", "p1", "n1", "10.244.1.5"), aPod("ns", "p2", "n2", "10.244.2.5"),
		&corev1.Service{ObjectMeta: meta("service"), Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: lbIP.String()}}}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.5"}}, {Addresses: []string{"10.244.2.5"}}},
		},
		&egressv1.EgressService{ObjectMeta: meta("egress")},
		&v1alpha1.EgressAssignment{ObjectMeta: assignment, Spec: v1alpha1.EgressAssignmentSpec{
			Epoch: 1, Primary: "n1", Standby: "n2", LabelKey: label, SourceIPBy: "LoadBalancerIP", SourceIPs: []string{lbIP.String()}, FailurePolicy: v1alpha1.FailOpen,
		}},
		&bgp.FRRConfiguration{FRRConfiguration: frrk8sv1beta1.FRRConfiguration{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "metallb-n1"}, Spec: frrk8sv1beta1.FRRConfigurationSpec{BGP: frrk8sv1beta1.BGPConfig{Routers: []frrk8sv1beta1.Router{{
			ASN: 64513, ID: "172.18.0.11", Prefixes: []string{"192.0.2.1/32", "192.0.2.9/32"},
			Neighbors: []frrk8sv1beta1.Neighbor{{ASN: 64512, Address: "172.18.0.100", ToAdvertise: frrk8sv1beta1.Advertise{Allowed: frrk8sv1beta1.AllowedOutPrefixes{Prefixes: []string{"192.0.2.1/32", "192.0.2.9/32"}}}}},
		}}}}}},
	}
}

func aNode(name, number string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}, Annotations: map[string]string{
		ovnkubernetes.NodeSubnets:       `{"default":["10.244.` + number + `.0/24"]}`,
		ovnkubernetes.TransitSwitchPort: `{"ipv4":"100.88.0.` + number + `/16"}`,
		ovnkubernetes.HostCIDRs:         `["172.18.0.1` + number + `/24"]`,
		ovnkubernetes.L3GatewayConfig:   `{"default":{"mode":"local"}}`,
	}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.18.0.1" + number}}}}
}

func aPod(namespace, name, node, address string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: address}}},
	}
}

// sync runs the dataplane loop and then, as it would wake them, the others.
func (r *rig) sync() {
	r.Helper()
	if _, err := r.SyncDataplane(r.Context()); err != nil {
		r.Fatal(err)
	}
	r.syncBGP()
}

func (r *rig) syncBGP() {
	r.Helper()
	if _, err := r.SyncBGP(r.Context()); err != nil {
		r.Fatal(err)
	}
	r.now = r.now.Add(reportInterval)
	if _, err := r.SyncReport(r.Context()); err != nil {
		r.Fatal(err)
	}
}

// settle brings the flows of the applied plan to the bridge.
func (r *rig) settle() {
	r.Helper()
	r.dataplane.installed = r.dataplane.sequence
	r.sync()
}

// change edits an object.
func change[T client.Object](r *rig, name types.NamespacedName, object T, edit func(T)) {
	r.Helper()
	if err := r.Client.Get(r.Context(), name, object); err != nil {
		r.Fatal(err)
	}
	edit(object)
	if err := r.Client.Update(r.Context(), object); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) setLabel(on bool) {
	r.Helper()
	change(r, types.NamespacedName{Name: "n1"}, &corev1.Node{}, func(n *corev1.Node) {
		n.Labels = map[string]string{}
		if on {
			n.Labels[label] = ""
		}
	})
}

// assign edits the assignment, which gets the next generation.
func (r *rig) assign(edit func(*v1alpha1.EgressAssignmentSpec)) {
	r.Helper()
	change(r, key, &v1alpha1.EgressAssignment{}, func(a *v1alpha1.EgressAssignment) {
		edit(&a.Spec)
		a.Generation++
	})
}

func (r *rig) announces(address string) bool {
	return r.bgp.config.Offers(netip.MustParseAddr(address))
}

// report is this node's entry for the service.
func (r *rig) report() v1alpha1.EgressNodeService {
	r.Helper()
	var report v1alpha1.EgressNode
	if err := r.Client.Get(r.Context(), types.NamespacedName{Name: "n1"}, &report); err != nil {
		r.Fatal(err)
	}
	for _, s := range report.Status.Services {
		if s.Key == key.String() {
			return s
		}
	}
	return v1alpha1.EgressNodeService{}
}
