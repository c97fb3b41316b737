// SPDX-License-Identifier: Apache-2.0

// Package program is what the two daemons share: their logger, their manager, and the loops
// that they run in it. It knows controller-runtime, so that the extension packages need not.
package program
