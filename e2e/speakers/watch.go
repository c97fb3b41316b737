// SPDX-License-Identifier: Apache-2.0

package speakers

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// nodeKind is what owns the objects of a speaker.
var nodeKind = corev1.SchemeGroupVersion.WithKind("Node")

// watch starts the two watches of the fleet and returns when both have read everything.
func (f *Fleet) watch(objects cache.Cache) error {
	// Of Nodes only the labels are needed, and the API server leaves out the rest.
	nodes := &metav1.PartialObjectMetadata{}
	nodes.SetGroupVersionKind(nodeKind)
	handlers := []struct {
		of   client.Object
		seen func(object client.Object, deleted bool)
	}{
		{&v1alpha1.EgressAssignment{}, func(object client.Object, deleted bool) {
			key := client.ObjectKeyFromObject(object).String()
			if a, ok := object.(*v1alpha1.EgressAssignment); ok && !deleted {
				f.assignmentSeen(key, a)
			} else {
				f.assignmentSeen(key, nil)
			}
		}},
		{nodes, func(object client.Object, deleted bool) {
			if deleted {
				f.labelsSeen(object.GetName(), nil)
			} else {
				f.labelsSeen(object.GetName(), object.GetLabels())
			}
		}},
	}
	f.running.Add(1)
	go func() {
		defer f.running.Done()
		// It ends without an error: with the context.
		_ = objects.Start(f.ctx)
	}()
	for _, handler := range handlers {
		informer, err := objects.GetInformer(f.ctx, handler.of)
		if err != nil {
			return err
		}
		registration, err := informer.AddEventHandler(eventHandler(handler.seen))
		if err != nil {
			return err
		}
		if !toolscache.WaitForCacheSync(f.ctx.Done(), registration.HasSynced) {
			return errors.Join(errors.New("the API server's objects could not be read"), f.ctx.Err())
		}
	}
	return nil
}

// eventHandler calls one function for every event.
func eventHandler(seen func(object client.Object, deleted bool)) toolscache.ResourceEventHandler {
	call := func(object any, deleted bool) {
		if last, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
			object = last.Obj
		}
		if object, ok := object.(client.Object); ok {
			seen(object, deleted)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { call(object, false) },
		UpdateFunc: func(_, object any) { call(object, false) },
		DeleteFunc: func(object any) { call(object, true) },
	}
}
