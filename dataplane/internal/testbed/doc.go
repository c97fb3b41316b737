// SPDX-License-Identifier: Apache-2.0

// Package testbed gives the privileged tests of package dataplane's folders real parts: network
// namespaces of their own and OVSDB servers on sockets of their own. Everything ends with the
// test, and nothing outside those namespaces and the test's temporary directory is touched.
//
// All but this file is built with the tag privileged only.
package testbed
