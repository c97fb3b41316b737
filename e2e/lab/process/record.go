// SPDX-License-Identifier: Apache-2.0

package process

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// record is what dir/process/<name>.json holds.
type record struct {
	Name string `json:"name"`
	// Order grows with every program started, so that the newest can be stopped first.
	Order int `json:"order"`
	// PID is 0 from just before the program is made until just after.
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/<pid>/stat: clock ticks from the machine's boot to the program's start.
	StartTime uint64 `json:"startTime"`
	// Command is for people who read the file.
	Command []string `json:"command"`
	// Spec is what it was started by.
	Spec Spec `json:"spec"`
}

func (s *Set) recordPath(name string) string {
	return filepath.Join(s.dir, "process", name+".json")
}

// announce writes the record of a program that is about to be made. Half of it, after a kill, says the same as the whole.
func (s *Set) announce(r record) error {
	return os.WriteFile(s.recordPath(r.Name), encode(r), 0o644)
}

// complete replaces the record by one with pid and start time, at once, so that no reader sees half of it.
func (s *Set) complete(r record) error {
	if err := os.WriteFile(s.temporaryPath(r.Name), encode(r), 0o644); err != nil {
		return err
	}
	return os.Rename(s.temporaryPath(r.Name), s.recordPath(r.Name))
}

func encode(r record) []byte {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		// Strings and numbers always have a JSON form.
		panic(err)
	}
	return append(text, '\n')
}

// remove removes the record, and before it what a kill may have left of complete.
func (s *Set) remove(name string) error {
	for _, path := range []string{s.temporaryPath(name), s.recordPath(name)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *Set) temporaryPath(name string) string {
	return s.recordPath(name) + ".new"
}

// read returns the record of a program, and false where it has none. A record that was not written to its end is an incomplete one.
func (s *Set) read(name string) (record, bool, error) {
	text, err := os.ReadFile(s.recordPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false, nil
	}
	if err != nil {
		return record{}, false, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{Name: name}, true, nil
	}
	r.Name = name
	return r, true, nil
}

// list returns all records, newest first.
func (s *Set) list() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "process"))
	if err != nil {
		return nil, err
	}
	var records []record
	for _, entry := range entries {
		name, isRecord := strings.CutSuffix(entry.Name(), ".json")
		if !isRecord {
			continue
		}
		r, found, err := s.read(name)
		if err != nil {
			return nil, err
		}
		if found {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b record) int {
		return cmp.Or(cmp.Compare(b.Order, a.Order), strings.Compare(a.Name, b.Name))
	})
	return records, nil
}
