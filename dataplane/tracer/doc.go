// SPDX-License-Identifier: Apache-2.0

// Package tracer follows packets through plans, so that tests can speak of packets: "a packet
// from this pod to that address leaves node n2 with this source".
//
// It reads the text of the policies' matches as OVN would, rather than what they were made from,
// and the host's part as the rules of package nft do, for packets that open a connection. It models interconnect with local gateway
// mode: what no policy takes and no pod subnet holds goes to the node's own host. It knows only
// the expressions that package dataplane writes, and reports any other as an error. It imports
// nothing but package dataplane.
package tracer
