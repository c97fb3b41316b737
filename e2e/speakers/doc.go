// SPDX-License-Identifier: Apache-2.0

// Package speakers plays the egress-speakers of a whole cluster against a real API server: what tests and benchmarks of the controller
// need of a node, without a dataplane, a BGP session or root.
//
// What it promises:
//
//   - A fake writes what an egress-speaker writes and nothing else: its Lease, and its EgressNode with one entry for every EgressAssignment
//     whose primary or standby is its node. Reports are at least 200 ms apart, further where the API server is slow, and none is equal to the one before.
//   - A fake can be told to misbehave: to be dead, to hang, to refuse, to lag, to have no session, to be handed no route.
//   - 1,000 nodes and 5,000 services need two watches and a few goroutines per node; a change costs work for the nodes that it names only.
//     All leases together take at most some 50 writes a second.
//   - No goroutine is left after Stop.
//
// It must not import anything of the product but its API types: it is what the controller is tested against.
package speakers
