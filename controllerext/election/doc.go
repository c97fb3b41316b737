// SPDX-License-Identifier: Apache-2.0

// Package election chooses the primary and the standby node of one service. It is a pure
// function of plain values: the same snapshot always gives the same answer, with a reason
// for every node that was not eligible, so that the controller, the command line and the
// tests explain an election in the same words. It must not import client-go, read a clock
// or remember anything.
package election
