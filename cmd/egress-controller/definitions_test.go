// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/controllerext"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// installed are CRDs by name, each with the fields of its only version: <part>/<field>.
type installed struct {
	client.Reader
	mutex sync.Mutex
	crds  map[string]crd
	err   error
}

func (i *installed) change(err error, change func(map[string]crd)) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.err = err
	change(i.crds)
}

type crd struct {
	version string
	fields  [][2]string
}

func (i *installed) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	one, ok := i.crds[key.Name]
	switch {
	case i.err != nil:
		return i.err
	case !ok:
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	}
	parts := map[string]any{}
	for _, field := range one.fields {
		if parts[field[0]] == nil {
			parts[field[0]] = map[string]any{"properties": map[string]any{}}
		}
		parts[field[0]].(map[string]any)["properties"].(map[string]any)[field[1]] = map[string]any{}
	}
	version := map[string]any{"name": one.version, "schema": map[string]any{"openAPIV3Schema": map[string]any{"properties": parts}}}
	object.(*unstructured.Unstructured).Object["spec"] = map[string]any{"versions": []any{version}}
	return nil
}

func old() *installed {
	return &installed{crds: map[string]crd{
		"egressservices.k8s.ovn.org":   {"v1", [][2]string{{"status", "host"}}},
		"bgpadvertisements.metallb.io": {"v1beta1", [][2]string{{"spec", "peers"}}},
	}}
}

func TestReadDefinitions(t *testing.T) {
	tests := []struct {
		name      string
		installed *installed
		want      definitions
	}{
		{"upstream's EgressService, MetalLB 0.15", old(), definitions{}},
		{"our EgressService, a newer MetalLB", &installed{crds: map[string]crd{
			"egressservices.k8s.ovn.org":     {"v1", [][2]string{{"status", "host"}, {"status", "conditions"}}},
			"bgpadvertisements.metallb.io":   {"v1beta1", [][2]string{{"spec", "serviceSelectors"}, {"spec", "asPathPrepend"}}},
			"servicebgpstatuses.metallb.io":  {"v1beta1", [][2]string{{"status", "node"}}},
			"servicel2statuses.metallb.io":   {"v1beta1", [][2]string{{"status", "node"}}},
			"configurationstates.metallb.io": {"v1beta1", [][2]string{{"status", "result"}}},
		}}, definitions{serviceConditions: true, metallb: controllerext.MetalLB{
			Features:    advertisement.Features{ServiceSelectors: true, ASPathPrepend: true},
			BGPStatuses: true, L2Statuses: true, ConfigurationStates: true,
		}}},
		{"another version", &installed{crds: map[string]crd{"servicebgpstatuses.metallb.io": {"v2", [][2]string{{"status", "node"}}}}}, definitions{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := readDefinitions(t.Context(), test.installed)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(definitions{})); err != nil || diff != "" {
				t.Errorf("error %v, -want +got:\n%s", err, diff)
			}
		})
	}
}

// The program ends when what is installed has changed, and not because it can't be read.
func TestFollowDefinitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crds := old()
		began, err := readDefinitions(t.Context(), crds)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		f := &follower{reader: crds, began: began, logger: log.NewNopLogger()}
		go func() { ended <- f.Start(t.Context()) }()
		minute := func() {
			ctx, cancel := context.WithTimeout(t.Context(), lookAtDefinitions)
			defer cancel()
			<-ctx.Done()
			synctest.Wait()
		}
		minute()
		crds.change(errors.New("the API server is away"), func(map[string]crd) {})
		minute()
		select {
		case err := <-ended:
			t.Fatalf("ended without a change: %v", err)
		default:
		}
		crds.change(nil, func(all map[string]crd) {
			all["bgpadvertisements.metallb.io"] = crd{"v1beta1", [][2]string{{"spec", "serviceSelectors"}}}
		})
		if err := <-ended; !cmp.Equal(err, errDefinitionsChanged, cmpopts.EquateErrors()) {
			t.Errorf("ended with %v", err)
		}
	})
}
