// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/metallb-egress/metallb-egress/api"
	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const (
	// metallbNamespace is MetalLB's namespace, exampleNamespace that of the tests' Services.
	metallbNamespace, exampleNamespace = controlplane.MetalLBNamespace, "example"
	// pool is there in every test, pool6 where MetalLB has IPv6.
	pool, pool6 = "pool", "pool6"
)

// controlAddress is where the API server listens.
var controlAddress = netip.MustParseAddr("10.250.0.1")

// backend is how MetalLB's speakers announce, and which MetalLB it is.
type backend string

const (
	// frrK8s is external: what each node is to announce is in an FRRConfiguration.
	frrK8s backend = "frr-k8s"
	// native has sessions with two FRR routers.
	native backend = "native"
	// before016 is frrK8s of MetalLB v0.15, which has no serviceSelectors.
	before016 backend = "frr-k8s-0.15"
)

// bgpType is METALLB_BGP_TYPE.
func (b backend) bgpType() string {
	if b == before016 {
		return string(frrK8s)
	}
	return string(b)
}

// metallb is the folder of hack/tools whose MetalLB it is.
func (b backend) metallb() string {
	if b == before016 {
		return cache.OldMetalLB
	}
	return cache.MetalLB
}

// world is a cluster: a control plane and stock MetalLB.
type world struct {
	backend   backend
	root, dir string
	netns     string
	nodeNetns map[string]string // of nodes that have one of their own
	routers   *routers          // of the native back end
	plane     *controlplane.ControlPlane
	processes *process.Set
	client    client.WithWatch // the admin's
	nodes     []string         // that have a MetalLB speaker
	settlings int              // see settled
	endpoints atomic.Int32     // that were ever made
	// built is closed when egress-controller is compiled, or buildErr says why it is not.
	built       chan struct{}
	buildErr    error
	cancelBuild context.CancelFunc
}

// started are the worlds of all tests, as far as one has entered them. TestMain stops them.
var started = map[backend]*world{}

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	code := m.Run()
	for _, w := range started {
		if err := w.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the world:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// inEach runs a test for each back end.
func inEach(t *testing.T, test func(*testing.T, *world)) {
	for _, b := range []backend{frrK8s, native} {
		t.Run(string(b), func(t *testing.T) { test(t, enter(t, b)) })
	}
}

// theWorld starts it, unless it is there.
func theWorld(b backend) (*world, error) {
	if w := started[b]; w != nil {
		return w, nil
	}
	w, err := startWorld(context.Background(), b, 3)
	if err == nil {
		started[b] = w
		// Meanwhile: tests wait for MetalLB much of the time.
		w.startBuild()
	}
	return w, err
}

// enter returns the world of a back end, emptied, for this test alone.
func enter(t *testing.T, b backend) *world {
	t.Helper()
	requireTools(t, b)
	begin := time.Now()
	w, err := theWorld(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("world empty after %.1f s", time.Since(begin).Seconds())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.situation())
		}
	})
	return w
}

// requireTools skips the test where something is missing, or fails it in CI.
func requireTools(t *testing.T, b backend) {
	t.Helper()
	missing := func(err error) {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED, this checks nothing: %v", err)
	}
	if os.Geteuid() != 0 {
		missing(errors.New("this needs root"))
	}
	for _, name := range []string{"ip", "vtysh", bgpdProgram} {
		if _, err := exec.LookPath(name); err != nil {
			missing(err)
		}
	}
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", b.metallb() + "-controller", b.metallb() + "-speaker"} {
		if _, err := cache.Binary(root, name); err != nil {
			missing(err)
		}
	}
}

// nodeName is n1, n2, …
func nodeName(i int) string { return fmt.Sprintf("n%d", i+1) }

// startWorld starts a control plane, MetalLB, and makes what is there in every test.
func startWorld(ctx context.Context, b backend, nodes int) (_ *world, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	w := &world{backend: b, nodeNetns: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.root, err = cache.RepoRoot("."); err != nil {
		return nil, err
	}
	if w.dir, err = os.MkdirTemp("", "metallb-test-"); err != nil {
		return nil, err
	}
	if w.processes, err = process.Open(filepath.Join(w.dir, "processes")); err != nil {
		return nil, err
	}
	if err := w.makeNetns(ctx); err != nil {
		return nil, err
	}
	if b == native {
		if err := errors.Join(w.connectNodes(ctx, nodes), w.startRouters(ctx, nodes)); err != nil {
			return nil, err
		}
	}
	own, err := fs.Sub(api.CRDs, "crds")
	if err != nil {
		return nil, err
	}
	w.plane, err = controlplane.Up(ctx, controlplane.Options{
		Dir: filepath.Join(w.dir, "plane"), RepoRoot: w.root, Netns: w.netns, Address: controlAddress,
		Binaries:        func(name string) (string, error) { return cache.Binary(w.root, name) },
		ServiceCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		CRDs:            []fs.FS{own},
		MetalLBLogLevel: "info", MetalLB: b.metallb(), MetalLBBGPType: b.bgpType(),
	}, w.processes, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	if err := w.connect(); err != nil {
		return nil, err
	}
	return w, w.furnish(ctx, nodes)
}

// makeNetns makes a network namespace for all processes: MetalLB's speakers answer ARP for services that are announced by layer 2, and
// the machine's own network is not to see that.
func (w *world) makeNetns(ctx context.Context) error {
	name := fmt.Sprintf("memlb-%s-%d", w.backend, os.Getpid())
	if err := ip(ctx, "netns", "add", name); err != nil {
		return err
	}
	w.netns = name
	return errors.Join(ip(ctx, "-n", name, "link", "set", "lo", "up"),
		ip(ctx, "-n", name, "address", "add", controlAddress.String()+"/32", "dev", "lo"))
}

func ip(ctx context.Context, args ...string) error {
	if output, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", args, err, output)
	}
	return nil
}

func (w *world) connect() (err error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, metallbv1beta1.AddToScheme, metallbv1beta2.AddToScheme, frrk8sv1beta1.AddToScheme,
		egressv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	w.client, err = client.NewWithWatch(w.plane.RESTConfig(), client.Options{Scheme: scheme})
	return err
}

// furnish makes Nodes, MetalLB, and what the tests share.
func (w *world) furnish(ctx context.Context, nodes int) error {
	var processes []controlplane.NodeProcess
	for i := range nodes {
		name := nodeName(i)
		// As OVN-Kubernetes tells which endpoints are pods.
		annotations := map[string]string{ovnkubernetes.NodeSubnets: fmt.Sprintf(`{"default":[%q]}`, podSubnet(name))}
		if err := w.plane.CreateNode(ctx, name, []netip.Addr{netip.AddrFrom4([4]byte{10, 250, 0, byte(11 + i)})}, annotations, nil); err != nil {
			return err
		}
		w.nodes = append(w.nodes, name)
		processes = append(processes, w.nodeProcess(name))
	}
	if err := w.plane.StartMetalLB(ctx, processes); err != nil {
		return err
	}
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: exampleNamespace}},
		newPool(pool, "192.0.2.0/24"),
		newPool(canary, canaryPrefix.String()),
		newAdvertisement(canary, canaryAdvertisement("0")),
	}
	if w.backend == before016 {
		if err := w.mendNumbers(ctx); err != nil {
			return err
		}
	}
	if w.backend != native {
		objects = append(objects, newPool(pool6, "2001:db8::/64"))
	}
	for _, peer := range w.peers() {
		objects = append(objects, peer)
	}
	for _, object := range objects {
		if err := w.client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
		}
	}
	return w.createService(ctx, canary, service{pool: canary})
}

func (w *world) nodeProcess(node string) controlplane.NodeProcess {
	return controlplane.NodeProcess{Name: node, Netns: cmp.Or(w.nodeNetns[node], w.netns)}
}

// stop ends every process and removes everything that the world has made outside of them.
func (w *world) stop() error {
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var problems []error
	if w.built != nil {
		w.cancelBuild()
		<-w.built
	}
	if w.processes != nil {
		problems = append(problems, w.processes.StopAll(ctx))
	}
	for _, netns := range w.nodeNetns {
		problems = append(problems, ip(ctx, "netns", "delete", netns))
	}
	if w.netns != "" {
		problems = append(problems, ip(ctx, "netns", "delete", w.netns))
	}
	if w.dir != "" {
		problems = append(problems, os.RemoveAll(w.dir))
	}
	return errors.Join(problems...)
}

const (
	// patience is how long anything may take, on a machine that is busy with other things; MetalLB's own delay is 3 s.
	patience = 30 * time.Second
	// glance is the time between two looks.
	glance = 50 * time.Millisecond
)

// poll asks until the answer is nil, and returns the last one when its patience is over.
func poll(ctx context.Context, what string, ask func(context.Context) error) error {
	return pollFor(ctx, patience, what, ask)
}

func pollFor(ctx context.Context, limit time.Duration, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	var last error
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, last)
		case <-ticker.C:
		}
	}
}
