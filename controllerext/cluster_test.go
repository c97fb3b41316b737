// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// cluster is a fake API server with the controller on top, and a count of its writes.
type cluster struct {
	*testing.T
	client     client.Client
	controller *Controller
	recorder   *events.FakeRecorder
	now        time.Time
	mutex      sync.Mutex // guards writes: the controller writes concurrently
	writes     []string
	// refuse, when set, may answer a write with an error.
	refuse func(what string) error
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme, advertisement.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{T: t, now: time.Unix(1000, 0), recorder: events.NewFakeRecorder(1000)}
	write := func(verb string, object any) error {
		what := verb
		switch o := object.(type) {
		case client.Object:
			what += " " + o.GetName()
		case *applycorev1.ServiceApplyConfiguration:
			what += " " + *o.Name
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		c.writes = append(c.writes, what)
		if c.refuse != nil {
			return c.refuse(what)
		}
		return nil
	}
	c.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(metallb(), objects...)...).
		WithStatusSubresource(&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &v1alpha1.EgressNode{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.CreateOption) error {
				if err := write("create", o); err != nil {
					return err
				}
				o.SetUID(types.UID("uid-of-" + o.GetName()))
				o.SetGeneration(1)
				return w.Create(ctx, o, options...)
			},
			Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch, options ...client.PatchOption) error {
				if err := write("patch", o); err != nil {
					return err
				}
				if a, is := o.(*v1alpha1.EgressAssignment); is && p.Type() == types.JSONPatchType {
					return patchSpec(ctx, w, a, p)
				}
				return w.Patch(ctx, o, p, options...)
			},
			Apply: func(ctx context.Context, w client.WithWatch, o runtime.ApplyConfiguration, options ...client.ApplyOption) error {
				if err := write("apply", o); err != nil {
					return err
				}
				return w.Apply(ctx, o, options...)
			},
			Delete: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.DeleteOption) error {
				if err := write("delete", o); err != nil {
					return err
				}
				// The fake has no preconditions.
				return w.Delete(ctx, o)
			},
			SubResourcePatch: func(ctx context.Context, w client.Client, sub string, o client.Object, p client.Patch, options ...client.SubResourcePatchOption) error {
				if err := write("patch "+sub, o); err != nil {
					return err
				}
				return w.SubResource(sub).Patch(ctx, o, p, options...)
			},
		}).Build()
	c.restart()
	return c
}

// restart puts another controller in the place of the present one.
func (c *cluster) restart() {
	c.controller = New(Options{
		Client: c.client, Recorder: c.recorder, Logger: log.NewNopLogger(), MetalLBNamespace: "metallb-system",
		DefaultFailurePolicy: v1alpha1.FailOpen, Guarded: true,
		MetalLB: MetalLB{Features: advertisement.Features{ServiceSelectors: true}}, ServiceConditions: true, Now: func() time.Time { return c.now },
	})
}

// sync runs every loop once, and the status loop once more when everything has settled. It returns
// when the controller wants to look again.
func (c *cluster) sync() time.Duration {
	c.Helper()
	c.writes = nil
	var again time.Duration
	run := func(loop func(context.Context) (time.Duration, error)) {
		wait, err := loop(c.Context())
		if err != nil {
			c.Fatal(err)
		}
		again = sooner(again, wait)
	}
	run(c.controller.SyncElection)
	run(c.controller.SyncAdvertisements)
	run(c.controller.SyncStatus)
	c.now = c.now.Add(settleTime)
	run(c.controller.SyncStatus)
	return again
}

// quiet syncs once more and wants nothing written.
func (c *cluster) quiet() {
	c.Helper()
	c.sync()
	if len(c.writes) > 0 {
		c.Errorf("a sync with nothing to do wrote %v", c.writes)
	}
}

func (c *cluster) assignment(name string) *v1alpha1.EgressAssignment {
	c.Helper()
	a := &v1alpha1.EgressAssignment{}
	if err := c.client.Get(c.Context(), types.NamespacedName{Namespace: "ns", Name: name}, a); err != nil {
		c.Fatal(err)
	}
	return a
}

// patchSpec changes the spec and, as the API server does, the generation.
func patchSpec(ctx context.Context, w client.WithWatch, a *v1alpha1.EgressAssignment, p client.Patch) error {
	if err := w.Patch(ctx, a, p); err != nil {
		return err
	}
	a.SetGeneration(a.GetGeneration() + 1)
	return w.Update(ctx, a)
}

// report is a node's answer to an assignment as it stands.
func (c *cluster) report(node, name string, programmed, offered, announced bool) {
	c.Helper()
	a := c.assignment(name)
	report := &v1alpha1.EgressNode{}
	if err := c.client.Get(c.Context(), types.NamespacedName{Name: node}, report); err != nil {
		c.Fatal(err)
	}
	report.Status.Services = slices.DeleteFunc(report.Status.Services, func(s v1alpha1.EgressNodeService) bool { return s.Key == "ns/"+name })
	report.Status.Services = append(report.Status.Services, v1alpha1.EgressNodeService{
		Key: "ns/" + name, UID: a.UID, ObservedGeneration: a.Generation, Role: v1alpha1.RoleStandby,
		Programmed: programmed, Offered: offered, Announced: announced, Addresses: a.Spec.SourceIPs,
	})
	if err := c.client.Status().Update(c.Context(), report); err != nil {
		c.Fatal(err)
	}
}

// ourLabels are the labels of ours on each node.
func (c *cluster) ourLabels() map[string][]string {
	c.Helper()
	var nodes corev1.NodeList
	if err := c.client.List(c.Context(), &nodes); err != nil {
		c.Fatal(err)
	}
	found := map[string][]string{}
	for _, node := range nodes.Items {
		for _, key := range slices.Sorted(maps.Keys(node.Labels)) {
			if strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix) {
				found[node.Name] = append(found[node.Name], key)
			}
		}
	}
	return found
}

// get reads an object.
func get[T client.Object](c *cluster, namespace, name string, into T) T {
	c.Helper()
	if err := c.client.Get(c.Context(), types.NamespacedName{Namespace: namespace, Name: name}, into); err != nil {
		c.Fatal(err)
	}
	return into
}

func (c *cluster) egress(name string) *egressv1.EgressService {
	c.Helper()
	return get(c, "ns", name, &egressv1.EgressService{})
}

// edit changes an object as a user would.
func edit[T client.Object](c *cluster, object T, change func(T)) {
	c.Helper()
	change(object)
	if err := c.client.Update(c.Context(), object); err != nil {
		c.Fatal(err)
	}
}

// settle brings a service to its primary, which announces, and returns primary and standby.
func (c *cluster) settle(name string) (primary, standby string) {
	c.Helper()
	c.sync()
	c.report(c.assignment(name).Spec.Standby, name, true, true, false)
	c.sync()
	spec := c.assignment(name).Spec
	c.report(spec.Primary, name, true, true, true)
	if spec.Standby != "" {
		c.report(spec.Standby, name, true, true, false)
	}
	c.sync()
	if spec.Primary == "" {
		c.Fatalf("%s has no primary", name)
	}
	return spec.Primary, spec.Standby
}

// condition is "<status>/<reason>" of an assignment's condition.
func (c *cluster) condition(name, kind string) string {
	c.Helper()
	for _, condition := range c.assignment(name).Status.Conditions {
		if condition.Type == kind {
			return string(condition.Status) + "/" + condition.Reason
		}
	}
	return "absent"
}

// metallb is its configuration: a pool and a peer.
func metallb() []client.Object {
	return []client.Object{
		&metallbv1beta1.IPAddressPool{
			ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "pool"},
			Spec:       metallbv1beta1.IPAddressPoolSpec{Addresses: []string{"192.0.2.0/24", "2001:db8::/64"}},
		},
		&metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Namespace: "metallb-system", Name: "tor"}},
	}
}

func node(name string) []client.Object {
	return []client.Object{
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name, "kubernetes.io/hostname": name}, Annotations: map[string]string{ovnkubernetes.NodeSubnets: `{"default":["10.244.0.0/16"]}`}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		},
		&v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: name}},
	}
}

// service is a LoadBalancer Service with one endpoint, and its EgressService.
func service(name, address string) []client.Object {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-of-service-" + name)}
	annotated := meta
	annotated.Annotations = map[string]string{"metallb.io/ip-allocated-from-pool": "pool"}
	egress := meta
	egress.UID = types.UID("uid-of-egress-" + name)
	return []client.Object{
		&corev1.Service{
			ObjectMeta: annotated, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: address}}}},
		},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.244.1." + address[strings.LastIndex(address, ".")+1:]}}},
		},
		&egressv1.EgressService{ObjectMeta: egress},
	}
}
