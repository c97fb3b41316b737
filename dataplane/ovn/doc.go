// SPDX-License-Identifier: Apache-2.0

// Package ovn makes one zone's OVN northbound database hold the OVN part of a plan, and tells
// when the node's integration bridge has it.
//
// Each Apply compares the plan with the monitored contents of the database and commits the
// difference in one transaction, together with an increment of NB_Global.nb_cfg. Rows of ours
// carry an owner mark in external_ids; nothing else is ever changed, but for the policies and
// static_routes columns of the cluster router, where references to our rows are added and
// removed. A difference of nothing commits nothing, save the first time and after the database was
// set back, because only a committed nb_cfg can be waited for.
//
// Connections are made and made again in the background, each with a cache of its own, so that a
// database that was wiped or replaced meanwhile is simply another difference.
//
// This package must not import client-go, netlink or knftables, and decides nothing about
// services.
package ovn
