// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Merger is Merge with a memory of one: what it returned last it returns again while nothing that goes
// in has changed, which is so whenever only the guard has. The zero Merger is ready for use by one
// goroutine.
type Merger struct {
	node     NodeView
	selects  map[version]bool // of objects seen lately: whether they concern the node
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

// Merge is the function of that name. Objects need UIDs and resource versions; those that select other
// nodes cost next to nothing. The result must not be changed.
func (m *Merger) Merge(node NodeView, objects []FRRConfiguration, secret func(name string) (password string, err error)) (Config, []Problem) {
	if !reflect.DeepEqual(node, m.node) {
		*m = Merger{node: node}
	}
	objects, versions := m.concerned(objects)
	if m.secrets != nil && slices.Equal(versions, m.versions) && m.sameSecrets(secret) {
		return m.config, m.problems
	}
	m.versions, m.secrets = versions, map[string]answer{}
	m.config, m.problems = Merge(node, objects, func(name string) (string, error) {
		password, err := secret(name)
		m.secrets[name] = answerOf(password, err)
		return password, err
	})
	return m.config, m.problems
}

// concerned are the objects that select the node, or nothing that can be read, ordered by UID: caches
// list in any order.
func (m *Merger) concerned(objects []FRRConfiguration) (list []FRRConfiguration, versions []version) {
	selects := map[version]bool{}
	for i := range objects {
		v := version{objects[i].UID, objects[i].ResourceVersion}
		concerns, known := m.selects[v]
		if !known {
			selector, err := metav1.LabelSelectorAsSelector(&objects[i].Spec.NodeSelector)
			concerns = err != nil || selector.Matches(labels.Set(m.node.Labels))
		}
		selects[v] = concerns
		if concerns {
			list = append(list, objects[i])
		}
	}
	m.selects = selects
	slices.SortFunc(list, func(a, b FRRConfiguration) int { return strings.Compare(string(a.UID), string(b.UID)) })
	for i := range list {
		versions = append(versions, version{list[i].UID, list[i].ResourceVersion})
	}
	return list, versions
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
