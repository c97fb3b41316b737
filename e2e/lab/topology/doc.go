// SPDX-License-Identifier: Apache-2.0

// Package topology builds the lab's network: nodes with OVN in the shape that OVN-Kubernetes gives it, a top-of-rack router, and a
// host outside behind it. Everything is network namespaces and plain processes.
//
//	 <prefix>-out 198.51.100.7 ── <prefix>-tor (FRR, AS 64512), bridge br0 172.18.0.100/24
//	                                │ up-n1      │ up-n2      │ up-n3
//	                          eth0 ┌┴──────────┐ ┴            ┴
//	                               │ br-ex     │ 172.18.0.11  .12          .13
//	<prefix>-n1, -n2, -n3          │ br-int    │ geneve between them; one OVN zone each
//	                               │ mp0       │ 10.244.1.2   10.244.2.2   10.244.3.2
//	                         mgmt0 └┬──────────┘ 10.250.0.11  .12          .13
//	 <prefix>-cp 10.250.0.1/24 ─────┘ bridge, apart from the data path: the control plane
//	 <prefix>-pod-<name>: eth0 on br-int of its node
//
// The data path is dual-stack: outside is 2001:db8::7, the underlay fd00:18::/64 with the ToR at ::100 and the nodes from ::11 on, and a
// node's pods are in fd00:10:244:<number>::/64. Tunnels, BGP sessions and the control plane's network are IPv4.
//
// OVN runs in interconnect, one zone per node (northbound and southbound database, northd and controller of its own, joined by the
// transit switch), on the userspace datapath of Open vSwitch, so that no kernel module is needed. The gateway mode is local: a pod's
// traffic to the outside goes to its node's management port (ovn-k8s-mp0), and the host forwards and masquerades it.
//
// Up may be stopped or killed at any moment: all names derive from the prefix, and files lie in one folder, so that Down finds
// everything without a complete record. Nothing is made in the namespace of the caller.
//
// The package knows nothing of Kubernetes beyond the annotations that it computes for the Node objects, and must not import the
// product's packages, client-go, or the lab's other packages except process.
package topology
