// SPDX-License-Identifier: Apache-2.0

// Command egress-controller is the extension beside MetalLB's controller: it elects a node
// for each EgressService and configures MetalLB to announce from there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/go-kit/log/level"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	"github.com/metallb-egress/metallb-egress/controllerext"
)

var version = "unknown"

type options struct {
	program.Common
	leaderElection bool
	namespace      string
	failurePolicy  string
}

func main() {
	var o options
	o.Register(flag.CommandLine)
	flag.BoolVar(&o.leaderElection, "leader-election", true, "let one of several replicas lead, by a Lease")
	flag.StringVar(&o.namespace, "namespace", "metallb-system", "`namespace` of the leader election's Lease")
	flag.StringVar(&o.failurePolicy, "failure-policy", "Open", "failure policy of services without the annotation: Open or Closed")
	flag.Parse()
	if err := run(signals.SetupSignalHandler(), o); err != nil {
		fmt.Fprintln(os.Stderr, "egress-controller:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	policy := v1alpha1.FailurePolicy(o.failurePolicy)
	if policy != v1alpha1.FailOpen && policy != v1alpha1.FailClosed {
		return fmt.Errorf("-failure-policy %q: want Open or Closed", o.failurePolicy)
	}
	logger, err := o.Logger()
	if err != nil {
		return err
	}
	config, err := o.RESTConfig("egress-controller/" + version)
	if err != nil {
		return err
	}
	scheme, err := program.Scheme()
	if err != nil {
		return err
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme:                        scheme,
		Logger:                        program.Logr(logger),
		LeaderElection:                o.leaderElection,
		LeaderElectionID:              "egress-controller.metallb-egress.io",
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		// A sync reads what the one before it wrote, instead of deciding the same again.
		Client: client.Options{Cache: &client.CacheOptions{EnableReadYourWritesConsistency: new(true)}},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&metallbv1beta1.BGPAdvertisement{}: {Namespaces: map[string]cache.Config{o.MetalLBNamespace: {}}},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	conditions, err := serviceConditions(ctx, mgr.GetAPIReader())
	if err != nil {
		return err
	}
	controller := &controllerext.Controller{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("egress-controller"), Logger: logger,
		MetalLBNamespace: o.MetalLBNamespace, DefaultFailurePolicy: policy, ServiceConditions: conditions, Now: time.Now,
	}
	loop := program.Loop{Name: "services", Logger: logger, Sync: controller.Sync, Watched: controllerext.Watched()}
	if err := loop.AddTo(mgr); err != nil {
		return err
	}
	level.Info(logger).Log("event", "start", "msg", "egress-controller starts", "version", version)
	return mgr.Start(ctx)
}

// serviceConditions looks whether the installed EgressService CRD has status.conditions:
// upstream's has not, and would drop them.
func serviceConditions(ctx context.Context, reader client.Reader) (bool, error) {
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	if err := reader.Get(ctx, types.NamespacedName{Name: "egressservices.k8s.ovn.org"}, crd); err != nil {
		return false, fmt.Errorf("the EgressService CRD: %w", err)
	}
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return false, fmt.Errorf("the EgressService CRD: %w", err)
	}
	for _, v := range versions {
		one, ok := v.(map[string]any)
		if !ok || one["name"] != "v1" {
			continue
		}
		_, found, err := unstructured.NestedMap(one, "schema", "openAPIV3Schema", "properties", "status", "properties", "conditions")
		return found && err == nil, nil
	}
	return false, nil
}
