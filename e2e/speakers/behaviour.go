// SPDX-License-Identifier: Apache-2.0

package speakers

import "time"

// Behaviour is how one fake answers. The zero value is a speaker without fault: it programs everything at once, has a BGP session, and is
// offered and announces whatever its labels allow.
type Behaviour struct {
	// Dead fakes renew no Lease and write nothing.
	Dead bool
	// Mute fakes renew their Lease but write no report, like a speaker whose dataplane hangs.
	Mute bool
	// Refuse, when set, is the reason for which nothing is programmed.
	Refuse string
	// Lag is how much later the fake sees every change. It goes on seeing them in their order.
	Lag time.Duration
	// NotOffered reports offered=false: MetalLB hands the node no route.
	NotOffered bool
	// NotAnnounced reports announced=false, even as a labelled primary.
	NotAnnounced bool
	// NoSession reports one BGP session that is not established, and so announces nothing. Otherwise there is one, established.
	NoSession bool
	// NoGracefulRestart reports that session without graceful restart, which it otherwise has.
	NoGracefulRestart bool
	// GatewayMode is local where it is empty.
	GatewayMode string
	// Networks are the routing tables and VRFs of the node, ordered.
	Networks []string
	// Behind are the services, as <namespace>/<name>, with endpoints on the node that it could not program. All are counted, the first 50
	// are named.
	Behind []string
}
