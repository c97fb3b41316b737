// SPDX-License-Identifier: Apache-2.0

// Package liveness judges whether the nodes' speakers live and have BGP sessions, from their Leases
// and EgressNodes as the controller sees them come in. It is pure: every time is handed in.
//
// A service must leave a node whose speaker died, and must not leave one because of anything else:
// the API server or our own watch away, the controller started, all speakers restarted, a router
// rebooted. Ages therefore run on the controller's clock from the last renewal that it saw (the
// nodes' clocks count for nothing), start anew after every gap in which it saw none at all, and mean
// nothing while most of the speakers are silent at once.
//
// The speakers' leases are taken to be about equally long, as they are within one cluster.
//
// It must not import client-go or read a clock.
package liveness
