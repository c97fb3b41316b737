// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

var errUsage = errors.New("too few or too many words")

// key reads <namespace>/<name>.
func keyOf(text string) (types.NamespacedName, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" {
		return types.NamespacedName{}, fmt.Errorf("%q is not <namespace>/<name>", text)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}

// subject begins every command about one service: its key, and whether it is to be deleted.
func (w *world) subject(ctx context.Context, args []string, object client.Object) (words []string, deleted bool, err error) {
	if len(args) == 0 {
		return nil, false, errUsage
	}
	key, err := keyOf(args[0])
	if err != nil {
		return nil, false, err
	}
	object.SetNamespace(key.Namespace)
	object.SetName(key.Name)
	if len(args) == 2 && args[1] == "delete" {
		return nil, true, w.client.Delete(ctx, object)
	}
	return args[1:], false, w.inNamespace(ctx, key.Namespace)
}

// poolAnnotation is how MetalLB's controller says which pool the address is from.
const poolAnnotation = "metallb.io/ip-allocated-from-pool"

// makeService is the command "service": a LoadBalancer Service as MetalLB's controller leaves it.
func (w *world) makeService(ctx context.Context, args ...string) error {
	service := &corev1.Service{}
	words, deleted, err := w.subject(ctx, args, service)
	if err != nil || deleted {
		return err
	}
	kind, pool, policy, sharing := corev1.ServiceTypeLoadBalancer, "pool", corev1.ServiceExternalTrafficPolicyCluster, ""
	var ingress []corev1.LoadBalancerIngress
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "type":
			kind = corev1.ServiceType(value)
		case "pool":
			pool = value
		case "key":
			sharing = value
		case "local":
			policy = corev1.ServiceExternalTrafficPolicyLocal
		case "hostname":
			ingress = append(ingress, corev1.LoadBalancerIngress{Hostname: value})
		default:
			if _, err := netip.ParseAddr(word); err != nil {
				return err
			}
			ingress = append(ingress, corev1.LoadBalancerIngress{IP: word})
		}
	}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		_, err := controllerutil.CreateOrUpdate(ctx, w.client, service, func() error {
			service.Spec.Type = kind
			service.Spec.ExternalTrafficPolicy = policy
			if kind == corev1.ServiceTypeClusterIP {
				service.Spec.ExternalTrafficPolicy, service.Spec.AllocateLoadBalancerNodePorts = "", nil
			}
			if len(service.Spec.Ports) == 0 {
				service.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
			}
			annotate(service, poolAnnotation, pool)
			annotate(service, "metallb.io/allow-shared-ip", sharing)
			return nil
		})
		if err != nil || kind != corev1.ServiceTypeLoadBalancer {
			return err
		}
		service.Status.LoadBalancer.Ingress = ingress
		return w.client.Status().Update(ctx, service)
	})
}

// annotate sets an annotation, or removes it where the value is empty.
func annotate(object metav1.Object, key, value string) {
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	if value == "" {
		delete(annotations, key)
	}
	object.SetAnnotations(annotations)
}

// makeEndpoint is the command "endpoint": one address in an EndpointSlice of its own.
func (w *world) makeEndpoint(ctx context.Context, args ...string) error {
	if len(args) < 2 {
		return errUsage
	}
	service, err := keyOf(args[0])
	if err != nil {
		return err
	}
	address, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: service.Namespace, Name: service.Name + "-" + strings.NewReplacer(".", "-", ":", "-").Replace(address.StringExpanded()),
	}}
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{address.String()},
		NodeName:   new(nodeOf(address)),
		Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
	}
	for _, word := range args[2:] {
		switch name, value, _ := strings.Cut(word, "="); name {
		case "gone":
			return w.client.Delete(ctx, slice)
		case "node":
			endpoint.NodeName = &value
		case "notserving":
			endpoint.Conditions.Ready, endpoint.Conditions.Serving = new(false), new(false)
		case "terminating":
			endpoint.Conditions.Ready, endpoint.Conditions.Terminating = new(false), new(true)
		default:
			return fmt.Errorf("what is %q?", word)
		}
	}
	if endpoint.NodeName != nil && *endpoint.NodeName == "" {
		endpoint.NodeName = nil
	}
	if err := w.inNamespace(ctx, service.Namespace); err != nil {
		return err
	}
	_, err = controllerutil.CreateOrUpdate(ctx, w.client, slice, func() error {
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: service.Name}
		slice.AddressType = discoveryv1.AddressTypeIPv4
		if address.Is6() {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		slice.Ports = []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}}
		slice.Endpoints = []discoveryv1.Endpoint{endpoint}
		return nil
	})
	return err
}

// nodeOf is the node whose pod subnet has the address; empty for other addresses.
func nodeOf(address netip.Addr) string {
	number := byte(0)
	switch {
	case netip.MustParsePrefix("10.244.0.0/16").Contains(address):
		number = address.As4()[2]
	case netip.MustParsePrefix("fd00:10:244::/48").Contains(address):
		number = address.As16()[7]
	}
	if number < 1 || number > 26 {
		return ""
	}
	return string(rune('a' + number - 1))
}

// makeEgress is the command "egress": the EgressService has what the words say and nothing else.
func (w *world) makeEgress(ctx context.Context, args ...string) error {
	egress := &egressv1.EgressService{}
	words, deleted, err := w.subject(ctx, args, egress)
	if err != nil || deleted {
		return err
	}
	var spec egressv1.EgressServiceSpec
	policy := ""
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "selector":
			label, wanted, _ := strings.Cut(value, "=")
			metav1.AddLabelToSelector(&spec.NodeSelector, label, wanted)
		case "network":
			spec.Network = value
		case "by":
			spec.SourceIPBy = egressv1.SourceIPMode(value)
		case "policy":
			policy = value
		default:
			return fmt.Errorf("what is %q?", word)
		}
	}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		_, err := controllerutil.CreateOrUpdate(ctx, w.client, egress, func() error {
			egress.Spec = spec
			annotate(egress, v1alpha1.FailurePolicyAnnotation, policy)
			return nil
		})
		return err
	})
}
