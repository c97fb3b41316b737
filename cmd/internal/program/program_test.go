// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestPrefixes(t *testing.T) {
	tests := []struct{ name, text, want, wantError string }{
		{"empty", "", "", ""},
		{"both families, masked", "10.244.1.2/16, fd00::1/48", "10.244.0.0/16,fd00::/48", ""},
		{"an address", "10.244.0.0", "", "not a prefix"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var p Prefixes
			err := p.Set(test.text)
			if got := p.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if (err == nil) != (test.wantError == "") || err != nil && !strings.Contains(err.Error(), test.wantError) {
				t.Errorf("error %v, want one that says %q", err, test.wantError)
			}
		})
	}
}

func TestLogLevelsOfLibraries(t *testing.T) {
	tests := []struct {
		level string
		want  []string
	}{
		{"debug", []string{"plain", "verbose", "failed"}},
		{"info", []string{"plain", "failed"}},
		{"error", []string{"failed"}},
		{"none", nil},
	}
	for _, test := range tests {
		t.Run(test.level, func(t *testing.T) {
			var out bytes.Buffer
			logger, err := NewLogger(&out, test.level)
			if err != nil {
				t.Fatal(err)
			}
			l := Logr(logger).WithName("part").WithValues("key", "value")
			l.Info("plain")
			l.V(4).Info("verbose")
			l.V(8).Info("a request dump")
			l.Error(errors.New("no"), "failed")
			var got []string
			for line := range strings.Lines(out.String()) {
				var fields map[string]any
				if err := json.Unmarshal([]byte(line), &fields); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if fields["key"] != "value" || fields["logger"] != "part" || fields["ts"] == nil {
					t.Errorf("fields %v", fields)
				}
				got = append(got, fields["msg"].(string))
			}
			if strings.Join(got, ",") != strings.Join(test.want, ",") {
				t.Errorf("lines %v, want %v", got, test.want)
			}
		})
	}
	if _, err := NewLogger(&bytes.Buffer{}, "loud"); err == nil {
		t.Error("an unknown level is accepted")
	}
}
