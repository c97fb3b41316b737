// SPDX-License-Identifier: Apache-2.0

package advertisement

import (
	"net/netip"
	"slices"
	"strings"

	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
)

// addresses are a range of an IPAddressPool, both ends included.
type addresses struct{ from, to netip.Addr }

// families are those of a pool's addresses: true is IPv4.
func families(pool *metallbv1beta1.IPAddressPool) (found []bool) {
	for _, text := range pool.Spec.Addresses {
		if r, ok := parseRange(text); ok && !slices.Contains(found, r.from.Is4()) {
			found = append(found, r.from.Is4())
		}
	}
	return found
}

// parseRange reads a CIDR or "from-to".
func parseRange(text string) (addresses, bool) {
	if from, to, isRange := strings.Cut(text, "-"); isRange {
		first, err := netip.ParseAddr(strings.TrimSpace(from))
		last, alsoErr := netip.ParseAddr(strings.TrimSpace(to))
		return addresses{first, last}, err == nil && alsoErr == nil
	}
	prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
	if err != nil {
		return addresses{}, false
	}
	return addresses{prefix.Masked().Addr(), lastOf(prefix)}, true
}

// lastOf is a prefix's last address.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// holds is true when the address is of the pool.
func holds(pool *metallbv1beta1.IPAddressPool, address netip.Addr) bool {
	return slices.ContainsFunc(pool.Spec.Addresses, func(text string) bool {
		r, ok := parseRange(text)
		return ok && r.from.Is4() == address.Is4() && r.from.Compare(address) <= 0 && address.Compare(r.to) <= 0
	})
}
