// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"fmt"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Loop calls one function, from one goroutine, whenever something it depends on changed: the
// whole state is computed anew each time, so events carry no information and any number of
// them is one call.
type Loop struct {
	Name   string
	Logger log.Logger
	// Sync returns when to be called again though nothing happens (0: never). After an error
	// it is called again with back-off, for ever, or when it says itself if that is sooner.
	Sync func(context.Context) (again time.Duration, err error)
	// Watched are the kinds whose changes call Sync. It is not called before all have been read.
	Watched []client.Object
	// Relevant, when set, says which changes call Sync: before is nil for an object that is new to
	// the watcher, after for one that is gone.
	Relevant func(before, after client.Object) bool
	// Wake are channels that call Sync too.
	Wake []<-chan struct{}
}

const (
	// firstRetry and lastRetry bound the back-off after an error.
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// syncTimeout bounds one call, so that what hangs is noticed and tried again.
	syncTimeout = time.Minute
	// pause is the shortest time between two calls: a burst of events is one call, and what fails
	// is not tried again at the rate of the events.
	pause = 20 * time.Millisecond
)

// everything is the only key: a loop has one thing to do.
var everything = reconcile.Request{NamespacedName: types.NamespacedName{Name: "everything"}}

// AddTo registers the loop with a manager.
func (l Loop) AddTo(mgr manager.Manager) error {
	toEverything := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{everything}
	})
	b := builder.ControllerManagedBy(mgr).Named(l.Name).WithOptions(controller.Options{
		MaxConcurrentReconciles: 1,
		// A replica that does not lead reads everything beforehand, so that it acts at once when it
		// does.
		EnableWarmup: new(true),
		// Names must be unique in a process, for the metrics: tests run several programs in one.
		SkipNameValidation: new(true),
	})
	for _, object := range l.Watched {
		b = b.Watches(object, toEverything, builder.WithPredicates(l.relevant()))
	}
	b = b.WatchesRawSource(source.Func(l.start))
	r := &runner{Loop: l}
	err := b.Complete(reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
		return reconcile.Result{RequeueAfter: r.run(ctx)}, nil
	}))
	if err != nil {
		return fmt.Errorf("loop %s: %w", l.Name, err)
	}
	return nil
}

// relevant is Relevant for controller-runtime.
func (l Loop) relevant() predicate.Predicate {
	relevant := l.Relevant
	if relevant == nil {
		relevant = func(_, _ client.Object) bool { return true }
	}
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return relevant(nil, e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool { return relevant(e.ObjectOld, e.ObjectNew) },
		DeleteFunc: func(e event.DeleteEvent) bool { return relevant(e.Object, nil) },
	}
}

// runner is a loop at work.
type runner struct {
	Loop
	ended    time.Time // of the last call
	failures int       // in a row
	told     string    // the last error that was logged
	toldAt   time.Time
}

// run calls Sync, unless that was done just now, and returns when to run again.
func (r *runner) run(ctx context.Context) time.Duration {
	if left := pause - time.Since(r.ended); left > 0 {
		return left
	}
	syncCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	again, err := r.Sync(syncCtx)
	r.ended = time.Now()
	if err == nil {
		r.failures, r.told = 0, ""
		return again
	}
	if ctx.Err() != nil {
		return 0
	}
	retry := lastRetry
	if r.failures < 16 {
		retry = min(firstRetry<<r.failures, lastRetry)
	}
	r.failures++
	if again > 0 {
		retry = min(retry, again)
	}
	// Events call, too: the same error is told as often as if only the back-off did.
	if text := err.Error(); text != r.told || r.ended.Sub(r.toldAt) >= lastRetry {
		r.told, r.toldAt = text, r.ended
		r.tell(retry, err)
	}
	return retry
}

func (r *runner) tell(retry time.Duration, err error) {
	level.Error(r.Logger).Log("event", "syncFailed", "msg", "not everything could be brought up to date", "loop", r.Name, "again", retry, "error", err)
}

// start calls once at the beginning, even in an empty cluster, and follows the channels until
// the manager ends.
func (l Loop) start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	queue.Add(everything)
	for _, channel := range l.Wake {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-channel:
					queue.Add(everything)
				}
			}
		}()
	}
	return nil
}
