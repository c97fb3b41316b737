// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
)

// start starts a process of one of the control plane's binaries.
func (c *ControlPlane) start(ctx context.Context, spec process.Spec, binary string) error {
	path, err := c.options.Binaries(binary)
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	spec.Path = path
	return c.processes.Start(ctx, spec)
}

// deadError is returned where waiting longer is no use.
type deadError struct{ name, logPath, tail string }

func (e *deadError) Error() string {
	return fmt.Sprintf("%s has ended, see %s:\n%s", e.name, e.logPath, e.tail)
}

// orDead returns a failed probe's error, or a deadError where one of the processes behind it has ended.
func (c *ControlPlane) orDead(err error, names ...string) error {
	if err == nil {
		return nil
	}
	for _, name := range names {
		if !c.processes.Alive(name) {
			return &deadError{name: name, logPath: c.processes.LogPath(name), tail: tail(c.processes.LogPath(name))}
		}
	}
	return err
}

// tail returns the last lines of a log, as far as there is one.
func tail(path string) string {
	const lines = 5
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte{'\n'})
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte{'\n'}))
}

// poll calls probe until it succeeds, a process behind it has ended, the time is over, or ctx ends; then it returns the last failure.
func poll(ctx context.Context, limit time.Duration, what string, probe func(context.Context) error) error {
	const interval, probeTimeout = 50 * time.Millisecond, 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		probeCtx, cancelProbe := context.WithTimeout(ctx, probeTimeout)
		err := probe(probeCtx)
		cancelProbe()
		if err == nil {
			return nil
		}
		var dead *deadError
		if errors.As(err, &dead) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
