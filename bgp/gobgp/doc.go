// SPDX-License-Identifier: Apache-2.0

// Package gobgp implements bgp.Speaker on GoBGP. It is the only package that imports GoBGP, and
// nothing of GoBGP or protobuf shows in what it exports.
//
// One GoBGP server runs per (VRF, ASN, router ID), without a listening socket. What a peer is
// given is decided by tags, not by editing policies: every path carries one internal large
// community per peer that it is meant for, and for every tag in use there is one export statement,
// "to that peer, with that tag: set the route's attributes, take the tags off, accept"; the
// default is to reject. To change who gets a prefix, or with which attributes, its path is given
// to GoBGP again with other tags: GoBGP then sends one UPDATE or withdraw to the peers concerned.
// Statements change only when a peer, or a set of attributes that no route had before, comes or
// goes.
//
// Promises: a path is in GoBGP before the peer that it is for, so the first End-of-RIB is honest;
// a statement goes only after the last path with its tag has gone, because GoBGP withdraws a route
// only where its policies would have accepted the old path; routes of peers are rejected; the last
// error of every peer is kept, also where GoBGP only logs it.
//
// The package must not import Kubernetes packages.
package gobgp
