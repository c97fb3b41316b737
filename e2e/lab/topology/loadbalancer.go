// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// LoadBalancer spreads one virtual address over backends.
type LoadBalancer struct {
	// Name is for people; several load balancers may share it, such as the ports of one Service.
	Name string
	// Protocol is "tcp" or "udp".
	Protocol string
	VIP      netip.AddrPort
	// Backends may be empty: connections are then refused.
	Backends []netip.AddrPort
}

// key identifies a load balancer: OVN's own condition for two of them on one switch.
func (l LoadBalancer) key() string {
	return l.Protocol + "/" + l.VIP.String()
}

func (l LoadBalancer) validate() error {
	if l.Protocol != "tcp" && l.Protocol != "udp" {
		return fmt.Errorf("load balancer %s: protocol %q: want tcp or udp", l.Name, l.Protocol)
	}
	for _, address := range append([]netip.AddrPort{l.VIP}, l.Backends...) {
		if !address.IsValid() || address.Addr().Is4() != l.VIP.Addr().Is4() {
			return fmt.Errorf("load balancer %s: address %s: want one and a port, of one family with the others", l.Name, address)
		}
	}
	return nil
}

// ownerID marks the rows of Load_Balancer that SetLoadBalancers keeps.
const ownerID = "lab-load-balancer"

// SetLoadBalancers makes these the load balancers on every node's switch, as OVN-Kubernetes does for ClusterIPs, and returns when
// their flows are installed. Those of an earlier call that are not among them go. What stays is changed in place, so that
// its connections live on.
func (t *Topology) SetLoadBalancers(ctx context.Context, balancers []LoadBalancer) error {
	for _, balancer := range balancers {
		if err := balancer.validate(); err != nil {
			return err
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, n := range t.nodes {
		group.Go(func() error {
			output, err := n.northbound(groupCtx, "--format=json", "--columns=_uuid,external_ids", "find", "Load_Balancer", "external_ids:"+ownerID+"!=\"\"")
			if err != nil {
				return err
			}
			existing, err := parseBalancers(output)
			if err != nil {
				return fmt.Errorf("load balancers of %s: %w", n.Name, err)
			}
			commands := balancerCommands(n.Name, existing, balancers)
			if len(commands) == 0 {
				return nil
			}
			_, err = n.northbound(groupCtx, append([]string{"--wait=hv"}, oneTransaction(commands)...)...)
			return err
		})
	}
	return group.Wait()
}

// parseBalancers reads key and UUID of the rows from ovn-nbctl's JSON table, whose cells are OVSDB values (RFC 7047 section 5.1).
func parseBalancers(output []byte) (map[string]string, error) {
	var table struct {
		Data [][2]json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(output, &table); err != nil {
		return nil, err
	}
	existing := map[string]string{}
	for _, row := range table.Data {
		var uuid [2]string
		if err := json.Unmarshal(row[0], &uuid); err != nil {
			return nil, err
		}
		var ids [2]json.RawMessage
		if err := json.Unmarshal(row[1], &ids); err != nil {
			return nil, err
		}
		var pairs [][2]string
		if err := json.Unmarshal(ids[1], &pairs); err != nil {
			return nil, err
		}
		for _, pair := range pairs {
			if pair[0] == ownerID {
				existing[pair[1]] = uuid[1]
			}
		}
	}
	return existing, nil
}

// balancerCommands are the ovn-nbctl(8) commands that lead from the existing rows (key to UUID) to the wanted ones.
func balancerCommands(logicalSwitch string, existing map[string]string, wanted []LoadBalancer) [][]string {
	var commands [][]string
	kept := map[string]bool{}
	for i, balancer := range wanted {
		key := balancer.key()
		if kept[key] {
			continue
		}
		kept[key] = true
		backends := make([]string, 0, len(balancer.Backends))
		for _, backend := range balancer.Backends {
			backends = append(backends, backend.String())
		}
		columns := []string{
			fmt.Sprintf("name=%q", balancer.Name),
			"protocol=" + balancer.Protocol,
			fmt.Sprintf("vips={%q=%q}", balancer.VIP, strings.Join(backends, ",")),
			fmt.Sprintf("options={reject=\"true\",hairpin_snat_ip=\"%s %s\"}", hairpinAddress, hairpinAddress6),
			fmt.Sprintf("external_ids={%q=%q}", ownerID, key),
		}
		if uuid, found := existing[key]; found {
			commands = append(commands, append([]string{"set", "Load_Balancer", uuid}, columns...))
			continue
		}
		id := fmt.Sprintf("@lb%d", i)
		commands = append(commands, append([]string{"--id=" + id, "create", "Load_Balancer"}, columns...),
			[]string{"add", "Logical_Switch", logicalSwitch, "load_balancer", id})
	}
	var gone []string
	for key, uuid := range existing {
		if !kept[key] {
			gone = append(gone, uuid)
		}
	}
	slices.Sort(gone)
	for _, uuid := range gone {
		commands = append(commands, []string{"lb-del", uuid})
	}
	return commands
}
