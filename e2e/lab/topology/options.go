// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
)

// GatewayMode is OVN-Kubernetes' gateway mode: the way of the pods' traffic to the outside.
type GatewayMode string

const (
	// Local sends it through the node's management port and the host's network stack. It is the default.
	Local GatewayMode = "local"
	// Shared sends it through the gateway router and the external bridge. The lab cannot build it yet.
	Shared GatewayMode = "shared"
)

const (
	defaultNodes = 3
	// maxNodes keeps the node addresses, from 172.18.0.11 on, below the router's.
	maxNodes = 80
	// maxSocketPath is the longest path of a unix socket (sun_path, unix(7)), less the final NUL.
	maxSocketPath = 107
)

// Options say what to build, and where. A topology is identified by Prefix and Dir together.
type Options struct {
	// Prefix starts the name of each network namespace: <prefix>-tor, -out, -cp, -n1…, -pod-<name>. Lower case letters and digits,
	// at most 12.
	Prefix string
	// Dir is the folder for databases, sockets and records; a folder "topology" is made in it.
	Dir string
	// Gateway is Local where empty.
	Gateway GatewayMode
	// Nodes is how many nodes there are, 3 where 0.
	Nodes int
}

// No dash: otherwise the namespaces of "a-b" would seem to belong to "a".
var validPrefix = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// complete returns the options with the defaults filled in, or says what is wrong with them.
func (o Options) complete() (Options, error) {
	if o.Gateway == "" {
		o.Gateway = Local
	}
	if o.Nodes == 0 {
		o.Nodes = defaultNodes
	}
	if !validPrefix.MatchString(o.Prefix) {
		return o, fmt.Errorf("prefix %q: want a letter and at most 11 letters and digits, lower case", o.Prefix)
	}
	if o.Dir == "" {
		return o, errors.New("no folder")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, err
	}
	o.Dir = dir
	switch o.Gateway {
	case Local:
	case Shared:
		return o, errors.New("gateway mode shared: the lab builds local only")
	default:
		return o, fmt.Errorf("gateway mode %q: unknown", o.Gateway)
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return o, fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, maxNodes)
	}
	if longest := o.node(o.Nodes).NorthboundSocket; len(longest) > maxSocketPath {
		return o, fmt.Errorf("folder %s is too long a path: no socket can be made at %s", o.Dir, longest)
	}
	return o, nil
}

// folder is where everything of this topology lies.
func (o Options) folder() string {
	return filepath.Join(o.Dir, "topology")
}

// routerFolder is where FRR keeps its configuration and sockets. FRR runs as a user of its own, who might not be able to enter Dir.
func (o Options) routerFolder() string {
	return filepath.Join("/run/metallb-egress-lab", o.Prefix)
}

func (o Options) namespacePrefix() string {
	return o.Prefix + "-"
}

func (o Options) routerNetns() string {
	return o.namespacePrefix() + "tor"
}

func (o Options) outsideNetns() string {
	return o.namespacePrefix() + "out"
}

func (o Options) controlNetns() string {
	return o.namespacePrefix() + "cp"
}

func (o Options) podNetns(pod string) string {
	return o.namespacePrefix() + "pod-" + pod
}
