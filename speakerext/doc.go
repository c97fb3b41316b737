// SPDX-License-Identifier: Apache-2.0

// Package speakerext is the extension beside MetalLB's speaker, one per node. It follows the
// EgressAssignments: it has the dataplane programmed, opens the guard of the node's shared
// BGP speaker only for what is programmed, and answers with the node's EgressNode.
//
// Three loops share one ledger and nothing else: the dataplane loop, which must never hold
// up a withdrawal; the BGP loop; and the report. Each computes its whole desired state from
// the informers' caches and hands it to an applier that writes only differences. The package
// promises invariant I1, and I2 for a node that reaches the API server. Beside them a heartbeat
// renews the node's Lease while none of them hangs: by it the controller knows that the speaker lives.
//
// It must not import controllerext: the programs meet only in the API.
package speakerext
