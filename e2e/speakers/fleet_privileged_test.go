// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package speakers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/metallb-egress/metallb-egress/api"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const leases = "speakers"

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// cluster is a real API server with a fleet.
type cluster struct {
	*testing.T
	client client.Client
	fleet  *Fleet
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	binaries := func(name string) (string, error) { return cache.Binary(root, name) }
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := binaries(name); err != nil && os.Getenv("CI") == "true" {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("SKIPPED, this checks nothing: %v", err)
		}
	}
	crds, err := fs.Sub(api.CRDs, "crds")
	if err != nil {
		t.Fatal(err)
	}
	processes, err := process.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := processes.StopAll(ctx); err != nil {
			t.Error(err)
		}
	})
	options := controlplane.Options{Dir: filepath.Join(t.TempDir(), "lab"), Binaries: binaries, CRDs: []fs.FS{crds}}
	control, err := controlplane.Up(t.Context(), options, processes, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := Start(t.Context(), control.RESTConfig(), leases)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fleet.Stop)
	c := &cluster{T: t, client: fleet.client, fleet: fleet}
	for _, namespace := range []string{leases, "ns"} {
		c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}
	for _, node := range nodes {
		c.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	}
	return c
}

func (c *cluster) create(object client.Object) {
	c.Helper()
	if err := c.client.Create(c.Context(), object); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) add(node string, b Behaviour) {
	c.Helper()
	if err := c.fleet.Add(node, b); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) eventually(what string, probe func(ctx context.Context) error) {
	c.Helper()
	var last error
	err := wait.PollUntilContextTimeout(c.Context(), 20*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		err := probe(ctx)
		if last == nil || ctx.Err() == nil {
			last = err
		}
		return err == nil, nil
	})
	if err != nil {
		c.Fatalf("%s: %v: %v (newest failure of a fake: %v)", what, err, last, c.fleet.Err())
	}
}

// says waits until a node's report on a service is as given: "<generation> <role> programmed offered announced: <reason>", or nothing.
func (c *cluster) says(node, key, want string) {
	c.Helper()
	c.eventually(node+" on "+key, func(ctx context.Context) error {
		var report v1alpha1.EgressNode
		if err := c.client.Get(ctx, client.ObjectKey{Name: node}, &report); err != nil {
			return err
		}
		got := ""
		for _, s := range report.Status.Services {
			if s.Key == key {
				got = fmt.Sprintf("%d %s %t %t %t %s", s.ObservedGeneration, s.Role, s.Programmed, s.Offered, s.Announced, s.Reason)
			}
		}
		if got != want {
			return errors.New(cmp.Diff(want, got))
		}
		return nil
	})
}

func (c *cluster) assign(name string, change func(*v1alpha1.EgressAssignmentSpec)) {
	c.Helper()
	a := &v1alpha1.EgressAssignment{}
	err := c.client.Get(c.Context(), client.ObjectKey{Namespace: "ns", Name: name}, a)
	if err == nil {
		change(&a.Spec)
		err = c.client.Update(c.Context(), a)
	} else if apierrors.IsNotFound(err) {
		a = assignment(name, "", "", 0)
		a.Spec.SourceIPBy, a.Spec.FailurePolicy, a.UID = "LoadBalancerIP", v1alpha1.FailOpen, ""
		change(&a.Spec)
		err = c.client.Create(c.Context(), a)
	}
	if err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) label(node string, labels map[string]string) {
	c.Helper()
	object := &corev1.Node{}
	if err := c.client.Get(c.Context(), client.ObjectKey{Name: node}, object); err != nil {
		c.Fatal(err)
	}
	object.Labels = labels
	if err := c.client.Update(c.Context(), object); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) lease(ctx context.Context, node string) (*coordinationv1.Lease, error) {
	lease := &coordinationv1.Lease{}
	return lease, c.client.Get(ctx, client.ObjectKey{Namespace: leases, Name: v1alpha1.SpeakerLeasePrefix + node}, lease)
}

func TestFleetAnswersARealAPIServer(t *testing.T) {
	c := newCluster(t, "n1", "n2", "n3")
	c.assign("early", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "n2" })
	c.add("n1", Behaviour{})
	c.add("n2", Behaviour{Refuse: "no such network"})
	c.add("n3", Behaviour{Dead: true})
	if err := c.fleet.Add("n1", Behaviour{}); err == nil {
		t.Error("a second speaker on one node is accepted")
	}
	if err := c.fleet.Add("n9", Behaviour{}); !apierrors.IsNotFound(err) {
		t.Errorf("a speaker on a node that does not exist: %v", err)
	}
	c.says("n2", "ns/early", "1 Standby false false false no such network")

	run := func(name string, check func(t *testing.T, c *cluster)) {
		t.Run(name, func(t *testing.T) { check(t, &cluster{T: t, client: c.client, fleet: c.fleet}) })
	}
	run("a service's way", checkAnswers)
	run("a report that was deleted comes back whole", checkReportDeleted)
	run("leases", checkLeases)
	run("removed, and added again", func(_ *testing.T, c *cluster) {
		c.fleet.Remove("n1")
		c.add("n1", Behaviour{})
		c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "n1" })
		c.says("n1", "ns/web", "6 Standby true true false ")
	})
	run("no goroutine is left", checkGoroutines)
}

func checkAnswers(_ *testing.T, c *cluster) {
	c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "n1" })
	c.says("n1", "ns/web", "1 Standby true false false ")
	c.label("n1", map[string]string{standbyLabel: ""})
	c.says("n1", "ns/web", "1 Standby true true false ")
	c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n1", "n2", 1 })
	c.says("n1", "ns/web", "2 Primary true true false no established BGP session has been sent the route yet")
	c.says("n2", "ns/web", "2 Standby false false false no such network")
	c.label("n1", map[string]string{publicLabel: ""})
	c.says("n1", "ns/web", "2 Primary true true true ")
	c.fleet.Set("n1", Behaviour{NoSession: true})
	c.says("n1", "ns/web", "2 Primary true true false no established BGP session has been sent the route yet")
	c.fleet.Set("n1", Behaviour{})
	c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Standby, s.Epoch = "n2", "", 2 })
	c.says("n1", "ns/web", "")
	c.says("n2", "ns/web", "3 Primary false false false no such network")

	c.fleet.Set("n2", Behaviour{Mute: true})
	c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "n1" })
	c.says("n1", "ns/web", "4 Standby true true false ")
	c.says("n2", "ns/web", "3 Primary false false false no such network")
	c.fleet.Set("n2", Behaviour{})
	c.says("n2", "ns/web", "4 Primary true false false MetalLB has not handed this node the route yet")
}

func checkReportDeleted(t *testing.T, c *cluster) {
	if err := c.client.Delete(t.Context(), &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}); err != nil {
		t.Fatal(err)
	}
	c.assign("web", func(s *v1alpha1.EgressAssignmentSpec) { s.Standby = "" })
	c.says("n2", "ns/web", "5 Primary true false false MetalLB has not handed this node the route yet")
	var report v1alpha1.EgressNode
	if err := c.client.Get(t.Context(), client.ObjectKey{Name: "n2"}, &report); err != nil || report.Status.Version != fakeVersion {
		t.Errorf("%v: %+v", err, report.Status)
	}
}

func checkLeases(t *testing.T, c *cluster) {
	first, err := c.lease(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	_, marked := first.Labels[v1alpha1.SpeakerLeaseLabel]
	if !marked || *first.Spec.HolderIdentity != "n1" || *first.Spec.LeaseDurationSeconds != 10 || len(first.OwnerReferences) != 1 {
		t.Errorf("lease %+v", first)
	}
	c.eventually("the lease renewed", func(ctx context.Context) error {
		lease, err := c.lease(ctx, "n1")
		if err == nil && !lease.Spec.RenewTime.After(first.Spec.RenewTime.Time) {
			err = errors.New("not renewed")
		}
		return err
	})
	if _, err := c.lease(t.Context(), "n3"); !apierrors.IsNotFound(err) {
		t.Errorf("the dead speaker's lease: %v", err)
	}
	c.fleet.Set("n3", Behaviour{})
	c.eventually("the lease of one that came back", func(ctx context.Context) error {
		_, err := c.lease(ctx, "n3")
		return err
	})
}

func checkGoroutines(t *testing.T, c *cluster) {
	c.fleet.Stop()
	// Goroutines that are just ending have left these functions.
	for _, running := range []string{"(*speaker).report(", "(*speaker).renew(", "(*informerCache).Start("} {
		if strings.Contains(stacks(), running) {
			t.Errorf("Stop has returned before %s", running)
		}
	}
	if err := c.fleet.Add("n2", Behaviour{}); err == nil {
		t.Error("a fleet that has ended takes a speaker")
	}
	c.eventually("every goroutine ended", func(context.Context) error {
		for _, stack := range strings.Split(stacks(), "\n\n") {
			ours := strings.Contains(stack, "created by github.com/metallb-egress/metallb-egress/e2e/speakers.")
			watches := strings.Contains(stack, "client-go/tools/cache") || strings.Contains(stack, "controller-runtime/pkg/cache")
			if (ours || watches) && !strings.Contains(stack, "testing.(*T).Run") {
				return errors.New(stack)
			}
		}
		return nil
	})
}

// stacks are those of all goroutines.
func stacks() string {
	text := make([]byte, 1<<20)
	return string(text[:runtime.Stack(text, true)])
}

func TestReportsAreCoalesced(t *testing.T) {
	c := newCluster(t, "n1")
	c.add("n1", Behaviour{})
	const services = 50
	begin := time.Now()
	for i := range services {
		c.assign(fmt.Sprintf("s%02d", i), func(s *v1alpha1.EgressAssignmentSpec) { s.Primary, s.Epoch = "n1", 1 })
	}
	for i := range services {
		c.says("n1", fmt.Sprintf("ns/s%02d", i), "1 Primary true false false MetalLB has not handed this node the route yet")
	}
	// Every assignment could have been a report; the first is written at once.
	if most := 2 + int(time.Since(begin)/reportInterval); c.fleet.Writes() > most {
		t.Errorf("%d reports in %v, want at most %d", c.fleet.Writes(), time.Since(begin), most)
	}
}
