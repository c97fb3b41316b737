// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	announcements       = flag.Bool("announcements", false, "measure how fast routes come and go: -run TestAnnouncements -announcements -timeout 2h")
	announcementSizes   = flag.String("announcements-sizes", "1,100,1000,10000", "the `numbers` of prefixes announced already for -announcements, rising")
	announcementStock   = flag.Int("announcements-stock", 1000, "the largest `number` of prefixes at which -announcements measures stock MetalLB too, which works through a Service for each")
	announcementChanges = flag.Int("announcements-changes", 30, "the `number` of additions, and of withdrawals, at each size of -announcements")
	announcementStarts  = flag.Int("announcements-starts", 3, "the `number` of starts of each speaker to measure for -announcements")
)

const (
	// rest is the time before and after a change. After it a speaker does what follows from it, such as its reports to the API server.
	rest = time.Second / 2
	// All processes are quiet when they use less than quietTicks together in a window.
	quietTicks = 40
	// fillPatience is how long it may take until many prefixes are announced, and arrivalPatience until one is.
	fillPatience, arrivalPatience = 30 * time.Minute, time.Minute
)

// announcer is one that is measured, with a router of its own.
type announcer struct {
	name, process string
	network       netip.Prefix // of the prefixes, which are numbered
	router        *kernelRouter
	atMost        int // prefixes
	announcing
}

// TestAnnouncements prints, as a table in Markdown, how long it takes from a write to the API server until a route is in the kernel of a ToR,
// or out of it: with an FRRConfiguration and egress-speaker, and with a Service and the stock speaker in native mode. They take turns.
func TestAnnouncements(t *testing.T) {
	if !*announcements {
		t.Skip("only with -announcements")
	}
	requireTools(t, native)
	sizes, err := readSizes(*announcementSizes)
	if *announcementChanges < 1 || *announcementStarts < 1 {
		err = errors.New("-announcements-changes and -announcements-starts: want one at least")
	}
	must(t, err)
	program := buildSpeaker(t)
	w, err := startWorld(t.Context(), native, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
	stock, ours := netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("198.19.0.0/16")
	stockRouter, ourRouter := w.kernelRouter(t, "tor-stock", 3), w.kernelRouter(t, "tor-ours", 4)
	all := []announcer{
		{"stock MetalLB, native", stockProcess, stock, stockRouter, *announcementStock, &stockSpeaker{world: w, network: stock}},
		{"egress-speaker", speakerProcess, ours, ourRouter, slices.Max(sizes),
			&egressSpeaker{world: w, network: ours, peer: ourRouter.address, program: program}},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tails(w, all))
		}
	})
	must(t, w.prepareStock(t.Context(), stockRouter, stock), w.permitSpeaker(t.Context()))

	var tables strings.Builder
	must(t, measureStarts(t, w, all, &tables))
	fmt.Fprintf(&tables, "\nFrom just before a write until the route is in the router's kernel or out of it, and, without FRR, until the UPDATE is on its link;"+
		" %d of each:\n\n", *announcementChanges)
	tables.WriteString("| Prefixes | Announced by | Added: p50 | p99 | Withdrawn: p50 | p99 | Without FRR: added, p50 | p99 | withdrawn, p50 | p99 |" +
		" The write alone: added, p50 | withdrawn, p50 | CPU per change | Memory |\n")
	tables.WriteString("|---:|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, size := range sizes {
		rows, err := measureSize(t.Context(), w, all, size)
		must(t, err)
		t.Log("\n" + rows)
		tables.WriteString(rows)
	}
	fmt.Println(tables.String())
}

func readSizes(text string) (sizes []int, err error) {
	for one := range strings.SplitSeq(text, ",") {
		size, err := strconv.Atoi(one)
		if err != nil || size < 1 {
			return nil, fmt.Errorf("-announcements-sizes %q: want numbers of prefixes", text)
		}
		sizes = append(sizes, size)
	}
	if !slices.IsSorted(sizes) {
		return nil, fmt.Errorf("-announcements-sizes %q: prefixes only ever become more", text)
	}
	return sizes, nil
}

// kernelRouter starts a router, with that host number in the underlay, which goes with the test.
func (w *world) kernelRouter(t *testing.T, name string, host byte) *kernelRouter {
	t.Helper()
	bytes := underlay.Addr().As4()
	bytes[3] = host
	r, err := w.startKernelRouter(t.Context(), name, netip.AddrFrom4(bytes))
	t.Cleanup(func() {
		if err := r.close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	must(t, err)
	return r
}

// measureStarts writes how long it takes from a speaker's start until a first route, the only one, is in the router's kernel.
func measureStarts(t *testing.T, w *world, all []announcer, table *strings.Builder) error {
	ctx := t.Context()
	for _, a := range all {
		if err := w.processes.Stop(ctx, a.process); err != nil {
			return err
		}
	}
	took := map[string][]time.Duration{}
	for range *announcementStarts {
		for _, a := range all {
			one, err := a.measureStart(ctx, w)
			if err != nil {
				return err
			}
			t.Logf("%s: %v to its first route", a.name, one)
			took[a.name] = append(took[a.name], one)
		}
	}
	fmt.Fprintf(table, "%d starts of each; there is no OVN, for which egress-speaker waits 10 s:\n\n", *announcementStarts)
	table.WriteString("| Announced by | Start to first route, median | Shortest | Longest |\n|:---|---:|---:|---:|\n")
	for _, a := range all {
		times := took[a.name]
		fmt.Fprintf(table, "| %s | %.2f s | %.2f s | %.2f s |\n", a.name, quantile(times, 0.5).Seconds(), slices.Min(times).Seconds(), slices.Max(times).Seconds())
		// The last start is where the sizes begin.
		if err := a.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// measureStart starts a speaker that is stopped, and stops it when the router has no route any more: one that it keeps for a while
// would be no news after the next start.
func (a announcer) measureStart(ctx context.Context, w *world) (time.Duration, error) {
	met := a.router.expect(hostPrefix(a.network, 0), true)
	if err := errors.Join(a.set(ctx, 1), a.start(ctx)); err != nil {
		return 0, err
	}
	pid, alive := w.processes.PID(a.process)
	if !alive {
		return 0, fmt.Errorf("%s has ended, see %s", a.process, w.processes.LogPath(a.process))
	}
	begin, err := startOf(pid)
	if err != nil {
		return 0, err
	}
	at, err := await(ctx, met, "the first route of "+a.name)
	if err != nil {
		return 0, err
	}
	return at.Sub(begin), errors.Join(a.set(ctx, 0), a.filled(ctx, 0), w.processes.Stop(ctx, a.process))
}

// filled waits for the router to have so many routes.
func (a announcer) filled(ctx context.Context, n int) error {
	return pollFor(ctx, fillPatience, "what "+a.name+" announces", func(context.Context) error { return a.router.holds(n) })
}

// startOf is when a process was started, with an error of up to 10 ms (field 22 of proc(5)'s stat).
func startOf(pid int) (time.Time, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return time.Time{}, err
	}
	ticks, err := strconv.ParseInt(strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(time.Duration(ticks)*time.Second/clockTicks - time.Duration(sinceBoot.Nano())), nil
}

func await(ctx context.Context, met <-chan time.Time, what string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, arrivalPatience)
	defer cancel()
	select {
	case at := <-met:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// timing is how long one change took, from just before the write: until the write was answered, the UPDATE came to the router, and the
// route was in its kernel or out of it.
type timing struct{ write, update, route time.Duration }

// measurements are those of an announcer at one size.
type measurements struct {
	added, withdrawn []timing
	cpu              time.Duration // of all changes
}

// measureSize has the announcers announce so many prefixes, and then one more and one less in turns. It returns their rows.
func measureSize(ctx context.Context, w *world, all []announcer, size int) (rows string, err error) {
	all = slices.DeleteFunc(slices.Clone(all), func(a announcer) bool { return a.atMost < size })
	found := map[string]*measurements{}
	for _, a := range all {
		if err := errors.Join(a.set(ctx, size), a.filled(ctx, size)); err != nil {
			return "", err
		}
		found[a.name] = &measurements{}
	}
	if err := w.quietened(ctx); err != nil {
		return "", err
	}
	for n := range *announcementChanges {
		for _, add := range []bool{true, false} {
			for _, a := range all {
				if err := a.change(ctx, w, size+n, add, found[a.name]); err != nil {
					return "", fmt.Errorf("%s, change %d at %d prefixes: %w", a.name, n+1, size, err)
				}
			}
		}
	}
	for _, a := range all {
		if err := a.router.holds(size); err != nil {
			return "", err
		}
		memory, err := w.memory(a.process)
		if err != nil {
			return "", err
		}
		rows += found[a.name].row(size, a.name, memory)
	}
	return rows, nil
}

// change adds or withdraws a prefix and measures it.
func (a announcer) change(ctx context.Context, w *world, i int, add bool, found *measurements) error {
	prepare, list := a.withdrawal, &found.withdrawn
	if add {
		prepare, list = a.addition, &found.added
	}
	write, err := prepare(ctx, i)
	if err != nil {
		return err
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	before, err := w.used(a.process)
	if err != nil {
		return err
	}
	met := a.router.expect(hostPrefix(a.network, i), add)
	begin := time.Now()
	if err := write(ctx); err != nil {
		return err
	}
	one := timing{write: time.Since(begin)}
	at, err := await(ctx, met, "the change of a route")
	if err != nil {
		return err
	}
	updated := a.router.updated()
	if updated.IsZero() {
		return errors.New("nobody saw the UPDATE")
	}
	one.update, one.route = updated.Sub(begin), at.Sub(begin)
	*list = append(*list, one)
	if err := pause(ctx, rest); err != nil {
		return err
	}
	after, err := w.used(a.process)
	found.cpu += after - before
	return err
}

func pause(ctx context.Context, length time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(length):
		return nil
	}
}

// row is a line of the table.
func (m *measurements) row(size int, name string, memory int) string {
	ms := func(list []timing, of func(timing) time.Duration, q float64) string {
		var times []time.Duration
		for _, one := range list {
			times = append(times, of(one))
		}
		return fmt.Sprintf("%.1f ms", float64(quantile(times, q).Microseconds())/1000)
	}
	route, update, write := func(t timing) time.Duration { return t.route }, func(t timing) time.Duration { return t.update },
		func(t timing) time.Duration { return t.write }
	cells := []string{strconv.Itoa(size), name}
	for _, of := range []func(timing) time.Duration{route, update} {
		for _, list := range [][]timing{m.added, m.withdrawn} {
			cells = append(cells, ms(list, of, 0.5), ms(list, of, 0.99))
		}
	}
	each := m.cpu / time.Duration(len(m.added)+len(m.withdrawn))
	cells = append(cells, ms(m.added, write, 0.5), ms(m.withdrawn, write, 0.5),
		fmt.Sprintf("%.1f ms", float64(each.Microseconds())/1000), fmt.Sprintf("%d MiB", memory>>20))
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// quantile is the smallest of the times that at least this part of them do not exceed.
func quantile(times []time.Duration, part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	index := 0
	for float64(index+1) < part*float64(len(sorted)) {
		index++
	}
	return sorted[index]
}

// used is the CPU time that a process has used so far.
func (w *world) used(name string) (time.Duration, error) {
	used, err := (&costWorld{world: w}).cpu()
	return used[name], err
}

// memory is the resident set of a process, in bytes.
func (w *world) memory(name string) (int, error) {
	pid, _ := w.processes.PID(name)
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kibibytes int
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kibibytes); err == nil {
			return kibibytes << 10, nil
		}
	}
	return 0, fmt.Errorf("%s has no resident set", name)
}

// quietened waits until nobody has anything to do.
func (w *world) quietened(ctx context.Context) error {
	sum := func() (total time.Duration, err error) {
		used, err := (&costWorld{world: w}).cpu()
		for _, one := range used {
			total += one
		}
		return total, err
	}
	return pollFor(ctx, fillPatience, "everybody is quiet", func(ctx context.Context) error {
		before, err := sum()
		if err != nil {
			return err
		}
		if err := pause(ctx, window); err != nil {
			return err
		}
		after, err := sum()
		if used := after - before; err == nil && used > quietTicks*time.Second/clockTicks {
			err = fmt.Errorf("%v of CPU time in %v", used, window)
		}
		return err
	})
}

// tails are the ends of the speakers' logs.
func tails(w *world, all []announcer) string {
	var text strings.Builder
	for _, a := range all {
		log, err := os.ReadFile(w.processes.LogPath(a.process))
		fmt.Fprintf(&text, "%s said at last (%v):\n%s\n", a.process, err, log[max(0, len(log)-4000):])
	}
	return text.String()
}
