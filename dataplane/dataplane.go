// SPDX-License-Identifier: Apache-2.0

package dataplane

import "context"

// Sequence is a value of NB_Global.nb_cfg (ovn-nb(5)). ovn-controller copies it to the
// integration bridge's external_ids:ovn-nb-cfg once the flows of everything committed up to it
// are installed. Zero means unknown.
type Sequence int64

// Dataplane programs one node. All methods may be called concurrently.
type Dataplane interface {
	// Apply makes the node hold the plan: nftables additions first, then one OVN transaction,
	// then, once the integration bridge has caught up, nftables removals and the conntrack
	// entries that belong to them. It repairs whatever differs from the plan and commits
	// nothing where nothing does.
	//
	// The plan is programmed when Installed is at or above the returned Sequence. Removals wait
	// for that too, so Apply must be called again, with the newest plan, whenever Changed fires.
	// After an error the Sequence is 0 and the same plan is to be applied again.
	Apply(ctx context.Context, plan Plan) (Sequence, error)

	// Installed is the integration bridge's ovn-nb-cfg as last seen, 0 when unknown.
	Installed() Sequence

	// Changed receives after the integration bridge advanced, after a database was connected or
	// lost, and after somebody else changed a row of ours. It has capacity 1 and is never closed.
	Changed() <-chan struct{}

	// Counters reads what was counted.
	Counters(ctx context.Context) (Counters, error)

	// Remove takes away everything that Apply ever put on this node: OVN rows, the nftables
	// table, and the conntrack entries of the translations in it. For an uninstall. It fails
	// while the database is not connected, and can be repeated.
	Remove(ctx context.Context) error

	// Close ends the connections and the goroutines. It leaves the node as it is.
	Close()
}

// Count is how much of something there was.
type Count struct {
	Packets, Bytes uint64
}

// HostCounters are what the node's nftables table has counted. A counter begins at 0 when its
// service comes to the node, and anew when the table was deleted.
type HostCounters struct {
	// Translated is what left with a LoadBalancer IP, by service key, of services that this node is
	// primary of.
	Translated map[string]Count
	// Held is what pods sent to the outside while there was nobody to translate it, by service key.
	Held map[string]Count
	// Strays is what other nodes' pods sent to the outside through this node, untranslated, and
	// what pods sent that belongs to no connection.
	Strays Count
	// Guarded is what came from outside to a LoadBalancer IP and was dropped, by reason.
	Guarded map[string]Count
}

// Counters are what a node has counted since it was booted or, where they are the program's, since
// the program began.
type Counters struct {
	HostCounters
	// ConnectionsEnded are the conntrack entries deleted by the program.
	ConnectionsEnded uint64
	// DriftNFTables and DriftOVN are how often the program found that somebody else had changed
	// what is its own.
	DriftNFTables, DriftOVN uint64
	// NorthboundConnected and OpenvSwitchConnected are whether the databases are.
	NorthboundConnected, OpenvSwitchConnected bool
}
