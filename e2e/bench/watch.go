// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// labelChange is one patch of a Node, as a watch saw it.
type labelChange struct {
	at   time.Time
	node string
	// keys are our labels that came (true) and went (false).
	keys map[string]bool
}

// labelWatch sees every change of our labels on Nodes.
type labelWatch struct {
	// stop ends the watch.
	stop context.CancelFunc

	mutex   sync.Mutex
	labels  map[string]map[string]string // by node, as last seen
	changes []labelChange
	seen    map[string]time.Time // when each awaited key came
	awaited int                  // how many keys have not come yet
	not     string               // a node on which they do not count
	err     error
}

// watchLabels begins to watch, and awaits that many public labels, anywhere but on one node.
func (w *world) watchLabels(ctx context.Context, awaited int, not string) (*labelWatch, error) {
	l := &labelWatch{labels: map[string]map[string]string{}, seen: map[string]time.Time{}, awaited: awaited, not: not}
	nodes := &metav1.PartialObjectMetadataList{}
	nodes.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	if err := w.admin.List(ctx, nodes); err != nil {
		return nil, err
	}
	for _, node := range nodes.Items {
		l.labels[node.Name] = ours(node.Labels)
	}
	ctx, l.stop = context.WithCancel(ctx)
	go l.follow(ctx, w.admin, nodes)
	return l, nil
}

// follow watches until ctx ends. The API server may end a watch whenever its reader is slow; the next begins where it ended, so that
// every change is seen once.
func (l *labelWatch) follow(ctx context.Context, from client.WithWatch, nodes *metav1.PartialObjectMetadataList) {
	version := nodes.ResourceVersion
	for ctx.Err() == nil {
		stream, err := from.Watch(ctx, nodes, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: version}})
		if err != nil {
			l.fail(err)
			return
		}
		for event := range stream.ResultChan() {
			now := time.Now()
			node, ok := event.Object.(*metav1.PartialObjectMetadata)
			if !ok {
				l.fail(fmt.Errorf("the watch on Nodes: %v", event.Object))
				stream.Stop()
				return
			}
			version = node.ResourceVersion
			l.note(now, node.Name, ours(node.Labels))
		}
		stream.Stop()
	}
}

func (l *labelWatch) fail(err error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.err = err
}

func (l *labelWatch) note(now time.Time, node string, labels map[string]string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	keys := map[string]bool{}
	for key := range labels {
		if _, had := l.labels[node][key]; had {
			continue
		}
		keys[key] = true
		if _, seen := l.seen[key]; !seen && strings.HasPrefix(key, egressv1.LabelPrefix) && node != l.not {
			l.seen[key] = now
			l.awaited--
		}
	}
	for key := range l.labels[node] {
		if _, has := labels[key]; !has {
			keys[key] = false
		}
	}
	l.labels[node] = labels
	if len(keys) > 0 {
		l.changes = append(l.changes, labelChange{now, node, keys})
	}
}

// wait returns when every awaited label was seen. It gives up when none has come for a while.
func (l *labelWatch) wait(ctx context.Context, patience time.Duration, alive func() error) error {
	left, since := -1, time.Now()
	err := poll(ctx, 24*time.Hour, "the labels", 10*time.Millisecond, func(context.Context) (bool, error) {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		if l.awaited != left {
			left, since = l.awaited, time.Now()
		}
		if time.Since(since) > patience {
			return false, fmt.Errorf("none has come for %v", patience)
		}
		return l.awaited <= 0, errors.Join(l.err, alive())
	})
	if err != nil {
		return fmt.Errorf("%d labels are missing: %w", left, err)
	}
	return nil
}

// result is when each label came, and every change until the last of them.
func (l *labelWatch) result() (seen map[string]time.Time, last time.Time, changes []labelChange) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, at := range l.seen {
		if at.After(last) {
			last = at
		}
	}
	for _, c := range l.changes {
		if !c.at.After(last) {
			changes = append(changes, c)
		}
	}
	return maps.Clone(l.seen), last, changes
}

// ours are the labels that the controller sets.
func ours(labels map[string]string) map[string]string {
	found := map[string]string{}
	for key, value := range labels {
		if strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix) {
			found[key] = value
		}
	}
	return found
}
