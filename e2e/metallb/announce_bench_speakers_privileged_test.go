// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metallbv1beta2 "go.universe.tf/metallb/api/v1beta2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const (
	speakerProcess   = "egress-speaker"
	announcementPool = "announcements"
)

var stockProcess = controlplane.MetalLBSpeakerProcess("n1")

// announcing is one way to have prefixes announced. Additions and withdrawals are prepared, and then written by what is returned: one
// request to the API server.
type announcing interface {
	// set has the first n prefixes announced.
	set(ctx context.Context, n int) error
	addition(ctx context.Context, i int) (write func(context.Context) error, err error)
	withdrawal(ctx context.Context, i int) (write func(context.Context) error, err error)
	// start starts the speaker.
	start(ctx context.Context) error
}

// buildSpeaker compiles the egress-speaker of this working copy, before anything is measured.
func buildSpeaker(t *testing.T) (program string) {
	t.Helper()
	root, err := cache.RepoRoot(".")
	must(t, err)
	program = filepath.Join(t.TempDir(), speakerProcess)
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "./cmd/egress-speaker")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return program
}

// egressSpeaker is the real egress-speaker of n2, with an FRRConfiguration as MetalLB would write it.
type egressSpeaker struct {
	*world
	network       netip.Prefix
	peer          netip.Addr
	program       string
	base          int // how many prefixes there are, apart from those of changes
	configuration *frrk8sv1beta1.FRRConfiguration
}

// permitSpeaker applies the speaker's role file.
func (w *world) permitSpeaker(ctx context.Context) error {
	kubectl, err := cache.Binary(w.root, "kubectl")
	if err != nil {
		return err
	}
	apply := exec.CommandContext(ctx, "ip", "netns", "exec", w.netns, kubectl, "--kubeconfig", w.plane.Kubeconfig(),
		"--cache-dir", filepath.Join(w.dir, "kubectl"), "apply", "-f", filepath.Join(w.root, "charts", "metallb-egress", "rbac", "speaker.yaml"))
	if output, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("the speaker's role: %w: %s", err, output)
	}
	return nil
}

// start starts the speaker. There is no OVN: it announces what it has when it has waited for that in vain.
func (s *egressSpeaker) start(ctx context.Context) error {
	kubeconfig, err := s.plane.KubeconfigFor(ctx, "system:serviceaccount:"+metallbNamespace+":egress-speaker",
		"system:serviceaccounts", "system:serviceaccounts:"+metallbNamespace, "system:authenticated")
	if err != nil {
		return err
	}
	socket := filepath.Join(s.dir, "no-database")
	return s.processes.Start(ctx, process.Spec{
		Name: speakerProcess, Netns: s.nodeNetns["n2"], Path: s.program,
		Args: []string{"-kubeconfig", kubeconfig, "-node-name", "n2", "-metallb-namespace", metallbNamespace, "-ovn-nb-socket", socket, "-ovs-socket", socket},
	})
}

func (s *egressSpeaker) set(ctx context.Context, n int) error {
	s.base = n
	return s.write()(ctx)
}

func (s *egressSpeaker) addition(_ context.Context, i int) (func(context.Context) error, error) {
	return s.write(i), nil
}

func (s *egressSpeaker) withdrawal(context.Context, int) (func(context.Context) error, error) {
	return s.write(), nil
}

// write has the first prefixes announced, and more. MetalLB, too, writes its whole object.
func (s *egressSpeaker) write(more ...int) func(context.Context) error {
	var prefixes []string
	for i := range s.base {
		prefixes = append(prefixes, hostPrefix(s.network, i).String())
	}
	for _, i := range more {
		prefixes = append(prefixes, hostPrefix(s.network, i).String())
	}
	slices.Sort(prefixes)
	create := s.configuration == nil
	if create {
		s.configuration = &frrk8sv1beta1.FRRConfiguration{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: "metallb-n2"}}
	}
	s.configuration.Spec = frrk8sv1beta1.FRRConfigurationSpec{
		NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: "n2"}},
		BGP: frrk8sv1beta1.BGPConfig{Routers: []frrk8sv1beta1.Router{{
			ASN: speakersASN, Prefixes: prefixes,
			Neighbors: []frrk8sv1beta1.Neighbor{{
				Address: s.peer.String(), ASN: routerASN, Port: new(uint16(179)),
				ToAdvertise: frrk8sv1beta1.Advertise{Allowed: frrk8sv1beta1.AllowedOutPrefixes{Prefixes: prefixes, Mode: frrk8sv1beta1.AllowRestricted}},
			}},
		}}},
	}
	return func(ctx context.Context) error {
		if create {
			return s.client.Create(ctx, s.configuration)
		}
		return s.client.Update(ctx, s.configuration)
	}
}

// stockSpeaker is MetalLB's speaker of n1, with a Service for each prefix, which gets its address from the benchmark.
type stockSpeaker struct {
	*world
	network  netip.Prefix
	services int // that are there, apart from those of changes
}

// prepareStock leaves of the world's MetalLB the speaker of n1, with a session to one router alone. The controller, which gives Services
// their addresses, is not what is measured: the benchmark does that itself.
func (w *world) prepareStock(ctx context.Context, router *kernelRouter, network netip.Prefix) error {
	var problems []error
	for _, name := range []string{controlplane.MetalLBControllerProcess(), controlplane.MetalLBSpeakerProcess("n2"), tor1, tor2} {
		problems = append(problems, w.processes.Stop(ctx, name))
	}
	for _, peer := range w.peers() {
		problems = append(problems, w.client.Delete(ctx, peer))
	}
	peer := &metallbv1beta2.BGPPeer{ObjectMeta: metav1.ObjectMeta{Namespace: metallbNamespace, Name: router.name}}
	peer.Spec = metallbv1beta2.BGPPeerSpec{MyASN: speakersASN, ASN: routerASN, Address: router.address.String()}
	return errors.Join(append(problems, w.client.Create(ctx, peer), w.client.Create(ctx, newPool(announcementPool, network.String())),
		w.client.Create(ctx, newAdvertisement(announcementPool, spec{IPAddressPools: []string{announcementPool}})))...)
}

func (s *stockSpeaker) start(ctx context.Context) error {
	return s.plane.StartMetalLBSpeaker(ctx, s.nodeProcess("n1"))
}

// set makes Services, or removes all, and waits until the speaker has said in a ServiceBGPStatus of each that it announces it.
func (s *stockSpeaker) set(ctx context.Context, n int) error {
	if n < s.services {
		err := parallel(ctx, s.services-n, func(ctx context.Context, i int) error { return s.remove(n + i)(ctx) })
		s.services = n
		return err
	}
	first := s.services
	s.services = n
	err := parallel(ctx, n-first, func(ctx context.Context, i int) error {
		assign, err := s.addition(ctx, first+i)
		if err != nil {
			return err
		}
		return assign(ctx)
	})
	if err != nil || !s.processes.Alive(stockProcess) {
		return err
	}
	return pollFor(ctx, fillPatience, "what the stock speaker has to report", func(ctx context.Context) error {
		statuses := &metallbv1beta1.ServiceBGPStatusList{}
		if err := s.client.List(ctx, statuses); err != nil {
			return err
		}
		if len(statuses.Items) < n {
			return fmt.Errorf("%d of %d ServiceBGPStatuses", len(statuses.Items), n)
		}
		return nil
	})
}

// addition makes a Service, which then gets its address as from MetalLB's controller.
func (s *stockSpeaker) addition(ctx context.Context, i int) (func(context.Context) error, error) {
	if err := s.createService(ctx, costService(i), service{pool: announcementPool}); err != nil {
		return nil, err
	}
	patch := fmt.Appendf(nil, `{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, hostPrefix(s.network, i).Addr())
	return func(ctx context.Context) error {
		object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: costService(i)}}
		return s.client.Status().Patch(ctx, object, client.RawPatch(types.MergePatchType, patch))
	}, nil
}

func (s *stockSpeaker) withdrawal(_ context.Context, i int) (func(context.Context) error, error) {
	return s.remove(i), nil
}

func (s *stockSpeaker) remove(i int) func(context.Context) error {
	return func(ctx context.Context) error {
		return s.client.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: costService(i)}})
	}
}
