// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"rsc.io/script"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// control is the command "controller".
func (w *world) control(ctx context.Context, args ...string) error {
	if len(args) == 0 || len(args) > 1 && args[0] != "start" {
		return errUsage
	}
	switch args[0] {
	case "start":
		return w.start(ctx, args[1:]...)
	case "stop":
		return w.stopAll()
	case "restart":
		return errors.Join(w.stopAll(), w.start(ctx))
	case "second":
		// It waits for the lease, and shows by nothing that it is there.
		w.replicas = append(w.replicas, w.startReplica(context.WithoutCancel(ctx)))
		return nil
	case "withdraw":
		return w.withdraw(ctx)
	case "kill":
		return w.kill()
	case "disconnect":
		for _, r := range w.replicas {
			r.traffic.reset()
		}
		return nil
	}
	return errUsage
}

// start returns when the controller leads and works.
func (w *world) start(ctx context.Context, flags ...string) error {
	w.external = slices.Contains(flags, "external")
	r := w.startReplica(context.WithoutCancel(ctx), flags...)
	w.replicas = append(w.replicas, r)
	looked := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { looked <- w.looked(ctx) }()
	select {
	case err := <-looked:
		return err
	case <-r.ended:
		cancel()
		return errors.Join(fmt.Errorf("the controller ended: %w", r.err), <-looked)
	}
}

// stopAll ends every replica as a signal does.
func (w *world) stopAll() error {
	var problems []error
	for _, r := range w.replicas {
		problems = append(problems, r.stop())
	}
	w.past, w.replicas = append(w.past, w.replicas...), nil
	return errors.Join(problems...)
}

// withdraw runs a controller that ends when it has removed everything, after all others have ended.
func (w *world) withdraw(ctx context.Context) error {
	if err := w.stopAll(); err != nil {
		return err
	}
	r := w.startReplica(context.WithoutCancel(ctx), "withdraw")
	w.past = append(w.past, r)
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.cancel()
		<-r.ended
		return fmt.Errorf("everything is not withdrawn after %v", patience)
	}
	return errors.Join(r.err, w.nothingLeft(ctx))
}

// nothingLeft is nil when only what users have made is there.
func (w *world) nothingLeft(ctx context.Context) error {
	s, err := w.look(ctx)
	if err != nil {
		return err
	}
	s.egress = nil // their owners are gone: everything of ours is left over
	problems := []error{s.orphans(), s.labelled(nil)}
	list := &egressv1.EgressServiceList{}
	problems = append(problems, w.client.List(ctx, list))
	for _, e := range list.Items {
		if e.Status.Host != "" || e.Status.Standby != "" || len(e.Status.Conditions) > 0 {
			problems = append(problems, fmt.Errorf("EgressService %s/%s has the status %+v", e.Namespace, e.Name, e.Status))
		}
	}
	return errors.Join(problems...)
}

// kill takes the leader from the API server, for good and in the middle of anything.
func (w *world) kill() error {
	i := slices.IndexFunc(w.replicas, func(r *replica) bool { return !r.severed && r.leads() })
	if i < 0 {
		return errors.New("no replica leads")
	}
	w.replicas[i].severed = true
	w.replicas[i].traffic.sever()
	return nil
}

// failing is the command of that name: all replicas' requests of a method whose path has a part.
func (w *world) failing(_ context.Context, args ...string) error {
	var decide func(*http.Request) fault
	switch {
	case len(args) == 1 && args[0] == "none":
	case len(args) == 2 && args[0] == "watches" && args[1] == "expire":
		decide = expire
	case len(args) == 3:
		f, err := faultOf(args[2])
		if err != nil {
			return err
		}
		decide = func(request *http.Request) fault {
			if request.Method == args[0] && strings.Contains(request.URL.RequestURI(), args[1]) {
				return f
			}
			return fault{}
		}
	default:
		return errUsage
	}
	for _, r := range w.replicas {
		r.traffic.fail(decide)
	}
	return nil
}

// expire lets every watch that is to go on where another ended start anew instead: with a list, in
// which what was deleted meanwhile is just missing.
func expire(request *http.Request) fault {
	query := request.URL.Query()
	if query.Get("watch") == "" || query.Get("sendInitialEvents") != "" {
		return fault{}
	}
	return refuse(http.StatusGone, metav1.StatusReasonExpired)
}

// faultOf reads a word of the command failing.
func faultOf(word string) (fault, error) {
	switch word {
	case "reset":
		return fault{broken: syscall.ECONNRESET}, nil
	case "lost":
		return fault{lost: syscall.ECONNRESET}, nil
	case "hang":
		return fault{before: func(ctx context.Context) { <-ctx.Done() }, broken: context.DeadlineExceeded}, nil
	}
	code, err := strconv.Atoi(word)
	return refuse(code, ""), err
}

// tally is the command of that name: wrote counts from here on.
func (w *world) tally(context.Context) error {
	w.tallied = len(w.writes())
	return nil
}

// wrote is a claim about the number of writes since tally, by method and a part of the path, in
// which $ is its end.
func (w *world) wrote(_ context.Context, args ...string) error {
	if len(args) != 3 {
		return errUsage
	}
	most, bound := strings.CutPrefix(args[0], "<=")
	number, err := strconv.Atoi(most)
	if err != nil {
		return err
	}
	var found []string
	for _, one := range w.writes()[w.tallied:] {
		if (args[1] == "any" || one.method == args[1]) && strings.Contains(one.path+"$", args[2]) {
			found = append(found, one.String())
		}
	}
	if len(found) > number || len(found) < number && !bound {
		return fmt.Errorf("%d writes:\n%s", len(found), strings.Join(found, "\n"))
	}
	return nil
}

// failures is a claim that at least so many writes have failed.
func (w *world) failures(_ context.Context, args ...string) error {
	if len(args) != 1 {
		return errUsage
	}
	number, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	failed := 0
	for _, one := range w.writes() {
		if !strings.HasPrefix(one.outcome, "20") {
			failed++
		}
	}
	if failed < number {
		return fmt.Errorf("%d so far", failed)
	}
	return nil
}

// object finds what a user names by kind and name: an advertisement by its service.
func (w *world) object(ctx context.Context, kind, name string) (client.Object, error) {
	object, known := map[string]client.Object{
		"egressservice": &egressv1.EgressService{}, "assignment": &v1alpha1.EgressAssignment{}, "egressnode": &v1alpha1.EgressNode{},
		"advertisement": &advertisement.BGPAdvertisement{}, "service": &corev1.Service{}, "node": &corev1.Node{},
	}[kind]
	if !known {
		return nil, fmt.Errorf("what is a %q?", kind)
	}
	object.SetName(name)
	if !strings.Contains(name, "/") {
		return object, nil
	}
	key, err := keyOf(name)
	if err != nil {
		return nil, err
	}
	if kind != "advertisement" {
		object.SetNamespace(key.Namespace)
		object.SetName(key.Name)
		return object, nil
	}
	owned, err := w.owned(ctx, key)
	if err == nil && len(owned) != 1 {
		err = fmt.Errorf("%w, but %d advertisements of %s", errAbsent, len(owned), name)
	}
	if err != nil {
		return nil, err
	}
	return &owned[0], nil
}

// patch is the command of that name: a JSON merge patch, of the status where it holds one.
func (w *world) patch(ctx context.Context, args ...string) error {
	if len(args) != 3 {
		return errUsage
	}
	object, err := w.object(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	patch := client.RawPatch(types.MergePatchType, []byte(args[2]))
	if strings.HasPrefix(args[2], `{"status"`) {
		return w.client.Status().Patch(ctx, object, patch)
	}
	return w.client.Patch(ctx, object, patch)
}

func (w *world) remove(ctx context.Context, args ...string) error {
	if len(args) != 2 {
		return errUsage
	}
	object, err := w.object(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	return w.client.Delete(ctx, object)
}

// applyFile creates or changes the object in a file.
func (w *world) applyFile(s *script.State, file string) error {
	text, err := os.ReadFile(s.Path(file))
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{}
	if err := yaml.UnmarshalStrict(text, &object.Object); err != nil {
		return err
	}
	ctx := s.Context()
	if err := w.inNamespace(ctx, object.GetNamespace()); err != nil {
		return err
	}
	err = w.client.Create(ctx, object)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	before := object.DeepCopy()
	if err := w.client.Get(ctx, client.ObjectKeyFromObject(object), before); err != nil {
		return err
	}
	object.SetResourceVersion(before.GetResourceVersion())
	return w.client.Update(ctx, object)
}

func (w *world) apply(s *script.State, args ...string) (script.WaitFunc, error) {
	if len(args) != 1 {
		return nil, script.ErrUsage
	}
	return nil, w.applyFile(s, args[0])
}

// situation is what to look at after a failure.
func (w *world) situation() string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var text strings.Builder
	for _, list := range inhabitants() {
		if err := w.client.List(ctx, list); err != nil {
			fmt.Fprintln(&text, err)
			continue
		}
		if err := describe(&text, list); err != nil {
			fmt.Fprintln(&text, err)
		}
	}
	fmt.Fprintln(&text, "== what the controllers wrote last")
	for _, one := range lastOf(w.writes(), 30) {
		fmt.Fprintln(&text, one)
	}
	return text.String()
}

func lastOf[T any](all []T, most int) []T { return all[max(0, len(all)-most):] }
