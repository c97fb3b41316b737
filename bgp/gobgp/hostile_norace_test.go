// SPDX-License-Identifier: Apache-2.0

//go:build !race

package gobgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// TestHostilePeer has peers that send what no peer should, and one beside them that must not notice. Several
// sessions end at once, which is where GoBGP v4.8.0 has a data race of its own (README.md): make test-unit
// runs it without the detector.
func TestHostilePeer(t *testing.T) {
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"noise", []byte(strings.Repeat("noise", 100))},
		{"a length of 0", append(message(4)[:16], 0, 0, 4)},
		{"a length above the limit", append(message(4)[:16], 0xff, 0xff, 2)},
		{"an unknown type", message(99, 1, 2, 3)},
		{"an UPDATE that ends early", message(2, 0)},
		{"attributes longer than the message", message(2, 0, 0, 0xff, 0xff, 1)},
		{"withdrawals longer than the message", message(2, 0xff, 0xff, 0, 0)},
		{"a prefix of 255 bits", update(wellFormed, 255, 1, 2, 3, 4)},
		{"no attributes", update(nil, 32, 203, 0, 113, 1)},
		{"an attribute twice", update(join(wellFormed, originIGP), 32, 203, 0, 113, 1)},
		{"an AS path that says it is longer", update(join(originIGP, []byte{0x40, 2, 4, 2, 200, 0, 0}, nextHop), 32, 203, 0, 113, 1)},
		{"AS4_PATH where it has no place", update(join(originIGP, nextHop, []byte{0xc0, 17, 6, 2, 1, 0, 0, 0xfc, 0}, asPath), 32, 203, 0, 113, 1)},
		{"a large community cut short", update(join(wellFormed, []byte{0xc0, 32, 5, 1, 2, 3, 4, 5}), 32, 203, 0, 113, 1)},
		{"a flood of empty attributes", update([]byte(strings.Repeat("\xc0\x63\x00", 1000)), 32, 203, 0, 113, 1)},
		{"the speaker's own prefix and tags", update(join(wellFormed, []byte{0xc0, 32, 12, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0}), 32, 203, 0, 113, 2)},
		{"an extended length to nowhere", update([]byte{0x50, 1, 0xff, 0xff, 0})},
		{"MP_REACH of an unknown family", update(join(originIGP, asPath, []byte{0x80, 14, 5, 0x40, 0, 1, 0, 0}))},
		{"MP_REACH with a next hop of 200 bytes", update(join(originIGP, asPath, []byte{0x80, 14, 5, 0, 2, 1, 200, 0}))},
		{"a second OPEN", message(1, 4, 0xfc, 0, 0, 90, 192, 0, 2, 1, 0)},
		{"a route refresh for nothing", message(5, 0x40, 0, 0, 99)},
		{"a NOTIFICATION without a body", message(3)},
		{"a Cease with a message of 255 bytes that has 3", message(3, 6, 2, 255, 1, 2, 3)},
	}
	other := newSink(t, "127.0.0.41", 64511)
	speaker := newSpeaker(t, Options{})
	neighbors := []bgp.Neighbor{neighbor(other, "203.0.113.1/32")}
	var hostile []*sink
	for k := range tests {
		s := newSink(t, fmt.Sprintf("127.0.1.%d", 1+k), 64512)
		hostile = append(hostile, s)
		neighbors = append(neighbors, neighbor(s, "203.0.113.2/32"))
	}
	apply(t, speaker, neighbors...)
	other.has("203.0.113.1/32")
	for k, test := range tests {
		hostile[k].has("203.0.113.2/32")
		_ = hostile[k].raw(test.bytes) // cut off in the middle, perhaps
		_ = hostile[k].raw(message(4))
	}
	other.forget()
	// Routes still go out to all, to those that were hostile as soon as they have a session again.
	for k := range neighbors {
		neighbors[k].Routes = append(neighbors[k].Routes, bgp.Route{Prefix: netip.MustParsePrefix("203.0.113.3/32")})
	}
	apply(t, speaker, neighbors...)
	for k, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			hostile[k].t = t
			hostile[k].has("203.0.113.3/32")
		})
	}
	other.has("203.0.113.3/32")
	if got := other.log(); len(got) != 1 || got[0] != "announce 203.0.113.3/32" {
		t.Errorf("the other peer has seen %v", got)
	}
}
