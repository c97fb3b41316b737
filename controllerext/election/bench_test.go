// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// BenchmarkElect is one round of the controller: the snapshot prepared, loaded, and every service
// elected.
func BenchmarkElect(b *testing.B) {
	const nodes, services = 1000, 10000
	tests := []struct {
		name     string
		selector string
		change   func(*cluster) // after a first round; nil: there was none
	}{
		{name: "from scratch"},
		{name: "from scratch with a selector", selector: "rack in (rack-1,rack-2,rack-3)"},
		{name: "steady", change: func(*cluster) {}},
		{name: "steady with a selector", selector: "rack in (rack-1,rack-2,rack-3)", change: func(*cluster) {}},
		{name: "router reboot", change: func(c *cluster) { c.change(noSession) }},
		{name: "node lost", change: func(c *cluster) { c.change(notReady, "node-7") }},
		{name: "cordoned, the others avoided", change: func(c *cluster) {
			avoid := map[string]bool{}
			for i := range c.nodes {
				if i%2 == 0 {
					cordon(&c.nodes[i])
				} else {
					avoid[c.nodes[i].Name] = true
				}
			}
			for i := range c.services {
				c.services[i].Avoid = avoid
			}
		}},
		{name: "no eligible node", selector: "rack=none"},
	}
	for _, test := range tests {
		b.Run(fmt.Sprintf("%s/%dx%d", test.name, nodes, services), func(b *testing.B) {
			c := &cluster{}
			for i := range nodes {
				name := fmt.Sprintf("node-%d", i)
				c.nodes = append(c.nodes, node(name, zone(fmt.Sprintf("zone-%d", i%3)), labeled("rack", fmt.Sprintf("rack-%d", i%20)),
					labeled("kubernetes.io/hostname", name), labeled("kubernetes.io/os", "linux"), labeled("kubernetes.io/arch", "amd64")))
			}
			for i := range services {
				s := Service{Key: fmt.Sprintf("namespace/service-%d", i)}
				if test.selector != "" {
					s.Selectors = []labels.Selector{selector(test.selector)}
				}
				c.services = append(c.services, s)
			}
			if test.change != nil {
				c.elect()
				test.change(c)
			}
			b.ReportAllocs()
			for b.Loop() {
				e := c.electorate()
				for i := range c.services {
					s := &c.services[i]
					got := e.Elect(*s)
					e.Add(s.Primary, -1)
					e.Add(got.Primary, 1)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/services, "ns/service")
		})
	}
}
