// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"maps"
	"sync"
	"time"
)

const (
	// firstRetry and lastRetry bound the waits between the tries of one write that fails.
	firstRetry, lastRetry = 200 * time.Millisecond, 20 * time.Second
)

// backoff spaces the tries of writes that fail, each under its own name, for ever.
type backoff struct {
	mutex sync.Mutex // writes run side by side
	tries map[string]try
}

type try struct {
	at   time.Time // of the next
	wait time.Duration
	err  error
}

// attempt calls write, with the wait before it, unless it failed just now. It returns the last error,
// and the wait until the next try, which is 0 after a success.
func (b *backoff) attempt(now func() time.Time, name string, write func(last time.Duration) error) (time.Duration, error) {
	b.mutex.Lock()
	last := b.tries[name]
	b.mutex.Unlock()
	if left := last.at.Sub(now()); left > 0 {
		return left, last.err
	}
	err := write(last.wait)
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if err == nil {
		delete(b.tries, name)
		return 0, nil
	}
	wait := min(max(2*last.wait, firstRetry), lastRetry)
	if b.tries == nil {
		b.tries = map[string]try{}
	}
	b.tries[name] = try{at: now().Add(wait), wait: wait, err: err}
	return wait, err
}

// tidy forgets what has not been tried for long: its object is gone.
func (b *backoff) tidy(now time.Time) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	maps.DeleteFunc(b.tries, func(_ string, t try) bool { return now.Sub(t.at) > 2*lastRetry })
}
