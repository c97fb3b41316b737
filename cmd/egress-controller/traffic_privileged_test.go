// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// write is one request of the controller's that changes something, or is meant to.
type write struct {
	method, path, body string
	outcome            string // a status code, or an error
}

func (w write) String() string {
	return fmt.Sprintf("%s %s %s -> %s", w.method, w.path, strings.TrimSpace(w.body), w.outcome)
}

// traffic is one controller's way to the API server: it takes note of every write, fails requests
// as it is told, and can be cut.
type traffic struct {
	mutex    sync.Mutex
	writes   []write
	fault    func(*http.Request) fault
	cut      bool
	connects map[net.Conn]bool
}

// fault is what becomes of one request. The zero value is nothing.
type fault struct {
	// before runs first, in place of a slow network.
	before func(context.Context)
	// refused, when not nil, is the API server's answer to a request that it has not seen.
	refused *metav1.Status
	// broken is the error of a request that never arrived, lost that of one that did.
	broken, lost error
}

// tune makes a REST configuration go this way.
func (t *traffic) tune(config *rest.Config) {
	t.connects = map[net.Conn]bool{}
	// A dialer of its own also gives the controller connections that it shares with nobody.
	config.Dial = t.dial
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return roundTripper{t, next} })
}

var errCut = errors.New("the way to the API server is cut")

func (t *traffic) dial(ctx context.Context, network, address string) (net.Conn, error) {
	connection, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.cut {
		_ = connection.Close()
		return nil, errCut
	}
	t.connects[connection] = true
	return connection, nil
}

// reset closes every connection, watches included. New ones can be opened.
func (t *traffic) reset() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for connection := range t.connects {
		_ = connection.Close()
	}
	clear(t.connects)
}

// sever resets, and opens nothing any more: to the API server the controller is dead.
func (t *traffic) sever() {
	t.mutex.Lock()
	t.cut = true
	t.mutex.Unlock()
	t.reset()
}

// fail decides, from now on, what becomes of each request. Nil fails none.
func (t *traffic) fail(decide func(*http.Request) fault) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.fault = decide
}

// written are the writes so far.
func (t *traffic) written() []write {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return append([]write{}, t.writes...)
}

type roundTripper struct {
	*traffic
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	index, request, err := r.note(request)
	if err != nil {
		return nil, err
	}
	r.mutex.Lock()
	decide, cut := r.fault, r.cut
	r.mutex.Unlock()
	var f fault
	if decide != nil {
		f = decide(request)
	}
	if f.before != nil {
		f.before(request.Context())
	}
	if cut {
		f.broken = errCut
	}
	response, err := r.send(request, f)
	r.answered(index, response, err)
	return response, err
}

func (r roundTripper) send(request *http.Request, f fault) (*http.Response, error) {
	switch {
	case f.broken != nil:
		return nil, f.broken
	case f.refused != nil:
		return refusal(request, f.refused)
	}
	response, err := r.next.RoundTrip(request)
	if err == nil && f.lost != nil {
		_ = response.Body.Close()
		return nil, f.lost
	}
	return response, err
}

// refusal is an answer of the API server's.
func refusal(request *http.Request, refused *metav1.Status) (*http.Response, error) {
	body, err := json.Marshal(refused)
	if err != nil {
		return nil, err
	}
	code := int(refused.Code)
	return &http.Response{
		Status: fmt.Sprintf("%d %s", code, http.StatusText(code)), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)), Request: request,
	}, nil
}

// refuse is the fault of an API server that answers with a code.
func refuse(code int, reason metav1.StatusReason) fault {
	return fault{refused: &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: "made to fail",
	}}
}

// note takes note of a write, and returns its index; -1 of a read.
func (r roundTripper) note(request *http.Request) (int, *http.Request, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if request.Method == http.MethodGet {
		return -1, request, nil
	}
	var body []byte
	if request.Body != nil {
		var err error
		if body, err = io.ReadAll(request.Body); err != nil {
			return -1, nil, err
		}
		_ = request.Body.Close()
		request = request.Clone(request.Context())
		request.Body = io.NopCloser(bytes.NewReader(body))
	}
	r.writes = append(r.writes, write{method: request.Method, path: request.URL.Path, body: printable(body), outcome: "no answer yet"})
	return len(r.writes) - 1, request, nil
}

func (r roundTripper) answered(index int, response *http.Response, err error) {
	if index < 0 {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if err != nil {
		r.writes[index].outcome = err.Error()
		return
	}
	r.writes[index].outcome = response.Status
}

// printable is the body as text. Kubernetes' own kinds travel as protobuf, of which only words can be shown.
func printable(body []byte) string {
	const most = 2000
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, string(body))
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}
