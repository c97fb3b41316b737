// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FRRK8s is how charts and manifests of frr-k8s, MetalLB and OpenShift label the pods of frr-k8s, the
// daemon that implements the FRRConfigurations with FRR.
const FRRK8s = "frr-k8s"

// ComponentLabels are the labels that tell a pod of frr-k8s.
var ComponentLabels = []string{"app.kubernetes.io/component", "component", "app"}

// isFRRK8s says whether a pod is of frr-k8s and alive.
func isFRRK8s(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, label := range ComponentLabels {
		if pod.Labels[label] == FRRK8s {
			return true
		}
	}
	return false
}

// otherDaemon is the pod of frr-k8s that acts on the same FRRConfigurations on this node, empty when
// there is none: it reads those of its own namespace. Two daemons with one configuration would call
// the same peers from the same address.
func (s *Speaker) otherDaemon(ctx context.Context) (string, error) {
	var pods corev1.PodList
	if err := s.list(ctx, &pods, client.InNamespace(s.FRRNamespace)); err != nil {
		return "", err
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; pod.Spec.NodeName == s.Node && isFRRK8s(pod) {
			return pod.Namespace + "/" + pod.Name, nil
		}
	}
	return "", nil
}

// concernsBGP leaves out the changes of pods that are not frr-k8s'.
func (s *Speaker) concernsBGP(before, after client.Object) bool {
	concerns := func(object client.Object) bool {
		pod, isPod := object.(*corev1.Pod)
		return object != nil && (!isPod || pod.Namespace == s.FRRNamespace && isFRRK8s(pod))
	}
	return concerns(before) || concerns(after)
}
