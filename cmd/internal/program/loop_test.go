// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
)

func TestRunnerPausesAndBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var again time.Duration
		var err error
		calls := 0
		r := &runner{Loop: Loop{Logger: log.NewNopLogger(), Sync: func(context.Context) (time.Duration, error) {
			calls++
			return again, err
		}}}
		run := func() time.Duration {
			<-time.After(pause)
			return r.run(t.Context())
		}

		if got := r.run(t.Context()); got != 0 || calls != 1 {
			t.Errorf("runs again in %v after %d calls, want never after one", got, calls)
		}
		if got := r.run(t.Context()); got != pause || calls != 1 {
			t.Errorf("right after a call: runs again in %v after %d calls, want in %v after one", got, calls, pause)
		}
		err = errors.New("no")
		var waits []time.Duration
		for range 11 {
			waits = append(waits, run())
		}
		want := []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond,
			3200 * time.Millisecond, 6400 * time.Millisecond, 12800 * time.Millisecond, 25600 * time.Millisecond, lastRetry, lastRetry}
		if diff := cmp.Diff(want, waits); diff != "" {
			t.Errorf("back-off: -want +got:\n%s", diff)
		}
		again = time.Second
		if got := run(); got != again {
			t.Errorf("runs again in %v, want in %v, when it asked for it", got, again)
		}
		err, again = nil, 0
		if got := run(); got != 0 {
			t.Errorf("runs again in %v after success", got)
		}
		err = errors.New("no")
		if got := run(); got != firstRetry {
			t.Errorf("runs again in %v, want the first wait anew", got)
		}
	})
}

// TestRunnerTellsAnErrorOnce: events call a loop that fails as often as they come.
func TestRunnerTellsAnErrorOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := 0
		logger := log.LoggerFunc(func(...any) error { lines++; return nil })
		err := errors.New("no")
		r := &runner{Loop: Loop{Logger: logger, Sync: func(context.Context) (time.Duration, error) { return 0, err }}}
		for range 100 {
			<-time.After(pause)
			r.run(t.Context())
		}
		if lines != 1 {
			t.Errorf("%d lines of the same error, want one", lines)
		}
		err = errors.New("another")
		<-time.After(pause)
		r.run(t.Context())
		<-time.After(lastRetry)
		r.run(t.Context())
		if lines != 3 {
			t.Errorf("%d lines, want one of each error, and one again after %v", lines, lastRetry)
		}
		err = nil
		<-time.After(pause)
		r.run(t.Context())
		err = errors.New("another")
		<-time.After(pause)
		r.run(t.Context())
		if lines != 4 {
			t.Errorf("%d lines, want one more after a success", lines)
		}
	})
}

func TestRunnerBoundsACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runner{Loop: Loop{Logger: log.NewNopLogger(), Sync: func(ctx context.Context) (time.Duration, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}}}
		begin := time.Now()
		if got := r.run(t.Context()); got != firstRetry || time.Since(begin) != syncTimeout {
			t.Errorf("runs again in %v after %v", got, time.Since(begin))
		}
	})
}
