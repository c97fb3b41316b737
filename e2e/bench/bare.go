// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
	"github.com/metallb-egress/metallb-egress/e2e/speakers"
)

const bareOwner = client.FieldOwner("metallb-egress-controller")

// bareClient writes what another run wrote, as often, and nothing else. It decides nothing: what it writes is made up before.
type bareClient struct {
	*world
	writes writes
}

// bareOutcome is how long a run of the bare client took, and the CPU time of the API server and its store.
type bareOutcome struct{ took, server time.Duration }

// measureBare issues the writes of our run in a new world of the same size, which has no controller and whose speakers only renew their
// leases, and returns how long that takes.
func (b *bench) measureBare(ctx context.Context, c cell, like outcome, these writes) (one bareOutcome, err error) {
	w, err := b.up(ctx, c.services, c.nodes)
	if err != nil {
		return one, err
	}
	defer func() { err = errors.Join(err, w.down(ctx)) }()
	if err := w.addNodes(ctx, c.nodes, speakers.Behaviour{Mute: true}); err != nil {
		return one, err
	}
	bare := &bareClient{world: w, writes: these}
	// The same watch as in our run, which the API server has to serve.
	labels, err := w.watchLabels(ctx, 0, "")
	if err != nil {
		return one, err
	}
	defer labels.stop()
	warm := &bareClient{world: w, writes: writes{}}
	for kind := range these {
		warm.writes[kind] = w.services
	}
	warmUp := []job{{do: func(ctx context.Context) error { return warm.chain(ctx, w.services) }}}
	warmUp = append(warmUp, bare.reports([]speakers.Report{{Node: nodeName(0), Services: 1}}, like)...)
	if err := runJobs(ctx, warmUp); err != nil {
		return one, fmt.Errorf("warm-up: %w", err)
	}
	if _, err := w.quiet(ctx); err != nil {
		return one, err
	}
	jobs := slices.Concat(bare.labelJobs(like.changes, like), bare.reports(like.reports, like))
	for i := range w.services {
		at := (float64(i) + 0.5) / float64(w.services)
		jobs = append(jobs, job{at, "", func(ctx context.Context) error { return bare.chain(ctx, i) }})
	}
	before, err := w.serverCPU()
	if err != nil {
		return one, err
	}
	began := time.Now()
	if err := runJobs(ctx, jobs); err != nil {
		return one, err
	}
	one.took = time.Since(began)
	one.server, err = w.serverCPU()
	one.server -= before
	return one, err
}

// chain writes everything of one service.
func (b *bareClient) chain(ctx context.Context, i int) error {
	egress := newEgressService(i)
	if err := b.times(i, createEgress, func() error { return b.admin.Create(ctx, egress) }); err != nil {
		return err
	}
	assignment := newAssignment(egress, i)
	primary, standby := nodeName(i%len(b.nodes)), nodeName((i+1)%len(b.nodes))
	owned := newAdvertisement(assignment)
	steps := []struct {
		kind write
		do   func() error
	}{
		{createAssignment, func() error {
			assignment.Spec.Standby = primary
			return b.account.Create(ctx, assignment, bareOwner)
		}},
		{applyService, func() error {
			apply := applycorev1.Service(egress.Name, egress.Namespace).WithLabels(map[string]string{v1alpha1.ServiceLabel: digest(i)})
			return b.account.Apply(ctx, apply, bareOwner, client.ForceOwnership)
		}},
		{patchService, func() error {
			service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: egress.Namespace, Name: egress.Name}}
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, v1alpha1.ServiceLabel, digest(i))
			return b.account.Patch(ctx, service, client.RawPatch(types.MergePatchType, patch), bareOwner)
		}},
		{createAdvertised, func() error { return b.account.Create(ctx, owned, bareOwner) }},
		{patchEgressStatus, func() error { return b.patchStatus(ctx, egress, map[string]any{"host": primary, "standby": standby}) }},
		{patchAssignedState, func() error { return b.patchStatus(ctx, assignment, map[string]any{}) }},
		{updateAssignment, func() error {
			assignment.Spec.Primary, assignment.Spec.Standby = primary, standby
			assignment.Spec.Epoch++
			return b.account.Update(ctx, assignment, bareOwner)
		}},
		{patchAssignment, func() error { return b.promote(ctx, assignment, primary, standby) }},
		{createEvent, func() error { return b.account.Create(ctx, newEvent(egress)) }},
	}
	for _, step := range steps {
		if err := b.times(i, step.kind, step.do); err != nil {
			return err
		}
	}
	return nil
}

// promote is the update of an assignment as a patch, with the resource version that makes it conflict with any other.
func (b *bareClient) promote(ctx context.Context, assignment *v1alpha1.EgressAssignment, primary, standby string) error {
	before := assignment.DeepCopy()
	assignment.Spec.Primary, assignment.Spec.Standby = primary, standby
	assignment.Spec.Epoch++
	return b.account.Patch(ctx, assignment, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), bareOwner)
}

// times does a write as often as it is a service's share, so that all services together have as many as our run.
func (b *bareClient) times(i int, kind write, do func() error) error {
	n := b.writes[kind]
	share := n*(i+1)/b.services - n*i/b.services
	if kind == createAssignment {
		// A write that the API server did but could not answer in time is not counted; what follows needs the object.
		share = max(share, 1)
	}
	for range share {
		if err := do(); err != nil {
			return fmt.Errorf("%s %s: %w", kind.verb, kind.resource, err)
		}
	}
	return nil
}

// patchStatus writes all conditions, with the status fields given.
func (b *bareClient) patchStatus(ctx context.Context, object client.Object, status map[string]any) error {
	conditions := []metav1.Condition{}
	for _, kind := range []string{v1alpha1.ConditionNodeAssigned, v1alpha1.ConditionDataplaneReady, v1alpha1.ConditionAnnounced,
		v1alpha1.ConditionAdvertisementsConsistent, v1alpha1.ConditionReady} {
		conditions = append(conditions, metav1.Condition{
			// Never the same twice, which the API server would not write.
			Type: kind, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAnnounced, Message: time.Now().String(), LastTransitionTime: metav1.Now(),
		})
	}
	status["conditions"] = conditions
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	// The answer must not replace the object that a later update begins with.
	target := object.DeepCopyObject().(client.Object)
	err = b.account.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), bareOwner)
	object.SetResourceVersion(target.GetResourceVersion())
	return err
}

// labelJobs patch Nodes exactly as in our run.
func (b *bareClient) labelJobs(changes []labelChange, like outcome) []job {
	jobs := make([]job, len(changes))
	for i, change := range changes {
		patch, err := labelPatch(change.keys)
		at := float64(change.at.Sub(like.began)) / float64(like.labelled)
		jobs[i] = job{at, "labels of " + change.node, func(ctx context.Context) error {
			return errors.Join(err, b.patchNode(ctx, change.node, patch))
		}}
	}
	return jobs
}

func labelPatch(keys map[string]bool) ([]byte, error) {
	labels := map[string]*string{}
	for key, came := range keys {
		labels[key] = nil
		if came {
			labels[key] = new("")
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
}

func (b *bareClient) patchNode(ctx context.Context, name string, patch []byte) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return b.account.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch), bareOwner)
}

// reports write EgressNodes as often as the speakers did, with as many entries.
func (b *bareClient) reports(reports []speakers.Report, like outcome) []job {
	jobs := make([]job, len(reports))
	for i, report := range reports {
		patch, err := reportPatch(report.Services, i)
		at := float64(report.At.Sub(like.began)) / float64(max(1, like.labelled))
		jobs[i] = job{at, "report of " + report.Node, func(ctx context.Context) error {
			own := &v1alpha1.EgressNode{ObjectMeta: metav1.ObjectMeta{Name: report.Node}}
			return errors.Join(err, b.admin.Status().Patch(ctx, own, client.RawPatch(types.MergePatchType, patch)))
		}}
	}
	return jobs
}

// reportPatch differs from every other, in one entry: the API server does not write what is equal.
func reportPatch(services, number int) ([]byte, error) {
	entries := make([]v1alpha1.EgressNodeService, services)
	for i := range entries {
		entries[i] = v1alpha1.EgressNodeService{
			Key: benchNamespace + "/" + serviceName(i), UID: "00000000-0000-0000-0000-000000000000", ObservedGeneration: 1, Role: v1alpha1.RolePrimary,
			Programmed: true, Offered: true, Announced: true, Addresses: []string{plus(firstService, i).String()},
		}
	}
	if services > 0 {
		entries[services-1].ObservedGeneration = int64(number)
	}
	return json.Marshal(map[string]any{"status": map[string]any{"behindCount": number, "services": entries}})
}

func digest(i int) string { return fmt.Sprintf("%016x", i) }

// newAssignment is what the controller makes for a service.
func newAssignment(egress *egressv1.EgressService, i int) *v1alpha1.EgressAssignment {
	owner := metav1.NewControllerRef(egress, egressv1.GroupVersion.WithKind("EgressService"))
	owner.BlockOwnerDeletion = nil
	return &v1alpha1.EgressAssignment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: egress.Namespace, Name: egress.Name, OwnerReferences: []metav1.OwnerReference{*owner},
			Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue},
		},
		Spec: v1alpha1.EgressAssignmentSpec{
			LabelKey: labelKey(i), SourceIPBy: string(egressv1.SourceIPLoadBalancer), SourceIPs: []string{plus(firstService, i).String()},
			FailurePolicy: v1alpha1.FailOpen,
		},
	}
}

// newAdvertisement is what the controller makes for a service, in MetalLB's namespace.
func newAdvertisement(assignment *v1alpha1.EgressAssignment) *metallbv1beta1.BGPAdvertisement {
	selects := func(key, value string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	name := assignment.Namespace + "-" + assignment.Name
	return &metallbv1beta1.BGPAdvertisement{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: controlplane.MetalLBNamespace, Name: "egress-" + name + "-0000000000000000",
			Labels:      map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByValue, v1alpha1.ServiceLabel: "0000000000000000"},
			Annotations: map[string]string{v1alpha1.OwnerAnnotation: assignment.Namespace + "/" + assignment.Name},
		},
		Spec: metallbv1beta1.BGPAdvertisementSpec{
			IPAddressPools:   []string{benchPool},
			NodeSelectors:    []metav1.LabelSelector{selects(assignment.Spec.LabelKey, ""), selects(assignment.Spec.StandbyLabelKey(), "")},
			ServiceSelectors: []metav1.LabelSelector{selects(v1alpha1.ServiceLabel, "0000000000000000")},
		},
	}
}

// newEvent is an event as the controller records it.
func newEvent(about *egressv1.EgressService) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: about.Namespace, Name: fmt.Sprintf("%s.%x", about.Name, time.Now().UnixNano())},
		EventTime:  metav1.NowMicro(), ReportingController: "egress-controller", ReportingInstance: "bench", Action: "Assign",
		Reason: v1alpha1.EventAssigned, Type: corev1.EventTypeNormal, Note: "node-0000 is the primary, node-0001 the standby",
		Regarding: corev1.ObjectReference{
			Kind: "EgressService", APIVersion: egressv1.GroupVersion.String(), Namespace: about.Namespace, Name: about.Name, UID: about.UID,
		},
	}
}
