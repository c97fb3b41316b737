// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// uplinkTable counts, on the ToR, the packets of each address on each uplink, but not what finds neighbors: ARP, and IPv6's neighbor
// discovery.
const uplinkTable = `table bridge uplinks {
	set from_node4 { typeof meta iifname . ip saddr; flags dynamic; counter; size 65535; }
	set from_node6 { typeof meta iifname . ip6 saddr; flags dynamic; counter; size 65535; }
	set to_node4 { typeof meta oifname . ip daddr; flags dynamic; counter; size 65535; }
	set to_node6 { typeof meta oifname . ip6 daddr; flags dynamic; counter; size 65535; }
	chain input {
		type filter hook prerouting priority 0; policy accept;
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		update @from_node4 { meta iifname . ip saddr }
		update @from_node6 { meta iifname . ip6 saddr }
	}
	chain output {
		type filter hook postrouting priority 0; policy accept;
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		update @to_node4 { meta oifname . ip daddr }
		update @to_node6 { meta oifname . ip6 daddr }
	}
}
`

// Counters are packets on a node's uplink, counted at the ToR's end of it.
type Counters struct {
	FromNode, ToNode uint64
}

func countUplinks(ctx context.Context, o Options) error {
	_, err := run(ctx, uplinkTable, inNetns(o.routerNetns(), "nft", "-f", "-")...)
	return err
}

// UplinkCounters returns all packets so far on the node's uplink.
func (t *Topology) UplinkCounters(ctx context.Context, node string) (Counters, error) {
	output, err := run(ctx, "", "ip", "-n", t.options.routerNetns(), "-s", "-j", "link", "show", "dev", uplinkOf(node))
	if err != nil {
		return Counters{}, err
	}
	type direction struct {
		Packets uint64 `json:"packets"`
	}
	var links []struct {
		Stats struct {
			Received direction `json:"rx"`
			Sent     direction `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal(output, &links); err != nil {
		return Counters{}, fmt.Errorf("uplink of %s: %w", node, err)
	}
	if len(links) != 1 {
		return Counters{}, fmt.Errorf("uplink of %s: %d links", node, len(links))
	}
	return Counters{FromNode: links[0].Stats.Received.Packets, ToNode: links[0].Stats.Sent.Packets}, nil
}

// AddressCounters returns the packets so far on the node's uplink from the node with this source, and to the node with this destination,
// without neighbor discovery.
func (t *Topology) AddressCounters(ctx context.Context, node string, address netip.Addr) (Counters, error) {
	from, err := t.countersOf(ctx, "from_node", node, address)
	if err != nil {
		return Counters{}, err
	}
	to, err := t.countersOf(ctx, "to_node", node, address)
	return Counters{FromNode: from, ToNode: to}, err
}

func (t *Topology) countersOf(ctx context.Context, set, node string, address netip.Addr) (uint64, error) {
	set += version(address)
	output, err := run(ctx, "", inNetns(t.options.routerNetns(), "nft", "-j", "list", "set", "bridge", "uplinks", set)...)
	if err != nil {
		return 0, err
	}
	packets, err := parseCounters(output, uplinkOf(node), address)
	if err != nil {
		return 0, fmt.Errorf("counters %s: %w", set, err)
	}
	return packets, nil
}

// parseCounters finds the packets of one interface and address in the output of "nft -j list set" (libnftables-json(5)); 0 where
// it has none.
func parseCounters(output []byte, device string, address netip.Addr) (uint64, error) {
	var document struct {
		Nftables []struct {
			Set struct {
				Elements []struct {
					Element struct {
						Value struct {
							Concat []string `json:"concat"`
						} `json:"val"`
						Counter struct {
							Packets uint64 `json:"packets"`
						} `json:"counter"`
					} `json:"elem"`
				} `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(output, &document); err != nil {
		return 0, err
	}
	wanted := device + " " + address.String()
	for _, object := range document.Nftables {
		for _, element := range object.Set.Elements {
			if strings.Join(element.Element.Value.Concat, " ") == wanted {
				return element.Element.Counter.Packets, nil
			}
		}
	}
	return 0, nil
}
