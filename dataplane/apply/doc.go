// SPDX-License-Identifier: Apache-2.0

// Package apply is the Dataplane of a real node: it puts the appliers of packages nft, ovn and
// conntrack in order.
//
// What lets packets leave with the right source comes first: nftables and conntrack, then OVN, which
// steers them there. What takes a source away comes last, when the integration bridge has reported that
// it no longer steers, so that no packet reaches the host for which the host has no source.
//
// This package must not import client-go and decides nothing about services.
package apply
