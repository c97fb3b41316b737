// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

// startGrace bounds how long routes are held back after a start: well below the restart time
// that peers are told (bgp.RestartTime).
const startGrace = 10 * time.Second

// SyncBGP merges the node's FRRConfigurations, takes out what the guard withholds and applies
// the rest.
//
// After a start it first waits until the dataplane has told what is programmed, at most
// startGrace: peers that kept our routes through a graceful restart would drop those that the
// first exchange lacks.
func (s *Speaker) SyncBGP(ctx context.Context) (time.Duration, error) {
	defer s.loops.enter(bgpName, s.Now)()
	if s.startedAt.IsZero() {
		s.startedAt = s.Now()
	}
	if left := startGrace - s.Now().Sub(s.startedAt); left > 0 && !s.ledger.hasStarted() {
		return left, nil
	}
	var node corev1.Node
	if err := s.Client.Get(ctx, types.NamespacedName{Name: s.Node}, &node); err != nil {
		return 0, fmt.Errorf("get node %s: %w", s.Node, err)
	}
	all, err := s.follow(ctx)
	if err != nil {
		return 0, err
	}
	var configurations bgp.FRRConfigurationList
	if err := s.list(ctx, &configurations, client.InNamespace(s.FRRNamespace)); err != nil {
		return 0, err
	}
	config, err := s.merge(ctx, &node, configurations.Items)
	if err != nil {
		return 0, err
	}
	guard := bgp.Guard{Egress: s.permissions(&node, all)}
	allowed, withheld := guard.Filter(config)
	o := offers{offered: map[netip.Addr]bool{}, open: guard.Egress}
	for address := range guard.Egress {
		o.offered[address] = config.Offers(address)
	}
	s.ledger.setOffers(o)
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err = s.BGP.Apply(ctx, allowed); err == nil {
		s.ledger.setSessions()
	}
	if !slices.Equal(withheld, s.withheld) {
		level.Info(s.Logger).Log("event", "guard", "msg", "egress addresses withheld from BGP", "addresses", fmt.Sprint(withheld))
		s.withheld = withheld
	}
	s.ledger.setFailure("bgp", err)
	s.wake(s.reportWake)
	if err != nil {
		return 0, fmt.Errorf("apply the BGP configuration: %w", err)
	}
	return 0, nil
}

// merge joins the FRRConfigurations, and reports what of them is not honored. Beside another daemon
// that acts on them nothing is.
func (s *Speaker) merge(ctx context.Context, node *corev1.Node, objects []bgp.FRRConfiguration) (bgp.Config, error) {
	other, err := s.otherDaemon(ctx)
	if err != nil {
		return bgp.Config{}, err
	}
	if other != s.other {
		level.Warn(s.Logger).Log("event", "otherDaemon", "msg", "another daemon acts on this node's FRRConfigurations; empty: no more", "pod", other)
		s.other = other
	}
	var problems []string
	if other != "" {
		problems = []string{fmt.Sprintf("bgp: frr-k8s runs on this node, as pod %s, and acts on the same FRRConfigurations: no BGP session is made until it has gone", other)}
	}
	s.ledger.setProblems("other daemon", problems)
	if other != "" {
		s.report(nil, nil)
		return bgp.Config{}, nil
	}
	config, findings := s.merger.Merge(nodeView(node), objects, s.passwords(ctx))
	s.report(objects, findings)
	return config, nil
}

// nodeView is the BGP package's view of the node: the addresses are those that Kubernetes
// knows it by.
func nodeView(node *corev1.Node) bgp.NodeView {
	view := bgp.NodeView{Name: node.Name, Labels: node.Labels}
	for _, a := range node.Status.Addresses {
		if address, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			view.Addresses = append(view.Addresses, address)
		}
	}
	return view
}

// permissions are all LoadBalancer IPs of EgressServices of the LoadBalancerIP kind, assigned
// or not, and whether this node may announce each now: labelled, primary of the newest
// assignment seen, and programmed.
//
// Several services may share an address. One that is served here opens it, and one whose primary
// is another node closes it, because that node may announce it. One that has no primary yet does
// neither: it must not take the address from those in service.
func (s *Speaker) permissions(node *corev1.Node, all []*followed) map[netip.Addr]bool {
	may, elsewhere := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, f := range all {
		if !f.exclusive() {
			continue
		}
		for _, address := range slices.Concat(f.loadBalancerIPs(), f.sourceIPs()) {
			may[address] = may[address] || s.mayAnnounce(node, f, address)
			elsewhere[address] = elsewhere[address] || f.servedElsewhere(s.Node, address)
		}
	}
	for address := range elsewhere {
		may[address] = may[address] && !elsewhere[address]
	}
	return may
}

func (s *Speaker) mayAnnounce(node *corev1.Node, f *followed, address netip.Addr) bool {
	if f.role(s.Node) != v1alpha1.RolePrimary || !slices.Contains(f.sourceIPs(), address) {
		return false
	}
	if _, labelled := node.Labels[f.assignment.Spec.LabelKey]; !labelled {
		return false
	}
	p, ok := s.ledger.isProgrammed(f.key.String())
	return ok && p.uid == f.assignment.UID && slices.Contains(p.addresses, address)
}
