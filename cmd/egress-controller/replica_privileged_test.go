// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/metallb-egress/metallb-egress/cmd/internal/program"
)

// election is the end of the path of the leader election's Lease.
const election = "/leases/egress-controller.metallb-egress.io"

// replica is one controller at work in this process.
type replica struct {
	traffic *traffic
	cancel  context.CancelFunc
	ended   chan struct{} // closed when run has returned
	err     error         // of run; read it after ended
	severed bool
}

// startReplica runs the program as main does, with flags of main's in short.
func (c *cluster) startReplica(ctx context.Context, flags ...string) *replica {
	ctx, cancel := context.WithCancel(ctx)
	r := &replica{traffic: &traffic{}, cancel: cancel, ended: make(chan struct{})}
	o := options{
		Common:         program.Common{Kubeconfig: c.kubeconfig, LogLevel: "none", MetalLBNamespace: metallbNamespace},
		leaderElection: true,
		namespace:      metallbNamespace,
		failurePolicy:  "Open",
		ignoreExclude:  slices.Contains(flags, "ignore-exclude-lb"),
		backEnd:        program.GoBGP,
		manage:         slices.Contains(flags, "manage-advertisements"),
		withdraw:       slices.Contains(flags, "withdraw"),
		tune:           r.traffic.tune,
	}
	if slices.Contains(flags, "external") {
		o.backEnd = program.External
	}
	go func() {
		defer close(r.ended)
		r.err = run(ctx, o)
	}()
	return r
}

// stop ends the replica as a signal does, and returns when it has ended.
func (r *replica) stop() error {
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(patience):
		return fmt.Errorf("the controller has not ended after %v", patience)
	}
	r.traffic.sever()
	if r.err != nil && !r.severed {
		return fmt.Errorf("the controller ended: %w", r.err)
	}
	return nil
}

// leads is true when the replica has written the leader election's Lease and nobody took it over.
func (r *replica) leads() bool {
	for _, w := range r.traffic.written() {
		if strings.Contains(w.path, "/leases") && w.method != http.MethodGet && strings.HasPrefix(w.outcome, "20") {
			return true
		}
	}
	return false
}
