// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package speakerext

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-kit/log"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// TestHeartbeatWithItsRole beats at a real API server, with what the chart allows a speaker, and no more.
func TestHeartbeatWithItsRole(t *testing.T) {
	root, config := startControlPlane(t)
	admin := newClient(t, config)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	for _, object := range append([]client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "metallb-system"}}, node}, readRoles(t, root)...) {
		if err := admin.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	config = rest.CopyConfig(config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:metallb-system:egress-speaker"}
	speaker := New(Options{Node: "n1", FRRNamespace: "metallb-system", Client: newClient(t, config), Logger: log.NewNopLogger(), Now: time.Now})
	beat := func() error {
		_, err := speaker.beat(t.Context(), shortestBeat)
		return err
	}
	read := func() (lease coordinationv1.Lease, err error) {
		err = admin.Get(t.Context(), leaseKey, &lease)
		return lease, err
	}

	eventually(t, "the role is in force, and the Lease is made", beat)
	first, err := read()
	if err != nil {
		t.Fatal(err)
	}
	if err := beat(); err != nil {
		t.Fatal(err)
	}
	second, err := read()
	if err != nil || second.UID != first.UID || !second.Spec.RenewTime.After(first.Spec.RenewTime.Time) {
		t.Errorf("renewed at %v, then at %v, error %v", first.Spec.RenewTime, second.Spec.RenewTime, err)
	}
	if err := admin.Delete(t.Context(), &second); err != nil {
		t.Fatal(err)
	}
	if err := beat(); err != nil {
		t.Errorf("after it was deleted: %v", err)
	}
	if err := admin.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Lease goes with the Node", func() error {
		if _, err := read(); !apierrors.IsNotFound(err) {
			return errors.Join(err, errors.New("it is still there"))
		}
		return nil
	})
}

// startControlPlane starts one that ends with the test.
func startControlPlane(t *testing.T) (root string, config *rest.Config) {
	t.Helper()
	root, err := cache.RepoRoot(".")
	if err != nil {
		t.Fatal(err)
	}
	binary := func(name string) (string, error) { return cache.Binary(root, name) }
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := binary(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("SKIPPED, this checks nothing: %v", err)
		}
	}
	processes, err := process.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := processes.StopAll(ctx); err != nil {
			t.Error(err)
		}
	})
	plane, err := controlplane.Up(t.Context(), controlplane.Options{Dir: filepath.Join(t.TempDir(), "plane"), RepoRoot: root, Binaries: binary}, processes, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return root, plane.RESTConfig()
}

func newClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// readRoles reads the chart's objects for the speaker.
func readRoles(t *testing.T, root string) (objects []client.Object) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "charts", "metallb-egress", "rbac", "speaker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		object := &unstructured.Unstructured{}
		if err := errors.Join(err, yaml.Unmarshal(document, &object.Object)); err != nil {
			t.Fatal(err)
		}
		if object.Object != nil {
			objects = append(objects, object)
		}
	}
}

// eventually polls until a check has no error.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}
