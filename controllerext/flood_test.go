// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
)

// While more services come than one run of the loop can write, the nodes' labels wait and are patched together; those of a move don't.
func TestLabelsWaitWhileServicesCome(t *testing.T) {
	const services = 60
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("old", "192.0.2.201"))...)
	primary, standby := c.settle("old")
	for i := range services {
		for _, o := range service(fmt.Sprint("new", i), fmt.Sprint("192.0.2.", i)) {
			if err := c.client.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	var spent atomic.Int64
	start := c.now
	c.controller.labelled = map[string]time.Time{"a": start, "b": start}
	c.controller.Now = func() time.Time { return start.Add(time.Duration(spent.Load())) }
	c.refuse = func(what string) error {
		if strings.HasPrefix(what, "create new") {
			spent.Add(int64(20 * time.Millisecond))
		}
		return nil
	}
	pass := func() (created int, patched []string) {
		t.Helper()
		c.writes = nil
		if _, err := c.controller.SyncElection(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, what := range c.writes {
			if strings.HasPrefix(what, "create new") {
				created++
			}
			if what == "patch a" || what == "patch b" {
				patched = append(patched, what)
			}
		}
		return created, patched
	}

	if created, patched := pass(); created < writers || created == services || len(patched) > 0 {
		t.Errorf("the first run has written %d assignments and %v; want a part of the assignments, and no node", created, patched)
	}
	lost := get(c, "", primary, &corev1.Node{})
	lost.Status.Conditions[0].Status = corev1.ConditionFalse
	if err := c.client.Status().Update(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if created, patched := pass(); created == 0 || !slices.Contains(patched, "patch "+standby) {
		t.Errorf("the run with a move has written %d assignments and %v; want node %s at once", created, patched, standby)
	}
	if got := c.assignment("old").Spec.Primary; got != standby {
		t.Errorf("old is on %q, want %q", got, standby)
	}
	for created := 1; created > 0; {
		created, _ = pass()
	}
	labels := strings.Join(slices.Concat(c.ourLabels()["a"], c.ourLabels()["b"]), " ")
	for i := range services {
		if !strings.Contains(labels+" ", fmt.Sprintf("/ns-new%d ", i)) {
			t.Errorf("no node has a label of new%d", i)
		}
	}
}

// While the API server is slow, states that pass soon are not written.
func TestStatusesGiveWayToASlowServer(t *testing.T) {
	c := newCluster(t, slices.Concat(node("a"), node("b"), service("s", "192.0.2.1"))...)
	var took time.Duration
	c.refuse = func(what string) error {
		if what == "patch status s" {
			c.now = c.now.Add(took)
		}
		return nil
	}
	for i, test := range []struct{ took, want time.Duration }{
		{time.Millisecond, settleTime}, {25 * time.Millisecond, time.Second}, {time.Second, longestSettleTime}, {0, settleTime},
	} {
		took = test.took
		egress := c.egress("s")
		edit(c, egress, func(e *egressv1.EgressService) {
			e.Spec.NodeSelector.MatchLabels = map[string]string{"name": []string{"nobody", "a"}[i%2]}
		})
		c.sync()
		c.now = c.now.Add(longestSettleTime)
		c.sync()
		if got := c.controller.settleTime; got != test.want {
			t.Errorf("after writes that took %v: %v, want %v", test.took, got, test.want)
		}
	}
}
