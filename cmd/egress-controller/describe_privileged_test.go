// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"encoding/json"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/advertisement"
)

// describe writes what matters of each object, one line each.
func describe(to io.Writer, list client.ObjectList) error {
	return meta.EachListItem(list, func(item objectOfList) error {
		object, ok := item.(client.Object)
		if !ok || permanent(object) || object.GetNamespace() == canaries {
			return nil
		}
		var parts []any
		switch o := object.(type) {
		case *egressv1.EgressService:
			parts = []any{o.Generation, o.Spec, o.Status}
		case *v1alpha1.EgressAssignment:
			parts = []any{o.UID, o.Generation, o.Spec, o.Status}
		case *v1alpha1.EgressNode:
			parts = []any{o.Status}
		case *corev1.Node:
			parts = []any{o.Labels, o.Spec.Unschedulable, o.Status.Conditions}
		case *advertisement.BGPAdvertisement:
			parts = []any{o.Labels, o.Spec}
		default:
			return nil
		}
		text, err := json.Marshal(parts)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(to, "== %T %s %s\n", object, client.ObjectKeyFromObject(object), text)
		return err
	})
}
