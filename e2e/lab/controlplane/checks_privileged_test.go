// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// connectedNamespaces makes a namespace with 10.250.0.1 and one with 10.250.0.11, which also has a pod's address.
func connectedNamespaces(t *testing.T) (control, node string) {
	t.Helper()
	control, node = fmt.Sprintf("mecp-c%d", os.Getpid()), fmt.Sprintf("mecp-n%d", os.Getpid())
	for _, name := range []string{control, node} {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "ip", "netns", "delete", name) })
		run(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	run(t, "ip", "-n", control, "link", "add", "node", "type", "veth", "peer", "name", "control", "netns", node)
	run(t, "ip", "-n", control, "address", "add", "10.250.0.1/24", "dev", "node")
	run(t, "ip", "-n", node, "address", "add", "10.250.0.11/24", "dev", "control")
	run(t, "ip", "-n", node, "address", "add", "10.244.0.5/32", "dev", "lo")
	run(t, "ip", "-n", control, "link", "set", "node", "up")
	run(t, "ip", "-n", node, "link", "set", "control", "up")
	// So that packets to a ClusterIP have a way before kube-proxy gives them another destination.
	run(t, "ip", "-n", node, "route", "add", "default", "via", "10.250.0.1")
	return control, node
}

// createService makes a ready pod on n1, a LoadBalancer Service for it, and what MetalLB needs to give it an address and announce it.
func createService(t *testing.T, c *ControlPlane, admin client.Client) *corev1.Service {
	t.Helper()
	labels := map[string]string{"app": "example"}
	if err := c.CreatePod(t.Context(), "example", "pod", "n1", []netip.Addr{netip.MustParseAddr("10.244.0.5")}, labels); err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "example", Name: "service"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: labels, Ports: []corev1.ServicePort{{Port: 8080}}},
	}
	peer := &metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Namespace: MetalLBNamespace, Name: "tor"}}
	peer.Spec.MyASN, peer.Spec.ASN, peer.Spec.Address = 64512, 64513, "10.250.0.254"
	pool := &metallbv1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: MetalLBNamespace, Name: "pool"}}
	pool.Spec.Addresses = []string{"172.19.0.100/32"}
	advertisement := &metallbv1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: MetalLBNamespace, Name: "advertisement"}}
	advertisement.Spec.NodeSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{"role": "worker"}}}
	create(t, admin, peer, pool, advertisement, service)
	return service
}

func checkEndpointSlice(t *testing.T, admin client.Client, service *corev1.Service) {
	eventually(t, "a ready endpoint", func(ctx context.Context) error {
		slices := &discoveryv1.EndpointSliceList{}
		err := admin.List(ctx, slices, client.InNamespace(service.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service.Name})
		if err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if endpoint.Addresses[0] == "10.244.0.5" && *endpoint.NodeName == "n1" && *endpoint.Conditions.Ready {
					return nil
				}
			}
		}
		return fmt.Errorf("in %d slices: none", len(slices.Items))
	})
}

func checkAddress(t *testing.T, admin client.Client, service *corev1.Service) {
	eventually(t, "the address", func(ctx context.Context) error {
		if err := admin.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		if ingress := service.Status.LoadBalancer.Ingress; len(ingress) != 1 || ingress[0].IP != "172.19.0.100" {
			return fmt.Errorf("ingress %v", ingress)
		}
		return nil
	})
}

// checkFRRConfigurations expects the prefix from the node that the advertisement selects, and only the neighbor from the other.
func checkFRRConfigurations(t *testing.T, admin client.Client) {
	for node, want := range map[string][]string{"n1": {"172.19.0.100/32"}, "n2": nil} {
		eventually(t, "metallb-"+node, func(ctx context.Context) error {
			configuration := &frrk8sv1beta1.FRRConfiguration{}
			if err := admin.Get(ctx, client.ObjectKey{Namespace: MetalLBNamespace, Name: "metallb-" + node}, configuration); err != nil {
				return err
			}
			routers := configuration.Spec.BGP.Routers
			if len(routers) != 1 || len(routers[0].Neighbors) != 1 || !slices.Equal(routers[0].Prefixes, want) {
				return fmt.Errorf("routers %+v", routers)
			}
			return nil
		})
	}
}

// checkMetalLBRestart expects the starts to wait for what the new processes say, not for what the old ones have left.
func checkMetalLBRestart(t *testing.T, c *ControlPlane, processes *process.Set, admin client.Client, node NodeProcess) {
	states := func() (uids []types.UID) {
		for _, name := range []string{controllerPod, speakerPod(node.Name)} {
			state := &metallbv1beta1.ConfigurationState{}
			if err := admin.Get(t.Context(), client.ObjectKey{Namespace: MetalLBNamespace, Name: name}, state); err != nil {
				t.Fatal(err)
			}
			uids = append(uids, state.UID)
		}
		return uids
	}
	before := states()
	if err := errors.Join(processes.Stop(t.Context(), MetalLBSpeakerProcess(node.Name)), processes.Stop(t.Context(), MetalLBControllerProcess())); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.StartMetalLBSpeaker(t.Context(), node), c.StartMetalLBController(t.Context())); err != nil {
		t.Fatal(err)
	}
	for i, uid := range states() {
		if uid == before[i] {
			t.Errorf("ConfigurationState %d is that of the stopped process", i)
		}
	}
}

// checkConnection connects inside the node to the Service's addresses: the pod answers, whose address kube-proxy has put in.
func checkConnection(t *testing.T, node string, service *corev1.Service) {
	var listener net.Listener
	err := inNamespace(node, func() (err error) {
		listener, err = net.Listen("tcp", "10.244.0.5:8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(connection, "pod")
			_ = connection.Close()
		}
	}()
	defer func() {
		_ = listener.Close()
		<-served
	}()
	for _, address := range []string{service.Spec.ClusterIP, "172.19.0.100"} {
		eventually(t, "an answer from "+address, func(ctx context.Context) error {
			connection, err := topology.DialContext(node)(ctx, "tcp", net.JoinHostPort(address, "8080"))
			if err != nil {
				return err
			}
			defer func() { _ = connection.Close() }()
			answer, err := io.ReadAll(connection)
			if err == nil && string(answer) != "pod" {
				err = fmt.Errorf("answer %q", answer)
			}
			return err
		})
	}
	rules := run(t, "ip", "netns", "exec", node, "nft", "list", "table", "ip", "kube-proxy")
	if !strings.Contains(rules, service.Spec.ClusterIP) || !strings.Contains(rules, "10.244.0.5") {
		t.Errorf("kube-proxy's table lacks the Service:\n%s", rules)
	}
}
