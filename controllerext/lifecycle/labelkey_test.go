// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
)

func TestLabelKey(t *testing.T) {
	long := strings.Repeat("n", 40)
	tests := []struct {
		name, namespace, service string
		taken                    bool
		want                     string
	}{
		{"upstream's spelling", "example-namespace", "example-service", false, "egress-service.k8s.ovn.org/example-namespace-example-service"},
		{"R1 63 characters fit", long, strings.Repeat("s", 22), false, "egress-service.k8s.ovn.org/" + long + "-" + strings.Repeat("s", 22)},
		{"R1 64 do not", long, strings.Repeat("s", 23), false, "egress-service.k8s.ovn.org/" + Digest(long, strings.Repeat("s", 23))},
		{"R2 taken by an older service", "a", "b-c", true, "egress-service.k8s.ovn.org/" + Digest("a", "b-c")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := LabelKey(test.namespace, test.service, func(string) bool { return test.taken })
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	if a, b := Digest("a-b", "c"), Digest("a", "b-c"); a == b || len(a) != 16 {
		t.Errorf("digests %s and %s", a, b)
	}
}

// However namespaces and names are chosen, every key is a valid label, and no two services that live
// at the same time have the same one, in whichever order they come and go.
func TestLabelKeysAreValidAndUnique(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	// Few letters and many hyphens: ambiguous spellings are the rule.
	part := func(longest int) string {
		var b strings.Builder
		for range 1 + random.IntN(longest) {
			b.WriteByte("ab-"[random.IntN(3)])
		}
		return "a" + b.String() + "b"
	}
	type service struct{ namespace, name string }
	keys, holders := map[service]string{}, map[string]service{}
	ambiguous := 0
	for range 20000 {
		longest := 3
		if random.IntN(10) == 0 {
			longest = 61
		}
		s := service{part(longest), part(longest)}
		if key, live := keys[s]; live {
			delete(keys, s)
			delete(holders, key)
			continue
		}
		key := LabelKey(s.namespace, s.name, func(key string) bool { _, taken := holders[key]; return taken })
		if other, taken := holders[key]; taken {
			t.Fatalf("seed %d: %v and %v share %s", seed, s, other, key)
		}
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			t.Fatalf("seed %d: %v: %s: %v", seed, s, key, errs)
		}
		if key != egressv1.LabelPrefix+s.namespace+"-"+s.name {
			ambiguous++
		}
		keys[s], holders[key] = key, s
	}
	if ambiguous < 1000 {
		t.Errorf("seed %d: %d digests: the test looks at nothing", seed, ambiguous)
	}
}
