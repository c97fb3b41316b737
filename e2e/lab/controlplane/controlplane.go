// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// How long the parts may take on a machine that is busy with other things; quiet ones need a tenth of it.
const (
	portTimeout        = 15 * time.Second
	serverTimeout      = 90 * time.Second
	controllersTimeout = 60 * time.Second
)

// ControlPlane is a running control plane.
type ControlPlane struct {
	options   Options
	server    netip.AddrPort
	authority *authority
	admin     *rest.Config
	client    client.Client
	processes *process.Set
	log       func(string, ...any)
}

// Up starts etcd, the API server and the controllers, and returns when the API server is ready and the controllers have done their first
// work. It starts from nothing: the store, keys and kubeconfigs in o.Dir are replaced. The processes of an earlier run must have been
// stopped; it waits until their port is free. After an error the caller stops what has been started, with processes.StopAll.
func Up(ctx context.Context, o Options, processes *process.Set, log func(string, ...any)) (*ControlPlane, error) {
	c, err := up(ctx, o, processes, log)
	if err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	return c, nil
}

func up(ctx context.Context, o Options, processes *process.Set, log func(string, ...any)) (*ControlPlane, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{storeProcess, serverProcess, controllersProcess} {
		if processes.Alive(name) {
			return nil, fmt.Errorf("%s is still running", name)
		}
	}
	if err := claimPort(ctx, &o); err != nil {
		return nil, err
	}
	if err := prepare(o); err != nil {
		return nil, err
	}
	c, err := Open(o, processes, log)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := c.startServer(ctx); err != nil {
		return nil, err
	}
	c.log("API server at https://%s ready after %.1f s", c.server, time.Since(begin).Seconds())
	for _, definitions := range o.CRDs {
		if err := c.InstallCRDs(ctx, definitions); err != nil {
			return nil, err
		}
	}
	if err := c.startControllers(ctx); err != nil {
		return nil, err
	}
	c.log("controllers at work after %.1f s", time.Since(begin).Seconds())
	return c, nil
}

// Open returns the control plane that an earlier Up, maybe of another process, has started with the same options.
func Open(o Options, processes *process.Set, log func(string, ...any)) (*ControlPlane, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	authority, err := openAuthority(o.keyDir())
	if err != nil {
		return nil, err
	}
	admin, err := clientcmd.BuildConfigFromFlags("", o.kubeconfigPath(adminUser))
	if err != nil {
		return nil, err
	}
	// The lab's own writes are not to be slowed down: without a limit on its side, the API server's fairness governs.
	admin.QPS = -1
	if o.Netns != "" {
		admin.Dial = topology.DialContext(o.Netns)
	}
	address, err := url.Parse(admin.Host)
	if err != nil {
		return nil, err
	}
	server, err := netip.ParseAddrPort(address.Host)
	if err != nil {
		return nil, err
	}
	o.Address, o.APIPort = server.Addr(), int(server.Port())
	c := &ControlPlane{options: o, server: server, authority: authority, admin: admin, processes: processes, log: log}
	c.client, err = client.New(c.RESTConfig(), client.Options{})
	return c, err
}

// RESTConfig returns the admin's configuration for this process: it reaches the API server in its network namespace.
func (c *ControlPlane) RESTConfig() *rest.Config { return rest.CopyConfig(c.admin) }

// Server returns the API server's address and port inside its network namespace.
func (c *ControlPlane) Server() netip.AddrPort { return c.server }

// claimPort waits until the API server's port is free, or finds one.
func claimPort(ctx context.Context, o *Options) error {
	if o.APIPort == 0 {
		ports, err := freePorts(o.Netns, o.Address, 1)
		if err != nil {
			return err
		}
		o.APIPort = ports[0]
		return nil
	}
	return poll(ctx, portTimeout, fmt.Sprintf("port %d of %s free", o.APIPort, o.Address), func(context.Context) error {
		return portFree(o.Netns, o.Address, o.APIPort)
	})
}

// prepare makes the folders, keys and kubeconfigs anew.
func prepare(o Options) error {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{o.keyDir(), o.storeDir(), o.kubeconfigDir(), o.proxyDir()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	authority, err := newAuthority(time.Now())
	if err != nil {
		return err
	}
	addresses, names := serverNames(o)
	server, err := authority.server(time.Now(), addresses, names)
	if err != nil {
		return err
	}
	serviceAccountKey, err := newServiceAccountKey()
	if err != nil {
		return err
	}
	endpoint := netip.AddrPortFrom(o.Address, uint16(o.APIPort))
	_, adminErr := writeKubeconfig(o, authority, endpoint, adminUser, []string{mastersGroup})
	_, controllersErr := writeKubeconfig(o, authority, endpoint, controllersUser, []string{mastersGroup})
	return errors.Join(adminErr, controllersErr, authority.save(o.keyDir()),
		os.WriteFile(filepath.Join(o.keyDir(), serverCertificateFile), server.certificate, 0o600),
		os.WriteFile(filepath.Join(o.keyDir(), serverKeyFile), server.key, 0o600),
		os.WriteFile(filepath.Join(o.keyDir(), serviceAccountKeyFile), serviceAccountKey, 0o600))
}

// startServer starts etcd and the API server, which waits for etcd by itself, and waits for /readyz.
func (c *ControlPlane) startServer(ctx context.Context) error {
	if err := c.start(ctx, process.Spec{Name: storeProcess, Netns: c.options.Netns, Dir: c.options.storeDir(), Args: storeArguments()}, storeProcess); err != nil {
		return err
	}
	server := process.Spec{Name: serverProcess, Netns: c.options.Netns, Dir: c.options.storeDir(), Args: serverArguments(c.options)}
	if err := c.start(ctx, server, serverProcess); err != nil {
		return err
	}
	clientset, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		return err
	}
	return poll(ctx, serverTimeout, "/readyz of the API server", func(ctx context.Context) error {
		_, err := clientset.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return c.orDead(err, storeProcess, serverProcess)
	})
}

// startControllers starts kube-controller-manager and waits until two of its controllers have given the default namespace what every
// namespace gets.
func (c *ControlPlane) startControllers(ctx context.Context) error {
	spec := process.Spec{Name: controllersProcess, Netns: c.options.Netns, Dir: c.options.Dir,
		Args: controllersArguments(c.options, c.options.kubeconfigPath(controllersUser))}
	if err := c.start(ctx, spec, controllersProcess); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "default"}}
	roots := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kube-root-ca.crt"}}
	return poll(ctx, controllersTimeout, "the controllers' first work", func(ctx context.Context) error {
		err := errors.Join(c.client.Get(ctx, client.ObjectKeyFromObject(account), account), c.client.Get(ctx, client.ObjectKeyFromObject(roots), roots))
		return c.orDead(err, controllersProcess)
	})
}
