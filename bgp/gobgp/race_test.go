// SPDX-License-Identifier: Apache-2.0

//go:build race

package gobgp

// raceDetector is whether the tests were built with -race.
const raceDetector = true
