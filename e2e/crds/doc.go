// SPDX-License-Identifier: Apache-2.0

// Package crds has no code: its tests let a real API server judge the CustomResourceDefinitions of api/.
// Rules in CEL, defaults and printer columns mean what the API server makes of them, and what upstream's
// definition of EgressService accepts, ours has to accept too.
//
// The API server runs without nodes and without root.
package crds
