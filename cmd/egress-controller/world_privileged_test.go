// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

// world is what one test plays in: an empty cluster, fake speakers, and any number of controllers.
type world struct {
	*cluster
	before   goleak.Option // the goroutines that were there before anything of the test
	fleet    *speakers.Fleet
	witness  *witness
	replicas []*replica
	past     []*replica // that were stopped
	external bool       // the back end of the controller that was started last
	// remembered is what the command remember saw.
	remembered string
	// tallied is how many writes there were at the command tally.
	tallied    int
	bumps      int
	policies   map[types.NamespacedName]v1alpha1.FailurePolicy // of the canaries
	namespaces map[string]bool
	speaking   map[string]bool // nodes with a speaker
}

// canaries is the namespace of two EgressServices without a Service, by which a test tells that the
// controller has worked through everything: see settled and looked.
const canaries = "canary"

var (
	// slowCanary is never ready: what is not ready for a moment only is not written, so that its
	// status comes last of all.
	slowCanary = types.NamespacedName{Namespace: canaries, Name: "slow"}
	// quickCanary is of sourceIPBy Network, and always ready.
	quickCanary = types.NamespacedName{Namespace: canaries, Name: "quick"}
)

// newWorld empties the cluster and ends everything with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	c := takeCluster(t)
	w := &world{cluster: c, before: goleak.IgnoreCurrent(),
		namespaces: map[string]bool{}, speaking: map[string]bool{},
		policies: map[types.NamespacedName]v1alpha1.FailurePolicy{},
	}
	t.Cleanup(func() {
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	var err error
	if w.fleet, err = speakers.Start(context.WithoutCancel(ctx), w.config, metallbNamespace); err != nil {
		t.Fatal(err)
	}
	if w.witness, err = startWitness(ctx, w.client); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		w.makeEgress(ctx, slowCanary.String()),
		w.makeEgress(ctx, quickCanary.String(), "by="+string(egressv1.SourceIPNetwork)))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// end stops controllers first: the world must not be taken apart before their eyes.
func (w *world) end() error {
	var problems []error
	for _, r := range w.replicas {
		problems = append(problems, r.stop())
	}
	if w.witness != nil {
		w.witness.stop()
	}
	if w.fleet != nil {
		w.fleet.Stop()
	}
	return errors.Join(problems...)
}

// leaked lists the goroutines that are left when everything has ended.
func (w *world) leaked(context.Context) error {
	transport, err := rest.TransportFor(w.config)
	if err != nil {
		return err
	}
	utilnet.CloseIdleConnectionsFor(transport) // the test's own
	// Watches of metadata, which only the fake speakers have, may leave theirs when they are stopped
	// with an event at hand (controller-runtime, newGVKFixupWatcher).
	return goleak.Find(w.before, goleak.IgnoreTopFunction("k8s.io/apimachinery/pkg/watch.(*filteredWatch).loop"))
}

// inNamespace makes a namespace that a test names.
func (w *world) inNamespace(ctx context.Context, name string) error {
	if w.namespaces[name] {
		return nil
	}
	w.namespaces[name] = true
	return w.createNamespace(ctx, name)
}

// settled returns when the controller has seen and worked through everything that happened before,
// and has written all that follows from it, statuses included. The quick canary's status is written
// in the round after the slow one's.
func (w *world) settled(ctx context.Context) error {
	return errors.Join(w.sing(ctx, slowCanary), w.sing(ctx, quickCanary))
}

// looked returns when the controller has seen what happened before, and has decided. Changes of
// different kinds of objects may overtake each other on their way to it; not by a whole round.
func (w *world) looked(ctx context.Context) error {
	return errors.Join(w.sing(ctx, quickCanary), w.sing(ctx, quickCanary))
}

// sing changes a canary's failure policy and waits until its status answers that: the controller
// decides all services at once, and writes statuses after everything else.
func (w *world) sing(ctx context.Context, canary types.NamespacedName) error {
	w.bumps++
	policy := v1alpha1.FailOpen
	if w.policies[canary] == policy {
		policy = v1alpha1.FailClosed
	}
	w.policies[canary] = policy
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.FailurePolicyAnnotation, policy)
	egress := &egressv1.EgressService{ObjectMeta: metav1.ObjectMeta{Namespace: canary.Namespace, Name: canary.Name}}
	if err := w.client.Patch(ctx, egress, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		return err
	}
	return poll(ctx, "the controller works through everything", func(ctx context.Context) error {
		_, a, egress, err := w.both(ctx, []string{canary.String()})
		if err != nil {
			return err
		}
		current := func(c metav1.Condition) bool { return c.ObservedGeneration == a.Generation }
		if a.Spec.FailurePolicy != policy || !slices.ContainsFunc(a.Status.Conditions, current) || len(egress.Status.Conditions) == 0 {
			return errors.New("the canary's assignment has not followed")
		}
		return nil
	})
}

// writes are what all controllers wrote, but for the Lease of their election and the canary.
func (w *world) writes() []write {
	var all []write
	for _, r := range slices.Concat(w.past, w.replicas) {
		for _, one := range r.traffic.written() {
			if !strings.HasSuffix(one.path, election) && !strings.Contains(one.path, "/namespaces/"+canaries+"/") &&
				!(strings.HasSuffix(one.path, "/leases") && strings.Contains(one.body, "egress-controller")) {
				all = append(all, one)
			}
		}
	}
	return all
}

// touch changes what no decision depends on: a label of a Node and an annotation of every Service.
func (w *world) touch(ctx context.Context) error {
	nodes, services := &corev1.NodeList{}, &corev1.ServiceList{}
	if err := errors.Join(w.client.List(ctx, nodes), w.client.List(ctx, services)); err != nil {
		return err
	}
	var objects []client.Object
	if len(nodes.Items) > 0 {
		objects = append(objects, &nodes.Items[0])
	}
	for i := range services.Items {
		if !permanent(&services.Items[i]) {
			objects = append(objects, &services.Items[i])
		}
	}
	for _, object := range objects {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"example.com/touched":"%d"},"annotations":{"example.com/touched":"%[1]d"}}}`, w.bumps)
		if err := w.client.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			return err
		}
	}
	return nil
}

// witnessed is nil when no change of primary broke its promise. What the watches have yet to bring
// is waited for.
func (w *world) witnessed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience/10)
	defer cancel()
	return poll(ctx, "what happened", func(context.Context) error { return w.witness.verdict() })
}

// syncsToQuiet is how many forced syncs may be needed until one writes nothing: those before it may
// find what speakers said meanwhile.
const syncsToQuiet = 4

// quiet forces one more sync and sees that it writes nothing, and that the world is consistent.
func (w *world) quiet(ctx context.Context) error {
	var extra []write
	for range syncsToQuiet {
		before := len(w.writes())
		if err := errors.Join(w.touch(ctx), w.settled(ctx)); err != nil {
			return err
		}
		if extra = w.writes()[before:]; len(extra) == 0 {
			// An advertisement goes a second after the label of its Service.
			return errors.Join(pollFor(ctx, patience/4, "the world is consistent", w.consistent), w.witnessed(ctx))
		}
	}
	texts := make([]string, len(extra))
	for i, one := range extra {
		texts[i] = one.String()
	}
	return fmt.Errorf("after %d syncs in which nothing happened, another one still wrote:\n%s", syncsToQuiet-1, strings.Join(texts, "\n"))
}
