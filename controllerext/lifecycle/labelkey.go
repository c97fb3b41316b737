// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
)

// maxLabelName is the limit of the name part of a label key, in bytes
// (k8s.io/apimachinery/pkg/util/validation, qualifiedNameMaxLength).
const maxLabelName = 63

// LabelKey is the key of the public node label of a service. Upstream's spelling
// <namespace>-<name> is ambiguous ("a-b"/"c" and "a"/"b-c") and may be too long: where taken
// says that another service has the key already, or it does not fit, the name part is the
// service's Digest. A digest has no hyphen, and so is never another service's plain spelling.
func LabelKey(namespace, name string, taken func(key string) bool) string {
	plain := egressv1.LabelPrefix + namespace + "-" + name
	if len(namespace)+1+len(name) <= maxLabelName && !taken(plain) {
		return plain
	}
	return egressv1.LabelPrefix + Digest(namespace, name)
}

// Digest is 16 hexadecimal digits of the SHA-256 of "<namespace>/<name>": a short name for a
// service. Somebody who may choose both freely can, with effort (2^32 tries), have two services
// with one digest: the controller serves the older alone.
func Digest(namespace, name string) string {
	sum := sha256.Sum256([]byte(namespace + "/" + name))
	return hex.EncodeToString(sum[:8])
}
