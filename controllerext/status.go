// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// writeStatus reports on the EgressAssignment and the EgressService.
func (c *Controller) writeStatus(ctx context.Context, w *work) {
	after := w.assignment.DeepCopy()
	conditions := w.conditions()
	for _, condition := range conditions {
		condition.ObservedGeneration = after.Generation
		meta.SetStatusCondition(&after.Status.Conditions, condition)
	}
	if w.decision.Move != nil {
		after.Status.LastMove = w.decision.Move
	}
	if move := after.Status.LastMove; move != nil && move.Epoch == after.Spec.Epoch && move.Duration == nil && meta.IsStatusConditionTrue(after.Status.Conditions, v1alpha1.ConditionAnnounced) {
		move.Duration = &metav1.Duration{Duration: c.Now().Sub(move.StartedAt.Time).Round(1e6)}
	}
	if !equality.Semantic.DeepEqual(w.assignment.Status, after.Status) {
		w.fail("status of EgressAssignment", c.Client.Status().Patch(ctx, after, client.MergeFrom(w.assignment), fieldOwner))
	}
	c.writeServiceStatus(ctx, w, conditions)
	c.event(w)
}

func (c *Controller) writeServiceStatus(ctx context.Context, w *work, conditions []metav1.Condition) {
	after := w.egress.DeepCopy()
	after.Status.Host = w.assignment.Spec.Primary
	if w.decision.Assigned.Reason == lifecycle.ReasonEveryNode {
		after.Status.Host = egressv1.HostAll
	}
	if c.ServiceConditions {
		for _, condition := range conditions {
			condition.ObservedGeneration = after.Generation
			meta.SetStatusCondition(&after.Status.Conditions, condition)
		}
	}
	if equality.Semantic.DeepEqual(w.egress.Status, after.Status) {
		return
	}
	// The whole status, not the difference: the schema requires the host, even where it is
	// empty and was so before.
	body, err := json.Marshal(map[string]any{"status": after.Status})
	if err == nil {
		err = c.Client.Status().Patch(ctx, after, client.RawPatch(types.MergePatchType, body), fieldOwner)
	}
	w.fail("status of EgressService", err)
}

// conditions are the service's, each with the reason that holds now.
func (w *work) conditions() []metav1.Condition {
	spec, report := w.assignment.Spec, w.reports[w.assignment.Spec.Primary]
	assigned := w.decision.Assigned
	list := []metav1.Condition{assigned}
	if assigned.Reason == lifecycle.ReasonEveryNode {
		ready := assigned
		ready.Type = v1alpha1.ConditionReady
		return append(list, ready)
	}
	add := func(kind string, ok bool, good, bad, message string) {
		condition := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: good}
		if !ok {
			condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, bad, message
		}
		list = append(list, condition)
	}
	current, programmed := lifecycle.Answers(w.assignment, report), lifecycle.Programmed(w.assignment, report)
	if spec.Primary == "" {
		add(v1alpha1.ConditionDataplaneReady, false, "", "NoPrimary", "no node is assigned")
		add(v1alpha1.ConditionAnnounced, false, "", "NoPrimary", "no node is assigned")
	} else {
		add(v1alpha1.ConditionDataplaneReady, programmed, "Programmed", "WaitingForPrimary", orElse(report.Reason, "node "+spec.Primary+" has not reported this generation as programmed"))
		reason, why := w.notAnnounced(report)
		add(v1alpha1.ConditionAnnounced, current && report.Announced, "Announced", reason, why)
	}
	message := ""
	if w.advertised != nil {
		message = w.advertised.Error()
	}
	add(v1alpha1.ConditionAdvertisementsConsistent, w.advertised == nil, "Configured", "NotConfigured", message)

	var missing []string
	for _, condition := range list {
		if condition.Status != metav1.ConditionTrue {
			missing = append(missing, condition.Type)
		}
	}
	reason := "NotReady"
	if i := slices.IndexFunc(list, func(m metav1.Condition) bool { return m.Status != metav1.ConditionTrue }); i >= 0 {
		reason = list[i].Reason
	}
	add(v1alpha1.ConditionReady, len(missing) == 0, "Ready", reason, "not true: "+strings.Join(missing, ", "))
	return list
}

// notAnnounced names what is missing while the primary does not announce.
func (w *work) notAnnounced(report v1alpha1.EgressNodeService) (reason, message string) {
	message = orElse(report.Reason, "node "+w.assignment.Spec.Primary+" has not reported the address as announced")
	switch {
	case w.labeled != nil:
		return "NodeNotLabeled", w.labeled.Error()
	case !report.Offered:
		return "NotOffered", message
	}
	return "NotAnnounced", message
}

// event tells the user of each change of the NodeAssigned reason and of each move.
func (c *Controller) event(w *work) {
	assigned, move := w.decision.Assigned, w.decision.Move
	key := assigned.Reason + w.assignment.Spec.Primary
	c.mutex.Lock()
	last, known := c.reasons[w.key]
	c.reasons[w.key] = key
	c.mutex.Unlock()
	if !known && w.before != nil {
		// After a restart the condition tells what was said last.
		if condition := meta.FindStatusCondition(w.before.Status.Conditions, v1alpha1.ConditionNodeAssigned); condition != nil {
			last = condition.Reason + w.before.Spec.Primary
		}
	}
	same := last == key
	if same && move == nil {
		return
	}
	kind := corev1.EventTypeNormal
	if assigned.Status != metav1.ConditionTrue && assigned.Reason != "WaitingForStandby" {
		kind = corev1.EventTypeWarning
	}
	c.Recorder.Eventf(w.egress, nil, kind, assigned.Reason, "Elect", "%s", assigned.Message)
}

func orElse(text, other string) string {
	if text != "" {
		return text
	}
	return other
}
