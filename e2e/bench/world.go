// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api"
	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const (
	// setters prepare a world; writers write while the clock runs, in the bare client as in each of the controller's loops.
	setters, writers = 32, 16
	// patience is how long anything may take, labels how long after one another, before the benchmark gives up.
	patience = 5 * time.Minute
)

// world is a new cluster: an API server, nodes with speakers, and Services. Every measurement has its own.
type world struct {
	*bench
	control *controlplane.ControlPlane
	// admin plays users and nodes; account has the controller's permissions, and is treated like it by the API server.
	admin      client.WithWatch
	account    client.Client
	kubeconfig string // of account
	discovery  rest.Interface
	fleet      *speakers.Fleet
	nodes      []string
	services   int
	// endpointNodes is how many of the nodes, the first ones, have the endpoints.
	endpointNodes int
}

// up makes a world with that many Services, whose endpoints are on the first so many nodes, and a spare Service to warm up with. It has no
// nodes yet.
func (b *bench) up(ctx context.Context, services, endpointNodes int) (_ *world, err error) {
	crds, err := b.definitions(ctx)
	if err != nil {
		return nil, err
	}
	w := &world{bench: b, services: services, endpointNodes: endpointNodes}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.down(ctx))
		}
	}()
	options := controlplane.Options{
		Dir: filepath.Join(b.dir, "controlplane"), CRDs: crds,
		Binaries: func(name string) (string, error) { return cache.Binary(b.root, name) },
	}
	if w.control, err = controlplane.Up(ctx, options, b.processes, func(string, ...any) {}); err != nil {
		return nil, err
	}
	if err := w.connect(ctx); err != nil {
		return nil, err
	}
	for _, name := range []string{controlplane.MetalLBNamespace, benchNamespace} {
		if err := w.admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.permit(ctx), w.configureMetalLB(ctx)); err != nil {
		return nil, err
	}
	if w.fleet, err = speakers.Start(ctx, w.control.RESTConfig(), controlplane.MetalLBNamespace); err != nil {
		return nil, err
	}
	return w, parallel(ctx, services+1, setters, w.createService)
}

// configureMetalLB makes the pool of all Services, and a peer of all nodes.
func (w *world) configureMetalLB(ctx context.Context) error {
	meta := metav1.ObjectMeta{Namespace: controlplane.MetalLBNamespace, Name: benchPool}
	return errors.Join(
		w.admin.Create(ctx, &metallbv1beta1.IPAddressPool{
			ObjectMeta: meta, Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: []string{netip.PrefixFrom(firstService, 15).Masked().String()}},
		}),
		w.admin.Create(ctx, &metallbv1beta2.BGPPeer{
			ObjectMeta: meta, Spec: metallbv1beta2.BGPPeerSpec{MyASN: 64512, ASN: 64513, Address: "192.0.2.254"},
		}),
	)
}

// down stops everything of the world.
func (w *world) down(ctx context.Context) error {
	if w.fleet != nil {
		w.fleet.Stop()
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return w.processes.StopAll(clean)
}

// definitions are this project's CRDs and MetalLB's, at the version whose Go types are used.
func (b *bench) definitions(ctx context.Context) ([]fs.FS, error) {
	own, err := fs.Sub(api.CRDs, "crds")
	if err != nil {
		return nil, err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "go.universe.tf/metallb")
	list.Dir = b.root
	output, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("MetalLB's CRDs: %w", err)
	}
	return []fs.FS{own, os.DirFS(filepath.Join(strings.TrimSpace(string(output)), "config", "crd", "bases"))}, nil
}

// connect makes the clients. Neither has a limit of its own.
func (w *world) connect(ctx context.Context) (err error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme, metallbv1beta1.AddToScheme, metallbv1beta2.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	if w.admin, err = client.NewWithWatch(w.control.RESTConfig(), client.Options{Scheme: scheme}); err != nil {
		return err
	}
	clientset, err := kubernetes.NewForConfig(w.control.RESTConfig())
	if err != nil {
		return err
	}
	w.discovery = clientset.Discovery().RESTClient()
	const account = "system:serviceaccount:" + controlplane.MetalLBNamespace + ":egress-controller"
	w.kubeconfig, err = w.control.KubeconfigFor(ctx, account,
		"system:serviceaccounts", "system:serviceaccounts:"+controlplane.MetalLBNamespace, "system:authenticated")
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", w.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	w.account, err = client.New(config, client.Options{Scheme: scheme})
	return err
}

// addNodes makes Nodes and their speakers, up to that many.
func (w *world) addNodes(ctx context.Context, nodes int, behaviour speakers.Behaviour) error {
	have := len(w.nodes)
	for i := have; i < nodes; i++ {
		w.nodes = append(w.nodes, nodeName(i))
	}
	return parallel(ctx, nodes-have, setters, func(ctx context.Context, i int) error {
		if err := w.admin.Create(ctx, newNode(have+i)); err != nil {
			return err
		}
		return w.fleet.Add(nodeName(have+i), behaviour)
	})
}

// parallel calls do for 0 to n-1, in order, so many at once.
func parallel(ctx context.Context, n, workers int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return do(ctx, i)
		})
	}
	return group.Wait()
}

// poll probes until it is done, fails, or the time is over.
func poll(ctx context.Context, limit time.Duration, what string, interval time.Duration, probe func(ctx context.Context) (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		done, err := probe(ctx)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
}
