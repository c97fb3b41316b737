// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"
)

// TestReadme: the package's README lists every chain with its hook and priority, every set and every
// counter.
func TestReadme(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## nftables")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := strings.Split(section, "\n")
	has := func(what string, words ...string) {
		t.Helper()
		if !slices.ContainsFunc(rows, func(row string) bool {
			return strings.HasPrefix(row, "|") && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(row, w) })
		}) {
			t.Errorf("no row of a table has %s: %q", what, words)
		}
	}
	for _, c := range chains() {
		words := []string{"| `" + c.Name + "` |"}
		if c.Priority != nil {
			n, err := knftables.ParsePriority(knftables.InetFamily, string(*c.Priority))
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, string(*c.Type), string(*c.Hook), strconv.Itoa(n))
		}
		has("the chain", words...)
	}
	for _, s := range sets() {
		has("the set", "`"+s.name+"`")
	}
	for _, c := range append(counters(), translatedPrefix, heldPrefix) {
		has("the counter", "`"+strings.TrimSuffix(c, "_"))
	}
}

// TestPriorities: where the chains have to be among those of the kernel, kube-proxy and OVN-Kubernetes.
func TestPriorities(t *testing.T) {
	const (
		conntrack      = -200 // NF_IP_PRI_CONNTRACK
		destinations   = -100 // dstnat: kube-proxy
		filters        = 0    // kube-proxy, OVN-Kubernetes; firewalld is at 10
		masquerading   = 100  // srcnat: kube-proxy, OVN-Kubernetes' EgressService
		localGateway   = 101  // OVN-Kubernetes' masquerading of the local gateway mode
		conntrackEnded = 1<<31 - 1
	)
	want := map[string]struct{ after, before int }{
		chainGuard:       {conntrack, destinations},
		chainHold:        {destinations, filters},
		chainPostrouting: {filters, masquerading},
		chainLeave:       {localGateway, conntrackEnded},
	}
	for _, c := range chains() {
		if c.Priority == nil {
			continue
		}
		n, err := knftables.ParsePriority(knftables.InetFamily, string(*c.Priority))
		if err != nil {
			t.Fatal(err)
		}
		if bounds := want[c.Name]; n <= bounds.after || n >= bounds.before {
			t.Errorf("%s is at %d, want it between %d and %d", c.Name, n, bounds.after, bounds.before)
		}
	}
}
