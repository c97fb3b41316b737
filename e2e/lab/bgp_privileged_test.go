// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// patience bounds every wait: MetalLB alone takes three seconds to hand a change over, and the machine may be busy.
const patience = 40 * time.Second

// testBGP shows that the speakers do for stock MetalLB, and for other writers of FRRConfigurations, what frr-k8s would, and say what
// they don't. It leaves the lab as it was.
func testBGP(t *testing.T, l *lab.Lab) {
	if err := metallbv1beta2.AddToScheme(l.Client.Scheme()); err != nil {
		t.Fatal(err)
	}
	inTurn(t, l, []step{
		{"ordinary service", testOrdinaryService},
		{"session states", testSessionStates},
		{"metrics", testMetrics},
		{"password", testPassword},
		{"wrong AS number", testWrongASN},
		{"not honored", testNotHonored},
		{"frr-k8s", testFRRK8s},
	})
}

// testOrdinaryService has MetalLB announce a dual-stack Service that no EgressService concerns, with one BGPAdvertisement that is changed
// again and again.
func testOrdinaryService(t *testing.T, l *lab.Lab) {
	addresses := ordinaryService(t, l)
	nodes := l.Topology.Nodes()
	advertisement := &metallbv1beta1.BGPAdvertisement{
		ObjectMeta: inMetalLB("ordinary"),
		Spec:       metallbv1beta1.BGPAdvertisementSpec{IPAddressPools: []string{"ordinary"}},
	}
	create(t, l, advertisement)
	arrive := func(what string, want func(lab.Family) []torPath) {
		t.Helper()
		for _, f := range families {
			address := addresses[f.Name]
			awaitPaths(t, l, what+", in "+f.Name, netip.PrefixFrom(address, address.BitLen()), want(f))
		}
	}
	arrive("by default, one path through every node", func(f lab.Family) []torPath { return through(f, nodes, "", "") })
	for _, address := range addresses {
		if _, err := l.Source(t.Context(), l.Topology.OutsideNetns(), netip.AddrPortFrom(address, 8080)); err != nil {
			t.Errorf("the service does not answer from outside: %v", err)
		}
	}
	for _, step := range []struct {
		what   string
		change func(*metallbv1beta1.BGPAdvertisementSpec)
		want   func(lab.Family) []torPath
	}{
		{"nodeSelectors: one path, through that node", func(s *metallbv1beta1.BGPAdvertisementSpec) {
			s.NodeSelectors = []metav1.LabelSelector{hostname(nodes[1].Name)}
		}, func(f lab.Family) []torPath { return through(f, nodes[1:2], "", "") }},
		{"peers, a name of none: no path", func(s *metallbv1beta1.BGPAdvertisementSpec) {
			s.NodeSelectors, s.Peers = nil, []string{"nobody"}
		}, func(lab.Family) []torPath { return nil }},
		{"communities, and the ToR as peer: they arrive, from every node", func(s *metallbv1beta1.BGPAdvertisementSpec) {
			s.Peers, s.Communities = []string{"tor"}, []string{"64512:7", "large:64512:1:2"}
		}, func(f lab.Family) []torPath { return through(f, nodes, "64512:7", "64512:1:2") }},
	} {
		before := advertisement.DeepCopy()
		step.change(&advertisement.Spec)
		if err := l.Client.Patch(t.Context(), advertisement, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		arrive(step.what, step.want)
	}
	remove(t, l, advertisement)
	arrive("without the advertisement no path", func(lab.Family) []torPath { return nil })
}

// ordinaryService makes a LoadBalancer Service in front of the pods that belong to no EgressService, with a pool of its own, and returns
// its addresses by family.
func ordinaryService(t *testing.T, l *lab.Lab) map[string]netip.Addr {
	t.Helper()
	const name = "ordinary"
	create(t, l, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	create(t, l, endpointSlices(t, l, name, lab.OtherPod)...)
	service := serviceWithPool(t, l, name, "172.19.1.0/28", "fd00:19:1::/124")
	addresses := map[string]netip.Addr{}
	await(t, "MetalLB has given the service its addresses", func(ctx context.Context) error {
		if err := l.Client.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			address, err := netip.ParseAddr(ingress.IP)
			if err != nil {
				return err
			}
			addresses[map[bool]string{true: lab.IPv4.Name, false: lab.IPv6.Name}[address.Is4()]] = address
		}
		if len(addresses) != len(families) {
			return fmt.Errorf("addresses %v", addresses)
		}
		return nil
	})
	return addresses
}

// serviceWithPool makes a dual-stack LoadBalancer Service without a selector, and a pool for it alone.
func serviceWithPool(t *testing.T, l *lab.Lab, name string, pool ...string) *corev1.Service {
	t.Helper()
	automatic := false
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: name, Annotations: map[string]string{"metallb.io/address-pool": name}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilyPolicy: &dualStack,
			Ports: []corev1.ServicePort{{Name: name, Protocol: corev1.ProtocolTCP, Port: 8080}},
		},
	}
	create(t, l, &metallbv1beta1.IPAddressPool{
		ObjectMeta: inMetalLB(name),
		Spec:       metallbv1beta1.IPAddressPoolSpec{Addresses: pool, AutoAssign: &automatic},
	}, service)
	return service
}

// endpointSlices have one pod of each kind on each node as endpoints of a Service, one EndpointSlice per family.
func endpointSlices(t *testing.T, l *lab.Lab, name string, kinds ...func(node string) string) []client.Object {
	t.Helper()
	protocol, port := corev1.ProtocolTCP, int32(8080)
	var all []client.Object
	for _, f := range families {
		endpoints := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: name, Name: name + "-" + strings.ToLower(f.Name), Labels: map[string]string{discoveryv1.LabelServiceName: name},
			},
			AddressType: discoveryv1.AddressType(f.Name),
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
		}
		for _, node := range l.Topology.Nodes() {
			for _, kind := range kinds {
				address := f.Pod(pod(t, l, kind(node.Name))).String()
				endpoints.Endpoints = append(endpoints.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, NodeName: &node.Name})
			}
		}
		all = append(all, endpoints)
	}
	return all
}

// testSessionStates looks at the sessions as frr-k8s' users do.
func testSessionStates(t *testing.T, l *lab.Lab) {
	type state struct {
		Labels map[string]string
		Status frrk8sv1beta1.BGPSessionStateStatus
	}
	peer := topology.RouterAddress.String()
	var want []state
	for _, node := range l.Topology.Nodes() {
		want = append(want, state{
			map[string]string{"frrk8s.metallb.io/node": node.Name, "frrk8s.metallb.io/peer": peer, "frrk8s.metallb.io/vrf": ""},
			frrk8sv1beta1.BGPSessionStateStatus{Node: node.Name, Peer: peer, BGPStatus: "Established", BFDStatus: "N/A"},
		})
	}
	await(t, "one BGPSessionState per node", func(ctx context.Context) error {
		var list frrk8sv1beta1.BGPSessionStateList
		if err := l.Client.List(ctx, &list, client.InNamespace(controlplane.MetalLBNamespace)); err != nil {
			return err
		}
		var got []state
		for _, item := range list.Items {
			got = append(got, state{item.Labels, item.Status})
		}
		slices.SortFunc(got, func(a, b state) int { return strings.Compare(a.Status.Node, b.Status.Node) })
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("-want +got:\n%s", diff)
		}
		return nil
	})
	if err := everySession(t.Context(), l, established); err != nil {
		t.Errorf("EgressNode says something else: %v", err)
	}
}

// testMetrics scrapes a speaker as Prometheus does: as a service account with the role for that, as one without, and as nobody.
func testMetrics(t *testing.T, l *lab.Lab) {
	const metricsReader = "metallb-egress:metrics-reader"
	manifest, err := os.ReadFile(filepath.Join(l.Root, "charts", "metallb-egress", "rbac", "metrics-reader.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, l, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: metricsReader}}) })
	prometheus := &corev1.ServiceAccount{ObjectMeta: inMetalLB("prometheus")}
	stranger := &corev1.ServiceAccount{ObjectMeta: inMetalLB("stranger")}
	create(t, l, prometheus, stranger, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "metallb-egress:prometheus"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: metricsReader},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: prometheus.Namespace, Name: prometheus.Name}},
	})
	// A speaker that asked too early would remember the refusal for half a minute.
	await(t, "the API server knows the binding", func(ctx context.Context) error {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:                  "system:serviceaccount:" + prometheus.Namespace + ":" + prometheus.Name,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/metrics", Verb: "get"},
		}}
		err := l.Client.Create(ctx, review)
		if err == nil && !review.Status.Allowed {
			err = fmt.Errorf("not allowed: %s", review.Status.Reason)
		}
		return err
	})
	up := fmt.Sprintf("frrk8s_bgp_session_up{peer=%q,vrf=\"default\"} 1\n", topology.RouterAddress)
	for _, test := range []struct {
		who, token, status string
		sees               bool
	}{
		{"nobody", "", "401", false},
		{"an account without the role", token(t, l, stranger), "403", false},
		{"an account with the role", token(t, l, prometheus), "200", true},
	} {
		for _, node := range l.Topology.Nodes() {
			body, status := scrape(t, l, node, test.token)
			if status != test.status || strings.Contains(body, up) != test.sees || strings.Contains(body, "egress_speaker_database_connected{database=\"northbound\"} 1\n") != test.sees {
				t.Errorf("%s: %s gets status %s, want %s, and\n%s", node.Name, test.who, status, test.status, body)
			}
		}
	}
}

func token(t *testing.T, l *lab.Lab, account *corev1.ServiceAccount) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if err := l.Client.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatalf("token of %s: %v", account.Name, err)
	}
	return request.Status.Token
}

// scrape asks for the metrics of a node's speaker on the node itself.
func scrape(t *testing.T, l *lab.Lab, node topology.Node, token string) (body, status string) {
	t.Helper()
	command := []string{"curl", "-s", "-S", "-k", "--max-time", "10", "-w", "%{http_code}"}
	if token != "" {
		command = append(command, "-H", "Authorization: Bearer "+token)
	}
	output, err := l.Topology.Exec(t.Context(), node.Netns, append(command, "https://127.0.0.1:10180/metrics")...)
	if err != nil {
		t.Fatal(err)
	}
	end := max(len(output)-len("200"), 0)
	return string(output[:end]), string(output[end:])
}

// testPassword gives first the nodes a password, then the ToR, then takes both away.
func testPassword(t *testing.T, l *lab.Lab) {
	const password = "of-the-session"
	secret := &corev1.Secret{
		ObjectMeta: inMetalLB("tor-password"), Type: corev1.SecretTypeBasicAuth,
		StringData: map[string]string{corev1.BasicAuthPasswordKey: password},
	}
	create(t, l, secret)
	restorePeer := changePeer(t, l, func(spec *metallbv1beta2.BGPPeerSpec) {
		spec.PasswordSecret.Name = secret.Name
		// So often the nodes try, and so soon they give up.
		spec.ConnectTime = &metav1.Duration{Duration: 2 * time.Second}
	})
	await(t, "with a password that the ToR does not have the sessions are down", func(ctx context.Context) error {
		ports, err := connections(ctx, l)
		if err == nil && len(ports) > 0 {
			err = fmt.Errorf("the ToR has sessions with %v", slices.Sorted(maps.Keys(ports)))
		}
		return errors.Join(err, everySession(ctx, l, failed("timeout")))
	})
	restoreToR := setPassword(t, l, password)
	await(t, "with the same password they are up", func(ctx context.Context) error { return everySession(ctx, l, established) })
	with := awaitConnections(t, l, "at the ToR, too", nil)
	restoreToR() // first: see setPassword
	restorePeer()
	awaitConnections(t, l, "without passwords there are new sessions", with)
}

// setPassword has the ToR ask for a password, until restore is called or the test ends. FRR takes it from the listening socket for those
// neighbors alone that it has then (8.4.4): restore comes before the nodes give up theirs, while the sessions are up.
func setPassword(t *testing.T, l *lab.Lab, password string) (restore func()) {
	t.Helper()
	configure := func(line string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if output, err := l.Topology.Vtysh(ctx, "configure", fmt.Sprintf("router bgp %d", topology.RouterASN), line); err != nil {
			t.Errorf("%s: %v: %s", line, err, output)
		}
	}
	restore = func() { configure("no neighbor NODES password") }
	t.Cleanup(restore)
	configure("neighbor NODES password " + password)
	return restore
}

// testWrongASN has the nodes expect another AS number than the ToR's.
func testWrongASN(t *testing.T, l *lab.Lab) {
	restore := changePeer(t, l, func(spec *metallbv1beta2.BGPPeerSpec) { spec.ASN = 64999 })
	await(t, "with a wrong AS number the sessions are down", func(ctx context.Context) error { return everySession(ctx, l, failed("bad peer as")) })
	restore()
	await(t, "with the right one they are up", func(ctx context.Context) error { return everySession(ctx, l, established) })
}

// secondWriter asks a node for a route more, and for what its speaker can't do.
const secondWriter = `
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata:
  name: second-writer
  namespace: metallb-system
spec:
  nodeSelector:
    matchLabels:
      kubernetes.io/hostname: %s
  raw:
    rawConfig: ip prefix-list nothing seq 5 deny any
  bgp:
    routers:
    - asn: 64513
      prefixes: [172.19.2.1/32, "fd00:19:2::1/128"]
      neighbors:
      - asn: 64512
        interface: eth9
      - asn: 64512
        address: 172.18.0.100
        holdTime: 3s
        keepaliveTime: 1s
        enableGracefulRestart: true
        dualStackAddressFamily: true
        toAdvertise:
          allowed:
            prefixes: [172.19.2.1/32, "fd00:19:2::1/128"]
`

// testNotHonored adds a second writer beside MetalLB on the elected node: what can't be honored is reported, the rest is honored, and the
// session that MetalLB has asked for goes on.
func testNotHonored(t *testing.T, l *lab.Lab) {
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := awaitConnections(t, l, "every node has a session", nil)
	watch := watchPath(t, l, node, families...)
	object := &frrk8sv1beta1.FRRConfiguration{ObjectMeta: inMetalLB("second-writer")}
	t.Cleanup(func() { remove(t, l, object) })
	if err := l.Apply(t.Context(), fmt.Appendf(nil, secondWriter, node.Name)); err != nil {
		t.Fatal(err)
	}
	prefixes := []netip.Prefix{netip.MustParsePrefix("172.19.2.1/32"), netip.MustParsePrefix("fd00:19:2::1/128")}
	for i, f := range families {
		awaitPaths(t, l, "what can be honored is", prefixes[i], through(f, []topology.Node{node}, "", ""))
	}
	if err := l.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatal(err)
	}
	await(t, "an event on the object says what can't", func(ctx context.Context) error {
		return notHonoredEvent(ctx, l, object, "node "+node.Name, "raw", "eth9")
	})
	await(t, "the node reports it", func(ctx context.Context) error {
		return problems(ctx, l, map[string][]string{node.Name: {`second-writer, neighbor eth9: interface "eth9"`, "second-writer: raw"}})
	})
	if err := sameConnections(t.Context(), l, before); err != nil {
		t.Error(err)
	}
	remove(t, l, object)
	for _, prefix := range prefixes {
		awaitPaths(t, l, "without the object its route has gone", prefix, nil)
	}
	await(t, "and so have the problems", func(ctx context.Context) error { return problems(ctx, l, nil) })
	if err := sameConnections(t.Context(), l, before); err != nil {
		t.Error(err)
	}
	if looks, err := watch(); err != nil {
		t.Errorf("the example's path, after %d looks: %v", looks, err)
	}
}

// notHonoredEvent checks that there is one event NotHonored on an object, with all the words in its note.
func notHonoredEvent(ctx context.Context, l *lab.Lab, object client.Object, words ...string) error {
	var events eventsv1.EventList
	if err := l.Client.List(ctx, &events, client.InNamespace(object.GetNamespace())); err != nil {
		return err
	}
	var notes []string
	for _, event := range events.Items {
		if event.Reason == "NotHonored" && event.Regarding.Name == object.GetName() && event.Regarding.UID == object.GetUID() {
			notes = append(notes, event.Note)
		}
	}
	if len(notes) != 1 || slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(notes[0], word) }) {
		return fmt.Errorf("notes of the events: %q, want one with %q", notes, words)
	}
	return nil
}

// testFRRK8s has a pod of frr-k8s come to a node, which implements the same FRRConfigurations: the speaker there leaves the node to it,
// until it goes.
func testFRRK8s(t *testing.T, l *lab.Lab) {
	elected, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := l.Topology.Nodes()
	node := nodes[slices.IndexFunc(nodes, func(n topology.Node) bool { return n.Name != elected.Name })]
	others := awaitConnections(t, l, "every node has a session", nil)
	delete(others, node.Name)
	const name = "frr-k8s-lab"
	t.Cleanup(func() { remove(t, l, &corev1.Pod{ObjectMeta: inMetalLB(name)}) })
	labels := map[string]string{"app.kubernetes.io/component": "frr-k8s"}
	if err := l.Control.CreatePod(t.Context(), controlplane.MetalLBNamespace, name, node.Name, nil, labels); err != nil {
		t.Fatal(err)
	}
	await(t, "beside frr-k8s the node has no session and says so", func(ctx context.Context) error {
		status, err := status(ctx, l, node.Name)
		if err == nil && len(status.BGPSessions) > 0 {
			err = fmt.Errorf("%s reports the sessions %+v", node.Name, status.BGPSessions)
		}
		return errors.Join(err, sameConnections(ctx, l, others), problems(ctx, l, map[string][]string{node.Name: {"frr-k8s runs on this node, as pod metallb-system/" + name}}))
	})
	if err := l.Control.DeletePod(t.Context(), controlplane.MetalLBNamespace, name); err != nil {
		t.Fatal(err)
	}
	await(t, "without it the session is back", func(ctx context.Context) error {
		return errors.Join(problems(ctx, l, nil), everySession(ctx, l, established))
	})
	after := awaitConnections(t, l, "at the ToR, too", nil)
	delete(after, node.Name)
	if diff := cmp.Diff(others, after); diff != "" {
		t.Errorf("the other nodes' sessions changed: -before +after:\n%s", diff)
	}
}
