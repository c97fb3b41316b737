// SPDX-License-Identifier: Apache-2.0

// Package election chooses the primary and the standby node of a service, or of services that must
// share one. It is a pure function of plain values: the same snapshot always gives the same answer,
// in whatever order the nodes come, with a reason for every node that is not eligible, so that the
// controller, the command line and the tests explain an election in the same words.
//
// Who serves goes on serving. A primary is replaced when it is not eligible any more, or when another
// node is strictly better in this order: its speaker lives, it has a BGP session, it is not
// cordoned. What has befallen all nodes alike (the router reboots, the API server is away) therefore
// moves nothing, and no new node, label or load takes a service from a node that does well. The
// standby follows a primary; a node that goes moves only its own services.
//
// An election in which both incumbents do well looks at no other node. It must not import client-go,
// read a clock or remember anything.
package election
