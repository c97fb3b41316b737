// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

func TestParseCells(t *testing.T) {
	tests := []struct {
		text  string
		want  []cell
		wrong bool
	}{
		{text: ""},
		{text: "1x10, 5000x100", want: []cell{{1, 10}, {5000, 100}}},
		{text: "0x10", wrong: true},
		{text: "10", wrong: true},
		{text: "1x10y", wrong: true},
		{text: "1x1000000", wrong: true},
	}
	for _, test := range tests {
		got, err := parseCells(test.text)
		if (err != nil) != test.wrong {
			t.Errorf("%q: error %v", test.text, err)
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(cell{})); diff != "" && !test.wrong {
			t.Errorf("%q: -want +got:\n%s", test.text, diff)
		}
	}
	if cells, err := parseCells(defaultCells); err != nil || len(cells) != 10 {
		t.Errorf("the default: %v, %v", cells, err)
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	tests := []struct {
		name   string
		values []int
		part   float64
		want   int
	}{
		{"none", nil, 0.5, 0},
		{"one", []int{7}, 0.99, 7},
		{"median of three", []int{3, 1, 2}, 0.5, 2},
		{"p50", hundred, 0.5, 50},
		{"p99", hundred, 0.99, 99},
		{"all", hundred, 1, 100},
	}
	for _, test := range tests {
		if got := quantile(test.values, test.part); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func TestSamples(t *testing.T) {
	text := []byte(`# HELP apiserver_request_total Counter
apiserver_request_total{code="201",group="",resource="nodes",subresource="",verb="POST",version="v1"} 3
apiserver_request_total{code="409",resource="egressassignments",verb="PUT"} 1.5e+01
apiserver_request_total_other 9
`)
	var got []sample
	for s := range samples(text, "apiserver_request_total{") {
		got = append(got, s)
	}
	want := []sample{
		{"apiserver_request_total", map[string]string{"code": "201", "group": "", "resource": "nodes", "subresource": "", "verb": "POST", "version": "v1"}, 3},
		{"apiserver_request_total", map[string]string{"code": "409", "resource": "egressassignments", "verb": "PUT"}, 15},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sample{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWrites(t *testing.T) {
	before := writes{createEgress: 1, patchNode: 5}
	after := writes{createEgress: 4, patchNode: 5, createEvent: 2}
	since := after.minus(before)
	if diff := cmp.Diff(writes{createEgress: 3, createEvent: 2}, since); diff != "" {
		t.Errorf("since: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(writes{createEgress: 3}, since.only(upToLabel)); diff != "" {
		t.Errorf("up to the label: -want +got:\n%s", diff)
	}
	if since.total() != 5 {
		t.Errorf("%d in all", since.total())
	}
}

// Whatever number of writes our run needed, the bare client issues the same.
func TestSharesAddUp(t *testing.T) {
	for _, n := range []int{0, 1, 6, 7, 8, 20} {
		b := &bareClient{world: &world{services: 7}, writes: writes{updateAssignment: n}}
		total, most, least := 0, 0, n
		for i := range b.services {
			share := 0
			if err := b.times(i, updateAssignment, func() error { share++; return nil }); err != nil {
				t.Fatal(err)
			}
			total, most, least = total+share, max(most, share), min(least, share)
		}
		if total != n || most-least > 1 {
			t.Errorf("%d writes: %d issued, %d to %d per service", n, total, least, most)
		}
	}
}

func TestJobs(t *testing.T) {
	var mutex sync.Mutex
	writing, most, done := map[string]int{}, 0, map[string]int{}
	write := func(target string) func(context.Context) error {
		return func(context.Context) error {
			mutex.Lock()
			writing[target]++
			most = max(most, writing[target])
			mutex.Unlock()
			runtime.Gosched()
			mutex.Lock()
			defer mutex.Unlock()
			writing[target]--
			done[target]++
			return nil
		}
	}
	var jobs []job
	for i := range 900 {
		target := []string{"a", "b", "c"}[i%3]
		jobs = append(jobs, job{float64(900 - i), target, write(target)})
	}
	if err := runJobs(t.Context(), jobs); err != nil || most != 1 {
		t.Errorf("%v, up to %d writes to one target at once", err, most)
	}
	if diff := cmp.Diff(map[string]int{"a": 300, "b": 300, "c": 300}, done); diff != "" {
		t.Errorf("done: -want +got:\n%s", diff)
	}
	failure := errors.New("no")
	jobs = append(jobs, job{1, "", func(context.Context) error { return failure }})
	if err := runJobs(t.Context(), jobs); !errors.Is(err, failure) {
		t.Errorf("got %v, want the job's failure", err)
	}
}

func TestLabelWatch(t *testing.T) {
	public, standby := labelKey(1), v1alpha1.StandbyLabelPrefix+benchNamespace+"-"+serviceName(1)
	if want := egressv1.LabelPrefix + "bench-service-00001"; public != want {
		t.Fatalf("label %s, want %s", public, want)
	}
	at := func(i int) time.Time { return time.Unix(int64(i), 0) }
	l := &labelWatch{labels: map[string]map[string]string{}, seen: map[string]time.Time{}, awaited: 1, not: "lost"}
	steps := []struct {
		node   string
		labels map[string]string
	}{
		{"a", map[string]string{"other": ""}},
		{"a", map[string]string{standby: ""}},
		{"lost", map[string]string{public: ""}},
		{"a", map[string]string{public: ""}},
		{"a", map[string]string{public: "", "other": ""}},
		{"lost", nil},
	}
	for i, step := range steps {
		if wantLeft := map[bool]int{true: 1, false: 0}[i <= 3]; l.awaited != wantLeft {
			t.Errorf("before step %d: %d labels awaited, want %d", i, l.awaited, wantLeft)
		}
		l.note(at(i), step.node, ours(step.labels))
	}
	seen, last, changes := l.result()
	if diff := cmp.Diff(map[string]time.Time{public: at(3)}, seen); diff != "" || last != at(3) {
		t.Errorf("last %v, seen: -want +got:\n%s", last, diff)
	}
	want := []labelChange{
		{at(1), "a", map[string]bool{standby: true}}, {at(2), "lost", map[string]bool{public: true}},
		{at(3), "a", map[string]bool{public: true, standby: false}},
	}
	if diff := cmp.Diff(want, changes, cmp.AllowUnexported(labelChange{})); diff != "" {
		t.Errorf("changes until the last label: -want +got:\n%s", diff)
	}
}

func TestLabelPatch(t *testing.T) {
	got, err := labelPatch(map[string]bool{"came": true, "went": false})
	if want := `{"metadata":{"labels":{"came":"","went":null}}}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

// No two services have the same address or endpoint, in any cell.
func TestAddresses(t *testing.T) {
	if got, want := plus(firstService, 300).String(), "198.18.1.45"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	node := newNode(3)
	if got, want := node.Annotations["k8s.ovn.org/node-subnets"], `{"default":["20.0.192.0/18"]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var seen []string
	for i := range 40 {
		seen = append(seen, endpointAddress(i, 7).String())
	}
	slices.Sort(seen)
	if len(slices.Compact(seen)) != 40 {
		t.Errorf("endpoints share addresses: %v", seen)
	}
}
