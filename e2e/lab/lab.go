// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api"
	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

//go:embed lab.yaml
var labManifest []byte

// stateDir is short: unix sockets have paths of at most 107 bytes.
const stateDir = "/run/metallb-egress"

// Options say which lab.
type Options struct {
	// Root is the root of this repository.
	Root string
	// Prefix starts the names of everything that the lab makes; labs with different prefixes
	// can run side by side. See topology.Options.
	Prefix string
	// Programs is the folder with egress-controller, egress-speaker, lab and whoami.
	Programs string
	// Log is told what is being done, one line each.
	Log func(format string, args ...any)
}

func (o Options) dir() string { return filepath.Join(stateDir, o.Prefix) }

func (o Options) topology() topology.Options {
	return topology.Options{Prefix: o.Prefix, Dir: o.dir()}
}

func (o Options) controlPlane() (controlplane.Options, error) {
	crds, err := fs.Sub(api.CRDs, "crds")
	if err != nil {
		return controlplane.Options{}, err
	}
	return controlplane.Options{
		Dir: filepath.Join(o.dir(), "controlplane"), RepoRoot: o.Root,
		Netns: o.Prefix + "-cp", Address: topology.ControlAddress,
		ServiceCIDRs: []netip.Prefix{topology.ServiceSubnet, topology.ServiceSubnet6},
		PodCIDRs:     []netip.Prefix{topology.PodSubnet, topology.PodSubnet6},
		Binaries:     func(name string) (string, error) { return cache.Binary(o.Root, name) },
		CRDs:         []fs.FS{crds},
	}, nil
}

// Lab is a running lab.
type Lab struct {
	Options
	Processes *process.Set
	Topology  *topology.Topology
	Control   *controlplane.ControlPlane
	// Client is the admin's.
	Client client.Client
}

// Up builds a lab, after it has removed what an earlier one of the same prefix left. After an
// error, or when ctx ends, it removes its own work.
func Up(ctx context.Context, o Options) (l *Lab, err error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, o.Prefix, o.dir()+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := down(ctx, o); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, down(clean, o))
		}
	}()
	l = &Lab{Options: o}
	if l.Processes, err = process.Open(o.dir()); err != nil {
		return nil, err
	}
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"network: three nodes with OVN, a ToR with FRR, a host outside", l.upTopology},
		{"control plane: etcd, kube-apiserver, kube-controller-manager", l.upControlPlane},
		{"nodes: Node objects, kube-proxy, stock MetalLB", l.upNodes},
		{"metallb-egress: egress-controller, one egress-speaker per node", l.upPrograms},
		{"pods", l.upPods},
	}
	for i, step := range steps {
		begin := time.Now()
		o.Log("[%d/%d] %s", i+1, len(steps), step.what)
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		o.Log("[%d/%d] done in %.1f s", i+1, len(steps), time.Since(begin).Seconds())
	}
	return l, nil
}

// Open returns a running lab.
func Open(o Options) (*Lab, error) {
	l := &Lab{Options: o}
	var err error
	if l.Processes, err = process.Open(o.dir()); err != nil {
		return nil, err
	}
	l.Topology = topology.Open(o.topology(), l.Processes)
	options, err := o.controlPlane()
	if err != nil {
		return nil, err
	}
	if l.Control, err = controlplane.Open(options, l.Processes, o.Log); err != nil {
		return nil, fmt.Errorf("no lab %s is running here: %w", o.Prefix, err)
	}
	l.Client, err = newClient(l.Control)
	return l, err
}

// Down removes a lab completely. One that is not there is no error.
func Down(ctx context.Context, o Options) error {
	if _, err := os.Stat(stateDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(ctx, o.Prefix, o.dir()+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	return down(ctx, o)
}

func down(ctx context.Context, o Options) error {
	processes, err := process.Open(o.dir())
	if err != nil {
		return err
	}
	err = processes.StopAll(ctx)
	err = errors.Join(err, topology.Down(ctx, o.topology(), processes))
	if err != nil {
		return err
	}
	return os.RemoveAll(o.dir())
}

// lockWait is how long a command waits for another one of the same lab to end. A command that was
// killed may hold the lock a moment longer: a child that it had forked and that has not executed its
// program yet still has the file.
const lockWait = 5 * time.Second

// lock keeps two commands from building or removing the same lab at once. The kernel gives it
// back when the process ends, however it does.
func lock(ctx context.Context, lab, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, lockWait, true, func(context.Context) (bool, error) {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		_ = file.Close()
		if wait.Interrupted(err) {
			return nil, fmt.Errorf("lab %s is being built or removed by another command: %w", lab, err)
		}
		return nil, fmt.Errorf("lock lab %s: %w", lab, err)
	}
	return func() { _ = file.Close() }, nil
}

func (l *Lab) upTopology(ctx context.Context) (err error) {
	l.Topology, err = topology.Up(ctx, l.topology(), l.Processes, l.Log)
	return err
}

func (l *Lab) upControlPlane(ctx context.Context) error {
	options, err := l.controlPlane()
	if err != nil {
		return err
	}
	if l.Control, err = controlplane.Up(ctx, options, l.Processes, l.Log); err != nil {
		return err
	}
	l.Client, err = newClient(l.Control)
	return err
}

func newClient(c *controlplane.ControlPlane) (client.Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme, metallbv1beta1.AddToScheme, frrk8sv1beta1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return client.New(c.RESTConfig(), client.Options{Scheme: scheme})
}
