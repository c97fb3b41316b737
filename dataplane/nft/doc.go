// SPDX-License-Identifier: Apache-2.0

// Package nft keeps the node's nftables table "inet metallb-egress": which destinations are
// inside the cluster, which source each served pod gets, whose packets are held, what may come in to
// the LoadBalancer IPs, and counters of all that.
//
// The rules never change, only elements do, each Apply in one transaction per step, as a
// difference from what the table holds. Nothing is flushed and refilled, so a restart of the
// program changes nothing for a packet on its way. Of a translation that goes away the table
// itself remembers that its connections are still to be ended, so that a program that dies in
// between is taken up where it stopped.
//
// This package must not import client-go, netlink or libovsdb.
package nft
