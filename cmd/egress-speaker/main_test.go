// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"testing"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOneSpeakerPerNode: a second one waits, and says so, until the first has ended.
func TestOneSpeakerPerNode(t *testing.T) {
	first, err := waitUntilAlone(t.Context(), log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	told, alone := make(chan struct{}, 1), make(chan io.Closer)
	logger := log.LoggerFunc(func(...any) error { told <- struct{}{}; return nil })
	go func() {
		second, err := waitUntilAlone(t.Context(), logger)
		if err != nil {
			t.Error(err)
		}
		alone <- second
	}()
	select {
	case <-told:
	case <-alone:
		t.Fatal("there are two")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := waitUntilAlone(ended, log.NewNopLogger()); err == nil {
		t.Error("a third one is alone")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (<-alone).Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTrim: of Secrets nothing but the password stays in memory, of Pods not what says nothing to us.
func TestTrim(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "metallb-system", Name: "x", UID: "u", ResourceVersion: "7"}
	full := meta
	full.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "with the password"}
	full.Labels = map[string]string{"component": "frr-k8s", "app": "other"}
	secret, err := trimSecret(&corev1.Secret{ObjectMeta: full, Type: corev1.SecretTypeBasicAuth, Data: map[string][]byte{"username": []byte("u"), "password": []byte("p")}})
	if diff := cmp.Diff(&corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeBasicAuth, Data: map[string][]byte{"password": []byte("p")}}, secret); diff != "" || err != nil {
		t.Errorf("Secret (-want +got), %v:\n%s", err, diff)
	}
	labeled := meta
	labeled.Labels = map[string]string{"component": "frr-k8s"}
	spec := corev1.PodSpec{NodeName: "n1", HostNetwork: true}
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "192.0.2.1"}}}
	pod := &corev1.Pod{ObjectMeta: full, Spec: spec, Status: status}
	pod.Spec.ServiceAccountName, pod.Status.HostIP = "a", "192.0.2.9"
	trimmed, err := trimPod(pod)
	if diff := cmp.Diff(&corev1.Pod{ObjectMeta: labeled, Spec: spec, Status: status}, trimmed); diff != "" || err != nil {
		t.Errorf("Pod (-want +got), %v:\n%s", err, diff)
	}
}
