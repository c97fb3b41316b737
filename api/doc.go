// SPDX-License-Identifier: Apache-2.0

// Package api holds the Kubernetes types in its subpackages, and the generated
// CustomResourceDefinitions.
package api

import "embed"

// CRDs are the generated CustomResourceDefinitions, one YAML file each in crds/.
//
//go:embed crds/*.yaml
var CRDs embed.FS
