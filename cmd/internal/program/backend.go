// SPDX-License-Identifier: Apache-2.0

package program

import "fmt"

// BackEnd says who announces LoadBalancer IPs. It is a flag.Value.
type BackEnd string

// The back ends.
const (
	// GoBGP: the egress-speakers.
	GoBGP BackEnd = "gobgp"
	// External: MetalLB itself, in any of its BGP modes.
	External BackEnd = "external"
)

// String implements flag.Value.
func (b *BackEnd) String() string { return string(*b) }

// Set implements flag.Value.
func (b *BackEnd) Set(text string) error {
	switch next := BackEnd(text); next {
	case GoBGP, External:
		*b = next
		return nil
	}
	return fmt.Errorf("want %s or %s", GoBGP, External)
}
