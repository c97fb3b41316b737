// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"fmt"
	"strconv"
	"strings"
)

// ReservedGlobalAdministrator is the global administrator of the large communities that a Speaker
// uses inside itself. It is the last AS number, which RFC 7300 reserves and RFC 8092 §4 tells
// nobody to use; Merge refuses communities that have it.
const ReservedGlobalAdministrator = 4294967295

// Community is a BGP community (RFC 1997): AS number in the upper, value in the lower 16 bits.
type Community uint32

// String is <AS number>:<value>.
func (c Community) String() string {
	return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff)
}

// LargeCommunity is a BGP large community (RFC 8092).
type LargeCommunity struct {
	GlobalAdministrator, LocalData1, LocalData2 uint32
}

// String is the canonical form of RFC 8092 §4, three numbers with colons between.
func (c LargeCommunity) String() string {
	return fmt.Sprintf("%d:%d:%d", c.GlobalAdministrator, c.LocalData1, c.LocalData2)
}

func (c LargeCommunity) compare(d LargeCommunity) int {
	for _, pair := range [][2]uint32{
		{c.GlobalAdministrator, d.GlobalAdministrator},
		{c.LocalData1, d.LocalData1},
		{c.LocalData2, d.LocalData2},
	} {
		if pair[0] != pair[1] {
			if pair[0] < pair[1] {
				return -1
			}
			return 1
		}
	}
	return 0
}

// addCommunity parses one community in frr-k8s' notation, "a:b" or "large:a:b:c", and adds it to
// the attributes of r.
func (r *Route) addCommunity(text string) error {
	parts := strings.Split(text, ":")
	switch {
	case len(parts) == 2:
		values, err := parseNumbers(parts, 16)
		if err != nil {
			return fmt.Errorf("community %q: %w", text, err)
		}
		r.Communities = append(r.Communities, Community(values[0]<<16|values[1]))
	case len(parts) == 4 && parts[0] == "large":
		values, err := parseNumbers(parts[1:], 32)
		if err != nil {
			return fmt.Errorf("community %q: %w", text, err)
		}
		if values[0] == ReservedGlobalAdministrator {
			return fmt.Errorf("community %q: %d is a reserved AS number (RFC 7300)", text, values[0])
		}
		r.LargeCommunities = append(r.LargeCommunities, LargeCommunity{values[0], values[1], values[2]})
	default:
		return fmt.Errorf("community %q: neither a:b nor large:a:b:c", text)
	}
	return nil
}

func parseNumbers(parts []string, bits int) ([]uint32, error) {
	values := make([]uint32, len(parts))
	for i, part := range parts {
		value, err := strconv.ParseUint(part, 10, bits)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number of %d bits", part, bits)
		}
		values[i] = uint32(value)
	}
	return values, nil
}
