// SPDX-License-Identifier: Apache-2.0

// Package controllerext is the extension beside MetalLB's controller. It elects a node for
// each EgressService, hands the decision to the speakers as an EgressAssignment, labels the
// nodes, configures MetalLB's advertisement and reports what became of it.
//
// One sync reads everything from the informers' caches, decides every service by pure
// functions (packages election, lifecycle, advertisement) and writes the differences; what
// fails for one service stops only that service. The package promises invariants I2, I5, I7
// and I8 of the design for the cluster-level half. What it remembers between syncs (since when
// it waits, what it tries again later) may be lost: after a restart it decides from the objects
// alone.
//
// It must not import speakerext, dataplane or bgp: the programs meet only in the API.
package controllerext
