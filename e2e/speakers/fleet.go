// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// maxWrites bounds the reports and leases under way at once, so that 1,000 fakes with something to say need few connections.
const maxWrites = 32

// Fleet is the fake speakers of one cluster. Its methods may be called from several goroutines.
type Fleet struct {
	client    client.Client
	http      *http.Client
	namespace string
	ctx       context.Context // of every goroutine
	cancel    context.CancelFunc
	running   sync.WaitGroup
	tickets   chan struct{} // one for each write under way

	mutex    sync.Mutex
	err      error
	reports  []Report
	speakers map[string]*speaker
	// assignments has the newest state of each by <namespace>/<name>, held the same by node: those whose primary or standby it is.
	assignments map[string]*v1alpha1.EgressAssignment
	held        map[string]map[string]*v1alpha1.EgressAssignment
	labels      map[string]map[string]string // of the Nodes
}

// Start begins to watch EgressAssignments and Nodes, and returns when it has read them all. The Leases of the fleet are in the namespace,
// which must exist. The fleet ends with Stop, or with ctx.
func Start(ctx context.Context, config *rest.Config, namespace string) (*Fleet, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.UserAgent = "fake-egress-speakers"
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("fake speakers: %w", err)
	}
	f := &Fleet{
		http: httpClient, namespace: namespace, tickets: make(chan struct{}, maxWrites), speakers: map[string]*speaker{},
		assignments: map[string]*v1alpha1.EgressAssignment{}, held: map[string]map[string]*v1alpha1.EgressAssignment{},
		labels: map[string]map[string]string{},
	}
	if f.client, err = client.New(config, client.Options{HTTPClient: httpClient, Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("fake speakers: %w", err)
	}
	objects, err := cache.New(config, cache.Options{HTTPClient: httpClient, Scheme: scheme, DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		return nil, fmt.Errorf("fake speakers: %w", err)
	}
	f.ctx, f.cancel = context.WithCancel(ctx)
	if err := f.watch(objects); err != nil {
		f.Stop()
		return nil, fmt.Errorf("fake speakers: %w", err)
	}
	return f, nil
}

// Add starts a node's speaker: its EgressNode, owned by the Node, which must exist, and its Lease. A dead one makes neither.
func (f *Fleet) Add(node string, b Behaviour) error {
	ctx, cancel := context.WithCancel(f.ctx)
	s := &speaker{fleet: f, node: node, cancel: cancel, behaviour: b, changed: make(chan struct{}, 1), revived: make(chan struct{}, 1)}
	if !b.Dead {
		if err := s.begin(ctx); err != nil {
			cancel()
			return fmt.Errorf("fake speaker of node %s: %w", node, err)
		}
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.speakers[node] != nil || ctx.Err() != nil {
		cancel()
		return fmt.Errorf("fake speaker of node %s: there is one already, or the fleet has ended", node)
	}
	f.speakers[node] = s
	s.labels = f.labels[node]
	s.assignments = maps.Clone(f.held[node])
	if s.assignments == nil {
		s.assignments = map[string]*v1alpha1.EgressAssignment{}
	}
	f.running.Add(2)
	s.running.Add(2)
	for _, loop := range []func(context.Context){s.report, s.renew} {
		go func() {
			defer f.running.Done()
			defer s.running.Done()
			loop(ctx)
		}()
	}
	return nil
}

// Set changes how a node's speaker behaves from now on. For a node without a speaker it does nothing.
func (f *Fleet) Set(node string, b Behaviour) {
	f.mutex.Lock()
	s := f.speakers[node]
	f.mutex.Unlock()
	if s != nil {
		s.set(b)
	}
}

// Remove ends a node's speaker and returns when it has ended. What it wrote stays, as when an egress-speaker is deleted.
func (f *Fleet) Remove(node string) {
	f.mutex.Lock()
	s := f.speakers[node]
	delete(f.speakers, node)
	f.mutex.Unlock()
	if s != nil {
		s.cancel()
		s.running.Wait()
	}
}

// Stop ends every goroutine and returns when they have ended.
func (f *Fleet) Stop() {
	f.mutex.Lock()
	f.cancel() // within the lock: Add starts nothing afterwards
	f.mutex.Unlock()
	f.running.Wait()
	utilnet.CloseIdleConnectionsFor(f.http.Transport)
}

// Report is one write of an EgressNode.
type Report struct {
	// At is when the API server had accepted it.
	At   time.Time
	Node string
	// Services is how many entries it had.
	Services int
}

// Reports are the reports written, in their order.
func (f *Fleet) Reports() []Report {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return slices.Clone(f.reports)
}

func (f *Fleet) reported(r Report) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.reports = append(f.reports, r)
}

// Writes is how many reports were written, without leases.
func (f *Fleet) Writes() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return len(f.reports)
}

// Err is the newest failure to write a report or a Lease, or nil. Fakes try again after a failure, as speakers do.
func (f *Fleet) Err() error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.err
}

// size is the number of speakers.
func (f *Fleet) size() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return len(f.speakers)
}

// write does one write when its turn comes, and remembers its failure.
func (f *Fleet) write(ctx context.Context, do func(context.Context) error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case f.tickets <- struct{}{}:
	}
	defer func() { <-f.tickets }()
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() == nil {
		f.mutex.Lock()
		f.err = err
		f.mutex.Unlock()
	}
	return err
}

// assignmentSeen hands the newest state of an assignment to those whom it concerns, or concerned until now. It is nil when it was deleted.
func (f *Fleet) assignmentSeen(key string, now *v1alpha1.EgressAssignment) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	before := f.assignments[key]
	if before != nil && now != nil && before.UID == now.UID && before.Generation == now.Generation {
		// Only its status changed, which no speaker reads.
		return
	}
	if now == nil {
		delete(f.assignments, key)
	} else {
		f.assignments[key] = now
	}
	concerned := map[string]bool{}
	for _, a := range []*v1alpha1.EgressAssignment{before, now} {
		if a != nil {
			concerned[a.Spec.Primary], concerned[a.Spec.Standby] = true, true
		}
	}
	delete(concerned, "")
	for _, node := range slices.Sorted(maps.Keys(concerned)) {
		mine := now
		if now != nil && roleOf(now, node) == "" {
			mine = nil
		}
		if f.held[node] == nil {
			f.held[node] = map[string]*v1alpha1.EgressAssignment{}
		}
		if mine == nil {
			delete(f.held[node], key)
		} else {
			f.held[node][key] = mine
		}
		if s := f.speakers[node]; s != nil {
			s.see(change{at: time.Now(), key: key, assignment: mine})
		}
	}
}

// labelsSeen hands a Node's labels to its speaker.
func (f *Fleet) labelsSeen(node string, labels map[string]string) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if maps.Equal(f.labels[node], labels) {
		return
	}
	f.labels[node] = labels
	if s := f.speakers[node]; s != nil {
		s.see(change{at: time.Now(), labels: labels})
	}
}

// ownerOf reads the Node that owns what its speaker makes.
func (f *Fleet) ownerOf(ctx context.Context, name string) (metav1.OwnerReference, error) {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(nodeKind)
	if err := f.client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return metav1.OwnerReference{}, err
	}
	owner := *metav1.NewControllerRef(node, nodeKind)
	owner.BlockOwnerDeletion = nil
	return owner, nil
}
