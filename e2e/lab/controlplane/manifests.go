// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fieldOwner is the field manager of everything that the lab applies.
const fieldOwner = client.FieldOwner("lab")

const definitionKind = "CustomResourceDefinition"

const establishTimeout = 30 * time.Second

// InstallCRDs applies every CustomResourceDefinition in the YAML files of a folder and those below it, and waits until the API server has
// established them. Anything else in those files is an error.
func (c *ControlPlane) InstallCRDs(ctx context.Context, definitions fs.FS) error {
	objects, err := readManifests(definitions)
	if err != nil {
		return fmt.Errorf("read CRDs: %w", err)
	}
	if len(objects) == 0 {
		return errors.New("read CRDs: none there")
	}
	for _, object := range objects {
		if object.GetKind() != definitionKind {
			return fmt.Errorf("read CRDs: %s %s is none", object.GetKind(), object.GetName())
		}
	}
	if err := c.apply(ctx, objects); err != nil {
		return err
	}
	for _, object := range objects {
		err := poll(ctx, establishTimeout, "CRD "+object.GetName(), func(ctx context.Context) error {
			current := &unstructured.Unstructured{}
			current.SetGroupVersionKind(object.GroupVersionKind())
			if err := c.client.Get(ctx, client.ObjectKeyFromObject(object), current); err != nil {
				return err
			}
			return established(current)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// established tells whether the API server serves a definition's kinds: condition Established of CustomResourceDefinition.
func established(definition *unstructured.Unstructured) error {
	conditions, _, err := unstructured.NestedSlice(definition.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, entry := range conditions {
		condition, ok := entry.(map[string]any)
		if ok && condition["type"] == "Established" && condition["status"] == "True" {
			return nil
		}
	}
	return errors.New("not established")
}

// apply writes objects by server-side apply, taking over fields that somebody else has.
func (c *ControlPlane) apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		err := c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), fieldOwner, client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), client.ObjectKeyFromObject(object), err)
		}
	}
	return nil
}

// readManifests returns the objects in all YAML files below a folder, in the order of the files' names.
func readManifests(folder fs.FS) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	err := fs.WalkDir(folder, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || (path.Ext(name) != ".yaml" && path.Ext(name) != ".yml") {
			return err
		}
		text, err := fs.ReadFile(folder, name)
		if err != nil {
			return err
		}
		found, err := parseManifests(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, found...)
		return nil
	})
	return objects, err
}

// parseManifests returns the objects in a file of YAML documents.
func parseManifests(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		switch {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, err
		case len(object.Object) == 0: // a document of comments only
			continue
		case object.GroupVersionKind() == schema.GroupVersionKind{} || object.GetName() == "":
			return nil, errors.New("a document without kind or name")
		}
		objects = append(objects, object)
	}
}
