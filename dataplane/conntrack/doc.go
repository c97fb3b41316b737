// SPDX-License-Identifier: Apache-2.0

// Package conntrack ends the translated connections of pods that are no longer served.
//
// The kernel decides about a connection's source once, when it begins. Taking a pod out of the
// translation map leaves its open connections with the LoadBalancer IP, and would let another pod
// that gets the address inherit them, so their entries have to go. Entries of other pods, of
// other sources, and those that came in from outside are never touched.
//
// This package must not import client-go, libovsdb or knftables.
package conntrack
