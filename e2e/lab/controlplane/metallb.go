// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// MetalLBNamespace is where MetalLB runs, and where its speakers write their FRRConfigurations.
const MetalLBNamespace = "metallb-system"

// Modules whose versions hack/tools/metallb pins.
const (
	metallbModule = "go.universe.tf/metallb"
	frrK8sModule  = "github.com/metallb/frr-k8s"
)

const metallbTimeout = 60 * time.Second

// NodeProcess is a node as its processes see it.
type NodeProcess struct {
	// Name is that of the Node object, Netns the network namespace of the node's processes.
	Name, Netns string
	// ProxyMode is kube-proxy's there: nftables, when empty, or iptables.
	ProxyMode string
}

// StartMetalLB installs MetalLB's and frr-k8s' CRDs and MetalLB's roles, then starts MetalLB's controller and one speaker per node, and
// returns when each has read its configuration and found it valid. The nodes' objects must exist. MetalLB runs as with its chart's
// frrk8s.enabled=false, frrk8s.external=true and frrk8s.namespace=metallb-system, unless the options have another type, without webhooks
// and without memberlist. It reads the
// modules' folders from the module cache, into which it downloads them where they are missing.
func (c *ControlPlane) StartMetalLB(ctx context.Context, nodes []NodeProcess) error {
	begin := time.Now()
	if err := c.installMetalLB(ctx); err != nil {
		return fmt.Errorf("MetalLB: %w", err)
	}
	if err := c.launchMetalLBController(ctx); err != nil {
		return fmt.Errorf("MetalLB: %w", err)
	}
	for _, node := range nodes {
		if err := c.launchMetalLBSpeaker(ctx, node); err != nil {
			return fmt.Errorf("MetalLB: %w", err)
		}
	}
	err := c.waitMetalLB(ctx, controllerPod, metallbControllerProcess)
	for _, node := range nodes {
		err = errors.Join(err, c.waitMetalLB(ctx, speakerPod(node.Name), MetalLBSpeakerProcess(node.Name)))
	}
	if err != nil {
		return fmt.Errorf("MetalLB: %w", err)
	}
	c.log("MetalLB's controller and %d speakers at work after %.1f s", len(nodes), time.Since(begin).Seconds())
	return nil
}

// StartMetalLBController starts the controller again after a test has stopped it, and returns when it is at work.
func (c *ControlPlane) StartMetalLBController(ctx context.Context) error {
	if err := c.launchMetalLBController(ctx); err != nil {
		return fmt.Errorf("MetalLB: %w", err)
	}
	return c.waitMetalLB(ctx, controllerPod, metallbControllerProcess)
}

// StartMetalLBSpeaker starts a node's speaker again after a test has stopped it, and returns when it is at work.
func (c *ControlPlane) StartMetalLBSpeaker(ctx context.Context, node NodeProcess) error {
	if err := c.launchMetalLBSpeaker(ctx, node); err != nil {
		return fmt.Errorf("MetalLB: %w", err)
	}
	return c.waitMetalLB(ctx, speakerPod(node.Name), MetalLBSpeakerProcess(node.Name))
}

// installMetalLB applies everything of MetalLB's that is not a workload.
func (c *ControlPlane) installMetalLB(ctx context.Context) error {
	dirs, err := moduleDirs(ctx, filepath.Join(c.options.RepoRoot, "hack", "tools", c.options.metallb()), metallbModule, frrK8sModule)
	if err != nil {
		return err
	}
	for _, module := range []string{metallbModule, frrK8sModule} {
		if err := c.InstallCRDs(ctx, os.DirFS(filepath.Join(dirs[module], "config", "crd", "bases"))); err != nil {
			return fmt.Errorf("%s: %w", module, err)
		}
	}
	// The manifest for frr-k8s mode, since only its roles let the speaker write FRRConfigurations.
	text, err := os.ReadFile(filepath.Join(dirs[metallbModule], "config", "manifests", "metallb-frr-k8s.yaml"))
	if err != nil {
		return err
	}
	objects, err := parseManifests(text)
	if err != nil {
		return err
	}
	return c.apply(ctx, metallbRoles(objects))
}

// metallbRoles picks MetalLB's namespace, service accounts and roles out of its manifest, and leaves frr-k8s' own.
func metallbRoles(manifest []*unstructured.Unstructured) []*unstructured.Unstructured {
	kinds := []string{"Namespace", "ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
	var roles []*unstructured.Unstructured
	for _, object := range manifest {
		if slices.Contains(kinds, object.GetKind()) && !strings.HasPrefix(object.GetName(), "frr-k8s-") {
			roles = append(roles, object)
		}
	}
	return roles
}

// moduleDirs returns the folders of modules in the module cache, at the versions that the module in dir requires.
func moduleDirs(ctx context.Context, dir string, modules ...string) (map[string]string, error) {
	command := exec.CommandContext(ctx, "go", append([]string{"mod", "download", "-json"}, modules...)...)
	command.Dir = dir
	command.Env = append(os.Environ(), "GOWORK=off")
	var problems bytes.Buffer
	command.Stderr = &problems
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w: %s%s", command, dir, err, output, problems.Bytes())
	}
	dirs := map[string]string{}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var module struct{ Path, Dir string }
		if err := decoder.Decode(&module); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
		dirs[module.Path] = module.Dir
	}
}

const controllerPod = "controller"

func speakerPod(node string) string { return "speaker-" + node }

func (c *ControlPlane) launchMetalLBController(ctx context.Context) error {
	if err := c.prepareMetalLBPod(ctx, controllerPod, "controller", ""); err != nil {
		return err
	}
	arguments := []string{"--webhook-mode=disabled"}
	if !c.options.oldMetalLB() {
		arguments = append(arguments, "--pod-name="+controllerPod)
	}
	return c.launchMetalLB(ctx, c.options.metallb()+"-controller", metallbControllerProcess, "controller", c.options.Netns, arguments...)
}

func (c *ControlPlane) launchMetalLBSpeaker(ctx context.Context, node NodeProcess) error {
	if err := c.prepareMetalLBPod(ctx, speakerPod(node.Name), "speaker", node.Name); err != nil {
		return err
	}
	return c.launchMetalLB(ctx, c.options.metallb()+"-speaker", MetalLBSpeakerProcess(node.Name), "speaker", node.Netns,
		"--pod-name="+speakerPod(node.Name), "--node-name="+node.Name, "--frrk8s-namespace="+MetalLBNamespace)
}

// launchMetalLB starts one of MetalLB's programs under its stock service account's name.
func (c *ControlPlane) launchMetalLB(ctx context.Context, binary, name, account, namespace string, arguments ...string) error {
	kubeconfig, err := c.KubeconfigFor(ctx, "system:serviceaccount:"+MetalLBNamespace+":"+account,
		"system:serviceaccounts", "system:serviceaccounts:"+MetalLBNamespace)
	if err != nil {
		return err
	}
	// It listens on all addresses, and several may share a namespace.
	ports, err := freePorts(namespace, netip.IPv4Unspecified(), 2)
	if err != nil {
		return err
	}
	if !c.options.oldMetalLB() {
		arguments = append(arguments, "--health-probe-port="+strconv.Itoa(ports[1]))
	}
	return c.start(ctx, process.Spec{
		Name:  name,
		Netns: namespace,
		Dir:   c.options.Dir,
		Env:   []string{"KUBECONFIG=" + kubeconfig, "METALLB_BGP_TYPE=" + cmp.Or(c.options.MetalLBBGPType, "frr-k8s")},
		Args: append([]string{
			"--namespace=" + MetalLBNamespace,
			"--port=" + strconv.Itoa(ports[0]),
			"--log-level=" + cmp.Or(c.options.MetalLBLogLevel, "debug"),
		}, arguments...),
	}, binary)
}

// prepareMetalLBPod makes the Pod object that MetalLB's programs look up to own what they write, unless it is there, and removes what
// the program said of its configuration when it ran before.
func (c *ControlPlane) prepareMetalLBPod(ctx context.Context, name, component, node string) error {
	if !c.options.oldMetalLB() {
		state := configurationState()
		state.SetNamespace(MetalLBNamespace)
		state.SetName(name)
		if err := c.client.Delete(ctx, state); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete ConfigurationState %s: %w", name, err)
		}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: MetalLBNamespace, Name: name, Labels: map[string]string{"app": "metallb", "component": component}},
		Spec: corev1.PodSpec{
			NodeName:    node,
			HostNetwork: component == "speaker",
			Containers:  []corev1.Container{{Name: component, Image: "lab"}},
		},
	}
	return c.createRunningPod(ctx, pod, nil)
}

func configurationState() *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(v1beta1.GroupVersion.WithKind("ConfigurationState"))
	return object
}

// waitMetalLB waits until one of MetalLB's programs says that its configuration is valid: ConfigurationState, named after the pod
// (MetalLB's internal/k8s, since v0.16; before that there is nothing to wait for).
func (c *ControlPlane) waitMetalLB(ctx context.Context, pod, processName string) error {
	if c.options.oldMetalLB() {
		return nil
	}
	key := types.NamespacedName{Namespace: MetalLBNamespace, Name: pod}
	return poll(ctx, metallbTimeout, "ConfigurationState "+key.String(), func(ctx context.Context) error {
		object := configurationState()
		err := c.client.Get(ctx, key, object)
		if err == nil {
			err = validConfiguration(object)
		}
		return c.orDead(err, processName)
	})
}

func validConfiguration(object *unstructured.Unstructured) error {
	var state v1beta1.ConfigurationState
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &state); err != nil {
		return err
	}
	if state.Status.Result != v1beta1.ConfigurationResultValid {
		return fmt.Errorf("result %q: %s", state.Status.Result, state.Status.ErrorSummary)
	}
	return nil
}
