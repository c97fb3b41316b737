// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// objectOfList is what meta.EachListItem hands out.
type objectOfList = runtime.Object

const (
	// patience is how long anything may take that is waited for: longer than the longest wait of the
	// design that a script goes through (30 s), on a machine that is busy with other things.
	patience = 20 * time.Second
	// glance is the time between two looks.
	glance = 20 * time.Millisecond
)

// poll asks until the answer is nil, and returns the last one when its patience is over.
func poll(ctx context.Context, what string, ask func(context.Context) error) error {
	return pollFor(ctx, patience, what, ask)
}

func pollFor(ctx context.Context, patience time.Duration, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	var last error
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, last)
		case <-ticker.C:
		}
	}
}
