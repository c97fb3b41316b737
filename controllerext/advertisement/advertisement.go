// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
)

// PoolAnnotations are those by which MetalLB's controller says on a Service which pool its address is
// from (metallb controller/service.go); the second is the deprecated spelling.
var PoolAnnotations = []string{"metallb.io/ip-allocated-from-pool", "metallb.universe.tf/ip-allocated-from-pool"}

// Pool is the name of the IPAddressPool that the Service's address is from, by the
// annotations that MetalLB's controller sets; empty when it has not said so, or when what is there
// is no name of an object: whoever may write the Service may write the annotation.
func Pool(serviceAnnotations map[string]string) string {
	for _, annotation := range PoolAnnotations {
		if pool := serviceAnnotations[annotation]; len(validation.IsDNS1123Subdomain(pool)) == 0 {
			return pool
		}
	}
	return ""
}

// Name is the name of a service's advertisement.
func Name(namespace, service string) string {
	return "egress-" + namespace + "-" + service + "-" + lifecycle.Digest(namespace, service)
}
