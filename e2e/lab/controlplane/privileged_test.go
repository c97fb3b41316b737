// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package controlplane

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
	"syscall"
	"testing"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const testTimeout = 30 * time.Second

// startUp starts a control plane that ends with the test.
func startUp(t *testing.T, o Options) (*ControlPlane, *process.Set) {
	t.Helper()
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	o.RepoRoot, o.Dir = root, filepath.Join(t.TempDir(), "lab")
	o.Binaries = func(name string) (string, error) { return cache.Binary(root, name) }
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "metallb-controller", "metallb-speaker"} {
		if _, err := o.Binaries(name); err != nil {
			missing(t, err)
		}
	}
	processes, err := process.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			for _, name := range []string{storeProcess, serverProcess, controllersProcess, metallbControllerProcess, MetalLBSpeakerProcess("n1"), KubeProxyProcess("n1")} {
				t.Logf("%s said at last:\n%s", name, tail(processes.LogPath(name)))
			}
		}
		begin := time.Now()
		if err := processes.StopAll(ctx); err != nil {
			t.Error(err)
		}
		t.Logf("stopped after %.1f s", time.Since(begin).Seconds())
	})
	c, err := Up(t.Context(), o, processes, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return c, processes
}

func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skipf("SKIPPED, this checks nothing: %v", err)
}

// clientFor returns a client that knows the types of MetalLB and frr-k8s.
func clientFor(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, metallbv1beta1.AddToScheme, metallbv1beta2.AddToScheme, frrk8sv1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func create(t *testing.T, c client.Client, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.Create(t.Context(), object); err != nil {
			t.Fatalf("create %T %s: %v", object, object.GetName(), err)
		}
	}
}

func eventually(t *testing.T, what string, probe func(ctx context.Context) error) {
	t.Helper()
	begin := time.Now()
	if err := poll(t.Context(), testTimeout, what, probe); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s after %.2f s", what, time.Since(begin).Seconds())
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	output, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, output)
	}
	return string(output)
}

// On a loopback address, without root's help: identities and restarts.
func TestAPIServerForTests(t *testing.T) {
	c, processes := startUp(t, Options{CRDs: []fs.FS{os.DirFS("../../../api/crds")}})

	t.Run("definitions are established", func(t *testing.T) {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(metallbv1beta1.GroupVersion.WithKind("X"))
		list.APIVersion, list.Kind = "k8s.ovn.org/v1", "EgressServiceList"
		if err := clientFor(t, c.RESTConfig()).List(t.Context(), list); err != nil {
			t.Error(err)
		}
		if err := c.InstallCRDs(t.Context(), os.DirFS("../../../api/crds")); err != nil {
			t.Errorf("a second time: %v", err)
		}
	})
	t.Run("a user may do what its group is bound to", func(t *testing.T) { checkIdentity(t, c) })
	t.Run("opened by another process", func(t *testing.T) {
		o := c.options
		o.APIPort, o.Address = 0, netip.Addr{}
		opened, err := Open(o, processes, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if opened.Server() != c.Server() {
			t.Errorf("server %v, want %v", opened.Server(), c.Server())
		}
		if err := clientFor(t, opened.RESTConfig()).List(t.Context(), &corev1.NamespaceList{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("up while running is refused", func(t *testing.T) {
		if _, err := Up(t.Context(), c.options, processes, t.Logf); err == nil || !strings.Contains(err.Error(), "still running") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("kube-proxy in this namespace is refused", func(t *testing.T) {
		if err := c.StartKubeProxy(t.Context(), NodeProcess{Name: "n1"}); err == nil {
			t.Error("started")
		}
	})
	t.Run("up after everything was killed", func(t *testing.T) { checkRestart(t, c, processes) })
}

func checkIdentity(t *testing.T, c *ControlPlane) {
	path, err := c.KubeconfigFor(t.Context(), "egress-speaker", "metallb-egress:speakers")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", path, info.Mode())
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	speaker, admin := clientFor(t, config), clientFor(t, c.RESTConfig())
	if err := speaker.List(t.Context(), &corev1.NodeList{}); !apierrors.IsForbidden(err) {
		t.Errorf("before the binding: %v, want forbidden", err)
	}
	create(t, admin,
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "speakers"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"list"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "speakers"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "speakers"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "metallb-egress:speakers"}}})
	eventually(t, "the binding in force", func(ctx context.Context) error { return speaker.List(ctx, &corev1.NodeList{}) })
	if err := speaker.List(t.Context(), &corev1.SecretList{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets: %v, want forbidden", err)
	}
	anonymous := rest.AnonymousClientConfig(c.RESTConfig())
	if err := clientFor(t, anonymous).List(t.Context(), &corev1.NodeList{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("anonymous: %v, want unauthorized", err)
	}
}

func checkRestart(t *testing.T, c *ControlPlane, processes *process.Set) {
	marker := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "of-the-first-run"}}
	create(t, clientFor(t, c.RESTConfig()), marker)
	for _, name := range []string{storeProcess, serverProcess, controllersProcess} {
		pid, alive := processes.PID(name)
		if !alive {
			t.Fatalf("%s is not running", name)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := processes.StopAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := Up(t.Context(), c.options, processes, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if again.Server() != c.Server() {
		t.Errorf("server %v, want the old %v", again.Server(), c.Server())
	}
	if err := clientFor(t, again.RESTConfig()).Get(t.Context(), client.ObjectKeyFromObject(marker), marker); !apierrors.IsNotFound(err) {
		t.Errorf("the store is not empty: %v", err)
	}
	if err := clientFor(t, c.RESTConfig()).List(t.Context(), &corev1.NamespaceList{}); err == nil {
		t.Error("the first run's identity is good for the second")
	}
}

func TestUpSaysWhatHasEnded(t *testing.T) {
	processes, err := process.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := processes.StopAll(context.Background()); err != nil {
			t.Error(err)
		}
	})
	begin := time.Now()
	_, err = Up(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "lab"), Binaries: binaries}, processes, t.Logf)
	var dead *deadError
	if !errors.As(err, &dead) {
		t.Errorf("got %v, want a process that has ended", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

// The lab's shape: the control plane and one node in namespaces of their own.
func TestMetalLBAndKubeProxy(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, errors.New("this needs root"))
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, err)
		}
	}
	control, node := connectedNamespaces(t)
	c, processes := startUp(t, Options{Netns: control, Address: netip.MustParseAddr("10.250.0.1")})
	admin := clientFor(t, c.RESTConfig())
	if err := c.CreateNode(t.Context(), "n1", []netip.Addr{netip.MustParseAddr("10.250.0.11")}, nil, map[string]string{"role": "worker"}); err != nil {
		t.Fatal(err)
	}
	// A second speaker beside the controller's: programs that share a namespace get ports of their own.
	if err := c.CreateNode(t.Context(), "n2", []netip.Addr{netip.MustParseAddr("10.250.0.12")}, nil, nil); err != nil {
		t.Fatal(err)
	}
	n1, n2 := NodeProcess{Name: "n1", Netns: node}, NodeProcess{Name: "n2", Netns: control}
	if err := c.StartMetalLB(t.Context(), []NodeProcess{n1, n2}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.StartKubeProxy(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	t.Logf("kube-proxy healthy after %.1f s", time.Since(begin).Seconds())

	service := createService(t, c, admin)
	t.Run("the pod's endpoint slice", func(t *testing.T) { checkEndpointSlice(t, admin, service) })
	t.Run("MetalLB's address", func(t *testing.T) { checkAddress(t, admin, service) })
	t.Run("MetalLB's FRRConfigurations", func(t *testing.T) { checkFRRConfigurations(t, admin) })
	t.Run("a connection through kube-proxy", func(t *testing.T) { checkConnection(t, node, service) })
	t.Run("restarted parts of MetalLB", func(t *testing.T) { checkMetalLBRestart(t, c, processes, admin, n1) })
	t.Run("node readiness and a pod's end", func(t *testing.T) {
		if err := c.SetNodeReady(t.Context(), "n1", false); err != nil {
			t.Fatal(err)
		}
		got := &corev1.Node{}
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "n1"}, got); err != nil {
			t.Fatal(err)
		}
		if status := got.Status.Conditions[0].Status; status != corev1.ConditionFalse || len(got.Spec.Taints) != 0 {
			t.Errorf("ready %s, taints %v", status, got.Spec.Taints)
		}
		if err := c.DeletePod(t.Context(), service.Namespace, "pod"); err != nil {
			t.Fatal(err)
		}
		if err := admin.Get(t.Context(), client.ObjectKey{Namespace: service.Namespace, Name: "pod"}, &corev1.Pod{}); !apierrors.IsNotFound(err) {
			t.Errorf("the pod is still there: %v", err)
		}
	})
	for _, name := range []string{storeProcess, serverProcess, controllersProcess, metallbControllerProcess, MetalLBSpeakerProcess("n1"), KubeProxyProcess("n1")} {
		t.Logf("%s: %s", name, resources(t, processes, name))
	}
}

// resources returns a process's memory and CPU time.
func resources(t *testing.T, processes *process.Set, name string) string {
	t.Helper()
	pid, alive := processes.PID(name)
	if !alive {
		t.Errorf("%s is not running, see %s", name, processes.LogPath(name))
		return "not running"
	}
	return strings.Join(strings.Fields(run(t, "ps", "-o", "rss=,cputimes=", "-p", fmt.Sprint(pid))), " KiB, CPU seconds ")
}
