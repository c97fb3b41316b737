// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// labelInterval is the shortest time between two patches of a node's labels while more services are to come: each takes many with it.
const labelInterval = 2 * time.Second

// writeNodeLabels brings the public and the standby labels of every node to what the
// assignments say: one patch per node that differs. While there are more assignments to write, only what belongs to a move is written
// at once.
func (c *Controller) writeNodeLabels(ctx context.Context, s *snapshot, works []*work) time.Duration {
	want, live := map[string]map[string]bool{}, map[string]bool{}
	add := func(node, key string) {
		if want[node] == nil {
			want[node] = map[string]bool{}
		}
		want[node][key] = true
	}
	for _, w := range works {
		spec := w.inForce()
		live[spec.LabelKey] = w.exclusive()
		if spec.Primary != "" {
			add(spec.Primary, spec.LabelKey)
		}
		if spec.Standby != "" && c.Guarded {
			add(spec.Standby, spec.StandbyLabelKey())
		}
	}
	more := slices.ContainsFunc(works, func(w *work) bool { return errors.Is(w.unwritten, errLater) })
	var urgent []string
	for _, w := range works {
		if w.replaces() {
			urgent = append(urgent, w.inForce().LabelKey)
		}
	}
	// Upstream's spelling of a key is ambiguous: a live service's is never kept for another.
	keep := slices.DeleteFunc(slices.Clone(s.released), func(key string) bool { return live[key] })
	now := c.Now()
	var due []*labelChange
	changes := map[string]*labelChange{}
	labelled := make(map[string]time.Time, len(c.labelled))
	for _, node := range s.nodes {
		last := c.labelled[node.Name]
		if patch := labelPatch(node, want[node.Name], keep); len(patch) > 0 {
			change := &labelChange{node: node.Name, patch: patch, err: errLater}
			changes[node.Name] = change
			if !more || now.Sub(last) >= labelInterval || slices.ContainsFunc(urgent, change.has) {
				due, last = append(due, change), now
			}
		}
		if now.Sub(last) < labelInterval {
			labelled[node.Name] = last
		}
	}
	c.labelled = labelled
	again := each(due, writers, func(l *labelChange) (wait time.Duration) {
		wait, l.err = c.try(ctx, electionLoop, l.node, "labels of Node", func(ctx context.Context) error { return c.labelNode(ctx, l.node, l.patch) })
		return wait
	})
	for _, w := range works {
		spec := w.inForce()
		if l := changes[spec.Primary]; l != nil && l.err != nil && l.has(spec.LabelKey) {
			w.labeled = fmt.Errorf("label node %s: %w", l.node, l.err)
		}
	}
	return again
}

// labelChange is one patch of a Node's labels.
type labelChange struct {
	node  string
	patch map[string]any
	err   error // why it was not written
}

func (l *labelChange) has(key string) bool {
	_, ok := l.patch[key]
	return ok
}

func (c *Controller) labelNode(ctx context.Context, name string, patch map[string]any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": patch}})
	if err != nil {
		return err
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return client.IgnoreNotFound(c.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body), fieldOwner))
}

// labelPatch is a merge patch of the node's labels: "" sets, nil removes. Those to be kept stay where they are.
func labelPatch(node *corev1.Node, want map[string]bool, keep []string) map[string]any {
	patch := map[string]any{}
	for key := range want {
		if value, ok := node.Labels[key]; !ok || value != "" {
			patch[key] = ""
		}
	}
	for key := range node.Labels {
		ours := strings.HasPrefix(key, egressv1.LabelPrefix) || strings.HasPrefix(key, v1alpha1.StandbyLabelPrefix)
		if ours && !want[key] && !slices.Contains(keep, key) {
			patch[key] = nil
		}
	}
	return patch
}
