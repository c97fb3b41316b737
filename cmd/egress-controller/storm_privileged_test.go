// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
)

var (
	stormSeed  = flag.Uint64("storm.seed", 1, "what the storm's chances are drawn from")
	stormSteps = flag.Int("storm.steps", 400, "how many things happen in the storm; a quarter with -short")
)

// stormPatience is how long the world may take to be right afterwards: rests of nodes that did not acknowledge
// are 30 s and more, and failed writes are tried again after up to a minute.
const stormPatience = 150 * time.Second

// TestStorm lets everything happen that can, in any order, while one API request in eight fails: nodes
// and speakers come and go and misbehave, services are made, changed and deleted, users meddle, the
// controller loses its connections and is restarted. No change of primary may break its promise
// meanwhile; when the storm is over everything is consistent, everybody who can be served is, nothing
// is written any more, and a controller that is stopped leaves no goroutine behind.
func TestStorm(t *testing.T) {
	steps := *stormSteps
	if testing.Short() {
		steps /= 4
	}
	t.Logf("-storm.seed=%d -storm.steps=%d", *stormSeed, steps)
	w := newWorld(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.situation())
		}
	})
	s := &storm{world: w, chances: rand.New(rand.NewPCG(*stormSeed, 0)), faults: rand.New(rand.NewPCG(*stormSeed, 1))}
	if err := s.rage(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	if err := s.clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err := pollFor(t.Context(), stormPatience, "the world after the storm", func(ctx context.Context) error {
		return errors.Join(w.consistent(ctx), s.served(ctx))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("all is well %.1f s after the storm", time.Since(begin).Seconds())
	if err := w.quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), "every goroutine ends", w.leaked); err != nil {
		t.Fatal(err)
	}
}

// storm draws what happens.
type storm struct {
	*world
	chances *rand.Rand

	mutex  sync.Mutex // requests are side by side
	faults *rand.Rand
}

// round is how many things happen before the controller has to have had a look at them.
const round = 10

func (s *storm) rage(ctx context.Context, steps int) error {
	for _, node := range stormNodes {
		if err := s.makeNode(ctx, node, "vrf=true"); err != nil {
			return err
		}
	}
	if err := s.restart(ctx); err != nil {
		return err
	}
	for i := range steps {
		words, do := s.draw()
		err := do(ctx, words...)
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), errors.Is(err, errAbsent):
			// It was not there, or the controller was quicker.
		case err != nil:
			return fmt.Errorf("step %d, %v: %w", i, words, err)
		}
		if i%round == 0 {
			if err := errors.Join(s.revive(ctx), s.looked(ctx)); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
	}
	return nil
}

// clear ends the storm: nothing fails any more, and every node and speaker is well.
func (s *storm) clear(ctx context.Context) error {
	for _, r := range s.replicas {
		r.traffic.fail(nil)
	}
	problems := []error{s.revive(ctx)}
	for _, node := range stormNodes {
		problems = append(problems,
			s.makeNode(ctx, node, "vrf=true", "ready", "uncordon", "networkavailable"),
			s.makeSpeaker(ctx, node, "networks=100"))
	}
	for _, r := range s.replicas {
		r.traffic.fail(nil)
	}
	return errors.Join(problems...)
}

// served sees that whoever can have a node has one.
func (s *storm) served(ctx context.Context) error {
	now, err := s.look(ctx)
	if err != nil {
		return err
	}
	endpoints, err := s.endpointCounts(ctx)
	if err != nil {
		return err
	}
	var problems []error
	for key, egress := range now.egress {
		service, a := now.services[key], now.assignments[key]
		can := egress.Spec.SourceIPBy != egressv1.SourceIPNetwork && service != nil && a != nil &&
			service.Spec.Type == corev1.ServiceTypeLoadBalancer && len(service.Status.LoadBalancer.Ingress) > 0 &&
			service.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal && endpoints[key] > 0
		if can && a.Spec.Primary == "" {
			problems = append(problems, fmt.Errorf("%s has no primary: %v", key, a.Status.Conditions))
		}
	}
	return errors.Join(problems...)
}

// restart stops the controller, if there is one, and starts another, whose requests fail from then on.
func (s *storm) restart(ctx context.Context, _ ...string) error {
	for _, r := range s.replicas {
		if err := r.stop(); err != nil && !strings.Contains(err.Error(), "leader election lost") {
			return err
		}
	}
	s.past, s.replicas = append(s.past, s.replicas...), nil
	if err := s.start(ctx); err != nil {
		return err
	}
	for _, r := range s.replicas {
		r.traffic.fail(s.fault)
	}
	return nil
}

// revive starts the controller again after it has lost its lease, as a kubelet does.
func (s *storm) revive(ctx context.Context) error {
	for _, r := range s.replicas {
		select {
		case <-r.ended:
			return s.restart(ctx)
		default:
		}
	}
	return nil
}

// fault fails one request in eight, in one of several ways. The canaries' and the election's are
// spared: by those the test knows where the controller is.
func (s *storm) fault(request *http.Request) fault {
	if strings.Contains(request.URL.Path, "/namespaces/"+canaries+"/") || strings.Contains(request.URL.Path, election) {
		return fault{}
	}
	s.mutex.Lock()
	kind, pause := s.faults.IntN(8*6), time.Duration(s.faults.IntN(300))*time.Millisecond
	s.mutex.Unlock()
	switch kind {
	case 0:
		return refuse(http.StatusInternalServerError, metav1.StatusReasonInternalError)
	case 1:
		return refuse(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	case 2:
		return refuse(http.StatusConflict, metav1.StatusReasonConflict)
	case 3:
		return fault{broken: syscall.ECONNRESET}
	case 4:
		return fault{lost: syscall.ECONNRESET}
	case 5:
		return fault{before: func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}}
	}
	return fault{}
}

var (
	stormNodes    = []string{"a", "b", "c", "d", "e"}
	stormServices = []string{"x/a", "x/b", "x/b-c", "x/d", "x-b/c", "y/a", "y/b", "y/d"}
	errAbsent     = errors.New("there is none")
)

// draw is the next thing to happen: a command and its words.
func (s *storm) draw() ([]string, func(context.Context, ...string) error) {
	node, service := pick(s.chances, stormNodes), pick(s.chances, stormServices)
	n := slices.Index(stormServices, service)
	address := fmt.Sprintf("10.244.%d.%d", 1+s.chances.IntN(len(stormNodes)), 10+n)
	switch chance := s.chances.IntN(100); {
	case chance < 18:
		return []string{node, pick(s.chances, []string{
			"notready", "ready", "ready", "unknown", "cordon", "uncordon", "vrf-", "vrf=true", "networkunavailable", "networkavailable",
		})}, s.makeNode
	case chance < 22:
		return []string{node, "delete"}, s.makeNode
	case chance < 36:
		return append([]string{node}, pick(s.chances, [][]string{
			{"networks=100"}, {"networks=100"}, {"networks=100", "lag=300ms"}, {"networks=100", "nogracefulrestart"},
			{"dead"}, {"mute"}, {"refuse=no"}, {"notoffered"}, {"nosession"},
		})...), s.makeSpeaker
	case chance < 54:
		return append([]string{service}, pick(s.chances, [][]string{
			{}, {}, {"selector=vrf=true"}, {"network=100"}, {"by=Network"}, {"policy=Closed"}, {"delete"}, {"delete"},
		})...), s.makeEgress
	case chance < 68:
		// Two services have one address between them.
		own, shared := fmt.Sprintf("192.0.2.%d", 10+n), fmt.Sprintf("192.0.2.%d", 100+n/2)
		return append([]string{service}, pick(s.chances, [][]string{
			{own}, {shared, "key=k"}, {shared, "key=k"}, {own, "2001:db8::1" + fmt.Sprint(n)}, {own, "local"}, {}, {"type=ClusterIP"}, {"delete"},
		})...), s.makeService
	case chance < 82:
		return append([]string{service, address}, pick(s.chances, [][]string{{}, {}, {"notserving"}, {"gone"}})...), s.makeEndpoint
	case chance < 96:
		return s.drawMeddling(node, service)
	case chance < 99:
		return []string{"disconnect"}, s.control
	}
	return []string{"restart"}, s.restart
}

// drawMeddling is what users do to objects that are not theirs.
func (s *storm) drawMeddling(node, service string) ([]string, func(context.Context, ...string) error) {
	name := strings.ReplaceAll(service, "/", "-")
	label := pick(s.chances, []string{"egress-service.k8s.ovn.org/", "standby.metallb-egress.io/"}) + name
	switch s.chances.IntN(6) {
	case 0:
		return []string{node, label + "="}, s.makeNode
	case 1:
		return []string{node, label + "-"}, s.makeNode
	case 2:
		return []string{"egressservice", service, fmt.Sprintf(`{"status":{"host":%q,"standby":%[1]q}}`, node)}, s.patch
	case 3:
		return []string{"assignment", service}, s.remove
	case 4:
		return []string{"advertisement", service}, s.remove
	}
	return []string{"service", service, `{"metadata":{"labels":{"metallb-egress.io/egress-service":"x"}}}`}, s.patch
}

func pick[T any](chances *rand.Rand, from []T) T { return from[chances.IntN(len(from))] }

// endpointCounts are the endpoints that serve, on the pod network, of each Service.
func (s *storm) endpointCounts(ctx context.Context) (map[types.NamespacedName]int, error) {
	slices := &discoveryv1.EndpointSliceList{}
	if err := s.client.List(ctx, slices); err != nil {
		return nil, err
	}
	counts := map[types.NamespacedName]int{}
	for _, slice := range slices.Items {
		counts[types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}] += len(slice.Endpoints)
	}
	return counts, nil
}
