// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package crds_test

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// examples are the EgressServices that the documentation of OVN-Kubernetes and of products with it
// shows, and the least that upstream's definition accepts.
var examples = []struct{ name, manifest string }{
	{"workers only", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: demo-svc, namespace: default}
spec:
  sourceIPBy: "LoadBalancerIP"
  nodeSelector:
    matchLabels:
      node-role.kubernetes.io/worker: ""
`},
	{"a VRF by its table's number, on the nodes that have it", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: test-egress-service, namespace: test-namespace}
spec:
  sourceIPBy: "LoadBalancerIP"
  nodeSelector:
    matchLabels:
      vrf: "true"
  network: "2"
`},
	{"the network's own address", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: blue, namespace: default}
spec:
  sourceIPBy: "Network"
  network: "blue"
`},
	{"everything empty", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: empty, namespace: default}
spec:
  nodeSelector: {matchLabels: {}, matchExpressions: []}
  network: ""
status:
  host: ""
`},
	{"no sourceIPBy", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: least, namespace: default}
spec:
  nodeSelector: {}
`},
	{"no spec", `
apiVersion: k8s.ovn.org/v1
kind: EgressService
metadata: {name: none, namespace: default}
`},
}

func testExamples(t *testing.T, c client.Client) {
	for _, example := range examples {
		t.Run(example.name, func(t *testing.T) { createExample(t, c, example.manifest) })
	}
	t.Run("this project's own", func(t *testing.T) {
		text, err := os.ReadFile("../../docs/examples/example-service.yaml")
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			if strings.Contains(document, "kind: EgressService") {
				found++
				createExample(t, c, document)
			}
		}
		if found != 1 {
			t.Errorf("%d EgressServices are in the example", found)
		}
	})
}

// createExample applies a manifest as it is, but for its namespace.
func createExample(t *testing.T, c client.Client, manifest string) {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &object.Object); err != nil {
		t.Fatal(err)
	}
	object.SetNamespace(namespace)
	if err := c.Create(t.Context(), object, client.DryRunAll); err != nil {
		t.Error(err)
	}
}
