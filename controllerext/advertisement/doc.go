// SPDX-License-Identifier: Apache-2.0

// Package advertisement plans how MetalLB announces every egress service from its primary only: which BGPAdvertisements of ours that takes,
// with the attributes of others', which Services get the label that they select, from which advertisements of others the services have to be
// excluded, and what else could announce an address from another node.
//
// What it promises:
//
//   - Make is pure: the same plan for the same cluster, whatever the order of its lists, and nothing in the cluster is changed.
//   - Where advertisements of others may be edited, a planned cluster announces each service from its primary and from nowhere else, with
//     what others' advertisements say for that node; other services are announced as before; and without egress services everything is as
//     it was, to the byte. Otherwise whatever is in the way is a finding.
//   - A promotion changes no plan.
//
// Random clusters hold it to that, with an independent model of MetalLB (TestProperties, FuzzPlan). It must not import client-go.
package advertisement
