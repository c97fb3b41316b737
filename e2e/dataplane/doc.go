// SPDX-License-Identifier: Apache-2.0

// Package dataplane has no code: its one test, TestLadder, which needs the flag -ladder and some minutes, measures what the dataplane costs.
//
// It builds the lab's three nodes, each with an OVN of its own, without Kubernetes, and has them hold services of growing size. Two sides
// take turns on the same OVN: ours, as egress-speaker does it, and the pattern of OVN-Kubernetes' EgressService, where each endpoint has a
// logical router policy of its own. Both write, wait in the same way until ovn-controller says that the flows are installed, and leave
// nothing behind.
package dataplane
