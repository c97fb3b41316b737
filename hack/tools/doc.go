// SPDX-License-Identifier: Apache-2.0

// Command tools makes available what the lab and the checks need: programs that it builds from the nested modules
// beside it into a cache folder (see package cache), and Debian packages.
//
//	go run ./hack/tools lab        everything the lab needs: Debian packages, Kubernetes, MetalLB
//	go run ./hack/tools test       the same, and the C compiler that the race detector needs
//	go run ./hack/tools all        the same, and the linter and the generator
//	go run ./hack/tools GROUP      one group: kubernetes, metallb, lint or generate
//	go run ./hack/tools path [lab|GROUP]   the folders of the binaries, separated by colons
//	go run ./hack/tools list       every program, its version, and whether it is there
//
// It promises that a run which finds everything there starts no other program, that an interrupted run is taken up
// at the program it was building, and that two runs at once do not build the same program twice. Go's checksum
// verification is left as the user has it.
//
// It imports the standard library and package cache only, so that "go run" starts it in a moment.
package main
