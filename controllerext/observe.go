// SPDX-License-Identifier: Apache-2.0

package controllerext

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/controllerext/election"
	"github.com/metallb-egress/metallb-egress/controllerext/lifecycle"
	"github.com/metallb-egress/metallb-egress/controllerext/liveness"
)

// candidates are the election's view of the nodes. It returns when that may change by time alone.
func (c *Controller) candidates(s *snapshot) ([]election.Node, liveness.Verdict, time.Duration) {
	now := c.Now()
	verdict := c.judge(s, now)
	unknown := 0
	for _, node := range s.nodes {
		if readiness(node) == corev1.ConditionUnknown {
			unknown++
		}
	}
	suspicion, again := c.outage.judge(now, unknown, len(s.nodes))
	found := make([]election.Node, len(s.nodes))
	for i, node := range s.nodes {
		found[i] = c.candidate(node, s.reports[node.Name], verdict.Nodes[node.Name])
		if readiness(node) == corev1.ConditionUnknown {
			found[i].Ready = suspicion.Ready
			found[i].Silent, found[i].Lost = found[i].Silent || suspicion.Lost, found[i].Lost || suspicion.Lost
		}
	}
	return found, verdict, sooner(verdict.Again, again)
}

// judge tells the tracker what the nodes report, and asks it who lives.
func (c *Controller) judge(s *snapshot, now time.Time) liveness.Verdict {
	c.shared.mutex.Lock()
	defer c.shared.mutex.Unlock()
	there := make(map[string]bool, len(s.nodes))
	for _, node := range s.nodes {
		there[node.Name] = true
		report := s.reports[node.Name]
		if report == nil {
			continue
		}
		established, graceful := false, false
		for _, session := range report.Status.BGPSessions {
			if session.State == sessionEstablished {
				established, graceful = true, graceful || session.GracefulRestart
			}
		}
		c.shared.tracker.Reported(now, node.Name, established, graceful)
	}
	c.shared.tracker.Keep(there)
	return c.shared.tracker.Judge(now)
}

// sessionEstablished is the state of a BGP session that is up (RFC 4271 §8.2.2).
const sessionEstablished = "Established"

// candidate is the election's view of one node.
func (c *Controller) candidate(node *corev1.Node, report *v1alpha1.EgressNode, health liveness.Health) election.Node {
	_, excluded := node.Labels[corev1.LabelNodeExcludeBalancers]
	found := election.Node{
		Name: node.Name, Labels: node.Labels, Zone: node.Labels[corev1.LabelTopologyZone],
		Ready: readiness(node) == corev1.ConditionTrue, Deleting: node.DeletionTimestamp != nil,
		Excluded: excluded && !c.IgnoreExclude, Cordoned: node.Spec.Unschedulable,
		NetworkUnavailable: condition(node, corev1.NodeNetworkUnavailable) == corev1.ConditionTrue,
		Reporting:          report != nil, Silent: health.Silent, Lost: health.Lost, SessionHeld: health.SessionHeld,
	}
	if report != nil {
		found.Networks = report.Status.Networks
		found.SharedGateway = sharedGateway(report)
		found.SessionEstablished = slices.ContainsFunc(report.Status.BGPSessions, func(b v1alpha1.BGPSession) bool { return b.State == sessionEstablished })
	}
	return found
}

func sharedGateway(report *v1alpha1.EgressNode) bool { return report.Status.GatewayMode == "shared" }

// readiness is the node's Ready condition. One that has none has not joined yet.
func readiness(node *corev1.Node) corev1.ConditionStatus { return condition(node, corev1.NodeReady) }

func condition(node *corev1.Node, kind corev1.NodeConditionType) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return corev1.ConditionFalse
}

// observe gathers what there is to know of every EgressService, oldest first.
func (c *Controller) observe(s *snapshot) []*work {
	works := make([]*work, 0, len(s.egressServices))
	owned := owners{}
	keys := map[string]bool{}
	for _, egress := range s.egressServices {
		w := &work{key: client.ObjectKeyFromObject(egress), egress: egress}
		w.digest = lifecycle.Digest(w.key.Namespace, w.key.Name)
		w.service = s.services[w.key]
		// One left by an EgressService of the same name that is gone counts for nothing; it is
		// swept away.
		if a := s.assignments[w.key]; a != nil && metav1.IsControlledBy(a, egress) {
			w.before = a
			keys[a.Spec.LabelKey] = true
		}
		w.endpoints = s.endpoints(w.key)
		w.behind = s.behind[w.key.String()]
		if w.exclusive() {
			w.conflicts = owned.claim(w.key, w.endpoints.addresses)
		} else {
			w.incapable = s.incapable(egress.Spec.Network, w.endpoints)
		}
		works = append(works, w)
	}
	diverted := s.diverted(owned)
	for _, w := range works {
		w.diverted = diverted[w.key]
		w.observed = c.wants(s, w)
		if w.before == nil {
			w.observed.Want.LabelKey = lifecycle.LabelKey(w.key.Namespace, w.key.Name, func(key string) bool { return keys[key] })
			keys[w.observed.Want.LabelKey] = true
		}
	}
	refuseCollisions(works)
	return works
}

// refuseCollisions blocks every service whose digest another one has: the one in service keeps it,
// else the oldest.
func refuseCollisions(works []*work) {
	holder := make(map[string]*work, len(works))
	for _, serving := range []bool{true, false} {
		for _, w := range works {
			if serving != (w.before != nil && w.before.Spec.Primary != "") {
				continue
			}
			if other := holder[w.digest]; other != nil {
				w.observed.Blocked = v1alpha1.ReasonNameCollision
				w.observed.BlockedMessage = "the digest " + w.digest + " of its name is that of EgressService " + other.key.String() + ": rename it"
				continue
			}
			holder[w.digest] = w
		}
	}
}

// exclusive is true when the LoadBalancer IP may leave one node only.
func (w *work) exclusive() bool { return w.egress.Spec.SourceIPBy != egressv1.SourceIPNetwork }

// wants is what the service asks for, and why it can't have it at all.
func (c *Controller) wants(s *snapshot, w *work) lifecycle.Service {
	observed := lifecycle.Service{
		Key: w.key.String(), Assignment: w.before, HasEndpoints: len(w.endpoints.addresses) > 0, Reports: s.entries[w.key.String()],
		Want: v1alpha1.EgressAssignmentSpec{
			SourceIPBy: string(egressv1.SourceIPLoadBalancer), Network: w.egress.Spec.Network, FailurePolicy: c.failurePolicy(w.egress),
		},
	}
	block := func(reason, message string) { observed.Blocked, observed.BlockedMessage = reason, message }
	if !w.exclusive() {
		observed.Want.SourceIPBy = string(egressv1.SourceIPNetwork)
		return observed
	}
	var err error
	if w.selector, err = c.selectors.parse(w.egress); err != nil {
		block(v1alpha1.ReasonInvalidNodeSelector, "spec.nodeSelector: "+err.Error())
	}
	switch {
	case w.service == nil:
		block(v1alpha1.ReasonServiceNotFound, "there is no Service of this name")
	case w.service.Spec.Type != corev1.ServiceTypeLoadBalancer:
		block(v1alpha1.ReasonNotLoadBalancer, "the Service is not of type LoadBalancer")
	default:
		observed.Want.SourceIPs = sourceIPs(w.service)
		if len(observed.Want.SourceIPs) == 0 {
			block(v1alpha1.ReasonNoLoadBalancerIP, "the Service has no LoadBalancer IP yet")
		}
	}
	return observed
}

// failurePolicy is the annotation's, or the default. Another network than the one asked for is
// never taken by default: only the service's own annotation may let its pods leave through the
// main table.
func (c *Controller) failurePolicy(egress *egressv1.EgressService) v1alpha1.FailurePolicy {
	switch policy := v1alpha1.FailurePolicy(egress.Annotations[v1alpha1.FailurePolicyAnnotation]); {
	case policy == v1alpha1.FailOpen || policy == v1alpha1.FailClosed:
		return policy
	case egress.Spec.Network != "":
		return v1alpha1.FailClosed
	}
	return c.DefaultFailurePolicy
}

// sourceIPs are the Service's LoadBalancer IPs, the first of each family.
func sourceIPs(service *corev1.Service) []string {
	var found []string
	seen := map[bool]bool{}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		address, err := netip.ParseAddr(ingress.IP)
		if err != nil || seen[address.Is4()] {
			continue
		}
		seen[address.Is4()] = true
		found = append(found, address.String())
	}
	return found
}

// incapable are the nodes with endpoints that lack what sourceIPBy Network needs there, each with
// what it lacks: OVN-Kubernetes' local gateway mode, and the network.
func (s *snapshot) incapable(network string, e endpoints) []string {
	var found []string
	for node := range e.on {
		report := s.reports[node]
		switch {
		case report == nil:
			found = append(found, fmt.Sprintf("%s (%s)", node, election.SpeakerNotReported))
		case sharedGateway(report):
			found = append(found, fmt.Sprintf("%s (%s)", node, election.SharedGatewayMode))
		case network != "" && !slices.Contains(report.Status.Networks, network):
			found = append(found, fmt.Sprintf("%s (%s)", node, election.NetworkMissing))
		}
	}
	slices.Sort(found)
	return found
}

// group joins the services that share LoadBalancer IPs, and leaves every other one alone. The
// groups are in the order of their oldest members, and the members, oldest first, too.
func group(works []*work) [][]*work {
	leader := make([]int, len(works)) // index of an older work in the same group, or the own one
	find := func(i int) int {
		for leader[i] != i {
			i = leader[i]
		}
		return i
	}
	holder := map[string]int{}
	for i, w := range works {
		leader[i] = i
		if reason, _ := lifecycle.Idle(w.observed); reason != "" {
			continue
		}
		for _, address := range w.observed.Want.SourceIPs {
			if other, shared := holder[address]; shared {
				a, b := find(i), find(other)
				leader[max(a, b)] = min(a, b)
			}
			holder[address] = i
		}
	}
	index := map[int]int{}
	var groups [][]*work
	for i, w := range works {
		at, known := index[find(i)]
		if !known {
			at = len(groups)
			index[find(i)] = at
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], w)
	}
	return groups
}

// admit splits a group into the members that are elected together and those whose demands would leave
// the older ones without a node, or move them: whoever comes to share an address may not do that to
// those who have it, maybe in another namespace.
func admit(e *election.Electorate, members []*work) (admitted, refused []*work) {
	if len(members) == 1 {
		return members, nil
	}
	admitted = members[:1:1]
	for _, w := range members[1:] {
		before := electable(admitted)
		with := electable(append(admitted[:len(admitted):len(admitted)], w))
		for _, m := range admitted {
			if m.before != nil && before.Primary == "" {
				before.Primary, with.Primary = m.before.Spec.Primary, m.before.Spec.Primary
			}
		}
		without, together := e.Elect(before).Primary, e.Elect(with).Primary
		if without != "" && (together == "" || without == before.Primary && together != without) {
			refused = append(refused, w)
			continue
		}
		admitted = append(admitted, w)
	}
	return admitted, refused
}

// electable is the election's view of a group.
func electable(members []*work) election.Service {
	found := election.Service{Key: members[0].key.String()}
	for _, w := range members {
		if w.selector != nil && !w.selector.Empty() {
			found.Selectors = append(found.Selectors, w.selector)
		}
		if w.egress.Spec.Network != "" {
			found.Networks = append(found.Networks, w.egress.Spec.Network)
		}
		local := w.service != nil && w.service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		if !local || len(w.endpoints.serving) == 0 {
			// Endpoints that all go away move nothing.
			continue
		}
		if found.LocalNodes == nil {
			found.LocalNodes = w.endpoints.serving
			continue
		}
		both := map[string]bool{}
		for node := range found.LocalNodes {
			if w.endpoints.serving[node] {
				both[node] = true
			}
		}
		found.LocalNodes = both
	}
	return found
}

// maxSelector bounds the requirements and values of a nodeSelector: they are compared with every
// node, for everybody's election.
const maxSelector = 100

// selectors are parsed nodeSelectors, by EgressService.
type selectors map[types.UID]parsedSelector

type parsedSelector struct {
	generation int64
	selector   labels.Selector
	err        error
}

// parse parses a nodeSelector, once for each of its versions.
func (s selectors) parse(egress *egressv1.EgressService) (labels.Selector, error) {
	known, ok := s[egress.UID]
	if !ok || known.generation != egress.Generation || egress.Generation == 0 {
		known = parsedSelector{generation: egress.Generation}
		size := len(egress.Spec.NodeSelector.MatchLabels)
		for _, expression := range egress.Spec.NodeSelector.MatchExpressions {
			size += 1 + len(expression.Values)
		}
		if size > maxSelector {
			known.err = fmt.Errorf("%d requirements and values, at most %d are allowed", size, maxSelector)
		} else {
			known.selector, known.err = metav1.LabelSelectorAsSelector(&egress.Spec.NodeSelector)
		}
		s[egress.UID] = known
	}
	return known.selector, known.err
}

// tidy forgets the EgressServices that are gone.
func (s selectors) tidy(works []*work) {
	if len(s) <= 2*len(works) {
		return
	}
	there := make(map[types.UID]bool, len(works))
	for _, w := range works {
		there[w.egress.UID] = true
	}
	maps.DeleteFunc(s, func(uid types.UID, _ parsedSelector) bool { return !there[uid] })
}

// busy is the node that has the work of a service: its primary, or who is about to be.
func busy(spec v1alpha1.EgressAssignmentSpec) string {
	if spec.Primary != "" {
		return spec.Primary
	}
	return spec.Standby
}

// others joins the keys of other services for a message.
func others(keys []types.NamespacedName) string {
	texts := make([]string, len(keys))
	for i, key := range keys {
		texts[i] = key.String()
	}
	return names(texts)
}
