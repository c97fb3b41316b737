// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// conditionTypes are all that the controller ever sets.
var conditionTypes = []string{
	v1alpha1.ConditionNodeAssigned, v1alpha1.ConditionDataplaneReady, v1alpha1.ConditionAnnounced,
	v1alpha1.ConditionAdvertisementsConsistent, v1alpha1.ConditionReady, v1alpha1.ConditionRepliesDiverted,
}

// finding is one condition in the making: true with a reason, or not with a reason and a message.
type finding struct {
	status          metav1.ConditionStatus
	reason, message string
}

func yes(reason string) finding         { return finding{metav1.ConditionTrue, reason, ""} }
func no(reason, message string) finding { return finding{metav1.ConditionFalse, reason, message} }
func unknown(reason, message string) finding {
	return finding{metav1.ConditionUnknown, reason, message}
}

// conditions are the service's, each with the reason that holds now. With the guard the speakers announce, otherwise MetalLB.
func (w *work) conditions(advertised outcome, guarded bool) []metav1.Condition {
	list := []metav1.Condition{w.decision.Assigned}
	add := func(kind string, f finding) {
		list = append(list, metav1.Condition{Type: kind, Status: f.status, Reason: f.reason, Message: f.message})
	}
	add(v1alpha1.ConditionDataplaneReady, w.dataplaneReady())
	if w.exclusive() {
		add(v1alpha1.ConditionAnnounced, w.announced(advertised, guarded))
	}
	if w.exclusive() || advertised.reason == v1alpha1.ReasonSelectsMissingLabel {
		add(v1alpha1.ConditionAdvertisementsConsistent, finding{advertised.status, advertised.reason, advertised.message})
	}
	ready := yes(v1alpha1.ReasonReady)
	var missing []string
	for _, condition := range list {
		if condition.Status != metav1.ConditionTrue {
			if len(missing) == 0 {
				ready = no(condition.Reason, "")
			}
			missing = append(missing, condition.Type)
		}
	}
	if len(missing) > 0 {
		ready.message = "not true: " + strings.Join(missing, ", ")
	}
	add(v1alpha1.ConditionReady, ready)
	if len(w.diverted) > 0 {
		add(v1alpha1.ConditionRepliesDiverted, finding{metav1.ConditionTrue, v1alpha1.ReasonSharedEndpoints,
			"replies to clients of " + names(w.diverted) + ", of externalTrafficPolicy Local with the same pods, leave through this service's primary"})
	}
	return list
}

// report is the primary's own.
func (w *work) report() v1alpha1.EgressNodeService { return w.observed.Reports[w.inForce().Primary] }

func (w *work) dataplaneReady() finding {
	if !w.exclusive() {
		if len(w.incapable) > 0 {
			return no(v1alpha1.ReasonNodesNotCapable, fmt.Sprintf("%d nodes with endpoints lack what sourceIPBy Network needs: %s", len(w.incapable), names(w.incapable)))
		}
		return yes(v1alpha1.ReasonProgrammed)
	}
	primary := w.inForce().Primary
	switch report := w.report(); {
	case primary == "":
		return no(v1alpha1.ReasonNoPrimary, "no node is assigned")
	case w.silent[primary]:
		return unknown(v1alpha1.ReasonSpeakerSilent, "the egress-speaker of node "+primary+" has stopped renewing its lease")
	case !lifecycle.Programmed(w.assignment, report):
		return no(v1alpha1.ReasonWaitingForPrimary, orElse(report.Reason, "node "+primary+" has not reported this generation as programmed"))
	case len(w.conflicts) > 0:
		return no(v1alpha1.ReasonEndpointConflict, fmt.Sprintf("pods of %s belong to the older %s too, and stay with it", w.key, others(w.conflicts)))
	case len(w.behind) > 0:
		return no(v1alpha1.ReasonNodesBehind, fmt.Sprintf("%d nodes with endpoints could not follow: %s", len(w.behind), names(w.behind)))
	}
	return yes(v1alpha1.ReasonProgrammed)
}

func (w *work) announced(advertised outcome, guarded bool) finding {
	primary, report := w.inForce().Primary, w.report()
	message := orElse(report.Reason, "node "+primary+" has not reported the address as announced")
	switch {
	case primary == "":
		return no(v1alpha1.ReasonNoPrimary, "no node is assigned")
	case w.labeled != nil:
		return no(v1alpha1.ReasonNodeNotLabeled, w.labeled.Error())
	case w.silent[primary]:
		return unknown(v1alpha1.ReasonSpeakerSilent, "the egress-speaker of node "+primary+" has stopped renewing its lease")
	case guarded && lifecycle.Answers(w.assignment, report) && report.Announced, !guarded && advertised.announced:
		return yes(v1alpha1.ReasonAnnounced)
	case !w.endpoints.served:
		return no(v1alpha1.ReasonNoServingEndpoints,
			"no endpoint is serving, so MetalLB announces no address and replies have no way back; with publishNotReadyAddresses: true on the Service it would")
	case !guarded:
		return no(v1alpha1.ReasonNotAnnounced, "MetalLB does not say that it announces the service from node "+primary)
	case !report.Offered:
		return no(v1alpha1.ReasonNotOffered, message)
	}
	return no(v1alpha1.ReasonNotAnnounced, message)
}

func orElse(text, other string) string {
	if text != "" {
		return text
	}
	return other
}

// eventType is Warning for what somebody should look at.
func eventType(c metav1.Condition) string {
	switch {
	case c.Type == v1alpha1.ConditionNodeAssigned && c.Status == metav1.ConditionTrue && c.Reason != v1alpha1.ReasonReplacementNotOffered,
		c.Reason == v1alpha1.ReasonNoEndpoints:
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}
