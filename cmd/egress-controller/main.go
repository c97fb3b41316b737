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
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/cmd/internal/metricsserver"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	"github.com/metallb-egress/metallb-egress/controllerext"
	"github.com/metallb-egress/metallb-egress/controllerext/metrics"
)

var version = "unknown"

type options struct {
	program.Common
	leaderElection bool
	namespace      string
	failurePolicy  string
	ignoreExclude  bool
	perService     bool
	metrics        metricsserver.Flags
	// tune, when set, may change how the API server is reached.
	tune func(*rest.Config)
}

func main() {
	var o options
	o.Register(flag.CommandLine)
	flag.BoolVar(&o.leaderElection, "leader-election", true, "let one of several replicas lead, by a Lease")
	flag.StringVar(&o.namespace, "namespace", "metallb-system", "`namespace` of the leader election's Lease")
	flag.StringVar(&o.failurePolicy, "failure-policy", "Open", "failure policy of services without the annotation: Open or Closed")
	flag.BoolVar(&o.ignoreExclude, "ignore-exclude-lb", false, "elect nodes labelled node.kubernetes.io/exclude-from-external-load-balancers too: set it as for MetalLB's speakers")
	flag.BoolVar(&o.perService, "metrics-per-service", true, "export the metrics that have series for each EgressService")
	o.metrics.Register(flag.CommandLine)
	flag.Parse()
	err := o.RedirectLibraries()
	if err == nil {
		err = run(signals.SetupSignalHandler(), o)
	}
	if err != nil {
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
	if o.tune != nil {
		o.tune(config)
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
		// Another replica acts within some 11 s of the leader's death, for one request a second each.
		LeaseDuration: new(10 * time.Second), RenewDeadline: new(7 * time.Second), RetryPeriod: new(time.Second),
		Metrics: o.metrics.Options(),
		// A sync reads what the one before it wrote, instead of deciding the same again.
		Client: client.Options{Cache: &client.CacheOptions{EnableReadYourWritesConsistency: new(true)}},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&metallbv1beta1.BGPAdvertisement{}: {Namespaces: map[string]cache.Config{o.MetalLBNamespace: {}}},
				&coordinationv1.Lease{}: {
					Namespaces: map[string]cache.Config{o.MetalLBNamespace: {}},
					Label:      labels.SelectorFromSet(labels.Set{v1alpha1.SpeakerLeaseLabel: ""}),
				},
				&egressv1.EgressService{}:    {Transform: trimEgressService},
				&corev1.Node{}:               {Transform: trimNode},
				&corev1.Service{}:            {Transform: trimService},
				&discoveryv1.EndpointSlice{}: {Transform: trimEndpointSlice},
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
	measured := metrics.New(o.perService)
	if err := measured.Register(ctrlmetrics.Registry); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	controller := controllerext.New(controllerext.Options{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("egress-controller"), Metrics: measured, Logger: logger,
		MetalLBNamespace: o.MetalLBNamespace, DefaultFailurePolicy: policy, IgnoreExclude: o.ignoreExclude,
		ServiceConditions: conditions, Now: time.Now,
	})
	for _, l := range controller.Loops() {
		loop := program.Loop{Name: l.Name, Logger: logger, Sync: l.Sync, Watched: l.Watched, Relevant: l.Relevant, Wake: []<-chan struct{}{l.Wake}}
		if err := loop.AddTo(mgr); err != nil {
			return err
		}
	}
	if err := followLeases(ctx, mgr.GetCache(), controller.SeeLease); err != nil {
		return err
	}
	level.Info(logger).Log("event", "start", "msg", "egress-controller starts", "version", version)
	return mgr.Start(ctx)
}

// followLeases hands every change of a speaker's Lease to see, whether or not this replica leads.
func followLeases(ctx context.Context, informers cache.Informers, see func(*coordinationv1.Lease)) error {
	informer, err := informers.GetInformer(ctx, &coordinationv1.Lease{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	seen := func(object any) {
		if lease, ok := object.(*coordinationv1.Lease); ok {
			see(lease)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, object any) { seen(object) }})
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	return nil
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
