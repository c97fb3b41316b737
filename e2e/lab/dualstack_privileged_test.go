// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// testDualStack gives the example, which has one family, the other one, takes it away again, and gives it back: for the rest of the tests.
// What the first family does goes on all the time.
func testDualStack(t *testing.T, l *lab.Lab) {
	wrong := watchSources(t, l)
	var talk []*conversation
	for _, netns := range examplePods(l) {
		talk = append(talk, startConversation(t, l, lab.IPv4, netns, shortWord))
	}
	node, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	watch := watchPath(t, l, node, lab.IPv4)
	for _, want := range []bool{false, true, false, true} {
		setDualStack(t, l, want)
		if want {
			await(t, "announced in both families", func(ctx context.Context) error { return paths(ctx, l, node, families...) })
			leaveWithService(t, l)
		} else {
			await(t, "in IPv6 the pods are as any", func(ctx context.Context) error { return ordinaryIPv6(ctx, l) })
		}
		goOn(t, talk...)
	}
	for what, check := range map[string]func(context.Context, lab.Family) (string, error){
		"from outside": l.Ingress, "to the outside": l.Egress, "everything else": l.Others,
	} {
		if seen, err := check(t.Context(), lab.IPv6); err != nil {
			t.Errorf("%s: %v", what, err)
		} else {
			t.Logf("%s: %s", what, seen)
		}
	}
	for _, one := range talk {
		one.end(t)
	}
	if looks, err := watch(); err != nil {
		t.Errorf("after %d looks: %v", looks, err)
	}
	if n := wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
}

// setDualStack gives the Service both families, or IPv4 alone.
func setDualStack(t *testing.T, l *lab.Lab, want bool) {
	t.Helper()
	pool := &metallbv1beta1.IPAddressPool{ObjectMeta: inMetalLB("example-pool")}
	if err := l.Client.Get(t.Context(), client.ObjectKeyFromObject(pool), pool); err != nil {
		t.Fatal(err)
	}
	before := pool.DeepCopy()
	pool.Spec.Addresses = []string{lab.IPv4.Prefix().String(), lab.IPv6.Prefix().String()}
	if err := l.Client.Patch(t.Context(), pool, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	editService(t, l, func(s *corev1.Service) {
		policy := corev1.IPFamilyPolicySingleStack
		if want {
			policy = dualStack
		}
		s.Spec.IPFamilyPolicy = &policy
	})
}

// ordinaryIPv6 checks that in IPv6 nothing of an egress service is left.
func ordinaryIPv6(ctx context.Context, l *lab.Lab) error {
	errs := []error{l.NoPath(ctx, lab.IPv6)}
	for _, node := range l.Topology.Nodes() {
		errs = append(errs, leave(ctx, l, leaving{examplePod(l, node), lab.IPv6, node.Address6}))
		table, err := l.Topology.Exec(ctx, node.Netns, "nft", "list", "table", "inet", "metallb-egress")
		entries, err2 := l.Topology.Exec(ctx, node.Netns, "conntrack", "-L", "-f", "ipv6", "-q", lab.IPv6.Service.String())
		sets, err3 := l.Topology.Exec(ctx, node.Netns, "ovn-nbctl", "--db=unix:"+node.NorthboundSocket, "--bare", "--columns=name", "list", "Address_Set")
		errs = append(errs, err, err2, err3)
		if strings.Contains(string(table), lab.IPv6.Service.String()) || len(entries) > 0 || strings.Contains(string(sets), "metallb_egress_served_ip6") {
			errs = append(errs, fmt.Errorf("left on %s:\n%s\n%s\n%s", node.Name, table, entries, sets))
		}
	}
	return errors.Join(errs...)
}

// editService edits the example's Service.
func editService(t *testing.T, l *lab.Lab, edit func(*corev1.Service)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	service := &corev1.Service{}
	if err := l.Client.Get(ctx, lab.ExampleService, service); err != nil {
		t.Fatal(err)
	}
	before := service.DeepCopy()
	edit(service)
	if err := l.Client.Patch(ctx, service, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// testIPv6Alone has a service of IPv6 alone: its pods leave with its address in IPv6, and as they were in IPv4. (That of IPv4 alone is the
// example, in testDualStack.)
func testIPv6Alone(t *testing.T, l *lab.Lab) {
	automatic, name, address := false, "six", netip.MustParseAddr("fd00:19:4::1")
	meta := metav1.ObjectMeta{Namespace: "default", Name: name}
	single := corev1.IPFamilyPolicySingleStack
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "other"}, Ports: []corev1.ServicePort{{Port: 8080}},
		IPFamilyPolicy: &single, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol},
	}}
	service.Annotations = map[string]string{"metallb.io/address-pool": name}
	egress := &egressv1.EgressService{ObjectMeta: meta}
	create(t, l,
		&metallbv1beta1.IPAddressPool{
			ObjectMeta: inMetalLB(name),
			Spec:       metallbv1beta1.IPAddressPoolSpec{Addresses: []string{address.String() + "/128"}, AutoAssign: &automatic},
		},
		service, egress)
	await(t, "it answers from outside", func(ctx context.Context) error {
		_, err := l.Source(ctx, l.Topology.OutsideNetns(), netip.AddrPortFrom(address, 8080))
		return err
	})
	expected := func(six func(topology.Node) netip.Addr) []leaving {
		all := as(theService, examplePods(l)...)
		for _, node := range l.Topology.Nodes() {
			all = append(all, leaving{otherPod(l, node), lab.IPv4, node.Address}, leaving{otherPod(l, node), lab.IPv6, six(node)})
		}
		return all
	}
	await(t, "its pods leave with its address", func(ctx context.Context) error {
		return leave(ctx, l, expected(func(topology.Node) netip.Addr { return address })...)
	})
	remove(t, l, egress)
	await(t, "without the EgressService they leave with their nodes' addresses", func(ctx context.Context) error { return leave(ctx, l, expected(lab.IPv6.Node)...) })
}
