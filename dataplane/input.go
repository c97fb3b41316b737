// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"reflect"
	"slices"
)

// Role is what this node is to a service.
type Role int

const (
	// RoleNone is a node that at most has endpoints of the service.
	RoleNone Role = iota
	// RolePrimary is the node that the service's packets leave from.
	RolePrimary
	// RoleStandby has everything in place to become primary.
	RoleStandby
	// RolePrevious was primary until just now and still translates what is under way to it.
	RolePrevious
)

// String is the name used in reports.
func (r Role) String() string {
	switch r {
	case RoleNone:
		return "None"
	case RolePrimary:
		return "Primary"
	case RoleStandby:
		return "Standby"
	case RolePrevious:
		return "Previous"
	}
	return "invalid"
}

// Translates is whether a node in this role gives all the service's pods its LoadBalancer IP.
func (r Role) Translates() bool { return r == RolePrimary || r == RoleStandby || r == RolePrevious }

// Input is everything a Plan depends on.
type Input struct {
	// Node is the node that the plan is for; with interconnect also the name of its OVN zone.
	Node string
	// Nodes holds every node of the cluster, this one too.
	Nodes map[string]NodeFacts
	// Cluster is what all nodes share.
	Cluster Cluster
	// Services are the egress services with sourceIPBy LoadBalancerIP, oldest first: of two that
	// select the same pod the first has it.
	Services []Service
	// Guards are the LoadBalancer IPs of all egress services, assigned or not, in any order.
	Guards []Guard
	// StraysPass lets packets of other nodes' pods leave this node untranslated.
	StraysPass bool
}

// NodeFacts is what is known of one node.
type NodeFacts struct {
	// Addresses are all addresses of the host (annotation k8s.ovn.org/host-cidrs). Only the
	// address part counts: the rest of the network is not the cluster's.
	Addresses []netip.Prefix
	// ManagementAddresses are those of the management port, ovn-k8s-mp0, at most one per family.
	ManagementAddresses []netip.Addr
	// TransitAddresses are those of the router port on the transit switch (annotation
	// k8s.ovn.org/node-transit-switch-port-ifaddr), at most one per family.
	TransitAddresses []netip.Addr
	// PodSubnets are the node's own.
	PodSubnets []netip.Prefix
}

// Cluster holds the subnets whose addresses are inside the cluster: packets to them are never
// steered and never translated.
type Cluster struct {
	PodSubnets        []netip.Prefix
	ServiceSubnets    []netip.Prefix
	JoinSubnets       []netip.Prefix
	TransitSubnets    []netip.Prefix
	MasqueradeSubnets []netip.Prefix
}

// Service is one egress service as this node sees it.
type Service struct {
	// Key is <namespace>/<name>.
	Key string
	// Role is this node's.
	Role Role
	// Primary and Standby are node names, or empty.
	Primary string
	Standby string
	// Epoch grows by one with every change of the primary.
	Epoch int64
	// FailClosed makes the pods' packets to the outside be dropped while there is neither a
	// primary nor a standby. Otherwise the pods then leave as ordinary pods do.
	FailClosed bool
	// SourceIPs are the LoadBalancer IPs, at most one per family; of more the first counts.
	SourceIPs []netip.Addr
	// Endpoints are the service's pods on all nodes, already known to be its own.
	Endpoints []Endpoint
}

// Endpoint is one address of one pod.
type Endpoint struct {
	Address netip.Addr
	Node    string
}

// Problem is something about a service that could not be planned as asked.
type Problem struct {
	// Service is <namespace>/<name>.
	Service string
	// Message is one sentence without a full stop.
	Message string
}

// equal is whether two inputs are the same. Of what can be large the comparison takes no reflection.
func (in Input) equal(o Input) bool {
	return in.Node == o.Node && in.StraysPass == o.StraysPass &&
		reflect.DeepEqual(in.Nodes, o.Nodes) && reflect.DeepEqual(in.Cluster, o.Cluster) &&
		slices.EqualFunc(in.Services, o.Services, Service.equal) &&
		slices.EqualFunc(in.Guards, o.Guards, func(a, b Guard) bool {
			return a.Address == b.Address && a.Service == b.Service && slices.Equal(a.Ports, b.Ports)
		})
}

func (s Service) equal(o Service) bool {
	return s.Key == o.Key && s.Role == o.Role && s.Primary == o.Primary && s.Standby == o.Standby && s.Epoch == o.Epoch &&
		s.FailClosed == o.FailClosed && slices.Equal(s.SourceIPs, o.SourceIPs) && slices.Equal(s.Endpoints, o.Endpoints)
}
