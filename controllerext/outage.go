// SPDX-License-Identifier: Apache-2.0

package controllerext

import "time"

// outageGrace is how long nodes of unknown state are taken for ready after most of them lost
// touch at once, and after that ended: kubelets that can reach the API server again need some
// 10 s until the last has said so.
const outageGrace = 30 * time.Second

// outage tells an outage of the API server from the failure of nodes. When more than half of
// the nodes stop reporting at once (Ready is Unknown), that is not their failure: nothing is
// unassigned. A node that really failed is still replaced, after outageGrace, by one that is
// ready.
type outage struct {
	since, until time.Time // since: zero while there is none
}

// suspected is what an unknown state of Ready means now.
type suspected struct {
	// Ready is true while such a node counts as ready; Lost while it is still replaced by a
	// better one.
	Ready, Lost bool
}

// judge takes the count of nodes of unknown state. It returns when to judge again.
func (o *outage) judge(now time.Time, unknown, nodes int) (suspected, time.Duration) {
	if 2*unknown > nodes {
		if o.since.IsZero() {
			o.since = now
		}
		o.until = now.Add(outageGrace)
		if left := outageGrace - now.Sub(o.since); left > 0 {
			return suspected{Ready: true}, left
		}
		return suspected{Ready: true, Lost: true}, 0
	}
	o.since = time.Time{}
	if left := o.until.Sub(now); left > 0 && unknown > 0 {
		return suspected{Ready: true}, left
	}
	return suspected{}, 0
}
