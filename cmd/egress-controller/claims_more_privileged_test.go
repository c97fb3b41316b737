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
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// assignmentField compares a field of the spec, by its JSON name.
func (w *world) assignmentField(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	if len(args) != 3 {
		return errUsage
	}
	text, err := json.Marshal(a.Spec)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return err
	}
	got := ""
	if value, present := fields[args[1]]; present {
		got = fmt.Sprint(value)
	}
	return compare(args[1:], got)
}

func (w *world) lastMove(ctx context.Context, args ...string) error {
	_, a, _, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	move := a.Status.LastMove
	if move == nil {
		return errors.New("no move is reported")
	}
	got := []string{fmt.Sprint(move.Epoch), dash(move.From), dash(move.To)}
	if !slices.Equal(got, args[1:]) {
		return fmt.Errorf("it is %v", got)
	}
	return nil
}

func (w *world) spread(ctx context.Context, args ...string) error {
	if len(args) != 2 {
		return errUsage
	}
	list := &corev1.NodeList{}
	if err := w.client.List(ctx, list); err != nil {
		return err
	}
	var counts []int
	for _, node := range list.Items {
		count := 0
		for label := range node.Labels {
			if strings.HasPrefix(label, egressv1.LabelPrefix+args[0]+"-") {
				count++
			}
		}
		counts = append(counts, count)
	}
	slices.Sort(counts)
	return compare(args, strings.ReplaceAll(strings.Trim(fmt.Sprint(counts), "[]"), " ", ","))
}

func (w *world) older(ctx context.Context, args ...string) error {
	_, _, egress, err := w.both(ctx, args)
	if err != nil {
		return err
	}
	if time.Since(egress.CreationTimestamp.Time) < time.Second {
		return fmt.Errorf("it is of %v", egress.CreationTimestamp)
	}
	return nil
}

// says is about the newest generation of the assignment only.
func (w *world) says(ctx context.Context, args ...string) error {
	if len(args) < 3 {
		return errUsage
	}
	key, a, _, err := w.both(ctx, args[1:])
	if err != nil {
		return err
	}
	report := &v1alpha1.EgressNode{}
	if err := w.client.Get(ctx, client.ObjectKey{Name: args[0]}, report); err != nil {
		return err
	}
	i := slices.IndexFunc(report.Status.Services, func(s v1alpha1.EgressNodeService) bool { return s.Key == key.String() })
	if i < 0 {
		return errors.New("nothing")
	}
	entry := report.Status.Services[i]
	if entry.UID != a.UID || entry.ObservedGeneration != a.Generation {
		return fmt.Errorf("of generation %d, not %d", entry.ObservedGeneration, a.Generation)
	}
	facts := map[string]bool{"programmed": entry.Programmed, "offered": entry.Offered, "announced": entry.Announced}
	for _, word := range args[2:] {
		fact, negated := strings.CutPrefix(word, "not-")
		if facts[fact] == negated {
			return fmt.Errorf("%v", facts)
		}
	}
	return nil
}
