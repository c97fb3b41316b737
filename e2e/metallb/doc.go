// SPDX-License-Identifier: Apache-2.0

// Package metallb has no code: in its tests stock MetalLB decides which node announces what. They say what MetalLB makes of
// BGPAdvertisements, labels and Services, on which this project's own advertisements are built, and what it makes of those that
// egress-controller writes.
//
// A world is a control plane, MetalLB's controller and one MetalLB speaker for each of three Nodes, in a network namespace of its own; tests
// share it. Most are about speakers in frr-k8s external mode: what each would have its node announce is in an FRRConfiguration, so that no
// BGP session is needed. Some run in native mode too, where each speaker has a namespace and sessions with two FRR routers, which say what
// they have learned; and one has MetalLB v0.15. There is no frr-k8s, no kubelet, and no dataplane: the Nodes' egress-speakers are fakes of
// package speakers.
//
// A scenario enters the world, which is empty then, makes objects, waits until MetalLB has worked through all of them (settled), and says
// who has to offer a Service's address (announces, reports). A recorder sees every moment between two states. MetalLB's speakers write
// at most every 3 s: a test that changes much at once is not slower than one that changes little.
//
// TestCost, which needs the flag -cost and some minutes, measures what a speaker's work costs.
package metallb
