// SPDX-License-Identifier: Apache-2.0

// Package advertisement says which BGPAdvertisement an EgressService takes, so that MetalLB
// announces its LoadBalancer IP from the labelled nodes. It is pure: it returns objects and
// writes nothing. It must not import client-go.
package advertisement
