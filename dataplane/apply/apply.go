// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"sigs.k8s.io/knftables"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/dataplane/conntrack"
	"github.com/metallb-egress/metallb-egress/dataplane/nft"
	"github.com/metallb-egress/metallb-egress/dataplane/ovn"
)

// Options say where a node's parts are.
type Options struct {
	// NorthboundSocket is the zone's OVN northbound database, for example
	// /var/run/ovn/ovnnb_db.sock.
	NorthboundSocket string
	// OpenvSwitchSocket is the node's Open vSwitch database, for example
	// /var/run/openvswitch/db.sock.
	OpenvSwitchSocket string
	// IntegrationBridge is br-int when empty.
	IntegrationBridge string
	// RelistInterval is how long the nftables table is taken to hold what was written last before
	// Apply reads it again: 30 seconds when 0, always read when negative.
	RelistInterval time.Duration
}

const (
	defaultIntegrationBridge = "br-int"
	defaultRelistInterval    = 30 * time.Second
)

// The steps of a sync, each in the package named like it.
type (
	translator interface {
		Relist()
		Add(ctx context.Context, want dataplane.Host) (int, error)
		Remove(ctx context.Context, want dataplane.Host) ([]dataplane.Translation, error)
		Forget(ctx context.Context, ended []dataplane.Translation) error
		Uninstall(ctx context.Context) ([]dataplane.Translation, error)
		Counters(ctx context.Context) (dataplane.HostCounters, error)
		Drift() uint64
	}
	router interface {
		Apply(ctx context.Context, want dataplane.OVN) (dataplane.Sequence, error)
		Installed() dataplane.Sequence
		Drift() uint64
		Connected() (northbound, openvSwitch bool)
		Close()
	}
	connections interface {
		End(pairs []dataplane.Translation) (uint, error)
		EndStrays(addresses []netip.Addr) (uint, error)
		Loosen(pods []netip.Addr, internal []netip.Prefix) (uint, error)
		Close()
	}
)

type node struct {
	logger         log.Logger
	relistInterval time.Duration
	now            func() time.Time
	changed        chan struct{}
	ovn            router
	ended          atomic.Uint64 // conntrack entries deleted

	mu        sync.Mutex // held by Apply and Remove
	nft       translator
	conntrack connections
	listed    time.Time
	// cleared are the guarded addresses whose strays have been ended, and loosened the LoadBalancer IPs
	// whose connections have been loosened, with the account's epoch then.
	cleared  map[netip.Addr]bool
	loosened map[netip.Addr]int64
}

// Survived says whether an earlier program's nftables table is in the kernel: then the node has not
// been booted since, and went on forwarding while no program ran. To be asked before New.
func Survived(ctx context.Context) (bool, error) {
	tables, err := knftables.New(nft.Family, nft.Table)
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	chains, err := tables.List(ctx, "chains")
	if err != nil && !knftables.IsNotFound(err) {
		return false, fmt.Errorf("nftables: %w", err)
	}
	return len(chains) > 0, nil
}

// tcpLoose lets connection tracking take up a TCP connection in its middle, as the node that a
// service moves to has to.
const tcpLoose = "net/netfilter/nf_conntrack_tcp_loose"

// HostProblems says which of the host's settings keep what this project promises from being kept.
func HostProblems() []string {
	value, err := os.ReadFile("/proc/sys/" + tcpLoose)
	if err != nil || strings.TrimSpace(string(value)) != "0" {
		return nil
	}
	return []string{strings.ReplaceAll(tcpLoose, "/", ".") + " is 0: TCP connections that pods opened break when their service moves here"}
}

// New prepares the dataplane of the node whose network namespace the process is in. It fails when
// nftables or conntrack can't be used here; databases that can't be reached yet are no failure.
func New(logger log.Logger, o Options) (dataplane.Dataplane, error) {
	if o.IntegrationBridge == "" {
		o.IntegrationBridge = defaultIntegrationBridge
	}
	if o.RelistInterval == 0 {
		o.RelistInterval = defaultRelistInterval
	}
	tables, err := knftables.New(nft.Family, nft.Table)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	cleaner, err := conntrack.New()
	if err != nil {
		return nil, err
	}
	n := &node{
		logger: logger, relistInterval: o.RelistInterval, now: time.Now,
		changed: make(chan struct{}, 1), nft: nft.New(tables), conntrack: cleaner,
	}
	n.ovn, err = ovn.New(logger, ovn.Options{
		NorthboundSocket:  o.NorthboundSocket,
		OpenvSwitchSocket: o.OpenvSwitchSocket,
		IntegrationBridge: o.IntegrationBridge,
		Changed:           n.signal,
	})
	if err != nil {
		cleaner.Close()
		return nil, err
	}
	return n, nil
}

// Apply is documented at dataplane.Dataplane.
func (n *node) Apply(ctx context.Context, plan dataplane.Plan) (dataplane.Sequence, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listed.IsZero() || n.now().Sub(n.listed) > n.relistInterval {
		n.nft.Relist()
		n.listed = n.now()
	}
	added, err := n.nft.Add(ctx, plan.Host)
	if err != nil {
		return 0, err
	}
	if added > 0 {
		level.Debug(n.logger).Log("event", "nftablesCommitted", "msg", "committed to nftables", "elements", added)
	}
	// Before OVN sends packets here. A failure costs old connections and keeps nobody from new ones: the
	// next Apply tries again.
	if err := errors.Join(n.endStrays(plan.Host.Guards), n.loosen(plan.Host)); err != nil {
		level.Warn(n.logger).Log("event", "connectionsNotTidied", "msg", "connections of before may break; trying again", "err", err)
	}
	sequence, err := n.ovn.Apply(ctx, plan.OVN)
	if err != nil {
		return 0, err
	}
	// The bridge's report fires Changed, and the caller comes back.
	if n.ovn.Installed() < sequence {
		return sequence, nil
	}
	leaving, err := n.nft.Remove(ctx, plan.Host)
	if err != nil {
		return 0, err
	}
	if err := n.end(leaving); err != nil {
		return 0, err
	}
	if err := n.nft.Forget(ctx, leaving); err != nil {
		return 0, err
	}
	return sequence, nil
}

// Remove is documented at dataplane.Dataplane.
func (n *node) Remove(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := n.ovn.Apply(ctx, dataplane.OVN{}); err != nil {
		return err
	}
	leaving, err := n.nft.Uninstall(ctx)
	if err != nil {
		return err
	}
	return n.end(leaving)
}

func (n *node) end(leaving []dataplane.Translation) error {
	if len(leaving) == 0 {
		return nil
	}
	ended, err := n.conntrack.End(leaving)
	n.ended.Add(uint64(ended))
	if err != nil {
		return err
	}
	level.Debug(n.logger).Log("event", "connectionsEnded", "msg", "deleted conntrack entries of translations that are over", "translations", len(leaving), "entries", ended)
	return nil
}

// endStrays ends, once for each address that is guarded, what came to it before.
func (n *node) endStrays(guards []dataplane.Guard) error {
	guarded := map[netip.Addr]bool{}
	var fresh []netip.Addr
	for _, g := range guards {
		guarded[g.Address] = true
		if !n.cleared[g.Address] {
			fresh = append(fresh, g.Address)
		}
	}
	if len(fresh) > 0 {
		ended, err := n.conntrack.EndStrays(fresh)
		n.ended.Add(uint64(ended))
		if err != nil {
			return err
		}
	}
	n.cleared = guarded
	return nil
}

// loosen lets connections go on of which this node sees only a part, once for each time that it becomes
// primary or ceases to be. What it remembers of an earlier time as primary is out of date; and while a
// service moves away, the pods' packets take the new way before the answers do. Both would be invalid.
func (n *node) loosen(plan dataplane.Host) error {
	epochs, changed := map[netip.Addr]int64{}, map[netip.Addr]bool{}
	for _, a := range plan.Accounts {
		epochs[a.Source] = a.Epoch
		changed[a.Source] = n.loosened[a.Source] != a.Epoch
	}
	var pods []netip.Addr
	for _, t := range plan.Translations {
		if changed[t.Source] {
			pods = append(pods, t.Pod)
		}
	}
	if len(pods) > 0 {
		if _, err := n.conntrack.Loosen(pods, plan.Internal); err != nil {
			return err
		}
	}
	n.loosened = epochs
	return nil
}

// Counters is documented at dataplane.Dataplane.
func (n *node) Counters(ctx context.Context) (dataplane.Counters, error) {
	counted := dataplane.Counters{ConnectionsEnded: n.ended.Load(), DriftNFTables: n.nft.Drift(), DriftOVN: n.ovn.Drift()}
	counted.NorthboundConnected, counted.OpenvSwitchConnected = n.ovn.Connected()
	var err error
	counted.HostCounters, err = n.nft.Counters(ctx)
	return counted, err
}

// Installed is documented at dataplane.Dataplane.
func (n *node) Installed() dataplane.Sequence { return n.ovn.Installed() }

// Changed is documented at dataplane.Dataplane.
func (n *node) Changed() <-chan struct{} { return n.changed }

// Close is documented at dataplane.Dataplane.
func (n *node) Close() {
	n.ovn.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conntrack.Close()
}

// signal is Changed's level: one token, however often it happens.
func (n *node) signal() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}
