// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

var leaseKey = types.NamespacedName{Namespace: "metallb-system", Name: "egress-speaker.n1"}

// heart is a rig whose Heartbeat runs, in a bubble of time. It counts what happens.
type heart struct {
	*rig
	mutex   sync.Mutex
	err     error       // of the API server's writes
	hang    bool        // they do
	tried   []time.Time // writes
	renewed []time.Time // those that went through
	events  []string    // log lines
	stopped chan struct{}
}

// withHeart runs a test in a bubble, with the loops called once when run is set.
func withHeart(t *testing.T, run bool, test func(h *heart)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &heart{rig: newRig(t), stopped: make(chan struct{})}
		h.Now = time.Now
		h.Client = interceptor.NewClient(h.Client.(client.WithWatch), interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, _ ...client.PatchOption) error {
				if _, ok := o.(*coordinationv1.Lease); !ok {
					return c.Patch(ctx, o, p)
				}
				return h.write(ctx, func() error { return c.Patch(ctx, o, p) })
			},
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, _ ...client.CreateOption) error {
				if _, ok := o.(*coordinationv1.Lease); !ok {
					return c.Create(ctx, o)
				}
				return h.write(ctx, func() error { return c.Create(ctx, o) })
			},
		})
		h.Logger = log.LoggerFunc(func(keyvals ...any) error {
			h.mutex.Lock()
			defer h.mutex.Unlock()
			for i := 0; i < len(keyvals); i += 2 {
				if keyvals[i] == "event" {
					h.events = append(h.events, fmt.Sprint(keyvals[i+1]))
				}
			}
			return nil
		})
		if run {
			h.callLoops()
		}
		h.events = nil
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(h.stopped)
			if err := h.Heartbeat(ctx); err != nil {
				t.Error(err)
			}
		}()
		test(h)
		cancel()
		<-h.stopped
	})
}

// callLoops calls each once; what they return is no matter.
func (h *heart) callLoops() {
	_, _ = h.SyncDataplane(h.Context())
	_, _ = h.SyncBGP(h.Context())
	_, _ = h.SyncReport(h.Context())
}

func (h *heart) write(ctx context.Context, do func() error) error {
	h.mutex.Lock()
	hang, err := h.hang, h.err
	h.tried = append(h.tried, time.Now())
	h.mutex.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if err == nil {
		err = do()
	}
	if err == nil {
		h.mutex.Lock()
		defer h.mutex.Unlock()
		h.renewed = append(h.renewed, time.Now())
	}
	return err
}

// pass lets time pass and returns how often the Lease was renewed meanwhile.
func (h *heart) pass(d time.Duration) int {
	h.mutex.Lock()
	before := len(h.renewed)
	h.mutex.Unlock()
	<-time.After(d)
	synctest.Wait()
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return len(h.renewed) - before
}

func (h *heart) set(err error, hang bool) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.err, h.hang, h.tried = err, hang, nil
}

// wantEvents compares the log lines so far.
func (h *heart) wantEvents(want ...string) {
	h.Helper()
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if diff := cmp.Diff(want, h.events, cmpopts.EquateEmpty()); diff != "" {
		h.Errorf("log, -want +got:\n%s", diff)
	}
}

func TestHeartbeat(t *testing.T) {
	withHeart(t, true, func(h *heart) {
		h.pass(time.Minute)
		var lease coordinationv1.Lease
		if err := h.Client.Get(h.Context(), leaseKey, &lease); err != nil {
			h.Fatal(err)
		}
		holder, seconds := "n1", int32(10)
		last := metav1.NewMicroTime(h.renewed[len(h.renewed)-1].Truncate(time.Microsecond))
		want := coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "metallb-system", Name: "egress-speaker.n1", Labels: map[string]string{"metallb-egress.io/speaker-lease": ""},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", Controller: new(true)}},
			},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &last},
		}
		if diff := cmp.Diff(want, lease, cmpopts.IgnoreFields(metav1.ObjectMeta{}, "ResourceVersion")); diff != "" {
			h.Errorf("lease, -want +got:\n%s", diff)
		}
		different := map[time.Duration]bool{}
		for i, at := range h.renewed[1:] {
			between := at.Sub(h.renewed[i])
			different[between] = true
			if between < shortestBeat*9/10 || between > shortestBeat*11/10 {
				h.Errorf("%v from one renewal to the next, want %v +-10 %%", between, shortestBeat)
			}
		}
		if len(different) < 2 {
			h.Error("no jitter")
		}

		if err := h.Client.Delete(h.Context(), &lease); err != nil {
			h.Fatal(err)
		}
		if h.pass(3*time.Second) == 0 || h.Client.Get(h.Context(), leaseKey, &lease) != nil {
			h.Error("deleted by somebody: not made again")
		}

		for i := 3; i <= 250; i++ {
			if err := h.Client.Create(h.Context(), aNode(fmt.Sprintf("n%d", i), "3")); err != nil {
				h.Fatal(err)
			}
		}
		h.pass(10 * time.Second)
		if got := h.pass(time.Minute); got < 10 || got > 14 {
			h.Errorf("%d renewals in a minute with 250 nodes, want about 12", got)
		}
		if err := h.Client.Get(h.Context(), leaseKey, &lease); err != nil || *lease.Spec.LeaseDurationSeconds != 20 {
			h.Errorf("lease of %d s, error %v; want 20 s", *lease.Spec.LeaseDurationSeconds, err)
		}
		h.wantEvents()
	})
}

func TestNoHeartbeatBeforeTheLoopsWork(t *testing.T) {
	withHeart(t, false, func(h *heart) {
		_, _ = h.SyncDataplane(h.Context())
		_, _ = h.SyncReport(h.Context())
		if h.pass(10*time.Minute) > 0 {
			h.Error("a heartbeat though the BGP loop was never called")
		}
		_, _ = h.SyncBGP(h.Context())
		if h.pass(lookAtLoops) != 1 {
			h.Error("no heartbeat as soon as each has come back")
		}
		h.wantEvents()
	})
}

// stuckDataplane does not come back, whatever its context says.
type stuckDataplane struct {
	*fakeDataplane
	release chan struct{}
}

func (d *stuckDataplane) Apply(ctx context.Context, plan dataplane.Plan) (dataplane.Sequence, error) {
	<-d.release
	return d.fakeDataplane.Apply(ctx, plan)
}

func TestErrorsDoNotStopTheHeartbeatAndHangsDo(t *testing.T) {
	for _, first := range []bool{false, true} {
		t.Run(fmt.Sprintf("in the first call %v", first), func(t *testing.T) {
			withHeart(t, !first, func(h *heart) {
				if !first {
					h.rig.dataplane.err = errors.New("the database is away")
					h.callLoops()
					if h.pass(time.Minute) < 20 {
						h.Error("no heartbeat after an error")
					}
				}
				stuck := &stuckDataplane{h.rig.dataplane, make(chan struct{})}
				h.Dataplane = stuck
				done := make(chan struct{})
				go func() {
					defer close(done)
					h.callLoops()
				}()
				h.pass(hangs + shortestBeat)
				h.mutex.Lock()
				h.events = nil
				h.mutex.Unlock()
				if h.pass(10*time.Minute) > 0 {
					h.Error("a heartbeat of a loop that hangs")
				}
				close(stuck.release)
				<-done
				if h.pass(time.Minute) < 20 {
					h.Error("no heartbeat after the loop has come back")
				}
			})
		})
	}
	t.Run("said once", func(t *testing.T) {
		withHeart(t, true, func(h *heart) {
			stuck := &stuckDataplane{h.rig.dataplane, make(chan struct{})}
			h.Dataplane = stuck
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = h.SyncDataplane(h.Context())
			}()
			if h.pass(hangs) < 10 {
				h.Error("no heartbeat while a call takes long")
			}
			h.pass(10 * time.Minute)
			h.wantEvents("noHeartbeat")
			close(stuck.release)
			<-done
			h.pass(shortestBeat)
			h.wantEvents("noHeartbeat", "heartbeat")
		})
	})
}

func TestHeartbeatWithoutAPIServer(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		hang bool
	}{
		{"refuses", errors.New("away"), false},
		{"hangs", nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			withHeart(t, true, func(h *heart) {
				h.pass(10 * time.Second)
				h.set(test.err, test.hang)
				if h.pass(time.Minute) > 0 {
					h.Error("renewed")
				}
				if n := len(h.tried); n < 20 || n > 28 {
					h.Errorf("tried %d times in a minute, want once in %v", n, shortestBeat)
				}
				h.wantEvents("noHeartbeat")
				h.set(nil, false)
				if h.pass(2*shortestBeat) == 0 {
					h.Error("not renewed after the API server is back")
				}
				h.wantEvents("noHeartbeat", "heartbeat")
			})
		})
	}
}

// TestHeartbeatCost is the bound on what all speakers write together.
func TestHeartbeatCost(t *testing.T) {
	type cost struct {
		Interval time.Duration
		Lease    int32 // seconds
		Writes   float64
	}
	got := map[int]cost{}
	for _, nodes := range []int{1, 10, 100, 125, 250, 1000, 1500, 5000} {
		interval := beatInterval(nodes)
		lease := newRig(t).lease(aNode("n1", "1"), interval)
		got[nodes] = cost{interval, *lease.Spec.LeaseDurationSeconds, float64(nodes) / interval.Seconds()}
	}
	want := map[int]cost{
		1: {2500 * time.Millisecond, 10, 0.4}, 10: {2500 * time.Millisecond, 10, 4}, 100: {2500 * time.Millisecond, 10, 40},
		125: {2500 * time.Millisecond, 10, 50}, 250: {5 * time.Second, 20, 50}, 1000: {20 * time.Second, 80, 50},
		1500: {30 * time.Second, 120, 50}, 5000: {30 * time.Second, 120, 5000 / 30.0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestHangingBGPEndsTheSpeaker: what can't withdraw a route must not go on.
func TestHangingBGPEndsTheSpeaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.Now = time.Now
		begin := time.Now()
		r.loops.enter(bgpName, time.Now)
		err := r.Heartbeat(t.Context())
		if took := time.Since(begin); err == nil || !strings.Contains(err.Error(), "the bgp loop hangs") || took < hangsForGood || took > 2*hangsForGood {
			t.Errorf("after %v: %v", took, err)
		}
	})
}
