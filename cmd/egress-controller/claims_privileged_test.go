// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// claim is a statement about the world: nil while it is true.
type claim struct {
	args, summary string
	check         func(w *world, ctx context.Context, args ...string) error
}

// claims are the commands that wait until something is true.
var claims = map[string]claim{
	"primary":       {"ns/s NODE|-", "the service's primary, its label on that node alone, and status.host", (*world).primary},
	"standby":       {"ns/s NODE|-", "the service's standby, its label on that node alone, and status.standby", (*world).standby},
	"host":          {"ns/s HOST|-", "status.host", (*world).host},
	"epoch":         {"ns/s N", "spec.epoch of the assignment", (*world).epoch},
	"sources":       {"ns/s IP,...|-", "spec.sourceIPs of the assignment", (*world).sources},
	"labelkey":      {"ns/s NAME", "the name part of spec.labelKey", (*world).labelKey},
	"condition":     {"ns/s TYPE STATUS REASON [TEXT]...", "a condition, current, on both objects, with those words in its message", (*world).condition},
	"nocondition":   {"ns/s TYPE", "no such condition on either object", (*world).noCondition},
	"event":         {"ns/s REASON [TEXT]...", "an event on the EgressService and on its Service", (*world).event},
	"noevent":       {"ns/s REASON", "no such event", (*world).noEvent},
	"moved":         {"ns/s CAUSE FROM|- TO|-", "status.lastMove, which is complete where it has a destination", (*world).moved},
	"lastmove":      {"ns/s EPOCH FROM|- TO|-", "status.lastMove, whatever its cause", (*world).lastMove},
	"labels":        {"NODE [LABEL]...", "all of our labels on a node: ns-s, standby/ns-s", (*world).labels},
	"label":         {"NODE KEY[=VALUE]|KEY-", "a label that is, or is not, on a node", (*world).label},
	"advertisement": {"ns/s present|absent [pool=POOL]", "the BGPAdvertisement, and the Service's label", (*world).advertisement},
	"selectors":     {"NAME JSON|- [marked]", "the serviceSelectors of a BGPAdvertisement, and our mark on it", (*world).selectors},
	"gone":          {"ns/s", "neither an EgressService nor an EgressAssignment of that name", (*world).gone},
	"assignment":    {"ns/s FIELD VALUE|-", "a field of the assignment's spec", (*world).assignmentField},
	"spread":        {"NAMESPACE N,...", "how many of a namespace's services the nodes are primary of, in order", (*world).spread},
	"says":          {"NODE ns/s [not-]programmed|offered|announced...", "what a node's speaker reports of a service", (*world).says},
	"older":         {"ns/s", "it is older, in the seconds in which ages are told, than what comes now", (*world).older},
	"wrote":         {"[<=]N METHOD|any PATH-PART", "so many writes of the controller since tally", (*world).wrote},
	"failures":      {"N", "at least so many writes of the controller have failed", (*world).failures},
	"unchanged":     {"[ns/s]", "everything that remember saw is the same", (*world).unchanged},
}

// both reads the assignment, which is nil where there is none, and the EgressService.
func (w *world) both(ctx context.Context, args []string) (types.NamespacedName, *v1alpha1.EgressAssignment, *egressv1.EgressService, error) {
	if len(args) == 0 {
		return types.NamespacedName{}, nil, nil, errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return key, nil, nil, err
	}
	a, egress := &v1alpha1.EgressAssignment{}, &egressv1.EgressService{}
	if err := w.client.Get(ctx, key, egress); err != nil {
		return key, nil, nil, err
	}
	if err := w.client.Get(ctx, key, a); err != nil {
		return key, nil, nil, err
	}
	if !metav1.IsControlledBy(a, egress) {
		return key, nil, nil, errors.New("the assignment is that of an older EgressService")
	}
	return key, a, egress, nil
}

// dash turns the empty string into the word that scripts have for it.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (w *world) primary(ctx context.Context, args ...string) error {
	_, a, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return w.holds(ctx, args, a.Spec.LabelKey, map[string]string{"spec.primary": a.Spec.Primary, "status.host": egress.Status.Host})
}

func (w *world) standby(ctx context.Context, args ...string) error {
	_, a, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return w.holds(ctx, args, a.Spec.StandbyLabelKey(), map[string]string{"spec.standby": a.Spec.Standby, "status.standby": egress.Status.Standby})
}

// holds compares a node's name in several places, and the nodes that have a label.
func (w *world) holds(ctx context.Context, args []string, label string, places map[string]string) error {
	if len(args) != 2 {
		return errUsage
	}
	want := args[1]
	var problems []error
	for place, got := range places {
		if dash(got) != want {
			problems = append(problems, fmt.Errorf("%s is %s", place, dash(got)))
		}
	}
	nodes, err := w.labelled(ctx, label)
	if err != nil {
		return err
	}
	if got := dash(strings.Join(nodes, ",")); got != want {
		problems = append(problems, fmt.Errorf("label %s is on %s", label, got))
	}
	return errors.Join(problems...)
}

// labelled are the nodes with a label, in order.
func (w *world) labelled(ctx context.Context, label string) ([]string, error) {
	list := &corev1.NodeList{}
	if err := w.client.List(ctx, list, client.HasLabels{label}); err != nil {
		return nil, err
	}
	var names []string
	for _, node := range list.Items {
		name := node.Name
		if value := node.Labels[label]; value != "" {
			name += " with value " + strconv.Quote(value)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// compare is a claim about one text.
func compare(args []string, got string) error {
	if len(args) != 2 {
		return errUsage
	}
	if dash(got) != args[1] {
		return fmt.Errorf("it is %s", dash(got))
	}
	return nil
}

func (w *world) host(ctx context.Context, args ...string) error {
	_, _, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return compare(args, egress.Status.Host)
}

func (w *world) epoch(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return compare(args, strconv.FormatInt(a.Spec.Epoch, 10))
}

func (w *world) sources(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return compare(args, strings.Join(a.Spec.SourceIPs, ","))
}

func (w *world) labelKey(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	return compare(args, strings.TrimPrefix(a.Spec.LabelKey, egressv1.LabelPrefix))
}

func (w *world) condition(ctx context.Context, args ...string) error {
	_, a, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	if len(args) < 4 {
		return errUsage
	}
	kind, status, reason, words := args[1], args[2], args[3], args[4:]
	look := func(where string, conditions []metav1.Condition, generation int64) error {
		c := meta.FindStatusCondition(conditions, kind)
		switch {
		case c == nil:
			return fmt.Errorf("%s has none", where)
		case string(c.Status) != status || c.Reason != reason || !containsAll(c.Message, words):
			return fmt.Errorf("%s: %s %s %q", where, c.Status, c.Reason, c.Message)
		case c.ObservedGeneration != generation:
			return fmt.Errorf("%s: of generation %d, not %d", where, c.ObservedGeneration, generation)
		}
		return nil
	}
	return errors.Join(look("EgressAssignment", a.Status.Conditions, a.Generation), look("EgressService", egress.Status.Conditions, egress.Generation))
}

func containsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) })
}

func (w *world) noCondition(ctx context.Context, args ...string) error {
	_, a, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return errUsage
	}
	for _, conditions := range [][]metav1.Condition{a.Status.Conditions, egress.Status.Conditions} {
		if c := meta.FindStatusCondition(conditions, args[1]); c != nil {
			return fmt.Errorf("%s %s %q", c.Status, c.Reason, c.Message)
		}
	}
	return nil
}

// events are those about an object of that name, by the object's kind.
func (w *world) events(ctx context.Context, key types.NamespacedName, reason string, words []string) (map[string]int, error) {
	list := &eventsv1.EventList{}
	if err := w.client.List(ctx, list, client.InNamespace(key.Namespace)); err != nil {
		return nil, err
	}
	found := map[string]int{}
	for _, e := range list.Items {
		if e.Regarding.Name == key.Name && e.Reason == reason && containsAll(e.Note, words) {
			found[e.Regarding.Kind]++
		}
	}
	return found, nil
}

func (w *world) event(ctx context.Context, args ...string) error {
	if len(args) < 2 {
		return errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return err
	}
	found, err := w.events(ctx, key, args[1], args[2:])
	if err != nil {
		return err
	}
	if found["EgressService"] == 0 {
		return errors.New("none on the EgressService")
	}
	err = w.client.Get(ctx, key, &corev1.Service{})
	if err == nil && found["Service"] == 0 && args[1] != v1alpha1.ReasonServiceNotFound {
		return errors.New("none on the Service")
	}
	return client.IgnoreNotFound(err)
}

func (w *world) noEvent(ctx context.Context, args ...string) error {
	if len(args) != 2 {
		return errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return err
	}
	found, err := w.events(ctx, key, args[1], nil)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("there are: %v", found)
	}
	return err
}

func (w *world) moved(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	if len(args) != 4 {
		return errUsage
	}
	move := a.Status.LastMove
	if move == nil {
		return errors.New("no move is reported")
	}
	got := []string{move.Cause, dash(move.From), dash(move.To)}
	if diff := cmp.Diff(args[1:], got); diff != "" {
		return fmt.Errorf("-want +got:\n%s", diff)
	}
	if move.Epoch != a.Spec.Epoch || move.To != a.Spec.Primary {
		return fmt.Errorf("the last move is of epoch %d to %s, the assignment is at %d, %s", move.Epoch, dash(move.To), a.Spec.Epoch, dash(a.Spec.Primary))
	}
	if move.To != "" && move.Duration == nil {
		return errors.New("it is not complete")
	}
	return nil
}

func (w *world) labels(ctx context.Context, args ...string) error {
	if len(args) == 0 {
		return errUsage
	}
	got, err := w.labelsOf(ctx, args[0])
	if err != nil {
		return err
	}
	want := slices.Clone(args[1:])
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("they are %v", got)
	}
	return nil
}

func (w *world) label(ctx context.Context, args ...string) error {
	if len(args) != 2 {
		return errUsage
	}
	node := &corev1.Node{}
	if err := w.client.Get(ctx, client.ObjectKey{Name: args[0]}, node); err != nil {
		return err
	}
	name, absent := strings.CutSuffix(args[1], "-")
	name, want, _ := strings.Cut(name, "=")
	if value, present := node.Labels[name]; present == absent || value != want {
		return fmt.Errorf("present: %v, value %q", present, value)
	}
	return nil
}

// ourLabels are the keys of a node that have one of our prefixes, in short and ordered.
func ourLabels(node *corev1.Node) []string {
	var found []string
	for label := range node.Labels {
		if name, ok := strings.CutPrefix(label, egressv1.LabelPrefix); ok {
			found = append(found, name)
		}
		if name, ok := strings.CutPrefix(label, v1alpha1.StandbyLabelPrefix); ok {
			found = append(found, "standby/"+name)
		}
	}
	slices.Sort(found)
	return found
}

func (w *world) gone(ctx context.Context, args ...string) error {
	if len(args) != 1 {
		return errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return err
	}
	for _, object := range []client.Object{&egressv1.EgressService{}, &v1alpha1.EgressAssignment{}} {
		switch err := w.client.Get(ctx, key, object); {
		case err == nil:
			return fmt.Errorf("%T is there", object)
		case !apierrors.IsNotFound(err):
			return err
		}
	}
	return nil
}

// owned are the advertisements of ours that name the service.
func (w *world) owned(ctx context.Context, key types.NamespacedName) ([]advertisement.BGPAdvertisement, error) {
	list := &advertisement.BGPAdvertisementList{}
	if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(a advertisement.BGPAdvertisement) bool {
		return a.Annotations[v1alpha1.OwnerAnnotation] != key.String() || a.Labels[v1alpha1.ManagedByLabel] != v1alpha1.ManagedByValue
	}), nil
}
