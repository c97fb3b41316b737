// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"net/netip"
	"sync"
	"time"

	"github.com/go-kit/log"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
	"github.com/metallb-egress/metallb-egress/dataplane"
)

// applyTimeout bounds one application, so that a database or a kernel that hangs is noticed
// and tried again.
const applyTimeout = 10 * time.Second

// Subnets are the cluster's own, whose traffic is never steered or translated.
type Subnets struct {
	// Pods are the pod network's. Empty: the union of the nodes' subnets, read from their
	// annotations.
	Pods []netip.Prefix
	// Services are the ClusterIPs'. Empty: those of the ServiceCIDR objects.
	Services []netip.Prefix
	// Join, Transit and Masquerade are OVN-Kubernetes' internal ones.
	Join, Transit, Masquerade []netip.Prefix
}

// Options are what a Speaker is made of.
type Options struct {
	// Node is this node's name.
	Node string
	// Version is reported in the EgressNode.
	Version string
	// FRRNamespace is where the FRRConfigurations are: MetalLB's own namespace.
	FRRNamespace string
	Subnets      Subnets
	// Client reads from caches and writes to the API server; Secrets reads from the API server.
	Client    client.Client
	Secrets   client.Reader
	Dataplane dataplane.Dataplane
	BGP       bgp.Speaker
	Logger    log.Logger
	// Now is the clock.
	Now func() time.Time
}

// The loops' names.
const (
	dataplaneLoop = "dataplane"
	bgpLoop       = "bgp"
	reportLoop    = "report"
)

// Speaker holds the three loops' state. Each Sync method is called by one goroutine.
type Speaker struct {
	Options

	ledger              ledger
	loops               loops
	bgpWake, reportWake chan struct{}

	// Of the dataplane loop.
	wasPrimary map[types.NamespacedName]lingering
	applied    map[string]dataplane.Service // by service key: as of the last application that did not fail
	// Of the BGP loop.
	passwords map[string]password
	withheld  []netip.Addr
	startedAt time.Time
	// Of the report loop.
	reportAfter time.Time // when the next may be written

	modeMutex sync.Mutex
	mode      string
}

// New makes a Speaker that has done nothing yet.
func New(o Options) *Speaker {
	return &Speaker{
		Options: o,
		bgpWake: make(chan struct{}, 1), reportWake: make(chan struct{}, 1),
	}
}

// Loop is one of the speaker's loops: what to call, the kinds whose changes call for it, and
// the channels that do.
type Loop struct {
	Name    string
	Watched []client.Object
	Wake    []<-chan struct{}
}

// DataplaneLoop drives SyncDataplane.
func (s *Speaker) DataplaneLoop() Loop {
	watched := []client.Object{
		&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &corev1.Service{}, &corev1.Node{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{},
	}
	if len(s.Subnets.Services) == 0 {
		watched = append(watched, &networkingv1.ServiceCIDR{})
	}
	return Loop{Name: dataplaneLoop, Watched: watched, Wake: []<-chan struct{}{s.Dataplane.Changed()}}
}

// BGPLoop drives SyncBGP. It must not run before everything that the guard depends on has been
// read: all of it is watched.
func (s *Speaker) BGPLoop() Loop {
	return Loop{
		Name: bgpLoop,
		Watched: []client.Object{
			&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &corev1.Service{}, &corev1.Node{}, &frrk8sv1beta1.FRRConfiguration{},
		},
		Wake: []<-chan struct{}{s.bgpWake},
	}
}

// ReportLoop drives SyncReport.
func (s *Speaker) ReportLoop() Loop {
	return Loop{
		Name:    reportLoop,
		Watched: []client.Object{&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &v1alpha1.EgressNode{}},
		Wake:    []<-chan struct{}{s.reportWake, s.BGP.Changed()},
	}
}

// wake asks a loop to run once more.
func (s *Speaker) wake(loop chan struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

func (s *Speaker) setGatewayMode(mode string) {
	s.modeMutex.Lock()
	defer s.modeMutex.Unlock()
	s.mode = mode
}

func (s *Speaker) gatewayMode() string {
	s.modeMutex.Lock()
	defer s.modeMutex.Unlock()
	return s.mode
}
