// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

func TestServiceGetsItsNode(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	c.sync()
	a := c.assignment("s")
	if a.Spec.Primary != "" || a.Spec.Standby == "" || a.Spec.Epoch != 0 {
		t.Fatalf("at first: %+v", a.Spec)
	}
	first, second := a.Spec.Standby, map[string]string{"a": "b", "b": "a"}[a.Spec.Standby]
	public, standby := "egress-service.k8s.ovn.org/ns-s", "standby.metallb-egress.io/ns-s"
	if diff := cmp.Diff(map[string][]string{first: {standby}}, c.ourLabels()); diff != "" {
		t.Errorf("labels before the acknowledgement: -want +got:\n%s", diff)
	}
	if got := c.condition("s", v1alpha1.ConditionReady); got != "False/WaitingForStandby" {
		t.Errorf("Ready is %s", got)
	}

	c.report(first, "s", true, true, false)
	c.sync()
	if diff := cmp.Diff(map[string][]string{first: {public}, second: {standby}}, c.ourLabels()); diff != "" {
		t.Errorf("labels after the promotion: -want +got:\n%s", diff)
	}
	if got := c.condition("s", v1alpha1.ConditionReady); got != "False/WaitingForPrimary" {
		t.Errorf("Ready is %s", got)
	}
	var egress egressv1.EgressService
	if err := c.client.Get(t.Context(), types.NamespacedName{Namespace: "ns", Name: "s"}, &egress); err != nil {
		t.Fatal(err)
	}
	if egress.Status.Host != first {
		t.Errorf("status.host is %q, want %q", egress.Status.Host, first)
	}

	c.now = c.now.Add(3 * time.Second)
	c.report(first, "s", true, true, true)
	announced := c.now
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionReady); got != "True/Ready" {
		t.Errorf("Ready is %s", got)
	}
	move := c.assignment("s").Status.LastMove
	if move == nil || move.Duration == nil || move.Duration.Duration != announced.Sub(move.StartedAt.Time) || move.To != first {
		t.Errorf("last move %+v", move)
	}
	c.quiet()
}

func TestDeletedServiceLeavesNothing(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.sync()
	c.report("a", "s", true, true, false)
	c.sync()
	if err := c.client.Delete(t.Context(), &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}); err != nil {
		t.Fatal(err)
	}
	c.sync()
	if labels := c.ourLabels()["a"]; len(labels) != 1 {
		t.Errorf("labels of the node, before the Service's is gone: %v", labels)
	}
	c.now = c.now.Add(settleAdvertisements)
	c.sync()
	if labels := c.ourLabels(); len(labels) > 0 {
		t.Errorf("labels left: %v", labels)
	}
	var assignments v1alpha1.EgressAssignmentList
	var advertisements advertisement.BGPAdvertisementList
	var services corev1.ServiceList
	if err := errors.Join(c.client.List(t.Context(), &assignments), c.client.List(t.Context(), &advertisements), c.client.List(t.Context(), &services)); err != nil {
		t.Fatal(err)
	}
	if len(assignments.Items)+len(advertisements.Items) > 0 {
		t.Errorf("left: %d assignments, %d advertisements", len(assignments.Items), len(advertisements.Items))
	}
	if _, labelled := services.Items[0].Labels[v1alpha1.ServiceLabel]; labelled {
		t.Error("the Service is still labelled")
	}
	c.quiet()
}

func TestForeignObjectsAreLeftAlone(t *testing.T) {
	users := &advertisement.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "users"}}
	labeled := users.DeepCopy()
	labeled.Name, labeled.Labels = "users-with-our-label", map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue}
	c := newCluster(t, append(slices.Concat(node("a"), service("s", "192.0.2.1")), users, labeled)...)
	for _, step := range []func(){func() {}, func() { c.report("a", "s", true, true, false) }} {
		step()
		c.sync()
		for _, what := range c.writes {
			if strings.Contains(what, "users") {
				t.Errorf("wrote %s", what)
			}
		}
	}
	var got corev1.Node
	if err := c.client.Get(t.Context(), types.NamespacedName{Name: "a"}, &got); err != nil {
		t.Fatal(err)
	}
	if got.Labels["name"] != "a" || got.Labels["kubernetes.io/hostname"] != "a" {
		t.Errorf("labels %v", got.Labels)
	}
}

func TestOneServiceThatFailsStopsOnlyItself(t *testing.T) {
	for _, refused := range []string{"create egress-ns-bad", "apply bad"} {
		t.Run(refused, func(t *testing.T) {
			c := newCluster(t, slices.Concat(node("a"), service("good", "192.0.2.1"), service("bad", "192.0.2.2"))...)
			c.refuse = func(what string) error {
				if strings.HasPrefix(what, refused) {
					return errors.New("webhook says no")
				}
				return nil
			}
			if again := c.sync(); again != firstRetry {
				t.Errorf("again in %v, want %v", again, firstRetry)
			}
			if got := c.condition("good", v1alpha1.ConditionAdvertisementsConsistent); got != "True/Configured" {
				t.Errorf("good: AdvertisementsConsistent is %s", got)
			}
			if got := c.condition("bad", v1alpha1.ConditionAdvertisementsConsistent); got != "False/WriteFailed" {
				t.Errorf("bad: AdvertisementsConsistent is %s", got)
			}
			// Without its advertisement it gets a node all the same: MetalLB's webhook holds up no move.
			c.report("a", "bad", true, true, false)
			c.sync()
			if got := c.assignment("bad").Spec.Primary; got != "a" {
				t.Errorf("bad: primary %q", got)
			}
			c.writes = nil
			for range 3 {
				if _, err := c.controller.SyncAdvertisements(t.Context()); err != nil || len(c.writes) > 1 {
					t.Errorf("error %v; tried again at once: %v", err, c.writes)
				}
			}
			c.refuse = nil
			c.now = c.now.Add(lastRetry)
			c.sync()
			if got := c.condition("bad", v1alpha1.ConditionAdvertisementsConsistent); got != "True/Configured" {
				t.Errorf("bad, when it is accepted again: AdvertisementsConsistent is %s", got)
			}
		})
	}
}

func TestNodeThatCannotBeLabeledIsNamed(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.sync()
	c.report("a", "s", true, true, false)
	c.refuse = func(what string) error {
		if what == "patch a" {
			return errors.New("policy says no")
		}
		return nil
	}
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionAnnounced); got != "False/NodeNotLabeled" {
		t.Errorf("Announced is %s", got)
	}
	if host := c.egress("s").Status.Host; host != "" {
		t.Errorf("status.host is %q though the node has no label", host)
	}
}

func TestUnwrittenDecisionHasNoConsequences(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.sync()
	c.report("a", "s", true, true, false)
	c.refuse = func(what string) error {
		if what == "patch s" {
			return errors.New("the server is away")
		}
		return nil
	}
	c.sync()
	if diff := cmp.Diff(map[string][]string{"a": {"standby.metallb-egress.io/ns-s"}}, c.ourLabels()); diff != "" {
		t.Errorf("labels after a promotion that was not written: -want +got:\n%s", diff)
	}
}

func TestBlockedServices(t *testing.T) {
	tests := []struct {
		name    string
		objects func() []client.Object
		want    string
		message string
	}{
		{"no Service", func() []client.Object { return service("s", "192.0.2.1")[2:] }, "False/ServiceNotFound", "no Service of this name"},
		{"a ClusterIP Service", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[0].(*corev1.Service).Spec.Type = corev1.ServiceTypeClusterIP
			return objects
		}, "False/NotLoadBalancer", "not of type LoadBalancer"},
		{"no LoadBalancer IP", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[0].(*corev1.Service).Status = corev1.ServiceStatus{}
			return objects
		}, "False/NoLoadBalancerIP", "no LoadBalancer IP yet"},
		{"a network that no node has", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[2].(*egressv1.EgressService).Spec.Network = "100"
			return objects
		}, "False/NoEligibleNode", "1 NetworkMissing"},
		{"only host-networked endpoints", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[1].(*discoveryv1.EndpointSlice).Endpoints[0].Addresses = []string{"172.18.0.11"}
			return objects
		}, "False/NoEndpoints", "no endpoint on the pod network"},
		{"a selector that no node matches", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[2].(*egressv1.EgressService).Spec.NodeSelector.MatchLabels = map[string]string{"name": "z"}
			return objects
		}, "False/NoEligibleNode", "1 NodeSelectorMismatch"},
		{"a selector that can't be parsed", func() []client.Object {
			objects := service("s", "192.0.2.1")
			objects[2].(*egressv1.EgressService).Spec.NodeSelector.MatchLabels = map[string]string{"not a key!": "z"}
			return objects
		}, "False/InvalidNodeSelector", "spec.nodeSelector"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, append(node("a"), test.objects()...)...)
			c.sync()
			if got := c.condition("s", v1alpha1.ConditionNodeAssigned); got != test.want {
				t.Errorf("NodeAssigned is %s, want %s", got, test.want)
			}
			if labels := c.ourLabels(); len(labels) > 0 {
				t.Errorf("labels %v", labels)
			}
			select {
			case event := <-c.recorder.Events:
				for len(c.recorder.Events) > 0 { // onto the Service, too
					if again := <-c.recorder.Events; again != event {
						t.Errorf("another event %q", again)
					}
				}
				if strings.HasPrefix(event, "Warning") == strings.HasSuffix(test.want, "NoEndpoints") || !strings.Contains(event, test.message) {
					t.Errorf("event %q, want a warning that says %q", event, test.message)
				}
			default:
				t.Error("no event")
			}
			c.sync()
			if len(c.writes) > 0 || len(c.recorder.Events) > 0 {
				t.Errorf("a second sync wrote %v and %d events", c.writes, len(c.recorder.Events))
			}
		})
	}
}

// TestMissingNetworkLetsNothingLeave: pods of a service that asks for a network which no node has
// must not leave through another, unless that service itself says Open.
func TestMissingNetworkLetsNothingLeave(t *testing.T) {
	for _, mode := range []egressv1.SourceIPMode{egressv1.SourceIPLoadBalancer, egressv1.SourceIPNetwork} {
		for annotation, want := range map[string]v1alpha1.FailurePolicy{"": v1alpha1.FailClosed, "Closed": v1alpha1.FailClosed, "Open": v1alpha1.FailOpen} {
			t.Run(string(mode)+" "+annotation, func(t *testing.T) {
				objects := service("s", "192.0.2.1")
				on := "a"
				objects[1].(*discoveryv1.EndpointSlice).Endpoints[0].NodeName = &on
				egress := objects[2].(*egressv1.EgressService)
				egress.Spec.SourceIPBy, egress.Spec.Network = mode, "100"
				egress.Annotations = map[string]string{v1alpha1.FailurePolicyAnnotation: annotation}
				c := newCluster(t, append(node("a"), objects...)...)
				c.sync()
				if a := c.assignment("s"); a.Spec.FailurePolicy != want || a.Spec.SourceIPBy != string(mode) || a.Spec.Primary+a.Spec.Standby != "" {
					t.Errorf("assignment %+v, want failure policy %s", a.Spec, want)
				}
				reason := map[egressv1.SourceIPMode]string{egressv1.SourceIPLoadBalancer: "False/NoEligibleNode", egressv1.SourceIPNetwork: "False/NodesNotCapable"}[mode]
				if got := c.condition("s", v1alpha1.ConditionReady); got != reason {
					t.Errorf("Ready is %s, want %s", got, reason)
				}
				c.quiet()
			})
		}
	}
}

func TestNetworkMode(t *testing.T) {
	objects := service("s", "192.0.2.1")
	on := "a"
	objects[1].(*discoveryv1.EndpointSlice).Endpoints[0].NodeName = &on
	objects[2].(*egressv1.EgressService).Spec.SourceIPBy = egressv1.SourceIPNetwork
	c := newCluster(t, slices.Concat(node("a"), node("b"), objects)...)
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionReady); c.egress("s").Status.Host != egressv1.HostAll || got != "True/Ready" {
		t.Errorf("status.host %q, Ready %s; want ALL and True/Ready", c.egress("s").Status.Host, got)
	}
	if got := c.condition("s", v1alpha1.ConditionAnnounced); got != "absent" {
		t.Errorf("Announced is %s, which is not ours to say", got)
	}
	c.quiet()

	report := get(c, "", "a", &v1alpha1.EgressNode{})
	report.Status.GatewayMode = "shared"
	if err := c.client.Status().Update(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	c.sync()
	if got := c.condition("s", v1alpha1.ConditionDataplaneReady); got != "False/NodesNotCapable" {
		t.Errorf("DataplaneReady is %s on a node in shared gateway mode", got)
	}
	c.quiet()
}

func TestAmbiguousLabelKeys(t *testing.T) {
	older, younger := service("b-c", "192.0.2.1"), service("c", "192.0.2.2")
	for _, o := range older {
		o.SetNamespace("a")
		o.SetCreationTimestamp(metav1.Unix(1, 0))
	}
	for _, o := range younger {
		o.SetNamespace("a-b")
		o.SetCreationTimestamp(metav1.Unix(2, 0))
	}
	c := newCluster(t, slices.Concat(node("n"), younger, older)...)
	c.sync()
	var list v1alpha1.EgressAssignmentList
	if err := c.client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for _, a := range list.Items {
		keys[a.Namespace] = a.Spec.LabelKey
	}
	if keys["a"] != egressv1.LabelPrefix+"a-b-c" || keys["a-b"] == keys["a"] || keys["a-b"] == "" {
		t.Errorf("keys %v", keys)
	}
}

func TestRecreatedServiceStartsAnew(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), service("s", "192.0.2.1"))...)
	c.sync()
	c.report("a", "s", true, true, false)
	c.sync()
	key := c.assignment("s").Spec.LabelKey
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
	if err := c.client.Delete(t.Context(), egress); err != nil {
		t.Fatal(err)
	}
	again := service("s", "192.0.2.1")[2]
	again.SetUID("another")
	if err := c.client.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	// The first sync still meets the old assignment, whose owner is gone, and removes it.
	c.sync()
	c.sync()
	if a := c.assignment("s"); a.Spec.Primary != "" || a.Spec.LabelKey != key || a.Spec.Epoch != 0 {
		t.Errorf("assignment %+v, want a new one with the key %s", a.Spec, key)
	}
	if labels := c.ourLabels()["a"]; slices.Contains(labels, key) {
		t.Errorf("the public label of the old assignment is still there: %v", labels)
	}
}

func TestLocalTrafficPolicyNeedsALocalEndpoint(t *testing.T) {
	objects := service("s", "192.0.2.1")
	objects[0].(*corev1.Service).Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	on := "b"
	objects[1].(*discoveryv1.EndpointSlice).Endpoints[0].NodeName = &on
	c := newCluster(t, slices.Concat(node("a"), node("b"), node("c"), objects)...)
	c.sync()
	if got := c.assignment("s").Spec.Standby; got != "b" {
		t.Errorf("standby %q, want b, where the endpoint is", got)
	}
}

func TestDeadPrimaryIsReplacedWithoutWaitingForTheOffer(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	c.sync()
	primary := c.assignment("s").Spec.Standby
	c.report(primary, "s", true, true, false)
	c.sync()
	standby := c.assignment("s").Spec.Standby
	c.report(primary, "s", true, true, true)
	c.report(standby, "s", true, false, false)
	dead := &corev1.Node{}
	if err := c.client.Get(t.Context(), types.NamespacedName{Name: primary}, dead); err != nil {
		t.Fatal(err)
	}
	dead.Status.Conditions[0].Status = corev1.ConditionFalse
	if err := c.client.Status().Update(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	c.sync()
	if got := c.assignment("s").Spec; got.Primary != standby || got.Epoch != 2 {
		t.Errorf("%+v, want %s as primary in epoch 2", got, standby)
	}
}

func TestBatchIsSpread(t *testing.T) {
	objects := slices.Concat(node("a"), node("b"))
	for _, name := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
		objects = append(objects, service(name, "192.0.2."+name[1:])...)
	}
	c := newCluster(t, objects...)
	c.sync()
	count := map[string]int{}
	for _, name := range []string{"s1", "s2", "s3", "s4", "s5", "s6"} {
		count[c.assignment(name).Spec.Standby]++
	}
	if diff := cmp.Diff(map[string]int{"a": 3, "b": 3}, count); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLabelsArePatchedOncePerNode(t *testing.T) {
	objects := node("a")
	for _, name := range []string{"s1", "s2", "s3", "s4"} {
		objects = append(objects, service(name, "192.0.2."+name[1:])...)
	}
	c := newCluster(t, objects...)
	c.sync()
	patches := slices.DeleteFunc(slices.Clone(c.writes), func(w string) bool { return w != "patch a" })
	if len(patches) != 1 {
		t.Errorf("%d patches of the node for four services, want one", len(patches))
	}
}
