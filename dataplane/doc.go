// SPDX-License-Identifier: Apache-2.0

// Package dataplane decides what one node must hold so that the packets of egress services
// leave the cluster with the LoadBalancer IP, and nothing else of them does: rows of the zone's OVN
// northbound database and elements of the node's nftables sets and maps.
//
// Compute is the whole decision. It takes plain values (the node's role for each service, the
// endpoints, addresses of the nodes) and returns a Plan of plain values, ordered so that equal
// input gives an equal Plan. It promises that the number of OVN policies does not depend on the
// number of endpoints, that every source it steers is exempt for destinations inside the
// cluster, and that a packet of a served pod that it cannot give the right source is held by
// the plan rather than left alone.
//
// The appliers are in the folders below: ovn, nft and conntrack commit one part of a Plan each,
// apply puts them in order and implements the Dataplane interface. Package tracer says what a
// plan does to a packet, for tests.
//
// README.md lists every table, chain, priority, mark and external id. This package must not
// import netlink, libovsdb, knftables, client-go or time.
package dataplane
