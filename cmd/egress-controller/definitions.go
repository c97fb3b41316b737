// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/controllerext"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// definitions is what the installed CRDs have of what differs between versions.
type definitions struct {
	// serviceConditions: upstream's EgressService has no status.conditions, and would drop them.
	serviceConditions bool
	metallb           controllerext.MetalLB
}

// readDefinitions looks at the CRDs.
func readDefinitions(ctx context.Context, reader client.Reader) (definitions, error) {
	var found definitions
	egress, err := readSchema(ctx, reader, "egressservices.k8s.ovn.org", "v1")
	if err != nil {
		return found, err
	}
	advertisements, err := readSchema(ctx, reader, "bgpadvertisements.metallb.io", "v1beta1")
	if err != nil {
		return found, err
	}
	found.serviceConditions = egress.has("status", "conditions")
	found.metallb.Features = advertisement.Features{
		ServiceSelectors: advertisements.has("spec", "serviceSelectors"), ASPathPrepend: advertisements.has("spec", "asPathPrepend"),
	}
	for name, there := range map[string]*bool{
		"servicebgpstatuses.metallb.io": &found.metallb.BGPStatuses, "servicel2statuses.metallb.io": &found.metallb.L2Statuses,
		"configurationstates.metallb.io": &found.metallb.ConfigurationStates,
	} {
		status, err := readSchema(ctx, reader, name, "v1beta1")
		if err != nil {
			return found, err
		}
		*there = status != nil
	}
	return found, nil
}

// crdSchema is one version's properties, by field; nil where the CRD, or that version of it, is not there.
type crdSchema map[string]any

func readSchema(ctx context.Context, reader client.Reader, name, version string) (crdSchema, error) {
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	err := reader.Get(ctx, types.NamespacedName{Name: name}, crd)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("CustomResourceDefinition %s: %w", name, err)
	}
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return nil, fmt.Errorf("CustomResourceDefinition %s: %w", name, err)
	}
	for _, v := range versions {
		if one, ok := v.(map[string]any); ok && one["name"] == version {
			properties, _, err := unstructured.NestedMap(one, "schema", "openAPIV3Schema", "properties")
			return properties, err
		}
	}
	return nil, nil
}

// has is true when the schema has a field: such a one that it does not have is dropped by the API server.
func (s crdSchema) has(part, field string) bool {
	_, found, err := unstructured.NestedMap(s, part, "properties", field)
	return found && err == nil
}

// lookAtDefinitions is the time between two looks at the CRDs.
const lookAtDefinitions = time.Minute

// errDefinitionsChanged ends the program, which is started anew and takes over everything as it is.
var errDefinitionsChanged = errors.New("the installed CustomResourceDefinitions have changed: ending so as to be started with the new ones")

// follower looks at the CRDs again and again.
type follower struct {
	reader client.Reader
	began  definitions
	logger log.Logger
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: a replica that is to lead later must know, too.
func (f *follower) NeedLeaderElection() bool { return false }

// Start ends with an error when the CRDs are no longer as they were at the start.
func (f *follower) Start(ctx context.Context) error {
	ticker := time.NewTicker(lookAtDefinitions)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := readDefinitions(ctx, f.reader)
		switch {
		case err != nil:
			level.Warn(f.logger).Log("event", "definitionsUnread", "msg", "the CustomResourceDefinitions could not be read", "error", err)
		case now != f.began:
			return errDefinitionsChanged
		}
	}
}
