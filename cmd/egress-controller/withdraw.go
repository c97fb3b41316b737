// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/metallb-egress/metallb-egress/controllerext"
)

// withdrawLook is the time between two looks at what is left, and withdrawTell that between two lines about it.
const withdrawLook, withdrawTell = 500 * time.Millisecond, 10 * time.Second

// withdraw runs the controller until nothing is left of what one has made. It waits for the Lease of one that still runs.
func withdraw(ctx context.Context, mgr manager.Manager, controller *controllerext.Controller, logger log.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Nothing is withdrawn as long as nobody could look.
	left := "everything: another controller leads, or the API server does not answer"
	err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		ticker := time.NewTicker(withdrawLook)
		defer ticker.Stop()
		clean := 0
		for told := (time.Time{}); ; {
			now, err := controller.Left(ctx)
			clean++
			if err != nil || now != "" {
				clean = 0
			}
			// What another controller wrote at last may come a moment later.
			if clean == 2 {
				left = ""
				level.Info(logger).Log("event", "withdrawn", "msg", "nothing is left of what controllers have made")
				cancel()
				return nil
			}
			if now != "" {
				left = now
			}
			if time.Since(told) >= withdrawTell {
				level.Info(logger).Log("event", "withdrawing", "msg", "something is left", "left", left, "error", err)
				told = time.Now()
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	}))
	if err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return err
	}
	if left != "" {
		return errors.New("not everything is withdrawn: " + left)
	}
	return nil
}
