// SPDX-License-Identifier: Apache-2.0

// Package lab is the whole system on one machine, of real parts: the OVN topology and ToR of
// package topology, the Kubernetes control plane, stock MetalLB and kube-proxy of package
// controlplane, and this project's two programs, as plain processes in network namespaces. It
// is dual-stack; the documented example is IPv4, and the tests give it both families. It is a
// library for tests, and the command cmd/lab for people. It is torn down completely, after a
// crash too.
package lab
