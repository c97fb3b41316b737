// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// passwords looks up BGP passwords, as frr-k8s does: in Secrets of type kubernetes.io/basic-auth beside
// the FRRConfigurations. While the API server is away, the cache's last word holds.
func (s *Speaker) passwords(ctx context.Context) func(name string) (string, error) {
	return func(name string) (string, error) {
		secret, err := get(ctx, s.Client, types.NamespacedName{Namespace: s.FRRNamespace, Name: name}, &corev1.Secret{})
		if err != nil {
			return "", err
		}
		if secret == nil || secret.Type != corev1.SecretTypeBasicAuth {
			return "", fmt.Errorf("there is no Secret %s/%s of type %s", s.FRRNamespace, name, corev1.SecretTypeBasicAuth)
		}
		password, ok := secret.Data[corev1.BasicAuthPasswordKey]
		if !ok {
			return "", fmt.Errorf("secret %s/%s has no key %s", s.FRRNamespace, name, corev1.BasicAuthPasswordKey)
		}
		return string(password), nil
	}
}
