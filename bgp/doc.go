// SPDX-License-Identifier: Apache-2.0

// Package bgp is the node's shared BGP speaker, in domain words.
//
// It exists so that stock MetalLB and every other writer of FRRConfigurations share one BGP
// session per peer, and so that an egress service's LB IP leaves a node only when that node may
// announce it. Three parts, used one after the other:
//
//   - Merge turns the FRRConfigurations that select a node into one Config. What cannot be
//     honored is refused by neighbor or by prefix attribute, never by object, and every refusal
//     is a Problem: nothing is dropped silently. Merger is Merge with a memory of one.
//   - Guard withholds from a Config the host routes of egress addresses that this node may not
//     announce now. It only takes away; it never adds or changes a route.
//   - Speaker makes the sessions and routes of a Config real. Package bgp/gobgp implements it.
//
// Merge and Guard are pure: plain values in, plain values out, no clock, no I/O, inputs are never
// changed. The package imports the frr-k8s API types and apimachinery. It must not import
// client-go, GoBGP, netlink or any package of this module.
package bgp
