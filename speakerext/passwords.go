// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"errors"
	"fmt"
	"time"

	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// secretsTimeout bounds the reading of all Secrets of one sync: a withdrawal waits behind it.
	secretsTimeout = time.Second
	// secretAge is how long a Secret that was read is taken to be unchanged, and how long
	// the next try waits after one that could not be read.
	secretAge = 10 * time.Second
)

// password is a Secret as read last.
type password struct {
	value  string
	err    error
	readAt time.Time
}

// readPasswords reads the Secrets that the objects refer to, those that were read lately
// excepted, and returns the look-up that merging needs, and when to read again those that
// failed. While the API server can't be asked, the last answer holds: a session must not fall
// over that, and a withdrawal must not wait for it.
func (s *Speaker) readPasswords(ctx context.Context, objects []frrk8sv1beta1.FRRConfiguration) (lookUp func(name string) (string, error), again time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, secretsTimeout)
	defer cancel()
	current := map[string]password{}
	for _, object := range objects {
		for _, router := range object.Spec.BGP.Routers {
			for _, neighbor := range router.Neighbors {
				name := neighbor.PasswordSecret.Name
				if _, done := current[name]; name != "" && !done {
					current[name] = s.readPassword(ctx, name)
				}
				if current[name].err != nil {
					again = secretAge
				}
			}
		}
	}
	delete(current, "")
	s.passwords = current
	return func(name string) (string, error) { return current[name].value, current[name].err }, again
}

func (s *Speaker) readPassword(ctx context.Context, name string) password {
	last, known := s.passwords[name]
	if known && s.Now().Sub(last.readAt) < secretAge {
		return last
	}
	value, unread, err := s.fetchPassword(ctx, name)
	if unread && known && last.err == nil {
		value, err = last.value, nil
	}
	return password{value: value, err: err, readAt: s.Now()}
}

// fetchPassword asks the API server. Unread tells an error of the asking from an unfit Secret.
func (s *Speaker) fetchPassword(ctx context.Context, name string) (value string, unread bool, err error) {
	secret, err := get(ctx, s.Secrets, types.NamespacedName{Namespace: s.FRRNamespace, Name: name}, &corev1.Secret{})
	switch {
	case err != nil:
		return "", true, err
	case secret == nil:
		return "", false, fmt.Errorf("secret %s/%s does not exist", s.FRRNamespace, name)
	case secret.Type != corev1.SecretTypeBasicAuth:
		return "", false, fmt.Errorf("secret %s/%s is not of type %s", s.FRRNamespace, name, corev1.SecretTypeBasicAuth)
	}
	bytes, ok := secret.Data[corev1.BasicAuthPasswordKey]
	if !ok {
		return "", false, fmt.Errorf("secret %s/%s: %w", s.FRRNamespace, name, errors.New("it has no key "+corev1.BasicAuthPasswordKey))
	}
	return string(bytes), false, nil
}
