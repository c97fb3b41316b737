// SPDX-License-Identifier: Apache-2.0

// Command bench measures the egress-controller against a real API server, side by side with a client that issues the same writes and
// decides nothing. It prints Markdown tables on standard output, and what it is doing on standard error. docs/benchmarks.md says what is
// measured, and how.
//
// It needs no root: etcd, kube-apiserver and kube-controller-manager run as its children on loopback addresses, the nodes are Node objects
// with fake speakers. Everything that it starts is stopped at the end, after an error and on Ctrl-C; what a killed one left is stopped by
// the next.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

// defaultCells are services x nodes: everything up to 1,000 services, and one larger.
const defaultCells = "1x10,1x100,1x1000,100x10,100x100,100x1000,1000x10,1000x100,1000x1000,5000x100"

// cell is one size of a cluster.
type cell struct{ services, nodes int }

func (c cell) String() string { return fmt.Sprintf("%dx%d", c.services, c.nodes) }

// bench is one invocation.
type bench struct {
	root, controller string
	dir              string // of everything that is written
	cells            []cell
	repetitions      int
	allWrites        bool
	failovers        int
	failover         cell
	began            time.Time
	processes        *process.Set
}

func main() {
	log.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	b := &bench{began: time.Now()}
	var cells, failover string
	flag.StringVar(&cells, "cells", defaultCells, "`services x nodes` of the ladder, for example 1000x100,5000x1000; empty: none")
	flag.IntVar(&b.repetitions, "repetitions", 3, "how often each cell is measured; those with more than 1,000 services once")
	flag.BoolVar(&b.allWrites, "all-writes", true, "let the bare client also issue, in another run, all that the controller writes meanwhile")
	flag.IntVar(&b.failovers, "failovers", 5, "how often the loss of a node is measured; 0: not at all")
	flag.StringVar(&failover, "failover", "100x100", "`services x nodes` of the loss of a node, all services on that node")
	flag.StringVar(&b.controller, "controller", "", "the egress-controller to measure, `path`; empty: bin/egress-controller")
	flag.Parse()
	if b.root, err = cache.RepoRoot("."); err != nil {
		return err
	}
	if b.cells, err = parseCells(cells); err != nil {
		return err
	}
	one, err := parseCells(failover)
	if err != nil || len(one) != 1 {
		return errors.Join(fmt.Errorf("-failover %q: want one size", failover), err)
	}
	b.failover = one[0]
	if b.controller == "" {
		b.controller = filepath.Join(b.root, "bin", "egress-controller")
	}
	if err := b.findPrograms(); err != nil {
		return err
	}
	unlock, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, b.processes.StopAll(clean))
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, os.RemoveAll(b.dir))
		} else {
			b.say("the logs are in %s", b.dir)
		}
	}()
	return b.measureAll(ctx)
}

func (b *bench) measureAll(ctx context.Context) error {
	b.printMachine(ctx)
	if err := b.ladder(ctx); err != nil {
		return fmt.Errorf("ladder: %w", err)
	}
	if err := b.loseNodes(ctx); err != nil {
		return fmt.Errorf("loss of a node: %w", err)
	}
	b.say("done")
	return nil
}

// findPrograms says which tools are missing before anything is started.
func (b *bench) findPrograms() error {
	var errs []error
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		_, err := cache.Binary(b.root, name)
		errs = append(errs, err)
	}
	if !cache.Present(b.controller) {
		errs = append(errs, fmt.Errorf("%s is not built yet, run \"make build\"", b.controller))
	}
	return errors.Join(errs...)
}

// open takes the folder of this user's benchmarks, and stops what a killed one left in it.
func (b *bench) open(ctx context.Context) (unlock func(), err error) {
	b.dir = filepath.Join(os.TempDir(), fmt.Sprintf("metallb-egress-bench.%d", os.Getuid()))
	file, err := os.OpenFile(b.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	unlock = func() { _ = file.Close() }
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		unlock()
		return nil, fmt.Errorf("another benchmark is running in %s: %w", b.dir, err)
	}
	if b.processes, err = process.Open(b.dir); err == nil {
		err = b.processes.StopAll(ctx)
	}
	if err == nil {
		err = os.RemoveAll(b.dir)
	}
	if err == nil {
		b.processes, err = process.Open(b.dir)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// say tells what is being done.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func parseCells(text string) ([]cell, error) {
	var cells []cell
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		services, nodes, _ := strings.Cut(part, "x")
		s, servicesErr := strconv.Atoi(services)
		n, nodesErr := strconv.Atoi(nodes)
		if servicesErr != nil || nodesErr != nil || s < 1 || n < 1 || s > maxServices || n > maxNodes {
			return nil, fmt.Errorf("%q is no size like 1000x100, at most %dx%d", part, maxServices, maxNodes)
		}
		cells = append(cells, cell{s, n})
	}
	return cells, nil
}
