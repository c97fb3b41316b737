// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"testing"
	"time"
)

func TestOutage(t *testing.T) {
	type at struct {
		after   time.Duration // since the step before
		unknown int
		want    suspected
	}
	held, replaced, failed := suspected{Ready: true}, suspected{Ready: true, Lost: true}, suspected{}
	tests := []struct {
		name  string
		steps []at
	}{
		{"one node of four is not an outage", []at{{0, 1, failed}, {time.Minute, 1, failed}}},
		{"half of them are not", []at{{0, 2, failed}}},
		{"most of them at once", []at{{0, 3, held}, {29 * time.Second, 4, held}, {time.Second, 4, replaced}}},
		{"they come back one by one", []at{{0, 4, held}, {10 * time.Second, 2, held}, {5 * time.Second, 1, held}, {time.Second, 0, failed}}},
		{"one does not come back", []at{{0, 4, held}, {10 * time.Second, 1, held}, {outageGrace, 1, failed}}},
		{"another outage", []at{{0, 4, held}, {time.Minute, 4, replaced}, {time.Minute, 0, failed}, {time.Second, 3, held}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var o outage
			now := time.Unix(1000, 0)
			for i, step := range test.steps {
				now = now.Add(step.after)
				if got, again := o.judge(now, step.unknown, 4); got != step.want || again < 0 {
					t.Errorf("step %d: %+v, want %+v", i, got, step.want)
				}
			}
		})
	}
}
