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
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
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
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const metallbNamespace = controlplane.MetalLBNamespace

// cluster is the control plane that all tests of this binary share, one after the other.
type cluster struct {
	config     *rest.Config // the admin's
	kubeconfig string       // the controller's
	client     client.WithWatch
	processes  *process.Set
}

// shared is started by the first test that asks for it, and stopped by TestMain.
var shared struct {
	once    sync.Once
	cluster *cluster
	err     error
	dir     string
}

func TestMain(m *testing.M) {
	// Once, before there is anybody to race with: replicas find the libraries' logger set.
	if _, err := (&program.Common{LogLevel: "none"}).Logger(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctrlmetrics.Registry = newest{ctrlmetrics.Registry}
	code := m.Run()
	if c := shared.cluster; c != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := c.processes.StopAll(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "stop the control plane:", err)
			code = 1
		}
		cancel()
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// newest is a registry in which a collector takes the place of an equal one: each replica registers
// its own in the registry of the process.
type newest struct {
	ctrlmetrics.RegistererGatherer
}

// Register implements prometheus.Registerer.
func (n newest) Register(c prometheus.Collector) error {
	err := n.RegistererGatherer.Register(c)
	if old := (prometheus.AlreadyRegisteredError{}); errors.As(err, &old) {
		n.Unregister(old.ExistingCollector)
		err = n.RegistererGatherer.Register(c)
	}
	return err
}

// startCluster returns the control plane, with an empty world in it.
func startCluster(t *testing.T) *cluster {
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
	shared.once.Do(func() { shared.cluster, shared.err = newCluster(root, t.Logf) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	if err := shared.cluster.empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	return shared.cluster
}

func newCluster(root string, log func(string, ...any)) (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var err error
	if shared.dir, err = os.MkdirTemp("", "egress-controller-test-"); err != nil {
		return nil, err
	}
	metallb, err := moduleDir(ctx, "go.universe.tf/metallb")
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	if c.processes, err = process.Open(filepath.Join(shared.dir, "processes")); err != nil {
		return nil, err
	}
	plane, err := controlplane.Up(ctx, controlplane.Options{
		Dir:      filepath.Join(shared.dir, "plane"),
		RepoRoot: root,
		Binaries: func(name string) (string, error) { return cache.Binary(root, name) },
		CRDs:     []fs.FS{os.DirFS(filepath.Join(root, "api", "crds")), os.DirFS(filepath.Join(metallb, "config", "crd", "bases"))},
	}, c.processes, log)
	if err != nil {
		return nil, errors.Join(err, c.processes.StopAll(ctx))
	}
	c.config = plane.RESTConfig()
	scheme, err := program.Scheme()
	if err != nil {
		return nil, err
	}
	if c.client, err = client.NewWithWatch(c.config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	if c.kubeconfig, err = plane.KubeconfigFor(ctx, "egress-controller", "system:masters"); err != nil {
		return nil, err
	}
	return c, c.createNamespace(ctx, metallbNamespace)
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
		&metallbv1beta1.BGPAdvertisementList{}, &corev1.NodeList{}, &v1alpha1.EgressNodeList{}, &coordinationv1.LeaseList{},
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
