// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const (
	workerLabel = "node-role.kubernetes.io/worker"
	// serverPort is where the pods, and the nodes themselves, answer with the source they see.
	serverPort = 8080
	nodePort   = 9000
	// outsidePort is of the server outside.
	outsidePort = 80
)

// Namespaces and labels of the lab's pods.
const (
	exampleNamespace = "example-namespace"
	otherNamespace   = "default"
)

// ExamplePod is the name of the example service's pod on a node.
func ExamplePod(node string) string { return "example-" + node }

// OtherPod is the name of the pod on a node that belongs to no EgressService.
func OtherPod(node string) string { return "other-" + node }

// upNodes makes the Node objects, as OVN-Kubernetes would annotate them, and starts the stock
// programs of each node.
func (l *Lab) upNodes(ctx context.Context) error {
	var processes []controlplane.NodeProcess
	for i, node := range l.Topology.Nodes() {
		if err := l.Control.CreateNode(ctx, node.Name, node.Addresses(), node.Annotations, map[string]string{workerLabel: ""}); err != nil {
			return err
		}
		mode := "nftables"
		if i == 2 {
			mode = "iptables" // one node with the other kind, which has to go with ours as well
		}
		processes = append(processes, controlplane.NodeProcess{Name: node.Name, Netns: node.Netns, ProxyMode: mode})
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.Control.StartMetalLB(groupCtx, processes) })
	for _, node := range processes {
		group.Go(func() error { return l.Control.StartKubeProxy(groupCtx, node) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return l.Apply(ctx, labManifest)
}

// upPrograms starts this project's programs, each with the permissions that its role file
// gives and no others, and what plays OVN-Kubernetes' part for ClusterIPs.
func (l *Lab) upPrograms(ctx context.Context) error {
	for _, name := range []string{"controller", "speaker"} {
		manifest, err := os.ReadFile(filepath.Join(l.Root, "charts", "metallb-egress", "rbac", name+".yaml"))
		if err != nil {
			return err
		}
		if err := l.Apply(ctx, manifest); err != nil {
			return err
		}
	}
	if err := l.StartBalancers(ctx); err != nil {
		return err
	}
	if err := l.StartController(ctx); err != nil {
		return err
	}
	for _, node := range l.Topology.Nodes() {
		if err := l.StartSpeaker(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// Names of this project's processes.
const (
	ControllerProcess = "egress-controller"
	balancersProcess  = "ovn-load-balancers"
)

// SpeakerProcess is the name of a node's egress-speaker.
func SpeakerProcess(node string) string { return "egress-speaker-" + node }

// StartController starts the egress-controller.
func (l *Lab) StartController(ctx context.Context) error {
	kubeconfig, err := l.serviceAccount(ctx, "egress-controller")
	if err != nil {
		return err
	}
	return l.Processes.Start(ctx, process.Spec{
		Name: ControllerProcess, Netns: l.Topology.ControlNetns(), Path: filepath.Join(l.Programs, "egress-controller"),
		Args: []string{"-kubeconfig", kubeconfig},
	})
}

// StartSpeaker starts a node's egress-speaker.
func (l *Lab) StartSpeaker(ctx context.Context, node topology.Node) error {
	kubeconfig, err := l.serviceAccount(ctx, "egress-speaker")
	if err != nil {
		return err
	}
	return l.Processes.Start(ctx, process.Spec{
		Name: SpeakerProcess(node.Name), Netns: node.Netns, Path: filepath.Join(l.Programs, "egress-speaker"),
		Args: []string{
			"-kubeconfig", kubeconfig, "-node-name", node.Name,
			"-ovn-nb-socket", node.NorthboundSocket, "-ovs-socket", node.OpenvSwitchSocket,
		},
	})
}

// StartBalancers starts the command that keeps OVN's load balancers in step with the Services.
func (l *Lab) StartBalancers(ctx context.Context) error {
	return l.Processes.Start(ctx, process.Spec{
		Name: balancersProcess, Path: filepath.Join(l.Programs, "lab"),
		Args: []string{"-prefix", l.Prefix, "-root", l.Root, "balancers"},
	})
}

func (l *Lab) serviceAccount(ctx context.Context, name string) (kubeconfig string, err error) {
	return l.Control.KubeconfigFor(ctx, "system:serviceaccount:"+controlplane.MetalLBNamespace+":"+name,
		"system:serviceaccounts", "system:serviceaccounts:"+controlplane.MetalLBNamespace, "system:authenticated")
}

// upPods starts one pod of the example and one other pod on each node, and the servers outside
// and on the nodes that tell which source they see.
func (l *Lab) upPods(ctx context.Context) error {
	if err := l.startServer(ctx, "outside", l.Topology.OutsideNetns(), outsidePort); err != nil {
		return err
	}
	for _, node := range l.Topology.Nodes() {
		if err := l.startServer(ctx, node.Name, node.Netns, nodePort); err != nil {
			return err
		}
		if err := l.addPod(ctx, exampleNamespace, ExamplePod(node.Name), node.Name, map[string]string{"app": "example"}); err != nil {
			return err
		}
		if err := l.addPod(ctx, otherNamespace, OtherPod(node.Name), node.Name, map[string]string{"app": "other"}); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addPod(ctx context.Context, namespace, name, node string, labels map[string]string) error {
	pod, err := l.Topology.AddPod(ctx, node, name)
	if err != nil {
		return err
	}
	if err := l.startServer(ctx, name, pod.Netns, serverPort); err != nil {
		return err
	}
	return l.Control.CreatePod(ctx, namespace, name, node, pod.Addresses(), labels)
}

func (l *Lab) startServer(ctx context.Context, name, netns string, port uint16) error {
	return l.Processes.Start(ctx, process.Spec{
		Name: "whoami-" + name, Netns: netns, Path: filepath.Join(l.Programs, "whoami"),
		Args: []string{"-listen", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String()},
	})
}

// Apply runs "kubectl apply -f -", as a user would.
func (l *Lab) Apply(ctx context.Context, manifest []byte) error {
	argv, err := l.Kubectl("apply", "-f", "-")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(manifest)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, bytes.TrimSpace(output))
	}
	return nil
}

// Kubectl is the command line of kubectl as the lab's admin.
func (l *Lab) Kubectl(args ...string) ([]string, error) {
	kubectl, err := cache.Binary(l.Root, "kubectl")
	if err != nil {
		return nil, err
	}
	argv := []string{"ip", "netns", "exec", l.Topology.ControlNetns(), kubectl, "--kubeconfig", l.Control.Kubeconfig()}
	return append(argv, args...), nil
}
