// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const metallbNamespace = controlplane.MetalLBNamespace

// cluster is a control plane.
type cluster struct {
	config     *rest.Config // the admin's
	kubeconfig string       // the controller's
	client     client.WithWatch
	processes  *process.Set
	dir        string
}

// lanes is how many control planes there are: tests on one wait much of the time, in which the next
// can work.
const lanes = 2

// pool has the control planes that no test uses; nil is one that is not started yet. TestMain fills it
// and stops them.
var pool = make(chan *cluster, lanes)

func TestMain(m *testing.M) {
	// Before there is anybody to race with.
	if err := (&program.Common{LogLevel: "none"}).RedirectLibraries(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctrlmetrics.Registry = newest{ctrlmetrics.Registry}
	for range lanes {
		pool <- nil
	}
	code := m.Run()
	for range lanes {
		if err := (<-pool).stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop a control plane:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func (c *cluster) stop() error {
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(c.processes.StopAll(ctx), os.RemoveAll(c.dir))
}

// newest is a registry in which a collector takes the place of an equal one: each replica registers
// its own in the registry of the process.
type newest struct {
	ctrlmetrics.RegistererGatherer
}

// Register implements prometheus.Registerer.
func (n newest) Register(c prometheus.Collector) error {
	for {
		err := n.RegistererGatherer.Register(c)
		old := prometheus.AlreadyRegisteredError{}
		if !errors.As(err, &old) {
			return err
		}
		n.Unregister(old.ExistingCollector)
	}
}

// takeCluster returns a control plane with an empty world in it, for this test alone.
func takeCluster(t *testing.T) *cluster {
	t.Helper()
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := cache.Binary(root, name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("SKIPPED, this checks nothing: %v", err)
		}
	}
	c := <-pool
	t.Cleanup(func() { pool <- c })
	if c == nil {
		if c, err = newCluster(t.Context(), root); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// newCluster starts a control plane and installs what MetalLB's and our own charts would.
func newCluster(ctx context.Context, root string) (c *cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	metallb, err := moduleDir(ctx, "go.universe.tf/metallb")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "egress-controller-test-")
	if err != nil {
		return nil, err
	}
	processes, err := process.Open(filepath.Join(dir, "processes"))
	if err != nil {
		return nil, err
	}
	started := &cluster{processes: processes, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, started.stop())
		}
	}()
	plane, err := controlplane.Up(ctx, controlplane.Options{
		Dir:      filepath.Join(dir, "plane"),
		RepoRoot: root,
		Binaries: func(name string) (string, error) { return cache.Binary(root, name) },
		CRDs:     []fs.FS{os.DirFS(filepath.Join(root, "api", "crds")), os.DirFS(filepath.Join(metallb, "config", "crd", "bases"))},
	}, processes, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	started.config = plane.RESTConfig()
	if started.client, err = client.NewWithWatch(started.config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	if started.kubeconfig, err = plane.KubeconfigFor(ctx, "egress-controller", "system:masters"); err != nil {
		return nil, err
	}
	return started, errors.Join(started.createNamespace(ctx, metallbNamespace), started.configureMetalLB(ctx))
}

// configureMetalLB makes what an admin makes first: pools, and a peer.
func (c *cluster) configureMetalLB(ctx context.Context) error {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: metallbNamespace, Name: name} }
	addresses := []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"}
	return errors.Join(
		c.client.Create(ctx, &metallbv1beta1.IPAddressPool{ObjectMeta: meta("pool"), Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: addresses}}),
		c.client.Create(ctx, &metallbv1beta1.IPAddressPool{ObjectMeta: meta("other"), Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: addresses}}),
		c.client.Create(ctx, &metallbv1beta2.BGPPeer{
			ObjectMeta: meta("tor"), Spec: metallbv1beta2.BGPPeerSpec{MyASN: 64512, ASN: 64513, Address: "192.0.2.254"},
		}),
	)
}

// moduleDir is the folder of a module that this repository requires.
func moduleDir(ctx context.Context, module string) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("folder of module %s: %w", module, err)
	}
	return strings.TrimSpace(string(output)), nil
}

func (c *cluster) createNamespace(ctx context.Context, name string) error {
	err := c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// inhabitants are the kinds of which a test may leave objects behind, in the order of their removal.
func inhabitants() []client.ObjectList {
	return []client.ObjectList{
		&egressv1.EgressServiceList{}, &v1alpha1.EgressAssignmentList{}, &corev1.ServiceList{}, &discoveryv1.EndpointSliceList{},
		&advertisement.BGPAdvertisementList{}, &metallbv1beta1.L2AdvertisementList{}, &corev1.NodeList{}, &v1alpha1.EgressNodeList{}, &coordinationv1.LeaseList{},
		&eventsv1.EventList{},
	}
}

// empty removes everything that tests make but the namespaces, whose removal takes seconds.
func (c *cluster) empty(ctx context.Context) error {
	return poll(ctx, "the world emptied", func(ctx context.Context) error {
		var left []string
		for _, list := range inhabitants() {
			if err := c.client.List(ctx, list); err != nil {
				return err
			}
			err := meta.EachListItem(list, func(item objectOfList) error {
				object, ok := item.(client.Object)
				if !ok || permanent(object) {
					return nil
				}
				left = append(left, fmt.Sprintf("%T %s", object, client.ObjectKeyFromObject(object)))
				return client.IgnoreNotFound(c.client.Delete(ctx, object, client.GracePeriodSeconds(0)))
			})
			if err != nil {
				return err
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("still there: %s", strings.Join(left, ", "))
		}
		return nil
	})
}

// permanent is true for what the control plane itself keeps.
func permanent(object client.Object) bool {
	switch object.GetNamespace() {
	case metav1.NamespaceDefault:
		return object.GetName() == "kubernetes"
	case metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease:
		return true
	}
	return false
}
