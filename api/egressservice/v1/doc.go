// SPDX-License-Identifier: Apache-2.0

// Package v1 holds the EgressService API, k8s.ovn.org/v1, that OVN-Kubernetes
// users already have. The types are this project's own and wire compatible with
// upstream's: the same group, version, kind, plural, field names and values. What
// we add (conditions, printer columns, CEL rules) is additive. The package imports
// nothing but apimachinery.
//
// +kubebuilder:object:generate=true
// +groupName=k8s.ovn.org
package v1
