// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// markVariable is set in the environment of every program, with the path of its record as the value.
const markVariable = "METALLB_EGRESS_LAB_PROCESS"

// parseStat takes the text of /proc/<pid>/stat apart (proc(5)): the state letter, field 3, and the start time in clock ticks,
// field 22. Field 2, the program's name in parentheses, may itself hold spaces and parentheses.
func parseStat(text string) (state string, startTime uint64, err error) {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return "", 0, errors.New("stat: no command field")
	}
	const firstField, stateField, startTimeField = 3, 3, 22
	fields := strings.Fields(text[end+1:])
	if len(fields) <= startTimeField-firstField {
		return "", 0, fmt.Errorf("stat: only %d fields after the command", len(fields))
	}
	startTime, err = strconv.ParseUint(fields[startTimeField-firstField], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("stat: start time: %w", err)
	}
	return fields[stateField-firstField], startTime, nil
}

// startTimeOf returns the start time of a pid, and false where there is no such process, or only its remains (a zombie).
func startTimeOf(pid int) (uint64, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	state, startTime, err := parseStat(string(text))
	if err != nil || state == "Z" || state == "X" {
		return 0, false
	}
	return startTime, true
}

// findMarked looks for the oldest process whose environment carries the mark: the program itself, not a child of it.
func findMarked(mark string) (pid int, startTime uint64, found bool) {
	entry := []byte(markVariable + "=" + mark)
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return 0, 0, false
	}
	for _, file := range files {
		environment, err := os.ReadFile(file)
		if err != nil || !hasEntry(environment, entry) {
			continue
		}
		candidate, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		started, alive := startTimeOf(candidate)
		if alive && (!found || started < startTime) {
			pid, startTime, found = candidate, started, true
		}
	}
	return pid, startTime, found
}

// hasEntry tells whether a NUL-separated environment holds the entry.
func hasEntry(environment, entry []byte) bool {
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		if bytes.Equal(variable, entry) {
			return true
		}
	}
	return false
}
