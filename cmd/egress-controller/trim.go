// SPDX-License-Identifier: Apache-2.0

package main

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// The caches hold, of what is large and many, only the parts that are read. A patch made from a
// trimmed object must name its fields itself.

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels,
	}
}

func trimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	trimmed := &corev1.Node{ObjectMeta: trimMeta(node.ObjectMeta), Spec: corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable}}
	if subnets, ok := node.Annotations[ovnkubernetes.NodeSubnets]; ok {
		trimmed.Annotations = map[string]string{ovnkubernetes.NodeSubnets: subnets}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady || condition.Type == corev1.NodeNetworkUnavailable {
			trimmed.Status.Conditions = append(trimmed.Status.Conditions, corev1.NodeCondition{Type: condition.Type, Status: condition.Status})
		}
	}
	return trimmed, nil
}

func trimEgressService(object any) (any, error) {
	if egress, ok := object.(*egressv1.EgressService); ok {
		egress.ManagedFields = nil
		delete(egress.Annotations, corev1.LastAppliedConfigAnnotation)
	}
	return object, nil
}

func trimService(object any) (any, error) {
	service, ok := object.(*corev1.Service)
	if !ok {
		return object, nil
	}
	trimmed := &corev1.Service{
		ObjectMeta: trimMeta(service.ObjectMeta),
		Spec: corev1.ServiceSpec{
			Type: service.Spec.Type, ExternalTrafficPolicy: service.Spec.ExternalTrafficPolicy, IPFamilies: service.Spec.IPFamilies,
		},
		Status: corev1.ServiceStatus{LoadBalancer: service.Status.LoadBalancer},
	}
	for _, key := range advertisement.PoolAnnotations {
		if pool, ok := service.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&trimmed.ObjectMeta, key, pool)
		}
	}
	return trimmed, nil
}

func trimEndpointSlice(object any) (any, error) {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return object, nil
	}
	trimmed := &discoveryv1.EndpointSlice{ObjectMeta: trimMeta(slice.ObjectMeta), AddressType: slice.AddressType}
	for _, e := range slice.Endpoints {
		trimmed.Endpoints = append(trimmed.Endpoints, discoveryv1.Endpoint{
			Addresses: e.Addresses, NodeName: e.NodeName, Conditions: discoveryv1.EndpointConditions{Serving: e.Conditions.Serving},
		})
	}
	return trimmed, nil
}
