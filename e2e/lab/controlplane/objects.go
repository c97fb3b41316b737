// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CreateNode makes a Node that is ready, as its kubelet would report it: with its internal addresses, one per family, and the label
// kubernetes.io/hostname. Nothing ever makes it unready by itself.
func (c *ControlPlane) CreateNode(ctx context.Context, name string, addresses []netip.Addr, annotations, labels map[string]string) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: annotations,
			Labels:      map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux"},
		},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}},
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Lab", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
			}},
		},
	}
	for _, address := range addresses {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address.String()})
	}
	maps.Copy(node.Labels, labels)
	if err := c.client.Create(ctx, node); err != nil {
		return fmt.Errorf("create node %s: %w", name, err)
	}
	return nil
}

// CreatePod makes a Pod that runs on a node, is ready and has these addresses, at most one per family, and its namespace where that is
// missing. The Node must exist, else the endpointslice controller leaves the pod out.
func (c *ControlPlane) CreatePod(ctx context.Context, namespace, name, node string, addresses []netip.Addr, labels map[string]string) error {
	err := c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", namespace, err)
	}
	return c.createRunningPod(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "lab", Image: "lab"}},
		},
	}, addresses)
}

// DeletePod removes a Pod at once, as no kubelet is there to confirm a graceful end. One that is gone is no error.
func (c *ControlPlane) DeletePod(ctx context.Context, namespace, name string) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := c.client.Delete(ctx, pod, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete pod %s/%s: %w", namespace, name, err)
	}
	return nil
}

// createRunningPod makes a Pod and then its status, as a kubelet would. A Pod that is there already keeps its spec. It may have no
// address.
func (c *ControlPlane) createRunningPod(ctx context.Context, pod *corev1.Pod, addresses []netip.Addr) error {
	key := client.ObjectKeyFromObject(pod)
	err := c.client.Create(ctx, pod)
	if apierrors.IsAlreadyExists(err) {
		err = c.client.Get(ctx, key, pod)
	}
	if err != nil {
		return fmt.Errorf("create pod %s: %w", key, err)
	}
	before := pod.DeepCopy()
	pod.Status = runningStatus(addresses)
	if err := c.client.Status().Patch(ctx, pod, client.StrategicMergeFrom(before)); err != nil {
		return fmt.Errorf("status of pod %s: %w", key, err)
	}
	return nil
}

func runningStatus(addresses []netip.Addr) corev1.PodStatus {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now}
	for _, condition := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, address := range addresses {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: address.String()})
		status.PodIP = status.PodIPs[0].IP
	}
	return status
}

// SetNodeReady sets a Node's condition Ready, as its kubelet or, where that is silent, the node lifecycle controller would.
func (c *ControlPlane) SetNodeReady(ctx context.Context, name string, ready bool) error {
	node := &corev1.Node{}
	if err := c.client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	before := node.DeepCopy()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	for i := range node.Status.Conditions {
		if condition := &node.Status.Conditions[i]; condition.Type == corev1.NodeReady {
			condition.Status, condition.LastTransitionTime = status, metav1.Now()
			if err := c.client.Status().Patch(ctx, node, client.StrategicMergeFrom(before)); err != nil {
				return fmt.Errorf("status of node %s: %w", name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("node %s: %w", name, errors.New("it has no condition Ready"))
}
