// SPDX-License-Identifier: Apache-2.0

package speakerext

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// sink is the smallest BGP peer (RFC 4271) that takes IPv4 routes: what it was sent is what left the
// node.
type sink struct {
	t        *testing.T
	listener net.Listener

	mu      sync.Mutex
	conn    net.Conn
	table   map[netip.Prefix]bool
	history []string // "+prefix" and "-prefix" since the last take
	changed chan struct{}
}

const (
	bgpOpen, bgpUpdate, bgpKeepalive = 1, 2, 4
	sinkASN                          = 64512
)

func newSink(t *testing.T) *sink {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{t: t, listener: listener, table: map[netip.Prefix]bool{}, changed: make(chan struct{}, 1)}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conn, s.table = conn, map[netip.Prefix]bool{}
			s.mu.Unlock()
			wait.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		s.reset()
		wait.Wait()
	})
	return s
}

func (s *sink) port() uint16 { return uint16(s.listener.Addr().(*net.TCPAddr).Port) }

// reset breaks the connection.
func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

func (s *sink) serve(conn net.Conn) {
	defer conn.Close()
	header := make([]byte, 19)
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-len(header))
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		switch header[18] {
		case bgpOpen:
			send(conn, bgpOpen, []byte{4, sinkASN >> 8, sinkASN & 0xff, 0, 90, 192, 0, 2, 100, 0})
			send(conn, bgpKeepalive, nil)
		case bgpKeepalive:
			send(conn, bgpKeepalive, nil)
		case bgpUpdate:
			s.update(body)
		}
	}
}

// send ignores errors: the reader sees a broken connection.
func send(conn net.Conn, kind byte, body []byte) {
	message := make([]byte, 19, 19+len(body))
	for i := range 16 {
		message[i] = 0xff
	}
	binary.BigEndian.PutUint16(message[16:], uint16(19+len(body)))
	message[18] = kind
	_, _ = conn.Write(append(message, body...))
}

// update reads an UPDATE: withdrawn routes, attributes, routes (RFC 4271 §4.3).
func (s *sink) update(body []byte) {
	withdrawn := 2 + int(binary.BigEndian.Uint16(body))
	attributes := withdrawn + 2 + int(binary.BigEndian.Uint16(body[withdrawn:]))
	s.mu.Lock()
	for _, p := range prefixes(body[2:withdrawn]) {
		delete(s.table, p)
		s.history = append(s.history, "-"+p.String())
	}
	for _, p := range prefixes(body[attributes:]) {
		s.table[p] = true
		s.history = append(s.history, "+"+p.String())
	}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func prefixes(bytes []byte) (list []netip.Prefix) {
	for len(bytes) > 0 {
		bits := int(bytes[0])
		octets := (bits + 7) / 8
		var address [4]byte
		copy(address[:], bytes[1:1+octets])
		list = append(list, netip.PrefixFrom(netip.AddrFrom4(address), bits))
		bytes = bytes[1+octets:]
	}
	return list
}

// until waits until the table has the prefix.
func (s *sink) until(p netip.Prefix) {
	s.t.Helper()
	deadline := time.After(time.Minute)
	for {
		s.mu.Lock()
		ok := s.table[p]
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.changed:
		case <-deadline:
			s.t.Fatalf("the peer was not sent %s", p)
		}
	}
}

// take returns the table and what was sent since the last call.
func (s *sink) take() (table map[netip.Prefix]bool, history []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	table = map[netip.Prefix]bool{}
	for p := range s.table {
		table[p] = true
	}
	history, s.history = s.history, nil
	return table, history
}

func hostRoute(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (s *sink) String() string { return fmt.Sprint(s.listener.Addr()) }
