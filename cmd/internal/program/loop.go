// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Loop calls one function, from one goroutine, whenever something it depends on changed: the
// whole state is computed anew each time, so events carry no information and any number of
// them is one call.
type Loop struct {
	Name string
	// Sync returns when to be called again though nothing happens (0: never). After an error
	// it is called again with back-off, for ever.
	Sync func(context.Context) (again time.Duration, err error)
	// Watched are the kinds whose changes call Sync. It is not called before all have been read.
	Watched []client.Object
	// Wake are channels that call Sync too.
	Wake []<-chan struct{}
}

const (
	// firstRetry and lastRetry bound the back-off after an error.
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// syncTimeout bounds one call, so that what hangs is noticed and tried again.
	syncTimeout = time.Minute
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
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
	})
	for _, object := range l.Watched {
		b = b.Watches(object, toEverything)
	}
	b = b.WatchesRawSource(source.Func(l.start))
	err := b.Complete(reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		again, err := l.Sync(ctx)
		if err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{RequeueAfter: again}, nil
	}))
	if err != nil {
		return fmt.Errorf("loop %s: %w", l.Name, err)
	}
	return nil
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
