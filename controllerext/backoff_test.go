// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"errors"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	now, calls, bad := time.Unix(1000, 0), 0, errors.New("no")
	attempt := func(err error) (time.Duration, error) {
		return b.attempt(func() time.Time { return now }, "x", func(time.Duration) error { calls++; return err })
	}
	wait := firstRetry
	for range 20 {
		if got, err := attempt(bad); got != wait || !errors.Is(err, bad) {
			t.Fatalf("wait %v, error %v; want %v", got, err, wait)
		}
		before := calls
		now = now.Add(wait / 4)
		if got, err := attempt(nil); got != wait-wait/4 || !errors.Is(err, bad) || calls != before {
			t.Fatalf("too early: wait %v, error %v, %d calls", got, err, calls-before)
		}
		now = now.Add(wait - wait/4)
		wait = min(2*wait, lastRetry)
	}
	if wait != lastRetry {
		t.Errorf("the longest wait is %v", wait)
	}
	if got, err := attempt(nil); got != 0 || err != nil {
		t.Errorf("success: wait %v, error %v", got, err)
	}
	if got, _ := attempt(bad); got != firstRetry {
		t.Errorf("after a success the first wait is %v", got)
	}
	now = now.Add(3 * lastRetry)
	b.tidy(now)
	if len(b.tries) != 0 {
		t.Error("what has not been tried for long is not forgotten")
	}
}
