// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/go-kit/log"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
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
	// Pod is the name of the pod that the speaker runs in, in FRRNamespace; empty without one.
	Pod string
	// StraysPass is dataplane.Input.StraysPass.
	StraysPass bool
	// ObserveSync, when set, is told how long each application of a plan took and how it ended.
	ObserveSync func(time.Duration, error)
	// HostProblems, when set, says what of the host's settings keeps promises from being kept.
	HostProblems func() []string
	// Client reads from caches and writes to the API server.
	Client client.Client
	// Recorder writes events onto FRRConfigurations.
	Recorder  events.EventRecorder
	Dataplane dataplane.Dataplane
	// BGP is nil where MetalLB announces itself.
	BGP    bgp.Speaker
	Logger log.Logger
	// Now is the clock.
	Now func() time.Time
}

// The loops' names.
const (
	dataplaneName = "dataplane"
	bgpName       = "bgp"
	reportName    = "report"
)

// Speaker holds the three loops' state. Each Sync method is called by one goroutine.
type Speaker struct {
	Options

	ledger              ledger
	loops               loops
	bgpWake, reportWake chan struct{}

	// Of the dataplane loop.
	planner    dataplane.Planner
	wasPrimary map[types.NamespacedName]lingering
	applied    map[string]dataplane.Service // by service key: as of the last application that did not fail
	// Of the BGP loop.
	merger    bgp.Merger
	withheld  []netip.Addr
	startedAt time.Time
	other     string               // pod of another daemon
	noted     map[types.UID]string // what the last event on an FRRConfiguration said
	// Of the report loop.
	reportAfter    time.Time // when the next may be written
	reportingSince time.Time
	returned       bool // every session of the speaker before this one has come back, or had the time to
	// statesAfter is when BGPSessionStates may be written next, statesInterval the time between two.
	statesAfter    time.Time
	statesInterval time.Duration

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
	Name string
	// Sync returns when to be called again though nothing happens; 0: never.
	Sync    func(context.Context) (again time.Duration, err error)
	Watched []client.Object
	// Relevant, when set, says which changes call for it: before is nil for an object that is new,
	// after for one that is gone.
	Relevant func(before, after client.Object) bool
	Wake     []<-chan struct{}
}

// Loops are all that have to run.
func (s *Speaker) Loops() []Loop {
	if s.BGP == nil {
		return []Loop{s.dataplaneLoop(), s.reportLoop()}
	}
	return []Loop{s.dataplaneLoop(), s.bgpLoop(), s.reportLoop()}
}

func (s *Speaker) dataplaneLoop() Loop {
	watched := []client.Object{
		&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &corev1.Service{}, &corev1.Node{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{},
	}
	if len(s.Subnets.Services) == 0 {
		watched = append(watched, &networkingv1.ServiceCIDR{})
	}
	return Loop{Name: dataplaneName, Sync: s.SyncDataplane, Watched: watched, Wake: []<-chan struct{}{s.Dataplane.Changed()}}
}

// bgpLoop must not run before everything that the guard depends on has been read: all of it is
// watched.
func (s *Speaker) bgpLoop() Loop {
	return Loop{
		Name: bgpName, Sync: s.SyncBGP,
		Watched: []client.Object{
			&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &corev1.Service{}, &corev1.Node{}, &bgp.FRRConfiguration{},
			&corev1.Secret{}, &corev1.Pod{},
		},
		Relevant: s.concernsBGP,
		Wake:     []<-chan struct{}{s.bgpWake},
	}
}

func (s *Speaker) reportLoop() Loop {
	loop := Loop{
		Name: reportName, Sync: s.SyncReport,
		Watched: []client.Object{&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}, &v1alpha1.EgressNode{}},
		Wake:    []<-chan struct{}{s.reportWake},
	}
	if s.BGP != nil {
		loop.Watched = append(loop.Watched, &frrk8sv1beta1.BGPSessionState{})
		loop.Wake = append(loop.Wake, s.BGP.Changed())
	}
	return loop
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
