// SPDX-License-Identifier: Apache-2.0

// Command egress-speaker is the extension beside MetalLB's speaker, one per node: it programs
// the node's dataplane and runs its shared BGP speaker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
	"github.com/metallb-egress/metallb-egress/bgp/gobgp"
	"github.com/metallb-egress/metallb-egress/cmd/internal/metricsserver"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	dataplaneapply "github.com/metallb-egress/metallb-egress/dataplane/apply"
	"github.com/metallb-egress/metallb-egress/speakerext"
	"github.com/metallb-egress/metallb-egress/speakerext/metrics"
)

var version = "unknown"

// stopTimeout bounds the orderly end of the BGP sessions.
const stopTimeout = 5 * time.Second

type options struct {
	program.Common
	metrics           metricsserver.Flags
	node, pod         string
	backEnd           program.BackEnd
	northboundSocket  string
	openvSwitchSocket string
	pods, services    program.Prefixes
	join              program.Prefixes
	transit           program.Prefixes
	masquerade        program.Prefixes
	dropStrays        bool
	perService        bool
}

func main() {
	// OVN-Kubernetes' defaults (go-controller/pkg/config/config.go).
	o := options{
		backEnd:    program.GoBGP,
		join:       program.Prefixes{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")},
		transit:    program.Prefixes{netip.MustParsePrefix("100.88.0.0/16"), netip.MustParsePrefix("fd97::/64")},
		masquerade: program.Prefixes{netip.MustParsePrefix("169.254.0.0/17"), netip.MustParsePrefix("fd69::/112")},
	}
	o.Register(flag.CommandLine)
	flag.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "`name` of this node")
	flag.StringVar(&o.pod, "pod-name", os.Getenv("POD_NAME"), "`name` of the pod that this is, in MetalLB's namespace; empty without one")
	flag.Var(&o.backEnd, "bgp-backend", "who announces: gobgp, this program, or external, MetalLB itself")
	o.metrics.Register(flag.CommandLine, metricsserver.SpeakerAddress)
	flag.StringVar(&o.northboundSocket, "ovn-nb-socket", "/var/run/ovn/ovnnb_db.sock", "`path` of the zone's OVN northbound database socket")
	flag.StringVar(&o.openvSwitchSocket, "ovs-socket", "/var/run/openvswitch/db.sock", "`path` of the local Open vSwitch database socket")
	flag.Var(&o.pods, "cluster-subnets", "`prefixes` of the pod network; empty: the nodes' subnets, from their annotations")
	flag.Var(&o.services, "service-subnets", "`prefixes` of the ClusterIPs; empty: the ServiceCIDR objects")
	flag.Var(&o.join, "join-subnets", "`prefixes` of OVN-Kubernetes' join switches")
	flag.Var(&o.transit, "transit-switch-subnets", "`prefixes` of OVN-Kubernetes' transit switch")
	flag.Var(&o.masquerade, "masquerade-subnets", "`prefixes` of OVN-Kubernetes' masquerade addresses")
	flag.BoolVar(&o.perService, "metrics-per-service", true, "serve series for each EgressService that this node has something to do for")
	flag.BoolVar(&o.dropStrays, "drop-strays", true, "drop what comes in by the management port from pods of other nodes and would leave without a LoadBalancer IP")
	flag.Parse()
	err := o.RedirectLibraries()
	if err == nil {
		err = run(signals.SetupSignalHandler(), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "egress-speaker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.node == "" {
		return errors.New("-node-name or NODE_NAME is needed")
	}
	logger, err := o.Logger()
	if err != nil {
		return err
	}
	alone, err := waitUntilAlone(ctx, logger)
	if err != nil {
		return err
	}
	defer alone.Close()
	mgr, err := newManager(o, logger)
	if err != nil {
		return err
	}
	survived, err := dataplaneapply.Survived(ctx)
	if err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	dataplane, err := dataplaneapply.New(logger, dataplaneapply.Options{
		NorthboundSocket: o.northboundSocket, OpenvSwitchSocket: o.openvSwitchSocket,
	})
	if err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	defer dataplane.Close()
	speakerOptions := speakerext.Options{
		Node: o.node, Pod: o.pod, Version: version, FRRNamespace: o.MetalLBNamespace,
		Subnets:    speakerext.Subnets{Pods: o.pods, Services: o.services, Join: o.join, Transit: o.transit, Masquerade: o.masquerade},
		StraysPass: !o.dropStrays, HostProblems: dataplaneapply.HostProblems,
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("egress-speaker"), Dataplane: dataplane, Logger: logger, Now: time.Now,
	}
	if o.backEnd == program.GoBGP {
		routes := gobgp.New(logger, gobgp.Options{ForwardingPreserved: survived})
		defer func() {
			// The peers keep the routes where graceful restart was negotiated: the dataplane goes on.
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			err = errors.Join(err, routes.Stop(ctx, bgp.Keep))
		}()
		speakerOptions.BGP = routes
	}
	counted := metrics.NewDataplane(dataplane.Counters, o.perService)
	if err := ctrlmetrics.Registry.Register(counted); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	speakerOptions.ObserveSync = counted.Observe
	speaker := speakerext.New(speakerOptions)
	if speakerOptions.BGP != nil {
		if err := ctrlmetrics.Registry.Register(metrics.New(speakerOptions.BGP, speaker.Findings)); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	for _, loop := range speaker.Loops() {
		l := program.Loop{Name: loop.Name, Logger: logger, Sync: loop.Sync, Watched: loop.Watched, Relevant: loop.Relevant, Wake: loop.Wake}
		if err := l.AddTo(mgr); err != nil {
			return err
		}
	}
	if err := mgr.Add(manager.RunnableFunc(speaker.Heartbeat)); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	level.Info(logger).Log("event", "start", "msg", "egress-speaker starts", "version", version, "node", o.node)
	return mgr.Start(ctx)
}

// newManager makes a manager whose caches hold, of what is large, only the parts that are needed.
func newManager(o options, logger log.Logger) (manager.Manager, error) {
	config, err := o.RESTConfig("egress-speaker/" + version)
	if err != nil {
		return nil, err
	}
	scheme, err := program.Scheme()
	if err != nil {
		return nil, err
	}
	beside := map[string]cache.Config{o.MetalLBNamespace: {}}
	mgr, err := manager.New(config, manager.Options{
		Scheme:  scheme,
		Logger:  program.Logr(logger),
		Metrics: o.metrics.Options(),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.EgressNode{}:           {Field: fields.OneTermEqualSelector("metadata.name", o.node)},
				&bgp.FRRConfiguration{}:          {Namespaces: beside},
				&frrk8sv1beta1.BGPSessionState{}: {Namespaces: beside, Label: labels.SelectorFromSet(labels.Set{speakerext.SessionStateNodeLabel: o.node})},
				&corev1.Secret{}: {
					Namespaces: beside, Field: fields.OneTermEqualSelector("type", string(corev1.SecretTypeBasicAuth)), Transform: trimSecret,
				},
				&corev1.Pod{}: {Transform: trimPod},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	return mgr, nil
}

// waitUntilAlone returns when no other egress-speaker runs on this node, and keeps others from it until
// what it returns is closed or the process ends. The name is one of the network namespace, which is the
// node's, and nothing listens on it.
func waitUntilAlone(ctx context.Context, logger log.Logger) (io.Closer, error) {
	told := false
	for {
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@metallb-egress.io/egress-speaker", Net: "unixgram"})
		if err == nil {
			return socket, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("looking for another egress-speaker: %w", err)
		}
		if !told {
			level.Warn(logger).Log("event", "notAlone", "msg", "another egress-speaker runs on this node; waiting until it has ended")
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(aloneInterval):
		}
	}
}

// aloneInterval is the time between two looks for another speaker.
const aloneInterval = 200 * time.Millisecond

// trimSecret keeps of a Secret the password. Annotations may hold it a second time.
func trimSecret(object any) (any, error) {
	secret, ok := object.(*corev1.Secret)
	if !ok {
		return object, nil
	}
	trimmed := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: secret.Name, UID: secret.UID, ResourceVersion: secret.ResourceVersion},
		Type:       secret.Type,
	}
	if password, ok := secret.Data[corev1.BasicAuthPasswordKey]; ok {
		trimmed.Data = map[string][]byte{corev1.BasicAuthPasswordKey: password}
	}
	return trimmed, nil
}

// trimPod keeps of a Pod what says which address is whose, and whether it is frr-k8s.
func trimPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	var kept map[string]string
	for _, label := range speakerext.ComponentLabels {
		if value, ok := pod.Labels[label]; ok && value == speakerext.FRRK8s {
			kept = map[string]string{label: value}
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, Labels: kept},
		Spec:       corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs},
	}, nil
}
