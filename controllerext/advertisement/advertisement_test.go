// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

func TestOwned(t *testing.T) {
	assignment := &v1alpha1.EgressAssignment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "example-namespace", Name: "example-service"},
		Spec:       v1alpha1.EgressAssignmentSpec{LabelKey: "egress-service.k8s.ovn.org/example-namespace-example-service"},
	}
	got, err := yaml.Marshal(Owned(assignment, "example-pool", "metallb-system"))
	if err != nil {
		t.Fatal(err)
	}
	const want = `metadata:
  annotations:
    metallb-egress.io/owner: example-namespace/example-service
  labels:
    app.kubernetes.io/managed-by: metallb-egress
    metallb-egress.io/egress-service: ee8dc0ae5f0486ea
  name: egress-example-namespace-example-service-ee8dc0ae5f0486ea
  namespace: metallb-system
spec:
  aggregationLength: 32
  aggregationLengthV6: 128
  ipAddressPools:
  - example-pool
  nodeSelectors:
  - matchLabels:
      egress-service.k8s.ovn.org/example-namespace-example-service: ""
  - matchLabels:
      standby.metallb-egress.io/example-namespace-example-service: ""
  serviceSelectors:
  - matchLabels:
      metallb-egress.io/egress-service: ee8dc0ae5f0486ea
status: {}
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPool(t *testing.T) {
	tests := []struct {
		name        string
		annotations map[string]string
		want        string
	}{
		{"none", nil, ""},
		{"current", map[string]string{"metallb.io/ip-allocated-from-pool": "a", "metallb.universe.tf/ip-allocated-from-pool": "b"}, "a"},
		{"deprecated", map[string]string{"metallb.universe.tf/ip-allocated-from-pool": "b"}, "b"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Pool(test.annotations); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
