// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/bgp"
)

const (
	// reasonNotHonored is the reason of events on FRRConfigurations.
	reasonNotHonored = "NotHonored"
	// maxNote is the limit of an event's note, in bytes, less what is put around it.
	maxNote = 1024 - 300
)

// report says on EgressNode, by events and by a metric what of the FRRConfigurations is not honored. An
// object gets an event when this node has something else to say of it than before.
func (s *Speaker) report(objects []bgp.FRRConfiguration, findings []bgp.Problem) {
	lines := make([]string, 0, len(findings))
	perObject := map[string][]string{}
	for _, finding := range findings {
		lines = append(lines, finding.String())
		text := finding.Message
		if finding.Neighbor != "" {
			text = "neighbor " + finding.Neighbor + ": " + text
		}
		perObject[finding.Object] = append(perObject[finding.Object], text)
	}
	s.ledger.setProblems("bgp", lines)
	counts := map[types.NamespacedName]int{}
	noted := map[types.UID]string{}
	for i := range objects {
		object := &objects[i]
		texts := perObject[object.Namespace+"/"+object.Name]
		if len(texts) == 0 {
			continue
		}
		counts[types.NamespacedName{Namespace: object.Namespace, Name: object.Name}] = len(texts)
		noted[object.UID] = note(texts)
		if s.noted[object.UID] != noted[object.UID] {
			s.Recorder.Eventf(object, nil, corev1.EventTypeWarning, reasonNotHonored, "Merge", "node %s: %s", s.Node, noted[object.UID])
		}
	}
	s.noted = noted
	s.ledger.setFindings(counts)
}

// note joins as many texts as fit into an event.
func note(texts []string) string {
	var b strings.Builder
	for i, text := range texts {
		if i > 0 && b.Len()+len(text) > maxNote {
			fmt.Fprintf(&b, "; and %d more, see EgressNode", len(texts)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(strings.ToValidUTF8(text[:min(len(text), maxNote)], ""))
	}
	return b.String()
}

// Findings is how many problems each FRRConfiguration has on this node, those with none left out.
func (s *Speaker) Findings() map[types.NamespacedName]int { return maps.Clone(s.ledger.allFindings()) }
