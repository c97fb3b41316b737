// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// Edit is a change of an advertisement that is not ours.
type Edit struct {
	// Advertisement is the one as it is.
	Advertisement *BGPAdvertisement
	// Exclude is true where the egress services are excluded from it, false where that is undone.
	Exclude bool
	// Patch is a JSON patch (RFC 6902), which fails where the advertisement has changed meanwhile.
	Patch []byte
}

// excluded are serviceSelectors that match what the given ones do, but for the Services with our label.
func excluded(items []metav1.LabelSelector) []metav1.LabelSelector {
	if len(items) == 0 {
		items = []metav1.LabelSelector{{}}
	}
	after := make([]metav1.LabelSelector, 0, len(items))
	for _, item := range items {
		one := *item.DeepCopy()
		if !slices.ContainsFunc(one.MatchExpressions, keepsOut) {
			one.MatchExpressions = append(one.MatchExpressions, lacks(v1alpha1.ServiceLabel))
		}
		after = append(after, one)
	}
	return distinct(after)
}

// included is the opposite of excluded: items of which nothing else is left match every Service.
func included(items []metav1.LabelSelector) []metav1.LabelSelector {
	var after []metav1.LabelSelector
	for _, item := range items {
		one := *item.DeepCopy()
		one.MatchExpressions = slices.DeleteFunc(one.MatchExpressions, keepsOut)
		if len(one.MatchExpressions) == 0 {
			one.MatchExpressions = nil
		}
		if len(items) == 1 && len(one.MatchLabels) == 0 && one.MatchExpressions == nil {
			return nil
		}
		after = append(after, one)
	}
	return after
}

// keepsOut is true for the requirement that excludes egress services.
func keepsOut(r requirement) bool {
	return r.Key == v1alpha1.ServiceLabel && r.Operator == metav1.LabelSelectorOpDoesNotExist
}

// excludes is true when no item matches a Service with our label.
func excludes(items []metav1.LabelSelector) bool {
	return len(items) > 0 && !slices.ContainsFunc(items, func(s metav1.LabelSelector) bool { return !slices.ContainsFunc(s.MatchExpressions, keepsOut) })
}

// canExclude is false for aggregates, which MetalLB takes no serviceSelectors for.
func canExclude(a *BGPAdvertisement) bool {
	return hostRoute(a, true) && hostRoute(a, false)
}

// hostRoute is true when the advertisement announces single addresses of the family.
func hostRoute(a *BGPAdvertisement, ipv4 bool) bool {
	length, full := a.Spec.AggregationLengthV6, int32(128)
	if ipv4 {
		length, full = a.Spec.AggregationLength, 32
	}
	return length == nil || *length == full
}

// edits are the changes of others' advertisements: exclusions where egress services need them, and the end of those that none needs.
func (v *view) edits() []Edit {
	var all []Edit
	for _, o := range v.foreign {
		wanted := o.excluded && v.Manage
		switch {
		case wanted && !excludes(o.Spec.ServiceSelectors):
			// What somebody has changed since is the original now, without what is left of our exclusion.
			original := o.Spec.ServiceSelectors
			if o.edited {
				original = o.original()
			}
			all = append(all, o.edit(true, excluded(original), original))
		case !wanted && o.edited:
			all = append(all, o.edit(false, o.original(), nil))
		}
	}
	return all
}

// original are the serviceSelectors from before the exclusion: exactly as they were, unless somebody has changed them since.
func (o *other) original() []metav1.LabelSelector {
	var before []metav1.LabelSelector
	err := json.Unmarshal([]byte(o.Annotations[v1alpha1.OriginalSelectorsAnnotation]), &before)
	if err == nil && equality.Semantic.DeepEqual(excluded(before), o.Spec.ServiceSelectors) {
		return before
	}
	return included(o.Spec.ServiceSelectors)
}

// operation is one of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

const selectorsPath = "/spec/serviceSelectors"

// edit is a change of the serviceSelectors, with the mark that remembers the original ones, or without it.
func (o *other) edit(exclude bool, after, original []metav1.LabelSelector) Edit {
	operations := []operation{{"test", "/metadata/resourceVersion", o.ResourceVersion}}
	mark := "/metadata/annotations/" + escaped(v1alpha1.OriginalSelectorsAnnotation)
	switch {
	case !exclude:
		operations = append(operations, operation{Op: "remove", Path: mark})
	case o.Annotations == nil:
		operations = append(operations, operation{"add", "/metadata/annotations", map[string]string{v1alpha1.OriginalSelectorsAnnotation: text(original)}})
	default:
		operations = append(operations, operation{"add", mark, text(original)})
	}
	switch {
	case len(after) > 0:
		operations = append(operations, operation{"add", selectorsPath, after})
	case len(o.Spec.ServiceSelectors) > 0:
		operations = append(operations, operation{Op: "remove", Path: selectorsPath})
	}
	return Edit{Advertisement: o.BGPAdvertisement, Exclude: exclude, Patch: []byte(text(operations))}
}

// remedy is a command that excludes the egress services from an advertisement.
func remedy(kind, namespace, name string, items []metav1.LabelSelector) string {
	return fmt.Sprintf("kubectl -n %s patch %s %s --type=json -p='%s'", namespace, kind, name,
		text([]operation{{"add", selectorsPath, excluded(items)}}))
}

// text is JSON. What is given is always made of strings, lists and maps.
func text(value any) string {
	body, err := json.Marshal(value)
	if err != nil {
		return "null"
	}
	return string(body)
}

// escaped is a JSON pointer's token (RFC 6901 §3).
func escaped(token string) string {
	var after []byte
	for i := range len(token) {
		switch token[i] {
		case '~':
			after = append(after, "~0"...)
		case '/':
			after = append(after, "~1"...)
		default:
			after = append(after, token[i])
		}
	}
	return string(after)
}
