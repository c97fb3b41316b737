// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
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
