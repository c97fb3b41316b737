// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

const controllerProcess = "egress-controller"

// startController starts the real egress-controller, with the permissions of its role file and no others, and a fake egress-speaker on
// every node. All end with the test. The fakes know nothing of MetalLB: each says that MetalLB hands it the route as soon as its Node has
// a label, unless it is told otherwise.
func (w *world) startController(t *testing.T, flags ...string) *speakers.Fleet {
	t.Helper()
	ctx := t.Context()
	<-w.built
	must(t, w.buildErr, w.permitController(ctx))
	fleet, err := speakers.Start(context.WithoutCancel(ctx), w.plane.RESTConfig(), metallbNamespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fleet.Stop)
	for _, node := range w.nodes {
		must(t, fleet.Add(node, speakers.Behaviour{}))
	}
	w.launchController(t, flags...)
	t.Cleanup(func() {
		if t.Failed() {
			if text, err := os.ReadFile(w.processes.LogPath(controllerProcess)); err == nil {
				t.Logf("egress-controller said at last:\n%s", text[max(0, len(text)-4000):])
			}
		}
		if err := w.stopController(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return fleet
}

// launchController starts the controller again after a test has stopped it.
func (w *world) launchController(t *testing.T, flags ...string) {
	t.Helper()
	kubeconfig, err := w.plane.KubeconfigFor(t.Context(), "system:serviceaccount:"+metallbNamespace+":egress-controller",
		"system:serviceaccounts", "system:serviceaccounts:"+metallbNamespace, "system:authenticated")
	must(t, err, w.processes.Start(t.Context(), process.Spec{
		Name: controllerProcess, Netns: w.netns, Path: filepath.Join(w.dir, "egress-controller"),
		Args: append([]string{"-kubeconfig", kubeconfig}, flags...),
	}))
}

func (w *world) stopController(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return w.processes.Stop(ctx, controllerProcess)
}

// startBuild compiles the controller of this working copy, until the world is stopped.
func (w *world) startBuild() {
	ctx, cancel := context.WithCancel(context.Background())
	w.built, w.cancelBuild = make(chan struct{}), cancel
	go func() {
		defer close(w.built)
		w.buildErr = w.buildController(ctx)
	}()
}

func (w *world) buildController(ctx context.Context) error {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", w.dir, "./cmd/egress-controller")
	build.Dir, build.Env = w.root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, output)
	}
	return nil
}

// permitController applies the controller's role file.
func (w *world) permitController(ctx context.Context) error {
	manifest, err := os.ReadFile(filepath.Join(w.root, "charts", "metallb-egress", "rbac", "controller.yaml"))
	if err != nil {
		return err
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096); ; {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(object.Object) > 0 {
			err = client.IgnoreAlreadyExists(w.client.Create(ctx, object))
		}
		if err != nil {
			return fmt.Errorf("the controller's role: %w", err)
		}
	}
}

// createEgress makes the EgressService of a service, for nodes with certain labels.
func (w *world) createEgress(ctx context.Context, name string, nodes map[string]string) error {
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: name}}
	egress.Spec.NodeSelector.MatchLabels = nodes
	return w.client.Create(ctx, egress)
}

// changeEgress gives an EgressService another nodeSelector.
func (w *world) changeEgress(ctx context.Context, name string, nodes map[string]string) error {
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: exampleNamespace, Name: name}}
	return w.patch(ctx, egress, map[string]any{"spec": map[string]any{"nodeSelector": map[string]any{"matchLabels": nodes}}})
}

// host waits until status.host of an EgressService is as given.
func (w *world) host(t *testing.T, name, want string) {
	t.Helper()
	err := poll(t.Context(), "status.host of "+name, func(ctx context.Context) error {
		egress := &egressv1.EgressService{}
		if err := w.client.Get(ctx, serviceKey(name), egress); err != nil {
			return err
		}
		if egress.Status.Host != want {
			return fmt.Errorf("got %q, want %q; conditions %+v", egress.Status.Host, want, egress.Status.Conditions)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
