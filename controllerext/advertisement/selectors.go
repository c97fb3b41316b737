// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// requirement is one of those that all have to hold for a selector to match.
type requirement = metav1.LabelSelectorRequirement

// requirements are a selector's: its matchLabels as requirements, ordered by key, and its matchExpressions.
func requirements(s metav1.LabelSelector) []requirement {
	all := make([]requirement, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		all = append(all, requirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{s.MatchLabels[key]}})
	}
	return append(all, s.MatchExpressions...)
}

// selector is the opposite of requirements, in its simplest spelling.
func selector(all []requirement) metav1.LabelSelector {
	var s metav1.LabelSelector
	for _, r := range all {
		if _, taken := s.MatchLabels[r.Key]; r.Operator == metav1.LabelSelectorOpIn && len(r.Values) == 1 && !taken {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[r.Key] = r.Values[0]
			continue
		}
		if !slices.ContainsFunc(s.MatchExpressions, func(other requirement) bool { return equality.Semantic.DeepEqual(r, other) }) {
			s.MatchExpressions = append(s.MatchExpressions, r)
		}
	}
	return s
}

// without leaves the requirements out that concern a label with one of the keys.
func without(all []requirement, keys ...string) []requirement {
	return slices.DeleteFunc(slices.Clone(all), func(r requirement) bool { return slices.Contains(keys, r.Key) })
}

// has requires a label, with the empty value that all our Node labels have.
func has(key string) requirement {
	return requirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{""}}
}

// lacks requires that there is no label with the key.
func lacks(key string) requirement {
	return requirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
}

// requires is true when a selector matches nothing that lacks the label with the key.
func requires(s metav1.LabelSelector, key string) bool {
	return slices.ContainsFunc(requirements(s), func(r requirement) bool {
		return r.Key == key && (r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpExists)
	})
}

// opposite matches exactly what the requirement does not.
func opposite(r requirement) requirement {
	after := requirement{Key: r.Key, Values: r.Values}
	switch r.Operator {
	case metav1.LabelSelectorOpIn:
		after.Operator = metav1.LabelSelectorOpNotIn
	case metav1.LabelSelectorOpNotIn:
		after.Operator = metav1.LabelSelectorOpIn
	case metav1.LabelSelectorOpExists:
		after.Operator = metav1.LabelSelectorOpDoesNotExist
	default:
		after.Operator = metav1.LabelSelectorOpExists
	}
	return after
}

// maxComplement bounds the selectors that complement returns.
const maxComplement = 64

// complement matches exactly what no item matches: each of the alternatives has the opposite of one requirement of every item. It is
// false when that takes too many.
func complement(items [][]requirement) ([][]requirement, bool) {
	alternatives := [][]requirement{nil}
	for _, item := range items {
		var next [][]requirement
		for _, so := range alternatives {
			for _, r := range item {
				next = append(next, append(slices.Clone(so), opposite(r)))
			}
		}
		if len(next) > maxComplement {
			return nil, false
		}
		alternatives = next
	}
	return alternatives, true
}

// distinct leaves out what is there already: MetalLB refuses lists with the same selector twice.
func distinct(items []metav1.LabelSelector) []metav1.LabelSelector {
	var kept []metav1.LabelSelector
	for _, item := range items {
		if !slices.ContainsFunc(kept, func(other metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(item, other) }) {
			kept = append(kept, item)
		}
	}
	return kept
}

// matchers are parsed selectors, of which one has to match; none at all match everything.
type matchers []labels.Selector

// parse is false for selectors that can't be parsed: MetalLB takes no configuration with such a one in it.
func parse(items []metav1.LabelSelector) (matchers, bool) {
	parsed := make(matchers, 0, len(items))
	for i := range items {
		one, err := metav1.LabelSelectorAsSelector(&items[i])
		if err != nil {
			return nil, false
		}
		parsed = append(parsed, one)
	}
	return parsed, true
}

func (m matchers) match(set map[string]string) bool {
	return len(m) == 0 || slices.ContainsFunc(m, func(s labels.Selector) bool { return s.Matches(labels.Set(set)) })
}
