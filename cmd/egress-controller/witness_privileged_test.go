// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// witness watches every version of every assignment and report, and judges afterwards whether each
// change of primary kept the promise of the design: only an acknowledged standby becomes primary.
type witness struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mutex       sync.Mutex
	assignments []seen[*v1alpha1.EgressAssignment]
	reports     []seen[*v1alpha1.EgressNode]
	err         error
}

// seen is an object as it was from a revision of the store on.
type seen[T any] struct {
	revision int64
	object   T
}

// startWitness begins with an empty world.
func startWitness(ctx context.Context, c client.WithWatch) (*witness, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &witness{cancel: cancel}
	for _, list := range []client.ObjectList{&v1alpha1.EgressAssignmentList{}, &v1alpha1.EgressNodeList{}} {
		if err := c.List(ctx, list); err != nil {
			cancel()
			return nil, err
		}
		w.running.Add(1)
		go func() {
			defer w.running.Done()
			w.follow(ctx, c, list, list.GetResourceVersion())
		}()
	}
	return w, nil
}

func (w *witness) stop() {
	w.cancel()
	w.running.Wait()
}

// follow watches one kind, again from the last version when a watch ends.
func (w *witness) follow(ctx context.Context, c client.WithWatch, list client.ObjectList, from string) {
	for ctx.Err() == nil && w.failure() == nil {
		watching, err := c.Watch(ctx, list, &client.ListOptions{Raw: listFrom(from)})
		if err != nil {
			w.fail(ctx, err)
			return
		}
		for event := range watching.ResultChan() {
			object, ok := event.Object.(client.Object)
			if !ok || event.Type == watch.Error {
				w.fail(ctx, fmt.Errorf("watch %T: %w", list, apierrors.FromObject(event.Object)))
				break
			}
			from = object.GetResourceVersion()
			if event.Type != watch.Deleted {
				w.saw(object)
			}
		}
		watching.Stop()
		for range watching.ResultChan() {
			// Whoever sends ends only when nothing is left to send.
			continue
		}
	}
}

func (w *witness) fail(ctx context.Context, err error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if ctx.Err() == nil {
		w.err = errors.Join(w.err, err)
	}
}

func (w *witness) failure() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.err
}

func (w *witness) saw(object client.Object) {
	revision, err := strconv.ParseInt(object.GetResourceVersion(), 10, 64)
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.err = errors.Join(w.err, err)
	switch o := object.(type) {
	case *v1alpha1.EgressAssignment:
		w.assignments = append(w.assignments, seen[*v1alpha1.EgressAssignment]{revision, o})
	case *v1alpha1.EgressNode:
		w.reports = append(w.reports, seen[*v1alpha1.EgressNode]{revision, o})
	}
}

// verdict lists every broken promise so far.
func (w *witness) verdict() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	problems := []error{w.err}
	last := map[string]*v1alpha1.EgressAssignment{}
	for _, v := range w.assignments {
		if v.object.Labels[v1alpha1.ManagedByLabel] == "" {
			continue // a user's
		}
		before := last[string(v.object.UID)]
		last[string(v.object.UID)] = v.object
		if before == nil {
			before = &v1alpha1.EgressAssignment{}
		}
		if err := w.judge(before, v.object, v.revision); err != nil {
			problems = append(problems, fmt.Errorf("assignment %s at revision %d: %w", client.ObjectKeyFromObject(v.object), v.revision, err))
		}
	}
	return errors.Join(problems...)
}

// judge compares two versions that follow each other.
func (w *witness) judge(before, after *v1alpha1.EgressAssignment, revision int64) error {
	was, is := before.Spec, after.Spec
	switch {
	case is.Primary == was.Primary && is.Epoch != was.Epoch:
		return fmt.Errorf("epoch %d became %d though the primary stayed %q", was.Epoch, is.Epoch, is.Primary)
	case is.Primary == was.Primary:
		return nil
	case is.Epoch != was.Epoch+1:
		return fmt.Errorf("epoch %d became %d when primary %q became %q", was.Epoch, is.Epoch, was.Primary, is.Primary)
	case is.Primary == "":
		return nil
	case is.Primary != was.Standby:
		return fmt.Errorf("node %q became primary, but the standby was %q", is.Primary, was.Standby)
	case !w.acknowledged(before, is, revision):
		return fmt.Errorf("node %q became primary, but had not acknowledged generation %d with %v", is.Primary, before.Generation, is.SourceIPs)
	}
	return nil
}

// acknowledged is true when the new primary had reported, before that revision, that it has
// programmed the assignment as it was, with every source IP that it has now.
func (w *witness) acknowledged(before *v1alpha1.EgressAssignment, is v1alpha1.EgressAssignmentSpec, revision int64) bool {
	return slices.ContainsFunc(w.reports, func(v seen[*v1alpha1.EgressNode]) bool {
		if v.revision > revision || v.object.Name != is.Primary {
			return false
		}
		return slices.ContainsFunc(v.object.Status.Services, func(s v1alpha1.EgressNodeService) bool {
			return s.UID == before.UID && s.ObservedGeneration >= before.Generation && s.Programmed &&
				!slices.ContainsFunc(is.SourceIPs, func(ip string) bool { return !slices.Contains(s.Addresses, ip) })
		})
	})
}

func listFrom(revision string) *metav1.ListOptions {
	return &metav1.ListOptions{ResourceVersion: revision}
}
