// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// quantile is the smallest value that at least so large a part of them does not exceed.
func quantile[T cmp.Ordered](values []T, part float64) T {
	var none T
	if len(values) == 0 {
		return none
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, max(0, int(part*float64(len(sorted))+0.999999)-1))]
}

// spread is "median (smallest to largest)" of some numbers.
func spread(values []float64, format string) string {
	if len(values) == 0 {
		return "-"
	}
	text := func(v float64) string { return fmt.Sprintf(format, v) }
	return fmt.Sprintf("%s (%s to %s)", text(quantile(values, 0.5)), text(slices.Min(values)), text(slices.Max(values)))
}

func of[T any](all []T, value func(T) float64) []float64 {
	var values []float64
	for _, one := range all {
		values = append(values, value(one))
	}
	return values
}

func median[T any](all []T, value func(T) float64) float64 { return quantile(of(all, value), 0.5) }

// table prints a Markdown table.
func table(title string, head []string, rows [][]string) {
	fmt.Printf("\n### %s\n\n", title)
	for i, row := range append([][]string{head}, rows...) {
		fmt.Printf("| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Println("|" + strings.Repeat(" --- |", len(head)))
		}
	}
}

// printMachine says where the figures come from.
func (b *bench) printMachine(ctx context.Context) {
	model := "unknown processor"
	if file, err := os.Open("/proc/cpuinfo"); err == nil {
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
		_ = file.Close()
	}
	describe := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	describe.Dir = b.root
	version, err := describe.Output()
	if err != nil {
		version = []byte("unknown")
	}
	fmt.Printf("%s, %d cores, %s, %s, version %s; %s\n", model, runtime.NumCPU(), runtime.GOOS+"/"+runtime.GOARCH, runtime.Version(),
		strings.TrimSpace(string(version)), time.Now().UTC().Format(time.DateOnly))
}

// printLadder prints what all cells gave.
func (b *bench) printLadder(results map[cell][]outcome) {
	if len(results) == 0 {
		return
	}
	var times, counts, costs, idles [][]string
	fairness := ""
	for _, c := range b.cells {
		runs := results[c]
		if len(runs) == 0 {
			continue
		}
		seconds := func(value func(outcome) time.Duration) []float64 {
			return of(runs, func(r outcome) float64 { return value(r).Seconds() })
		}
		size := []string{fmt.Sprint(c.services), fmt.Sprint(c.nodes)}
		times = append(times, append(slices.Clone(size),
			fmt.Sprintf("%.3f", quantile(seconds(func(r outcome) time.Duration { return r.p50 }), 0.5)),
			fmt.Sprintf("%.3f", quantile(seconds(func(r outcome) time.Duration { return r.p99 }), 0.5)),
			spread(seconds(func(r outcome) time.Duration { return r.labelled }), "%.3f"),
			spread(seconds(func(r outcome) time.Duration { return r.bare.took }), "%.3f"),
			spread(of(runs, func(r outcome) float64 { return r.labelled.Seconds() / r.bare.took.Seconds() }), "%.2f"),
			b.ifAllWrites(of(runs, func(r outcome) float64 { return r.labelled.Seconds() / r.same.took.Seconds() }), "%.2f"),
			readyText(runs)))
		counts = append(counts, append(slices.Clone(size), countRow(c, runs)...))
		last := runs[len(runs)-1]
		fairness = c.String() + ": " + last.fairness
		costs = append(costs, append(slices.Clone(size),
			fmt.Sprintf("%.2f", median(runs, func(r outcome) float64 { return r.cpuLabelled.Seconds() })),
			fmt.Sprintf("%.2f", median(runs, func(r outcome) float64 { return r.cpu.Seconds() })),
			spread(of(runs, func(r outcome) float64 { return r.server.Seconds() }), "%.1f"),
			spread(of(runs, func(r outcome) float64 { return r.bare.server.Seconds() }), "%.1f"),
			b.ifAllWrites(of(runs, func(r outcome) float64 { return r.same.server.Seconds() }), "%.1f"),
			fmt.Sprintf("%d", last.memory>>20), fmt.Sprintf("%d", last.peak>>20)))
		if last.idle != nil {
			idles = append(idles, append(slices.Clone(size), idleRow(last.idle)...))
		}
	}
	table("From the creation of an EgressService to its label (seconds)", []string{"services", "nodes", "p50", "p99", "all labelled",
		"bare client", "ratio", "ratio to all writes", "all Ready"}, times)
	table("API writes per service until all are labelled, in all, and patches per node", []string{"services", "nodes", "assignment", "Service",
		"advertisement", "sum", "status and events", "in all, until quiet", "patches per node, most", "patches per node, mean", "reports", "refused"}, counts)
	table("CPU seconds and memory", []string{"services", "nodes", "controller until labelled", "until quiet", "API server and etcd until labelled",
		"with the bare client", "with all writes", "controller's memory MiB", "peak MiB"}, costs)
	table("With nothing to do", []string{"services", "nodes", "CPU ms per s", "CPU ms per irrelevant change", "per sync of each loop"}, idles)
	fmt.Printf("\nPriority and fairness, %s.\n", fairness)
}

// ifAllWrites is a spread, or a dash where the bare client did not issue all writes.
func (b *bench) ifAllWrites(values []float64, format string) string {
	if !b.allWrites {
		return "-"
	}
	return spread(values, format)
}

func readyText(runs []outcome) string {
	var values []float64
	for _, r := range runs {
		if r.ready == 0 {
			return "not within 1 min"
		}
		values = append(values, r.ready.Seconds())
	}
	return spread(values, "%.1f")
}

// countRow is about the median of the runs, except for the patches per node, which are the worst run's.
func countRow(c cell, runs []outcome) []string {
	perService := func(value func(outcome) int) string {
		return fmt.Sprintf("%.2f", median(runs, func(r outcome) float64 { return float64(value(r)) })/float64(c.services))
	}
	sum := func(w writes, kinds ...write) int { return w.only(kinds).total() }
	most, mean := 0, 0.0
	for _, r := range runs {
		patches := map[string]int{}
		for _, change := range r.changes {
			patches[change.node]++
		}
		most = max(most, slices.Max(append(slices.Collect(maps.Values(patches)), 0)))
		mean = max(mean, float64(len(r.changes))/float64(max(1, len(patches))))
	}
	chain := []write{createAssignment, updateAssignment, patchAssignment, applyService, patchService, createAdvertised}
	users := []write{createEgress, patchReport, patchNode, refused}
	return []string{
		perService(func(r outcome) int { return sum(r.untilLabelled, createAssignment, updateAssignment, patchAssignment) }),
		perService(func(r outcome) int { return sum(r.untilLabelled, applyService, patchService) }),
		perService(func(r outcome) int { return sum(r.untilLabelled, createAdvertised) }),
		perService(func(r outcome) int { return sum(r.untilLabelled, chain...) }),
		perService(func(r outcome) int { return r.untilLabelled.total() - sum(r.untilLabelled, append(users, chain...)...) }),
		perService(func(r outcome) int { return r.written.total() - sum(r.written, users...) }),
		fmt.Sprint(most), fmt.Sprintf("%.1f", mean),
		fmt.Sprint(int(median(runs, func(r outcome) float64 { return float64(len(r.reports)) }))),
		fmt.Sprint(int(median(runs, func(r outcome) float64 { return float64(r.written[refused]) }))),
	}
}

func idleRow(i *idle) []string {
	var loops []string
	for _, name := range slices.Sorted(maps.Keys(i.syncs)) {
		if loop := i.syncs[name]; loop.count > 0 {
			loops = append(loops, fmt.Sprintf("%s %.1f ms (%d)", name, 1000*loop.seconds/float64(loop.count), loop.count))
		}
	}
	return []string{fmt.Sprintf("%.1f", float64(i.cpu.Microseconds())/1000), fmt.Sprintf("%.1f", float64(i.touched.Microseconds())/1000),
		cmp.Or(strings.Join(loops, ", "), "-")}
}

// printLosses prints what the losses of a node gave.
func (b *bench) printLosses(losses []loss) {
	seconds := func(value func(loss) time.Duration) string {
		return spread(of(losses, func(l loss) float64 { return value(l).Seconds() }), "%.3f")
	}
	table("From the loss of a node to the last of its services' labels elsewhere (seconds)",
		[]string{"services", "nodes", "losses", "all labelled elsewhere", "bare client", "ratio", "node patches", "reports meanwhile", "status and events meanwhile"},
		[][]string{{
			fmt.Sprint(b.failover.services), fmt.Sprint(b.failover.nodes), fmt.Sprint(len(losses)),
			seconds(func(l loss) time.Duration { return l.ours }), seconds(func(l loss) time.Duration { return l.bare }),
			spread(of(losses, func(l loss) float64 { return l.ours.Seconds() / l.bare.Seconds() }), "%.2f"),
			fmt.Sprint(int(median(losses, func(l loss) float64 { return float64(l.patches) }))),
			fmt.Sprint(int(median(losses, func(l loss) float64 { return float64(l.reports) }))),
			fmt.Sprint(int(median(losses, func(l loss) float64 { return float64(l.others) }))),
		}})
}
