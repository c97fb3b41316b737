// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// state is everything that the controller writes, and what it belongs to.
type state struct {
	egress         map[types.NamespacedName]*egressv1.EgressService
	assignments    map[types.NamespacedName]*v1alpha1.EgressAssignment
	services       map[types.NamespacedName]*corev1.Service
	nodes          []corev1.Node
	advertisements []advertisement.BGPAdvertisement
}

func (w *world) look(ctx context.Context) (*state, error) {
	egress, assignments, services := &egressv1.EgressServiceList{}, &v1alpha1.EgressAssignmentList{}, &corev1.ServiceList{}
	nodes, advertisements := &corev1.NodeList{}, &advertisement.BGPAdvertisementList{}
	for _, list := range []client.ObjectList{egress, assignments, services, nodes, advertisements} {
		if err := w.client.List(ctx, list); err != nil {
			return nil, err
		}
	}
	return &state{
		egress: byKey(egress.Items), assignments: byKey(assignments.Items), services: byKey(services.Items),
		nodes: nodes.Items, advertisements: advertisements.Items,
	}, nil
}

func byKey[T any, P interface {
	*T
	client.Object
}](items []T) map[types.NamespacedName]*T {
	found := make(map[types.NamespacedName]*T, len(items))
	for i := range items {
		found[client.ObjectKeyFromObject(P(&items[i]))] = &items[i]
	}
	return found
}

// consistent is nil when all objects say the same, and nothing of ours is there without its cause.
func (w *world) consistent(ctx context.Context) error {
	s, err := w.look(ctx)
	if err != nil {
		return err
	}
	problems := []error{s.orphans(), s.sharing()}
	labels := map[string]string{} // label key to node, as it has to be
	for key, egress := range s.egress {
		a := s.assignments[key]
		if a == nil || !metav1.IsControlledBy(a, egress) {
			problems = append(problems, fmt.Errorf("%s has no assignment", key))
			continue
		}
		standby := a.Spec.Standby
		if w.external {
			standby = "" // it has no label
		}
		for label, node := range map[string]string{a.Spec.LabelKey: a.Spec.Primary, a.Spec.StandbyLabelKey(): standby} {
			if _, taken := labels[label]; taken {
				problems = append(problems, fmt.Errorf("label %s is %s's and another service's", label, key))
			}
			labels[label] = node
		}
		problems = append(problems, told(key, a, egress))
	}
	problems = append(problems, s.labelled(labels))
	return errors.Join(problems...)
}

// told sees that both objects tell what the assignment is.
func told(key types.NamespacedName, a *v1alpha1.EgressAssignment, egress *egressv1.EgressService) error {
	var problems []error
	problem := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(key.String()+": "+format, args...))
	}
	host := a.Spec.Primary
	network := egress.Spec.SourceIPBy == egressv1.SourceIPNetwork
	if network {
		host = egressv1.HostAll
		if a.Spec.Primary != "" || a.Spec.Standby != "" {
			problem("sourceIPBy is Network, with primary %q and standby %q", a.Spec.Primary, a.Spec.Standby)
		}
	}
	if egress.Status.Host != host {
		problem("status.host is %q, want %q", egress.Status.Host, host)
	}
	if egress.Status.Standby != a.Spec.Standby {
		problem("status.standby is %q, spec.standby is %q", egress.Status.Standby, a.Spec.Standby)
	}
	kinds := []string{v1alpha1.ConditionNodeAssigned, v1alpha1.ConditionDataplaneReady, v1alpha1.ConditionReady}
	if !network {
		kinds = append(kinds, v1alpha1.ConditionAnnounced, v1alpha1.ConditionAdvertisementsConsistent)
	}
	for where, of := range map[string]struct {
		conditions []metav1.Condition
		generation int64
	}{"EgressAssignment": {a.Status.Conditions, a.Generation}, "EgressService": {egress.Status.Conditions, egress.Generation}} {
		for _, kind := range kinds {
			i := slices.IndexFunc(of.conditions, func(c metav1.Condition) bool { return c.Type == kind })
			if i < 0 {
				problem("%s has no condition %s", where, kind)
			} else if got := of.conditions[i].ObservedGeneration; got != of.generation {
				problem("%s: %s is of generation %d, not %d", where, kind, got, of.generation)
			}
		}
	}
	if move := a.Status.LastMove; move != nil && move.Epoch != a.Spec.Epoch {
		problem("lastMove is of epoch %d, not %d", move.Epoch, a.Spec.Epoch)
	}
	return errors.Join(problems...)
}

// labelled compares all labels of ours with those that have to be.
func (s *state) labelled(want map[string]string) error {
	var wanted, got []string
	for label, node := range want {
		if node != "" {
			wanted = append(wanted, node+" "+label)
		}
	}
	for _, node := range s.nodes {
		for label, value := range node.Labels {
			if strings.HasPrefix(label, egressv1.LabelPrefix) || strings.HasPrefix(label, v1alpha1.StandbyLabelPrefix) {
				got = append(got, node.Name+" "+label+value)
			}
		}
	}
	slices.Sort(wanted)
	slices.Sort(got)
	if diff := cmp.Diff(wanted, got); diff != "" {
		return fmt.Errorf("labels on nodes: -want +got:\n%s", diff)
	}
	return nil
}

// orphans are objects and labels of ours whose EgressService is gone, or asks for none.
func (s *state) orphans() error {
	var problems []error
	for key, a := range s.assignments {
		if s.egress[key] == nil {
			problems = append(problems, fmt.Errorf("assignment %s belongs to no EgressService (primary %q)", key, a.Spec.Primary))
		}
	}
	advertises := func(key types.NamespacedName) bool {
		egress, service := s.egress[key], s.services[key]
		return egress != nil && service != nil && egress.Spec.SourceIPBy != egressv1.SourceIPNetwork && service.Spec.Type == corev1.ServiceTypeLoadBalancer
	}
	for _, a := range s.advertisements {
		namespace, name, ours := strings.Cut(a.Annotations[v1alpha1.OwnerAnnotation], "/")
		if ours && !advertises(types.NamespacedName{Namespace: namespace, Name: name}) {
			problems = append(problems, fmt.Errorf("advertisement %s, of %s/%s, is left", a.Name, namespace, name))
		}
	}
	for key, service := range s.services {
		if _, labelled := service.Labels[v1alpha1.ServiceLabel]; labelled && !advertises(key) {
			problems = append(problems, fmt.Errorf("the label of Service %s is left", key))
		}
	}
	return errors.Join(problems...)
}

// sharing sees that nobody else has the primary of a LoadBalancer IP.
func (s *state) sharing() error {
	var problems []error
	holder := map[string]*v1alpha1.EgressAssignment{}
	for _, a := range s.assignments {
		if a.Spec.Primary == "" {
			continue
		}
		for _, address := range a.Spec.SourceIPs {
			if other := holder[address]; other != nil && other.Spec.Primary != a.Spec.Primary {
				problems = append(problems, fmt.Errorf("%s has primaries %s (%s) and %s (%s)", address, a.Spec.Primary, a.Name, other.Spec.Primary, other.Name))
			}
			holder[address] = a
		}
	}
	return errors.Join(problems...)
}

// remember is the command of that name.
func (w *world) remember(ctx context.Context) error {
	var err error
	w.remembered, err = w.decisions(ctx, "")
	return err
}

func (w *world) unchanged(ctx context.Context, args ...string) error {
	if len(args) > 1 {
		return errUsage
	}
	now, err := w.decisions(ctx, strings.Join(args, ""))
	if err != nil {
		return err
	}
	before := w.remembered
	if len(args) == 1 {
		// Lines of one service only.
		lines := slices.DeleteFunc(strings.Split(before, "\n"), func(line string) bool { return !strings.HasPrefix(line, args[0]+" ") })
		before = strings.Join(lines, "\n")
	}
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(now, "\n")); diff != "" {
		return fmt.Errorf("-before +now:\n%s", diff)
	}
	return nil
}

// decisions are all decisions as text, one line for each: of one service, or of all and the nodes' labels.
func (w *world) decisions(ctx context.Context, only string) (string, error) {
	s, err := w.look(ctx)
	if err != nil {
		return "", err
	}
	var lines []string
	for key, a := range s.assignments {
		if key.Namespace == canaries || only != "" && key.String() != only {
			continue
		}
		spec, err := json.Marshal(a.Spec)
		if err != nil {
			return "", err
		}
		host := "none"
		if egress := s.egress[key]; egress != nil {
			host = egress.Status.Host
		}
		lines = append(lines, fmt.Sprintf("%s %s host %q uid %s", key, spec, host, a.UID))
	}
	if only == "" {
		for i := range s.nodes {
			lines = append(lines, fmt.Sprintf("node %s %v", s.nodes[i].Name, ourLabels(&s.nodes[i])))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}
