// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// recorder watches every version of the FRRConfigurations, or asks the routers again and again, so that a test can say of a prefix who ever
// offered it meanwhile.
type recorder struct {
	routers *routers // that it asks
	client  client.WithWatch
	cancel  context.CancelFunc
	running sync.WaitGroup

	mutex    sync.Mutex
	err      error
	began    time.Time
	looks    int                                  // at the routers
	versions map[string]string                    // resourceVersion by object
	nodes    map[string]map[netip.Prefix][]string // what each is to announce
	history  map[netip.Prefix][]moment
}

// moment is from when on exactly these nodes offered a prefix.
type moment struct {
	at    time.Time
	nodes []string
}

// record begins to watch; it ends with the test.
func (w *world) record(t *testing.T) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &recorder{
		routers: w.routers, client: w.client, cancel: cancel, began: time.Now(),
		versions: map[string]string{}, nodes: map[string]map[netip.Prefix][]string{}, history: map[netip.Prefix][]moment{},
	}
	t.Cleanup(func() {
		cancel()
		r.running.Wait()
	})
	if r.routers != nil {
		must(t, r.ask(ctx))
		r.begin()
		r.running.Go(func() { r.fail(ctx, r.askOn(ctx)) })
		return r
	}
	list := &frrk8sv1beta1.FRRConfigurationList{}
	must(t, w.client.List(ctx, list, client.InNamespace(metallbNamespace)))
	for i := range list.Items {
		r.see(watch.Added, &list.Items[i])
	}
	r.begin()
	r.running.Go(func() { r.follow(ctx, list.ResourceVersion) })
	return r
}

// askOn asks the routers all the time.
func (r *recorder) askOn(ctx context.Context) error {
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := r.ask(ctx); err != nil {
				return err
			}
		}
	}
}

// ask notes what the routers have now.
func (r *recorder) ask(ctx context.Context) error {
	all, err := r.routers.offered(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.looks++
	r.nodes = map[string]map[netip.Prefix][]string{}
	for prefix, nodes := range all {
		for node, texts := range nodes {
			if r.nodes[node] == nil {
				r.nodes[node] = map[netip.Prefix][]string{}
			}
			r.nodes[node][prefix] = texts
		}
		r.note(prefix, now)
	}
	for prefix := range r.history {
		r.note(prefix, now)
	}
	return nil
}

// caughtUp returns when the recorder has seen everything that was there before.
func (w *world) caughtUp(ctx context.Context, r *recorder) error {
	if r.routers != nil {
		r.mutex.Lock()
		before := r.looks
		r.mutex.Unlock()
		return poll(ctx, "the recorder looks twice", func(context.Context) error {
			r.mutex.Lock()
			defer r.mutex.Unlock()
			if r.looks < before+2 && r.err == nil {
				return fmt.Errorf("%d times by now", r.looks-before)
			}
			return r.err
		})
	}
	return poll(ctx, "the recorder catches up", func(ctx context.Context) error {
		list := &frrk8sv1beta1.FRRConfigurationList{}
		if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
			return err
		}
		r.mutex.Lock()
		defer r.mutex.Unlock()
		for _, item := range list.Items {
			if seen := r.versions[item.Name]; seen != item.ResourceVersion {
				return fmt.Errorf("FRRConfiguration %s is %s, seen was %s", item.Name, item.ResourceVersion, seen)
			}
		}
		return nil
	})
}

// follow watches, again from the last version when a watch ends.
func (r *recorder) follow(ctx context.Context, from string) {
	for ctx.Err() == nil && r.failure() == nil {
		watching, err := r.client.Watch(ctx, &frrk8sv1beta1.FRRConfigurationList{}, client.InNamespace(metallbNamespace),
			&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: from}})
		if err != nil {
			r.fail(ctx, err)
			return
		}
		for event := range watching.ResultChan() {
			configuration, ok := event.Object.(*frrk8sv1beta1.FRRConfiguration)
			if !ok {
				r.fail(ctx, fmt.Errorf("watch FRRConfigurations: %w", apierrors.FromObject(event.Object)))
				break
			}
			from = configuration.ResourceVersion
			r.see(event.Type, configuration)
		}
		watching.Stop()
		for range watching.ResultChan() {
			// Whoever sends ends only when nothing is left to send.
			continue
		}
	}
}

func (r *recorder) fail(ctx context.Context, err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if ctx.Err() == nil && err != nil {
		r.err = errors.Join(r.err, err)
	}
}

func (r *recorder) failure() error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.err
}

// see notes one version of one node's FRRConfiguration.
func (r *recorder) see(event watch.EventType, configuration *frrk8sv1beta1.FRRConfiguration) {
	node, offered, err := readConfiguration(configuration)
	now := time.Now()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.err = errors.Join(r.err, err)
	r.versions[configuration.Name] = configuration.ResourceVersion
	before := r.nodes[node]
	r.nodes[node] = offered
	if event == watch.Deleted {
		delete(r.versions, configuration.Name)
		delete(r.nodes, node)
	}
	changed := maps.Clone(before)
	if changed == nil {
		changed = map[netip.Prefix][]string{}
	}
	maps.Copy(changed, offered)
	for prefix := range changed {
		r.note(prefix, now)
	}
}

// begin makes what is offered now the first moment of every history.
func (r *recorder) begin() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for prefix, history := range r.history {
		r.history[prefix] = []moment{{at: r.began, nodes: history[len(history)-1].nodes}}
	}
}

// note adds a moment to a prefix's history if other nodes offer it now than before.
func (r *recorder) note(prefix netip.Prefix, now time.Time) {
	var nodes []string
	for node, offered := range r.nodes {
		if len(offered[prefix]) > 0 {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	history := r.history[prefix]
	if len(history) == 0 {
		history = []moment{{at: r.began}}
	}
	if !slices.Equal(history[len(history)-1].nodes, nodes) {
		history = append(history, moment{at: now, nodes: nodes})
	}
	r.history[prefix] = history
}

// moments are the history of a service's address since the recorder began, up to what is in the store now. The first one is how it was
// in the beginning.
func (w *world) moments(t *testing.T, r *recorder, service string) []moment {
	t.Helper()
	addresses, err := w.addresses(t.Context(), service)
	must(t, err, w.caughtUp(t.Context(), r), r.failure())
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if history := r.history[addresses[0]]; len(history) > 0 {
		return slices.Clone(history)
	}
	return []moment{{at: r.began}}
}

// neverMissing says that some node offered the service at every moment since the recorder began.
func (w *world) neverMissing(t *testing.T, r *recorder, service string) {
	t.Helper()
	history := w.moments(t, r, service)
	for i, m := range history {
		if len(m.nodes) > 0 {
			continue
		}
		gap := "since then"
		if i+1 < len(history) {
			gap = fmt.Sprintf("for %d ms", history[i+1].at.Sub(m.at).Milliseconds())
		}
		t.Errorf("service %s was offered by nobody %.2f s after the beginning, %s: %s", service, m.at.Sub(r.began).Seconds(), gap, r.tell(history))
	}
}

// neverElsewhere says that no other nodes than these, separated by spaces, offered the service since the recorder began.
func (w *world) neverElsewhere(t *testing.T, r *recorder, service, nodes string) {
	t.Helper()
	history := w.moments(t, r, service)
	for _, m := range history {
		for _, node := range m.nodes {
			if !slices.Contains(strings.Fields(nodes), node) {
				t.Errorf("service %s was offered by %s %.2f s after the beginning: %s", service, node, m.at.Sub(r.began).Seconds(), r.tell(history))
			}
		}
	}
}

// tell is a history in words.
func (r *recorder) tell(history []moment) string {
	words := make([]string, len(history))
	for i, m := range history {
		words[i] = fmt.Sprintf("%.2f s %v", m.at.Sub(r.began).Seconds(), m.nodes)
	}
	return strings.Join(words, ", ")
}
