// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// results collects the figures.
type results struct {
	sizes   []scene
	figures map[string][]figure
	memory  map[scene][]memory
}

func id(size scene, step, side string) string { return fmt.Sprint(size, step, side) }

func (r *results) add(size scene, step, side string, taken figure) {
	r.figures[id(size, step, side)] = append(r.figures[id(size, step, side)], taken)
}

// String is all of it in Markdown.
func (r *results) String() string {
	var b strings.Builder
	line := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	fmt.Fprintf(&b, "Seconds: median (least to most). CPU: all, and of that %s, own. Ratio: pattern to ours.\n\n", strings.Join(programs, ", "))
	line("services x endpoints", "step", "times", "ours", "pattern", "ratio", "CPU, ours", "CPU, pattern", "ratio")
	line(slices.Repeat([]string{"---"}, 9)...)
	names := []string{hostStart, hostOne}
	for i := range steps {
		names = slices.Insert(names, i, steps[i].name)
	}
	for _, size := range r.sizes {
		for _, name := range names {
			if r.figures[id(size, name, sides[0])] != nil {
				line(r.cells(size, name)...)
			}
		}
	}
	b.WriteString("\nMiB: median (least to most).\n\n")
	line(append([]string{"services x endpoints"}, memoryNames...)...)
	line(slices.Repeat([]string{"---"}, 1+len(memoryNames))...)
	for _, size := range r.sizes {
		cells := []string{size.String()}
		for i := range memoryNames {
			least, middle, most := spread(r.memory[size], func(m memory) uint64 { return m[i] })
			mib := func(bytes uint64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }
			cells = append(cells, fmt.Sprintf("%s (%s to %s)", mib(middle), mib(least), mib(most)))
		}
		line(cells...)
	}
	return b.String()
}

func (r *results) cells(size scene, step string) []string {
	var walls, cpus []string
	var wall, used [2]time.Duration
	for i, side := range sides {
		figures := r.figures[id(size, step, side)]
		least, middle, most := spread(figures, func(f figure) time.Duration { return f.wall })
		walls, wall[i] = append(walls, fmt.Sprintf("%s (%s to %s)", seconds(middle), seconds(least), seconds(most))), middle
		_, used[i], _ = spread(figures, func(f figure) time.Duration { return f.used.all() })
		var parts []string
		for part := range (cpu{}) {
			_, middle, _ := spread(figures, func(f figure) time.Duration { return f.used[part] })
			parts = append(parts, seconds(middle))
		}
		text := seconds(used[i])
		if step != hostStart && step != hostOne { // where all is own
			text += ": " + strings.Join(parts, ", ")
		}
		cpus = append(cpus, text)
	}
	ratio := func(of [2]time.Duration) string { return fmt.Sprintf("%.2g", of[1].Seconds()/of[0].Seconds()) }
	times := fmt.Sprint(len(r.figures[id(size, step, sides[0])]))
	return []string{size.String(), step, times, walls[0], walls[1], ratio(wall), cpus[0], cpus[1], ratio(used)}
}

// spread is the smallest, the median and the largest of a value.
func spread[F any, V cmp.Ordered](figures []F, value func(F) V) (least, middle, most V) {
	var all []V
	for _, f := range figures {
		all = append(all, value(f))
	}
	slices.Sort(all)
	return all[0], all[len(all)/2], all[len(all)-1]
}

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
