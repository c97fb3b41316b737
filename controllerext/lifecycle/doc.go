// SPDX-License-Identifier: Apache-2.0

// Package lifecycle decides, for one service at a time, the next EgressAssignment: only a
// standby that acknowledged what it has programmed becomes primary. It is pure: the time,
// the election and what the nodes reported are handed in, and what has to be remembered
// between two decisions (since when a node is waited for, which node is given a rest) is a
// value that goes in and comes out. It must not import client-go.
package lifecycle
