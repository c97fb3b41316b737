// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// hostPrefix begins the names of steps that concern nftables alone.
const hostPrefix = "nftables: "

// tables collects the figures.
type tables struct {
	sizes   []scene
	figures map[string][]figure
	held    []string // rows of memory
}

func newTables(sizes []scene) *tables {
	return &tables{sizes: sizes, figures: map[string][]figure{}}
}

func of(size scene, step, side string) string { return fmt.Sprint(size, step, side) }

func (r *tables) add(size scene, step, side string, taken figure) {
	key := of(size, step, side)
	r.figures[key] = append(r.figures[key], taken)
}

// String is all of it in Markdown.
func (r *tables) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Seconds, median (least to most). CPU: all, of that %s, own.\n\n", strings.Join(programs, ", "))
	b.WriteString("| services x endpoints | step | times | ours | pattern | ratio | CPU, ours | CPU, pattern | ratio |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, size := range r.sizes {
		for _, step := range steps {
			r.row(&b, size, step.name)
		}
	}
	b.WriteString("\n| services x endpoints | nftables alone | times | ours | pattern | ratio | CPU, ours | CPU, pattern | ratio |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, size := range r.sizes {
		for _, step := range hostSteps {
			r.row(&b, size, hostPrefix+step)
		}
	}
	b.WriteString("\n| services x endpoints | peak RSS | RSS | anonymous | heap that is used | RSS at rest | anonymous at rest |\n|---|---|---|---|---|---|---|\n")
	b.WriteString(strings.Join(r.held, ""))
	return b.String()
}

func (r *tables) row(b *strings.Builder, size scene, step string) {
	wall := func(f figure) time.Duration { return f.installed }
	cells := []string{size.String(), strings.TrimPrefix(step, hostPrefix)}
	var walls, cpus []string
	var medians [2]struct{ wall, cpu time.Duration }
	for i, side := range sides {
		figures := r.figures[of(size, step, side)]
		if i == 0 {
			cells = append(cells, fmt.Sprint(len(figures)))
		}
		least, middle, most := spread(figures, wall)
		medians[i].wall = middle
		walls = append(walls, fmt.Sprintf("%s (%s to %s)", seconds(middle), seconds(least), seconds(most)))
		_, medians[i].cpu, _ = spread(figures, func(f figure) time.Duration { return f.used.all() })
		parts := make([]string, len(cpu{}))
		for part := range parts {
			_, middle, _ := spread(figures, func(f figure) time.Duration { return f.used[part] })
			parts[part] = seconds(middle)
		}
		cpus = append(cpus, seconds(medians[i].cpu)+": "+strings.Join(parts, ", "))
	}
	ratio := func(a, b time.Duration) string { return fmt.Sprintf("%.1f", b.Seconds()/a.Seconds()) }
	cells = append(cells, walls[0], walls[1], ratio(medians[0].wall, medians[1].wall), cpus[0], cpus[1], ratio(medians[0].cpu, medians[1].cpu))
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// spread is the smallest, the median and the largest of a value.
func spread(figures []figure, value func(figure) time.Duration) (least, middle, most time.Duration) {
	if len(figures) == 0 {
		return 0, 0, 0
	}
	var all []time.Duration
	for _, f := range figures {
		all = append(all, value(f))
	}
	slices.Sort(all)
	return all[0], (all[(len(all)-1)/2] + all[len(all)/2]) / 2, all[len(all)-1]
}

// seconds has three digits that mean something, at most.
func seconds(d time.Duration) string {
	s := d.Seconds()
	switch {
	case s >= 10:
		return fmt.Sprintf("%.1f", s)
	case s >= 1:
		return fmt.Sprintf("%.2f", s)
	}
	return fmt.Sprintf("%.3f", s)
}
