// SPDX-License-Identifier: Apache-2.0

// Command egress-speaker is the extension beside MetalLB's speaker, one per node: it programs
// the node's dataplane and runs its shared BGP speaker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/go-kit/log/level"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
	"github.com/metallb-egress/metallb-egress/bgp/gobgp"
	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
	dataplaneapply "github.com/metallb-egress/metallb-egress/dataplane/apply"
	"github.com/metallb-egress/metallb-egress/speakerext"
)

var version = "unknown"

// stopTimeout bounds the orderly end of the BGP sessions.
const stopTimeout = 5 * time.Second

type options struct {
	program.Common
	node              string
	northboundSocket  string
	openvSwitchSocket string
	pods, services    program.Prefixes
	join              program.Prefixes
	transit           program.Prefixes
	masquerade        program.Prefixes
}

func main() {
	// OVN-Kubernetes' defaults (go-controller/pkg/config/config.go).
	o := options{
		join:       program.Prefixes{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")},
		transit:    program.Prefixes{netip.MustParsePrefix("100.88.0.0/16"), netip.MustParsePrefix("fd97::/64")},
		masquerade: program.Prefixes{netip.MustParsePrefix("169.254.0.0/17"), netip.MustParsePrefix("fd69::/112")},
	}
	o.Register(flag.CommandLine)
	flag.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "`name` of this node")
	flag.StringVar(&o.northboundSocket, "ovn-nb-socket", "/var/run/ovn/ovnnb_db.sock", "`path` of the zone's OVN northbound database socket")
	flag.StringVar(&o.openvSwitchSocket, "ovs-socket", "/var/run/openvswitch/db.sock", "`path` of the local Open vSwitch database socket")
	flag.Var(&o.pods, "cluster-subnets", "`prefixes` of the pod network; empty: the nodes' subnets, from their annotations")
	flag.Var(&o.services, "service-subnets", "`prefixes` of the ClusterIPs; empty: the ServiceCIDR objects")
	flag.Var(&o.join, "join-subnets", "`prefixes` of OVN-Kubernetes' join switches")
	flag.Var(&o.transit, "transit-switch-subnets", "`prefixes` of OVN-Kubernetes' transit switch")
	flag.Var(&o.masquerade, "masquerade-subnets", "`prefixes` of OVN-Kubernetes' masquerade addresses")
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
	mgr, err := newManager(o)
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
	routes := gobgp.New(logger, gobgp.Options{ForwardingPreserved: survived})
	defer func() {
		// The peers keep the routes where graceful restart was negotiated: the dataplane goes on.
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err = errors.Join(err, routes.Stop(ctx, bgp.Keep))
	}()
	speaker := speakerext.New(speakerext.Options{
		Node: o.node, Version: version, FRRNamespace: o.MetalLBNamespace,
		Subnets: speakerext.Subnets{Pods: o.pods, Services: o.services, Join: o.join, Transit: o.transit, Masquerade: o.masquerade},
		Client:  mgr.GetClient(), Secrets: mgr.GetAPIReader(), Dataplane: dataplane, BGP: routes, Logger: logger, Now: time.Now,
	})
	for _, loop := range []struct {
		speakerext.Loop
		sync func(context.Context) (time.Duration, error)
	}{
		{speaker.DataplaneLoop(), speaker.SyncDataplane}, {speaker.BGPLoop(), speaker.SyncBGP}, {speaker.ReportLoop(), speaker.SyncReport},
	} {
		if err := (program.Loop{Name: loop.Name, Logger: logger, Sync: loop.sync, Watched: loop.Watched, Wake: loop.Wake}).AddTo(mgr); err != nil {
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
func newManager(o options) (manager.Manager, error) {
	config, err := o.RESTConfig("egress-speaker/" + version)
	if err != nil {
		return nil, err
	}
	scheme, err := program.Scheme()
	if err != nil {
		return nil, err
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&v1alpha1.EgressNode{}:            {Field: fields.OneTermEqualSelector("metadata.name", o.node)},
				&frrk8sv1beta1.FRRConfiguration{}: {Namespaces: map[string]cache.Config{o.MetalLBNamespace: {}}},
				&corev1.Pod{}:                     {Transform: trimPod},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	return mgr, nil
}

// trimPod keeps of a Pod what says which address is whose.
func trimPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion},
		Spec:       corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs},
	}, nil
}
