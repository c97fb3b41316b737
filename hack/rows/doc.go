// SPDX-License-Identifier: Apache-2.0

// Command rows reads the catalogue of what OVN-Kubernetes' EgressService does (docs/upstream.md) and
// lists the rows that no test of this repository is named after. A test is named after a row when its
// name begins with the row's id: a script (U7-host-networked.txtar), a test function (TestR23SharedAddress)
// or a subtest ("R4 no BGP session"); one name may begin with several ids. It must not import anything of
// the product.
//
// It fails when a row has neither a test nor an issue that it is left to, and when the catalogue
// names a test that does not exist.
package main
