// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"encoding/binary"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// raw sends bytes on the newest connection.
func (s *sink) raw(bytes []byte) error {
	s.mu.Lock()
	conn := s.conns[len(s.conns)-1]
	s.mu.Unlock()
	_, err := conn.Write(bytes)
	return err
}

// message is a BGP message with a right header.
func message(kind uint8, body ...byte) []byte {
	header := make([]byte, gobgppacket.BGP_HEADER_LENGTH)
	for i := range 16 {
		header[i] = 0xff
	}
	binary.BigEndian.PutUint16(header[16:], uint16(len(header)+len(body)))
	header[18] = kind
	return append(header, body...)
}

// update is an UPDATE with these attributes and prefixes, as they are on the wire.
func update(attributes []byte, prefixes ...byte) []byte {
	body := []byte{0, 0}
	body = binary.BigEndian.AppendUint16(body, uint16(len(attributes)))
	return message(gobgppacket.BGP_MSG_UPDATE, append(append(body, attributes...), prefixes...)...)
}

var (
	originIGP  = []byte{0x40, 1, 1, 0}
	asPath     = []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0}
	nextHop    = []byte{0x40, 3, 4, 192, 0, 2, 1}
	wellFormed = join(originIGP, asPath, nextHop)
)

func join(parts ...[]byte) []byte {
	var all []byte
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// TestHostilePeerFloods: what a peer sends is bounded, and a peer that sends more is left alone for a
// while, without harm to the one beside it.
func TestHostilePeerFloods(t *testing.T) {
	hostile, other := newSink(t, "127.0.0.43", 64512), newSink(t, "127.0.0.44", 64511)
	speaker := newSpeaker(t, Options{})
	apply(t, speaker, neighbor(hostile, "203.0.113.1/32"), neighbor(other, "203.0.113.2/32"))
	hostile.has("203.0.113.1/32")
	other.has("203.0.113.2/32")
	before := heap()
	for k := 0; k <= maxReceivedPrefixes+1000; k += 100 {
		var prefixes []byte
		for n := k; n < k+100; n++ {
			prefixes = append(prefixes, 32, 10, byte(n>>16), byte(n>>8), byte(n))
		}
		if hostile.raw(update(wellFormed, prefixes...)) != nil {
			break // the speaker has had enough
		}
	}
	untilSession(t, speaker, "says why it was ended", func(s bgp.Session) bool {
		return s.Peer == hostile.address && s.State == bgp.Idle && strings.Contains(s.LastError, "more than 100000")
	})
	other.forget()
	apply(t, speaker, neighbor(hostile, "203.0.113.1/32"), neighbor(other, "203.0.113.2/32", "203.0.113.4/32"))
	other.has("203.0.113.4/32")
	if got := other.log(); len(got) != 1 {
		t.Errorf("the other peer has seen %v", got)
	}
	const bound = 64 << 20
	if grown := heap() - before; grown > bound {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	// It gets another chance.
	i := speaker.list()[0]
	i.mu.Lock()
	i.sessions[hostile.address].refusedUntil = time.Now()
	i.mu.Unlock()
	i.wake()
	untilSession(t, speaker, "is established again", func(s bgp.Session) bool {
		return s.Peer == hostile.address && s.State == bgp.Established
	})
	hostile.has("203.0.113.1/32")
}

func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// TestHostilePeerResets: a peer that breaks every connection as soon as it can does not keep the
// speaker busy, nor from its other peers.
func TestHostilePeerResets(t *testing.T) {
	hostile, other := newSink(t, "127.0.0.45", 64512), newSink(t, "127.0.0.46", 64511)
	hostile.onOpen = func(conn net.Conn) { _ = conn.Close() }
	speaker := newSpeaker(t, Options{})
	n := neighbor(hostile, "203.0.113.1/32")
	n.GracefulRestart = true
	apply(t, speaker, n, neighbor(other, "203.0.113.2/32"))
	other.has("203.0.113.2/32")
	other.forget()
	hostile.until("three connections", func() bool { return len(hostile.opens) >= 3 })
	untilSession(t, speaker, "has an error", func(s bgp.Session) bool { return s.Peer == hostile.address && s.LastError != "" })
	if got := other.log(); len(got) > 0 {
		t.Errorf("the other peer has seen %v", got)
	}
}
