// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"fmt"
	"net/netip"
	"testing"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
)

// manyServices are services on nodes, all of them with their advertisements and labels, beside a general advertisement.
func manyServices(services, nodes int, byHand bool) *Cluster {
	c := aCluster(with("general", "{communities: ['65000:1']}"))
	c.EgressServices, c.Services, c.Nodes = nil, nil, nil
	c.Pools = []*metallbv1beta1.IPAddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "pool"}, Spec: metallbv1beta1.IPAddressPoolSpec{Addresses: []string{"198.18.0.0/15"}}}}
	for i := range nodes {
		c.Nodes = append(c.Nodes, Node{fmt.Sprint("node", i), map[string]string{"rack": fmt.Sprint(i % 10)}})
	}
	address := netip.MustParseAddr("198.18.0.1")
	for i := range services {
		key, label := types.NamespacedName{Namespace: "ns", Name: fmt.Sprint("s", i)}, fmt.Sprint("ns-s", i)
		e := EgressService{
			Key: key, LabelKey: "egress-service.k8s.ovn.org/" + label, StandbyLabelKey: "standby.metallb-egress.io/" + label,
			Digest: fmt.Sprintf("%016x", i), Primary: c.Nodes[i%nodes].Name,
		}
		c.EgressServices = append(c.EgressServices, e)
		c.Services = append(c.Services, Service{
			Key: key, Labels: map[string]string{v1alpha1.ServiceLabel: e.Digest}, Pool: "pool", Addresses: []netip.Addr{address},
		})
		c.Nodes[i%nodes].Labels[e.LabelKey], c.Nodes[(i+1)%nodes].Labels[e.StandbyLabelKey] = "", ""
		address = address.Next()
		if byHand {
			with("hand-"+label, "{nodeSelectors: [{matchLabels: {"+e.LabelKey+": ''}}], serviceSelectors: [{matchLabels: {name: "+label+"}}]}")(c)
		}
	}
	for _, s := range Make(c).Services {
		c.Advertisements = append(c.Advertisements, s.Owned...)
	}
	return c
}

// What one change costs: a plan is made for the whole cluster, with nothing to do in it.
func BenchmarkMake(b *testing.B) {
	for _, size := range []struct {
		services, nodes int
		byHand          bool
	}{{100, 100, false}, {1000, 100, false}, {1000, 1000, false}, {5000, 100, false}, {1000, 100, true}} {
		c := manyServices(size.services, size.nodes, size.byHand)
		name := fmt.Sprintf("services=%d/nodes=%d", size.services, size.nodes)
		if size.byHand {
			name += "/advertisements=by-hand-too"
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Make(c)
			}
		})
	}
}
