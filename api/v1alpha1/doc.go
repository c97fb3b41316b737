// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds this project's own API, metallb-egress.io/v1alpha1: the
// EgressAssignment, which the egress-controller alone writes and every egress-speaker
// follows, and the EgressNode, with which each egress-speaker alone answers. The two
// objects are the whole protocol between the programs. The package imports nothing but
// apimachinery.
//
// +kubebuilder:object:generate=true
// +groupName=metallb-egress.io
package v1alpha1
