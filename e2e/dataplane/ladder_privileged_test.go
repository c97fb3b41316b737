// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	ladder            = flag.Bool("ladder", false, "measure what the dataplane costs: -run TestLadder -ladder -timeout 1h")
	ladderEndpoints   = flag.String("ladder-endpoints", "10,1000,10000", "the `numbers` of endpoints of one service for -ladder")
	ladderServices    = flag.String("ladder-services", "1000", "the `numbers` of services, of ten endpoints each, for -ladder")
	ladderRepetitions = flag.Int("ladder-repetitions", 5, "the `number` of times that each side is measured for -ladder")
	ladderLimit       = flag.Duration("ladder-limit", 6*time.Minute, "a size is not measured again after this `time`")
	ladderOutput      = flag.String("ladder-output", "", "the `file` for the tables of -ladder")
)

// patience is how long one step may take.
const patience = 5 * time.Minute

// side is one way to have the nodes hold services.
type side interface {
	// plan prepares the nodes' way to a scene. What it takes is not measured.
	plan(scene) []job
	// host measures the nftables part alone on the primary, which holds the scene: what a program does that starts, and one more
	// endpoint. It leaves the table as it was.
	host(context.Context, scene) (start, one figure, err error)
	// close takes everything away.
	close(context.Context) error
}

// job has one node hold a scene, and tells when the flows were installed. It returns when all is done.
type job func(context.Context) (installed time.Time, err error)

// figure is what a step took.
type figure struct {
	wall time.Duration
	used cpu
}

// step is what each side does with services of one size.
type step struct {
	name  string
	scene func(scene) scene
}

var (
	sides = []string{"ours", "pattern"}
	// steps are done one after the other. They begin with nothing, and so they end.
	steps = []step{
		{"from nothing", func(s scene) scene { return s.on(1, "n1", "n2", "") }},
		{"one more endpoint", func(s scene) scene { return s.with(1).on(1, "n1", "n2", "") }},
		{"move", func(s scene) scene { return s.with(1).on(2, "n2", "n1", "n1") }},
		{"move, new standby", func(s scene) scene { return s.with(1).on(3, "n1", "n3", "n2") }},
		{"remove", func(scene) scene { return scene{} }},
	}
)

// The nftables part is measured after this step, and gives these.
const (
	hostAfter = 1
	hostStart = "nftables alone, start"
	hostOne   = "nftables alone, one more endpoint"
)

// TestLadder prints tables in Markdown: wall and CPU time of each step for services of growing size, ours and the pattern's, and the memory
// of a program that holds them.
func TestLadder(t *testing.T) {
	if !*ladder {
		t.Skip("only with -ladder")
	}
	sizes, err := ladderSizes()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	r := &results{sizes: append([]scene{{}}, sizes...), figures: map[string][]figure{}, memory: map[scene][]memory{}}
	for _, size := range r.sizes {
		began := time.Now()
		for repetition := range *ladderRepetitions {
			if repetition > 0 && time.Since(began) > *ladderLimit {
				break
			}
			for _, name := range sides {
				if size.services == 0 {
					break
				}
				if err := w.climb(t.Context(), name, size, r); err != nil {
					t.Fatalf("%v, %s: %v", size, name, err)
				}
			}
			held, err := w.memory(t.Context(), size)
			if err != nil {
				t.Fatalf("%v, memory: %v", size, err)
			}
			r.memory[size] = append(r.memory[size], held)
			load, _ := os.ReadFile("/proc/loadavg")
			t.Logf("%v, repetition %d: %v so far, load %.14s", size, repetition+1, time.Since(began).Round(time.Second), load)
		}
	}
	t.Log("\n" + r.String())
	if *ladderOutput != "" {
		if err := os.WriteFile(*ladderOutput, []byte(r.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// ladderSizes reads the flags.
func ladderSizes() (sizes []scene, err error) {
	read := func(text string, add func(int)) {
		for one := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' }) {
			number, problem := strconv.Atoi(one)
			err = errors.Join(err, problem)
			add(number)
		}
	}
	read(*ladderEndpoints, func(n int) { sizes = append(sizes, scene{services: 1, endpoints: n}) })
	read(*ladderServices, func(n int) { sizes = append(sizes, scene{services: n, endpoints: 10}) })
	return sizes, err
}

// climb has one side do all steps once.
func (w *world) climb(ctx context.Context, name string, size scene, r *results) (err error) {
	begin := w.newOurs
	if name == sides[1] {
		begin = w.newPattern
	}
	s, err := begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	for i, step := range steps {
		want := step.scene(size)
		taken, err := w.measure(ctx, s.plan(want), want.services == 0)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		r.add(size, step.name, name, taken)
		if i == hostAfter {
			start, one, err := s.host(ctx, want)
			if err != nil {
				return fmt.Errorf("nftables alone: %w", err)
			}
			r.add(size, hostStart, name, start)
			r.add(size, hostOne, name, one)
		}
	}
	return nil
}

// measure runs the jobs of all nodes at the same time. The clock stops when the flows are installed or, to the end, when everything is done;
// what is used afterwards counts in either case.
func (w *world) measure(ctx context.Context, jobs []job, toTheEnd bool) (taken figure, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	runtime.GC()
	if err := w.quiet(ctx); err != nil {
		return taken, err
	}
	before, err := w.cpu()
	if err != nil {
		return taken, err
	}
	ownBefore, began := own(), time.Now()
	installed := make([]time.Time, len(jobs))
	group, groupCtx := errgroup.WithContext(ctx)
	for i, do := range jobs {
		group.Go(func() (err error) {
			installed[i], err = do(groupCtx)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return taken, err
	}
	taken.wall = slices.MaxFunc(installed, time.Time.Compare).Sub(began)
	if toTheEnd {
		taken.wall = time.Since(began)
	}
	ownAfter := own()
	if err := w.quiet(ctx); err != nil {
		return taken, err
	}
	after, err := w.cpu()
	for i := range after {
		taken.used[i] = after[i] - before[i]
	}
	taken.used[len(taken.used)-1] = ownAfter - ownBefore
	return taken, err
}
