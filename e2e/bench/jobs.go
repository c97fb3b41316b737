// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// job is one piece of the bare client's work; its writes follow one another.
type job struct {
	// at is when it was done in our run, 0 to 1: the jobs are begun in this order.
	at float64
	// target, when set, is what the job writes to: no two write there at once. Nobody has two writes to one node under way, which would make
	// the API server repeat one of them.
	target string
	do     func(ctx context.Context) error
}

// queue hands out jobs.
type queue struct {
	mutex   sync.Mutex
	changed *sync.Cond
	left    []job
	busy    map[string]bool // targets
}

// runJobs does the jobs in their order with all writers, or until one fails.
func runJobs(ctx context.Context, jobs []job) error {
	q := &queue{left: slices.Clone(jobs), busy: map[string]bool{"": false}}
	q.changed = sync.NewCond(&q.mutex)
	slices.SortStableFunc(q.left, func(a, b job) int { return cmp.Compare(a.at, b.at) })
	group, ctx := errgroup.WithContext(ctx)
	for range writers {
		group.Go(func() error {
			for {
				next, found := q.take()
				if !found {
					return nil
				}
				err := ctx.Err()
				if err == nil {
					err = next.do(ctx)
				}
				q.done(next)
				if err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// take returns the first job whose target nobody writes to, and waits for one. It finds none when none is left.
func (q *queue) take() (job, bool) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	for len(q.left) > 0 {
		for i, next := range q.left {
			if q.busy[next.target] {
				continue
			}
			q.left = slices.Delete(q.left, i, i+1)
			q.busy[next.target] = next.target != ""
			return next, true
		}
		q.changed.Wait()
	}
	return job{}, false
}

func (q *queue) done(finished job) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	q.busy[finished.target] = false
	q.changed.Broadcast()
}
