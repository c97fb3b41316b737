// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"errors"
	"fmt"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

// event changes something of service i.
func (w *modelWorld) event(i int) string {
	w.Helper()
	name := w.service(i)
	switch w.random.IntN(14) {
	case 0, 1:
		on := w.random.IntN(4) > 0
		change(w.rig, types.NamespacedName{Name: "n1"}, &corev1.Node{}, func(n *corev1.Node) {
			if n.Labels == nil {
				n.Labels = map[string]string{}
			}
			delete(n.Labels, w.labelKey(i))
			if on {
				n.Labels[w.labelKey(i)] = ""
			}
		})
		return fmt.Sprintf("label %t", on)
	case 2, 3, 4:
		if read(w, name, &v1alpha1.EgressAssignment{}) == nil {
			w.newAssignment(i)
			return "a new assignment"
		}
		primary, standby, sources := w.pick("n1", "n1", "n1", "n2", ""), w.pick("n1", "n2", ""), w.someAddresses()
		change(w.rig, name, &v1alpha1.EgressAssignment{}, func(a *v1alpha1.EgressAssignment) {
			a.Spec.Primary, a.Spec.Standby, a.Spec.SourceIPs = primary, standby, sources
			a.Spec.Epoch++
			a.Generation++
		})
		return fmt.Sprintf("primary %q, standby %q, sources %v", primary, standby, sources)
	case 5:
		before := w.assignment(i)
		w.remove(&v1alpha1.EgressAssignment{}, name)
		if before == nil || w.random.IntN(3) == 0 {
			return "no assignment"
		}
		again := &v1alpha1.EgressAssignment{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, OwnerReferences: before.OwnerReferences}, Spec: before.Spec}
		w.create(again)
		return "the same assignment made anew"
	case 6:
		w.remove(&egressv1.EgressService{}, name)
		if w.random.IntN(3) == 0 {
			return "no EgressService"
		}
		w.newEgressService(i)
		return "another EgressService of the same name"
	case 7:
		if read(w, name, &egressv1.EgressService{}) == nil {
			w.newEgressService(i)
			return "an EgressService"
		}
		by := w.pick("LoadBalancerIP", "LoadBalancerIP", "Network")
		change(w.rig, name, &egressv1.EgressService{}, func(e *egressv1.EgressService) { e.Spec.SourceIPBy = egressv1.SourceIPMode(by) })
		return "sourceIPBy " + by
	case 8:
		addresses := w.someAddresses()
		w.remove(&corev1.Service{}, name)
		if len(addresses) == 0 && w.random.IntN(2) == 0 {
			return "no Service"
		}
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
		for _, a := range addresses {
			service.Status.LoadBalancer.Ingress = append(service.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
		w.create(service)
		return fmt.Sprintf("LoadBalancer IPs %v", addresses)
	case 9, 10:
		writer := w.pick("metallb-n1", "another-writer")
		offered := w.someAddresses()
		w.configure(writer, offered)
		return fmt.Sprintf("FRRConfiguration %s: %v", writer, offered)
	case 11:
		writer := w.pick("metallb-n1", "another-writer")
		w.remove(&bgp.FRRConfiguration{}, types.NamespacedName{Namespace: modelNamespace, Name: writer})
		return "no FRRConfiguration " + writer
	case 12:
		endpoint := fmt.Sprintf("10.244.1.%d", 5+w.random.IntN(2))
		change(w.rig, types.NamespacedName{Namespace: "ns", Name: "s-1"}, &discoveryv1.EndpointSlice{}, func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{endpoint}}}
		})
		return "endpoint " + endpoint
	default:
		if w.dataplane.err == nil {
			w.dataplane.err = errors.New("no")
			return "the dataplane fails"
		}
		w.dataplane.err = nil
		return "the dataplane works"
	}
}

func (w *modelWorld) newAssignment(i int) {
	egress := read(w, w.service(i), &egressv1.EgressService{})
	owner := types.UID("of an EgressService that is gone")
	if egress != nil {
		owner = egress.UID
	}
	w.create(&v1alpha1.EgressAssignment{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.service(i).Namespace, Name: w.service(i).Name, Generation: 1, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "k8s.ovn.org/v1", Kind: "EgressService", Name: w.service(i).Name, UID: owner, Controller: new(true)},
		}},
		Spec: v1alpha1.EgressAssignmentSpec{
			Epoch: 1, Primary: w.pick("n1", "n1", ""), Standby: w.pick("n1", "n2"), LabelKey: w.labelKey(i), SourceIPBy: "LoadBalancerIP",
			SourceIPs: w.someAddresses(), FailurePolicy: v1alpha1.FailOpen,
		},
	})
}

// configure writes an FRRConfiguration that offers the addresses to the peer, and an ordinary one.
func (w *modelWorld) configure(writer string, addresses []string) {
	w.Helper()
	w.remove(&bgp.FRRConfiguration{}, types.NamespacedName{Namespace: modelNamespace, Name: writer})
	var offered []string
	for _, a := range addresses {
		offered = append(offered, a+"/32")
	}
	w.create(&bgp.FRRConfiguration{FRRConfiguration: frrk8sv1beta1.FRRConfiguration{
		ObjectMeta: metav1.ObjectMeta{Namespace: modelNamespace, Name: writer},
		Spec: frrk8sv1beta1.FRRConfigurationSpec{BGP: frrk8sv1beta1.BGPConfig{Routers: []frrk8sv1beta1.Router{{
			ASN: 64513, Prefixes: offered,
			Neighbors: []frrk8sv1beta1.Neighbor{{
				ASN: sinkASN, Address: "127.0.0.1", Port: new(w.peer.port()), ConnectTime: &metav1.Duration{Duration: 2 * time.Second},
				ToAdvertise: frrk8sv1beta1.Advertise{Allowed: frrk8sv1beta1.AllowedOutPrefixes{Mode: frrk8sv1beta1.AllowAll}},
			}},
		}}}},
	}})
}
