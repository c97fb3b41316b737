// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"cmp"
	"context"
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
	installed, done time.Duration
	used            cpu
}

// steps are what each side does, in this order. It begins with nothing, and so it ends.
var steps = []struct {
	name  string
	scene func(scene) scene
}{
	{"from nothing", func(s scene) scene { return s.of("n1", "n2", "") }},
	{"one more endpoint", func(s scene) scene { return s.with(1).of("n1", "n2", "") }},
	{"move", func(s scene) scene { return s.with(1).of("n2", "n1", "") }},
	{"move, new standby", func(s scene) scene { return s.with(1).of("n1", "n3", "n2") }},
	{"remove", func(scene) scene { return scene{} }},
}

const oneMore = 1 // the step after which the nftables part is measured

var (
	sides     = []string{"ours", "pattern"}
	hostSteps = []string{"start", "one more endpoint"}
)

// TestLadder prints tables in Markdown: wall and CPU time of each step for services of growing size, ours and the pattern's, of the nftables
// part alone, and the memory of a program that holds them.
func TestLadder(t *testing.T) {
	if !*ladder {
		t.Skip("only with -ladder")
	}
	sizes, err := ladderSizes()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	tables := newTables(sizes)
	for _, size := range sizes {
		began := time.Now()
		for repetition := range *ladderRepetitions {
			if repetition > 0 && time.Since(began) > *ladderLimit {
				break
			}
			for _, name := range sides {
				if err := w.climb(t.Context(), name, size, tables); err != nil {
					t.Fatalf("%v, %s: %v", size, name, err)
				}
			}
			load, err := os.ReadFile("/proc/loadavg")
			t.Logf("%v, repetition %d: %v so far, load %.14s (%v)", size, repetition+1, time.Since(began).Round(time.Second), load, err)
		}
	}
	for _, size := range append([]scene{{}}, sizes...) {
		if err := w.memory(t.Context(), size, tables); err != nil {
			t.Fatalf("%v, memory: %v", size, err)
		}
	}
	text := tables.String()
	t.Log("\n" + text)
	if *ladderOutput != "" {
		if err := os.WriteFile(*ladderOutput, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// ladderSizes reads the flags.
func ladderSizes() (sizes []scene, err error) {
	read := func(text string, add func(int)) {
		for one := range strings.SplitSeq(text, ",") {
			number, problem := strconv.Atoi(one)
			if problem != nil && text != "" {
				err = fmt.Errorf("-ladder-endpoints, -ladder-services: %q: %w", text, problem)
			} else if problem == nil {
				add(number)
			}
		}
	}
	read(*ladderEndpoints, func(n int) { sizes = append(sizes, scene{services: 1, endpoints: n}) })
	read(*ladderServices, func(n int) { sizes = append(sizes, scene{services: n, endpoints: 10}) })
	return sizes, err
}

// climb has one side do all steps once.
func (w *world) climb(ctx context.Context, name string, size scene, results *tables) (err error) {
	begin := w.newOurs
	if name == sides[1] {
		begin = w.newPattern
	}
	s, err := begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, s.close(ctx)) }()
	for i, step := range steps {
		want := step.scene(size)
		taken, err := w.measure(ctx, s.plan(want))
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if want.services == 0 {
			taken.installed = taken.done
		}
		results.add(size, step.name, name, taken)
		if i == oneMore {
			start, one, err := s.host(ctx, want)
			if err != nil {
				return fmt.Errorf("nftables alone: %w", err)
			}
			results.add(size, hostPrefix+hostSteps[0], name, start)
			results.add(size, hostPrefix+hostSteps[1], name, one)
		}
	}
	return nil
}

// measure runs the jobs of all nodes at the same time. What the programs still do afterwards counts too.
func (w *world) measure(ctx context.Context, jobs []job) (taken figure, err error) {
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
	ownBefore := own()
	began := time.Now()
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
	taken.done = time.Since(began)
	taken.installed = slices.MaxFunc(installed, time.Time.Compare).Sub(began)
	ownAfter := own()
	if err := w.quiet(ctx); err != nil {
		return taken, err
	}
	after, err := w.cpu()
	if err != nil {
		return taken, err
	}
	for i := range after {
		taken.used[i] = after[i] - before[i]
	}
	taken.used[len(taken.used)-1] = ownAfter - ownBefore
	return taken, nil
}
