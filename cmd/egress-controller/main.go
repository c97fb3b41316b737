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
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/cmd/internal/metricsserver"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	"github.com/metallb-egress/metallb-egress/controllerext"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
	"github.com/metallb-egress/metallb-egress/controllerext/metrics"
)

var version = "unknown"

type options struct {
	program.Common
	leaderElection bool
	namespace      string
	failurePolicy  string
	ignoreExclude  bool
	backEnd        program.BackEnd
	manage         bool
	withdraw       bool
	perService     bool
	metrics        metricsserver.Flags
	// tune, when set, may change how the API server is reached.
	tune func(*rest.Config)
}

func main() {
	o := options{backEnd: program.GoBGP}
	o.Register(flag.CommandLine)
	flag.BoolVar(&o.leaderElection, "leader-election", true, "let one of several replicas lead, by a Lease")
	flag.StringVar(&o.namespace, "namespace", "metallb-system", "`namespace` of the leader election's Lease")
	flag.StringVar(&o.failurePolicy, "failure-policy", "Open", "failure policy of services without the annotation: Open or Closed")
	flag.BoolVar(&o.ignoreExclude, "ignore-exclude-lb", false, "elect nodes labelled node.kubernetes.io/exclude-from-external-load-balancers too: set it as for MetalLB's speakers")
	flag.Var(&o.backEnd, "bgp-backend", "who announces: gobgp, the egress-speakers, or external, MetalLB itself")
	flag.BoolVar(&o.manage, "manage-advertisements", false, "exclude egress services from BGPAdvertisements of others that announce them from other nodes, too")
	flag.BoolVar(&o.withdraw, "withdraw", false, "remove everything that a controller has made, EgressServices excepted, and end: for uninstalling, once no other controller runs")
	flag.BoolVar(&o.perService, "metrics-per-service", true, "export the metrics that have series for each EgressService")
	o.metrics.Register(flag.CommandLine, metricsserver.ControllerAddress)
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
	guarded := o.backEnd == program.GoBGP
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
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	reader, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	installed, err := readDefinitions(ctx, reader)
	if err != nil {
		return err
	}
	metallb := installed.metallb
	// Where the speakers announce, what MetalLB means to announce is of no use: one object per service and node.
	metallb.BGPStatuses = metallb.BGPStatuses && !guarded
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
			ByObject:         cached(o.MetalLBNamespace, metallb),
		},
	})
	if err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	if err := mgr.Add(&follower{reader: reader, began: installed, logger: logger}); err != nil {
		return err
	}
	measured := metrics.New(o.perService)
	if err := measured.Register(ctrlmetrics.Registry); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	controller := controllerext.New(controllerext.Options{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("egress-controller"), Metrics: measured, Logger: logger,
		MetalLBNamespace: o.MetalLBNamespace, DefaultFailurePolicy: policy, IgnoreExclude: o.ignoreExclude,
		MetalLB: metallb, Guarded: guarded, ManageAdvertisements: o.manage, Withdraw: o.withdraw,
		ServiceConditions: installed.serviceConditions, Now: time.Now,
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
	if o.withdraw {
		return withdraw(ctx, mgr, controller, logger)
	}
	return mgr.Start(ctx)
}

// cached says what to keep of each kind in memory: of MetalLB's those of its namespace. Kinds that are not installed must not be named.
func cached(metallbNamespace string, metallb controllerext.MetalLB) map[client.Object]cache.ByObject {
	there := map[string]cache.Config{metallbNamespace: {}}
	kinds := map[client.Object]cache.ByObject{
		&coordinationv1.Lease{}:      {Namespaces: there, Label: labels.SelectorFromSet(labels.Set{v1alpha1.SpeakerLeaseLabel: ""})},
		&egressv1.EgressService{}:    {Transform: trimEgressService},
		&corev1.Node{}:               {Transform: trimNode},
		&corev1.Service{}:            {Transform: trimService},
		&discoveryv1.EndpointSlice{}: {Transform: trimEndpointSlice},
	}
	for _, kind := range metallb.Kinds() {
		kinds[kind] = cache.ByObject{Namespaces: there}
	}
	return kinds
}

// newScheme has the kinds of the program, and MetalLB's.
func newScheme() (*runtime.Scheme, error) {
	scheme, err := program.Scheme()
	if err != nil {
		return nil, err
	}
	return scheme, advertisement.AddToScheme(scheme)
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
