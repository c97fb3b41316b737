// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real Kubernetes control plane as plain processes: etcd, kube-apiserver, kube-controller-manager, stock
// MetalLB's controller, and for each node a stock MetalLB speaker (frr-k8s external mode) and kube-proxy (nftables or iptables mode). There is no
// kubelet and no scheduler: nodes and pods are API objects, whose network the lab makes.
//
// The lab runs it inside network namespaces. Tests of controllers use it without nodes, in their own namespace and without root, as an
// API server that is there within a few seconds.
//
// What it promises:
//
//   - Up returns when the API server says ready and the controllers have done their first work. Every Up starts from an empty store, with
//     new keys; what an earlier one left in its folder is removed, its processes must have been stopped.
//   - Everybody has an identity of their own: a client certificate of the control plane's own authority, in a kubeconfig that only its
//     owner can read. Only the admin and kube-controller-manager are system:masters. MetalLB runs with its stock roles, kube-proxy with
//     Kubernetes' own.
//   - The store listens on a socket inside a private folder, on no port.
//   - MetalLB's and frr-k8s' definitions and roles are read from their modules, at the versions that hack/tools/metallb pins.
//
// Processes are started through package process and stopped by it: whoever owns the Set stops the control plane with StopAll.
//
// It must not import anything of the product: it is what the product is tested against.
package controlplane
