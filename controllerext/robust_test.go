// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// sharing is a cluster in which an older service has its node, and a younger one of another namespace,
// with the same address, is about to come.
func sharing(t *testing.T) (c *cluster, create func(change func(*egressv1.EgressService))) {
	older, tenants := service("one", "192.0.2.1"), service("two", "192.0.2.1")
	older[2].SetCreationTimestamp(metav1.Unix(1, 0))
	tenants[1].(*discoveryv1.EndpointSlice).Endpoints[0].Addresses = []string{"10.244.1.77"}
	for _, o := range tenants {
		o.SetNamespace("tenant")
		o.SetCreationTimestamp(metav1.Unix(2, 0))
	}
	c = newCluster(t, slices.Concat(node("a"), node("b"), older, tenants[:2])...)
	c.settle("one")
	return c, func(change func(*egressv1.EgressService)) {
		egress := tenants[2].(*egressv1.EgressService)
		change(egress)
		if err := c.client.Create(t.Context(), egress); err != nil {
			t.Fatal(err)
		}
	}
}

func TestYoungerServiceOfASharedAddressHarmsNobody(t *testing.T) {
	for name, change := range map[string]func(*egressv1.EgressService, string){
		"a network that no node has": func(e *egressv1.EgressService, _ string) { e.Spec.Network = "nowhere" },
		"a selector that matches none": func(e *egressv1.EgressService, _ string) {
			e.Spec.NodeSelector.MatchLabels = map[string]string{"name": "z"}
		},
		"a selector for the other node": func(e *egressv1.EgressService, other string) {
			e.Spec.NodeSelector.MatchLabels = map[string]string{"name": other}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, create := sharing(t)
			before := c.assignment("one").Spec
			create(func(e *egressv1.EgressService) { change(e, before.Standby) })
			c.sync()
			c.sync()
			if got := c.assignment("one").Spec; got.Primary != before.Primary || got.Epoch != before.Epoch {
				t.Errorf("one: %+v, before %+v", got, before)
			}
			younger := get(c, "tenant", "two", &egressv1.EgressService{})
			condition := meta.FindStatusCondition(younger.Status.Conditions, v1alpha1.ConditionNodeAssigned)
			if condition == nil || condition.Reason != v1alpha1.ReasonSharedAddressConflict || !strings.Contains(condition.Message, "ns/one") {
				t.Errorf("two: %+v", condition)
			}
			c.quiet()
		})
	}
}

func TestHugeSelectorIsRefused(t *testing.T) {
	objects := service("s", "192.0.2.1")
	var values []string
	for i := range maxSelector {
		values = append(values, fmt.Sprint(i))
	}
	objects[2].(*egressv1.EgressService).Spec.NodeSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "name", Operator: metav1.LabelSelectorOpIn, Values: values}}
	c := newCluster(t, append(node("a"), objects...)...)
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionNodeAssigned); got != "False/InvalidNodeSelector" {
		t.Errorf("NodeAssigned is %s", got)
	}
}

func TestMessagesAreShort(t *testing.T) {
	objects := service("s", "192.0.2.1")
	objects[2].(*egressv1.EgressService).Spec.NodeSelector.MatchLabels = map[string]string{strings.Repeat("ä", 4000): "x"}
	c := newCluster(t, append(node("a"), objects...)...)
	c.sync()
	for _, condition := range c.egress("s").Status.Conditions {
		if len(condition.Message) > mostOfCondition+10 {
			t.Errorf("%s: a message of %d bytes", condition.Type, len(condition.Message))
		}
	}
	for len(c.recorder.Events) > 0 {
		if event := <-c.recorder.Events; len(event) > 1100 {
			t.Errorf("an event of %d bytes", len(event))
		}
	}
	c.quiet()
}

// What can't be written is not claimed: the API server refuses the assignment while the primary's node
// goes away.
func TestUnwrittenDecisionIsSaid(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	primary, _ := c.settle("s")
	c.refuse = func(what string) error {
		if what == "patch s" {
			return errors.New("policy says no")
		}
		return nil
	}
	err := errors.Join(c.client.Delete(t.Context(), get(c, "", primary, &corev1.Node{})), c.client.Delete(t.Context(), get(c, "", primary, &v1alpha1.EgressNode{})))
	if err != nil {
		t.Fatal(err)
	}
	c.sync()
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionNodeAssigned); got != "Unknown/DecisionNotWritten" {
		t.Errorf("NodeAssigned is %s", got)
	}
	if got := c.condition("s", v1alpha1.ConditionReady); got != "False/DecisionNotWritten" {
		t.Errorf("Ready is %s", got)
	}
	c.refuse = nil
	c.now = c.now.Add(lastRetry)
	c.sync()
	if got := c.assignment("s").Spec.Primary; got == primary || got == "" {
		t.Errorf("primary %q when it can be written again", got)
	}
}

func TestGroupIsNotWrittenFurtherThanItsFirstFailure(t *testing.T) {
	c, create := sharing(t)
	create(func(*egressv1.EgressService) {})
	c.sync()
	// Both on one node, and both acknowledged on the other.
	reportTenant := func(node string, announced bool) {
		a := get(c, "tenant", "two", &v1alpha1.EgressAssignment{})
		report := get(c, "", node, &v1alpha1.EgressNode{})
		report.Status.Services = slices.DeleteFunc(report.Status.Services, func(s v1alpha1.EgressNodeService) bool { return s.Key == "tenant/two" })
		report.Status.Services = append(report.Status.Services, v1alpha1.EgressNodeService{
			Key: "tenant/two", UID: a.UID, ObservedGeneration: a.Generation, Programmed: true, Offered: true, Announced: announced, Addresses: a.Spec.SourceIPs,
		})
		if err := c.client.Status().Update(t.Context(), report); err != nil {
			t.Fatal(err)
		}
	}
	primary, standby := c.assignment("one").Spec.Primary, c.assignment("one").Spec.Standby
	reportTenant(primary, false)
	c.sync()
	reportTenant(primary, true)
	reportTenant(standby, false)
	c.sync()
	two := get(c, "tenant", "two", &v1alpha1.EgressAssignment{}).Spec
	if two.Primary != primary || two.Standby != standby {
		t.Fatalf("two: %+v", two)
	}
	c.refuse = func(what string) error {
		if what == "patch one" {
			return errors.New("policy says no")
		}
		return nil
	}
	edit(c, get(c, "", primary, &corev1.Node{}), func(n *corev1.Node) { n.Labels[corev1.LabelNodeExcludeBalancers] = "" })
	c.sync()
	if slices.Contains(c.writes, "patch two") {
		t.Errorf("the younger moved although the older could not: %v", c.writes)
	}
}

func TestRestartWritesNothing(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	c.settle("s")
	for len(c.recorder.Events) > 0 {
		<-c.recorder.Events
	}
	c.restart()
	// The advertisement loop is slow: MetalLB's webhook hangs.
	c.writes = nil
	for range 3 {
		for _, loop := range c.controller.Loops() {
			if loop.Name == advertisementLoop {
				continue
			}
			if _, err := loop.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		c.now = c.now.Add(settleTime)
	}
	if len(c.writes) > 0 || len(c.recorder.Events) > 0 {
		t.Errorf("a restart wrote %v and %d events", c.writes, len(c.recorder.Events))
	}
	c.quiet()
}

func TestMoveIsToldThoughAStatusFails(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	primary, standby := c.settle("s")
	for len(c.recorder.Events) > 0 {
		<-c.recorder.Events
	}
	edit(c, get(c, "", primary, &corev1.Node{}), func(n *corev1.Node) { n.Labels[corev1.LabelNodeExcludeBalancers] = "" })
	c.sync()
	c.report(standby, "s", true, true, true)
	count := 0
	c.refuse = func(what string) error {
		if what != "patch status s" {
			return nil
		}
		if count++; count%2 == 0 && count < 5 {
			return errors.New("the server is away")
		}
		return nil
	}
	for range 5 {
		c.sync()
		c.now = c.now.Add(lastRetry)
	}
	moved := 0
	for len(c.recorder.Events) > 0 {
		if strings.Contains(<-c.recorder.Events, v1alpha1.EventMoved) {
			moved++
		}
	}
	if moved != 2 {
		t.Errorf("%d events of the move, want one on the EgressService and one on the Service", moved)
	}
}

func TestAdvertisementIsRepairedAndSpared(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.settle("s")
	name := advertisement.Name("ns", "s")
	read := func() *advertisement.BGPAdvertisement {
		return get(c, "metallb-system", name, &advertisement.BGPAdvertisement{})
	}
	edit(c, read(), func(a *advertisement.BGPAdvertisement) {
		delete(a.Labels, v1alpha1.ManagedByLabel)
		a.Labels["team"] = "net"
		a.Spec.AggregationLength = new(int32(24))
	})
	c.sync()
	if a := read(); a.Labels["team"] != "net" || a.Labels[v1alpha1.ManagedByLabel] == "" || *a.Spec.AggregationLength != 32 {
		t.Errorf("labels %v, aggregationLength %d", a.Labels, *a.Spec.AggregationLength)
	}
	c.quiet()
	edit(c, read(), func(a *advertisement.BGPAdvertisement) { delete(a.Labels, v1alpha1.ManagedByLabel) })
	if err := c.client.Delete(t.Context(), c.egress("s")); err != nil {
		t.Fatal(err)
	}
	c.sync()
	c.now = c.now.Add(settleAdvertisements)
	c.sync()
	var left advertisement.BGPAdvertisementList
	if err := c.client.List(t.Context(), &left); err != nil || len(left.Items) > 0 {
		t.Errorf("error %v, %d advertisements left", err, len(left.Items))
	}
}

func TestServiceKeepsNoOtherServicesLabel(t *testing.T) {
	objects := service("s", "192.0.2.1")
	web := objects[0].(*corev1.Service)
	web.Labels, web.Annotations = map[string]string{v1alpha1.ServiceLabel: "0123456789abcdef"}, map[string]string{"metallb.io/ip-allocated-from-pool": "not a name!"}
	c := newCluster(t, append(node("a"), objects...)...)
	c.sync()
	if got := get(c, "ns", "s", &corev1.Service{}).Labels[v1alpha1.ServiceLabel]; got == "0123456789abcdef" || got == "" {
		t.Errorf("label %q", got)
	}
	if got := c.condition("s", v1alpha1.ConditionAdvertisementsConsistent); got != "False/PoolUnknown" {
		t.Errorf("AdvertisementsConsistent is %s with a pool that can't be one", got)
	}
}

// The leases of nodes that are gone are nobody's silence.
func TestLeasesOfGoneNodesDoNotCount(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), node("c"), service("s", "192.0.2.1"))...)
	primary, standby := c.settle("s")
	renew := func(nodes ...string) {
		for _, name := range nodes {
			c.controller.SeeLease(&coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &name, RenewTime: &metav1.MicroTime{Time: c.now}, LeaseDurationSeconds: new(int32(10)),
			}})
		}
	}
	renew("a", "b", "c", "gone1", "gone2", "gone3", "gone4")
	c.sync()
	alive := slices.DeleteFunc([]string{"a", "b", "c"}, func(n string) bool { return n == primary })
	for range 20 {
		c.now = c.now.Add(2 * time.Second)
		renew(alive...)
		c.sync()
	}
	if got := c.assignment("s").Spec; got.Primary != standby {
		t.Errorf("primary %s, want %s: the speaker of %s is silent", got.Primary, standby, primary)
	}
	if got := c.assignment("s").Status.LastMove.Cause; got != "SpeakerSilent" {
		t.Errorf("cause %s", got)
	}
}
