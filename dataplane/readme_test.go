// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
)

// TestReadme: what plans put into OVN is listed in README.md, at priorities that OVN-Kubernetes does not
// use (go-controller/pkg/types/const.go), with its own mark or none.
func TestReadme(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	in := cluster()
	s := service("ns/a", "172.19.0.100")
	s.Primary, s.Standby = "n1", "n2"
	in.Services = []dataplane.Service{s}
	nodes, _ := compute(in, "")
	taken := []int{1005, 1004, 1003, 1002, 501, 102, 101, 100, 95, 10}
	for name, node := range nodes {
		for _, p := range node.Plan.OVN.Policies {
			if slices.Contains(taken, p.Priority) {
				t.Errorf("%s: priority %d is OVN-Kubernetes'", p.ID, p.Priority)
			}
			if p.PacketMark != 0 && p.PacketMark != 0x3f0 {
				t.Errorf("%s: mark %#x", p.ID, p.PacketMark)
			}
			match := strings.NewReplacer("ip6", "ip4", "rtots-"+name, "rtots-<node>", dataplane.ServiceHash("ns/a"), "<hash>").Replace(p.Match)
			if row := fmt.Sprintf("| %d | `%s` |", p.Priority, match); !strings.Contains(string(page), row) {
				t.Errorf("README.md lacks the row %s", row)
			}
		}
		for _, set := range node.Plan.OVN.AddressSets {
			what := strings.NewReplacer("ip4", "<family>", "ip6", "<family>", dataplane.ServiceHash("ns/a"), "<hash>").Replace(set.Name)
			if row := "| `" + what + "` |"; !strings.Contains(string(page), row) {
				t.Errorf("README.md lacks the row %s", row)
			}
		}
	}
	for _, key := range []string{dataplane.OwnerKey, dataplane.OwnerValue, dataplane.RowKey, dataplane.ServiceKey} {
		if !strings.Contains(string(page), "`"+key+"`") {
			t.Errorf("README.md lacks %s", key)
		}
	}
}
