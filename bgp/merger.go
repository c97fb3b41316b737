// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"reflect"

	"k8s.io/apimachinery/pkg/types"
)

// Merger is Merge with a memory of one: what it returned last it returns again while nothing that goes
// in has changed, which is so whenever only the guard has. The zero Merger is ready for use by one
// goroutine.
type Merger struct {
	node     NodeView
	versions []version
	secrets  map[string]answer
	config   Config
	problems []Problem
}

// version tells one state of one object.
type version struct {
	uid             types.UID
	resourceVersion string
}

// answer is what a look-up of a password said.
type answer struct {
	password, problem string
}

// Merge is the function of that name. Objects need UIDs and resource versions. The result must not be
// changed.
func (m *Merger) Merge(node NodeView, objects []FRRConfiguration, secret func(name string) (password string, err error)) (Config, []Problem) {
	versions := make([]version, len(objects))
	for i := range objects {
		versions[i] = version{objects[i].UID, objects[i].ResourceVersion}
	}
	if m.secrets != nil && reflect.DeepEqual(versions, m.versions) && reflect.DeepEqual(node, m.node) && m.sameSecrets(secret) {
		return m.config, m.problems
	}
	m.node, m.versions, m.secrets = node, versions, map[string]answer{}
	m.config, m.problems = Merge(node, objects, func(name string) (string, error) {
		password, err := secret(name)
		m.secrets[name] = answerOf(password, err)
		return password, err
	})
	return m.config, m.problems
}

func (m *Merger) sameSecrets(secret func(string) (string, error)) bool {
	for name, before := range m.secrets {
		if answerOf(secret(name)) != before {
			return false
		}
	}
	return true
}

func answerOf(password string, err error) answer {
	if err != nil {
		return answer{problem: err.Error()}
	}
	return answer{password: password}
}
