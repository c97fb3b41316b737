// SPDX-License-Identifier: Apache-2.0

// Package conntrack ends, and loosens, entries of the kernel's connection tracking.
//
// The kernel decides about a connection's source once, when it begins. Taking a pod out of the
// translation map leaves its open connections with the LoadBalancer IP, and would let another pod
// that gets the address inherit them, so their entries have to go. So do those of packets to a
// LoadBalancer IP that nobody sent on to a pod. A node that a service comes back to remembers its
// connections as they were; their entries are made to take that for no fault. Entries of other pods
// and of other sources are never touched.
//
// This package must not import client-go, libovsdb or knftables.
package conntrack
