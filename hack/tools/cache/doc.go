// SPDX-License-Identifier: Apache-2.0

// Package cache says which programs the lab and the checks are built from, and in which folder their binaries are
// kept. The command hack/tools fills that folder and the lab reads it: both ask this package, so that they agree.
//
// It promises to run no command and to write nothing. It must import the standard library only, so that
// "go run ./hack/tools" compiles in a moment.
package cache
