// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	// stillInterval is how often a command that takes long says that it is still at work.
	stillInterval = 15 * time.Second
	// tailLines is how much of a command's output is kept for the case that it fails.
	tailLines = 40
)

// reporter writes progress, one line at a time.
type reporter struct {
	mu      sync.Mutex
	writer  io.Writer
	started time.Time
	every   time.Duration
}

func newReporter(writer io.Writer) *reporter {
	return &reporter{writer: writer, started: time.Now(), every: stillInterval}
}

func (r *reporter) printf(format string, values ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = fmt.Fprintf(r.writer, "tools: "+format+"\n", values...)
}

// elapsed is the time since the reporter was made, rounded for people.
func (r *reporter) elapsed() time.Duration { return rounded(time.Since(r.started)) }

// start begins a task, which reports at intervals until it is stopped. The task is the io.Writer for the output of the
// command that does the work.
func (r *reporter) start(title string) *task {
	t := &task{out: r, title: title, started: time.Now(), stopped: make(chan struct{}), ended: make(chan struct{})}
	go t.reportAtIntervals()
	return t
}

// task is one long piece of work. It keeps the end of the work's output and counts module downloads instead of
// showing each of several hundred.
type task struct {
	out     *reporter
	title   string
	started time.Time
	stopped chan struct{}
	ended   chan struct{}

	mu        sync.Mutex
	rest      []byte
	lines     []string
	downloads int
}

// Write takes a piece of the command's output.
func (t *task) Write(piece []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, piece...)
	for {
		end := bytes.IndexByte(t.rest, '\n')
		if end < 0 {
			return len(piece), nil
		}
		t.addLine(string(t.rest[:end]))
		t.rest = t.rest[end+1:]
	}
}

func (t *task) addLine(line string) {
	if strings.HasPrefix(line, "go: downloading ") {
		t.downloads++
		return
	}
	t.lines = append(t.lines, line)
	if len(t.lines) > tailLines {
		t.lines = t.lines[len(t.lines)-tailLines:]
	}
}

// stop ends the reports and returns how long the task took.
func (t *task) stop() time.Duration {
	close(t.stopped)
	<-t.ended
	return rounded(time.Since(t.started))
}

// tail returns the last lines of the output.
func (t *task) tail() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	if len(t.rest) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(t.rest))
	}
	return strings.Join(lines, "\n")
}

func (t *task) reportAtIntervals() {
	defer close(t.ended)
	ticker := time.NewTicker(t.out.every)
	defer ticker.Stop()
	for {
		select {
		case <-t.stopped:
			return
		case <-ticker.C:
			t.out.printf("%s: at work for %s%s", t.title, rounded(time.Since(t.started)), t.downloaded())
		}
	}
}

func (t *task) downloaded() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.downloads == 0 {
		return ""
	}
	return fmt.Sprintf(", %d modules downloaded", t.downloads)
}

// rounded drops the digits that nobody reads.
func rounded(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond)
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Second)
}
