// SPDX-License-Identifier: Apache-2.0

package gobgp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gobgppacket "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/metallb-egress/metallb-egress/bgp"
)

// sink is a BGP peer that takes everything and tells nothing: what it has seen on the wire is what
// tests look at.
type sink struct {
	t        testing.TB
	address  netip.Addr
	port     uint16
	asn      uint32
	listener net.Listener
	wait     sync.WaitGroup
	onOpen   func(net.Conn) // instead of answering, when set

	mu      sync.Mutex
	conns   []net.Conn
	opens   []*gobgppacket.BGPOpen
	events  []string          // one per prefix of an UPDATE, EOR and NOTIFICATION, in order
	table   map[string]string // attributes by prefix
	changed chan struct{}
}

// newSink listens on address, any free port.
func newSink(t testing.TB, address string, asn uint32) *sink {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	at := listener.Addr().(*net.TCPAddr).AddrPort()
	s := &sink{
		t: t, address: at.Addr().Unmap(), port: at.Port(), asn: asn, listener: listener,
		table: map[string]string{}, changed: make(chan struct{}, 1),
	}
	s.wait.Go(s.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		s.reset()
		s.wait.Wait()
	})
	return s
}

// reset breaks the connections.
func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
	s.conns = nil
}

func (s *sink) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.table = map[string]string{}
		s.mu.Unlock()
		s.wait.Go(func() { s.serve(conn) })
	}
}

func (s *sink) serve(conn net.Conn) {
	defer conn.Close()
	for {
		message, err := readMessage(conn)
		if err != nil {
			return
		}
		switch body := message.Body.(type) {
		case *gobgppacket.BGPOpen:
			s.mu.Lock()
			s.opens = append(s.opens, body)
			s.mu.Unlock()
			if s.onOpen != nil {
				s.onOpen(conn)
				return
			}
			s.send(conn, s.open())
			s.send(conn, gobgppacket.NewBGPKeepAliveMessage())
		case *gobgppacket.BGPKeepAlive:
			s.send(conn, gobgppacket.NewBGPKeepAliveMessage())
		case *gobgppacket.BGPUpdate:
			s.update(body)
		case *gobgppacket.BGPNotification:
			s.event(fmt.Sprintf("notification %d/%d", body.ErrorCode, body.ErrorSubcode))
			return
		}
	}
}

func (s *sink) open() *gobgppacket.BGPMessage {
	capabilities := gobgppacket.NewOptionParameterCapability([]gobgppacket.ParameterCapabilityInterface{
		gobgppacket.NewCapMultiProtocol(gobgppacket.RF_IPv4_UC),
		gobgppacket.NewCapMultiProtocol(gobgppacket.RF_IPv6_UC),
		gobgppacket.NewCapFourOctetASNumber(s.asn),
		gobgppacket.NewCapGracefulRestart(false, false, 120, []*gobgppacket.CapGracefulRestartTuple{
			gobgppacket.NewCapGracefulRestartTuple(gobgppacket.RF_IPv4_UC, true),
		}),
	})
	message, err := gobgppacket.NewBGPOpenMessage(uint16(s.asn), 90, netip.MustParseAddr("192.0.2.1"), []gobgppacket.OptionParameterInterface{capabilities})
	if err != nil {
		panic(err)
	}
	return message
}

func (s *sink) send(conn net.Conn, message *gobgppacket.BGPMessage) {
	bytes, err := message.Serialize()
	if err == nil {
		_, _ = conn.Write(bytes) // a broken connection ends the reader
	}
}

func readMessage(conn net.Conn) (*gobgppacket.BGPMessage, error) {
	header := make([]byte, gobgppacket.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, err
	}
	var parsed gobgppacket.BGPHeader
	if err := parsed.DecodeFromBytes(header); err != nil {
		return nil, err
	}
	body := make([]byte, int(parsed.Len)-len(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	return gobgppacket.ParseBGPBody(&parsed, body)
}

// update notes one UPDATE. Attributes are written as GoBGP prints them, all of them but ORIGIN.
func (s *sink) update(body *gobgppacket.BGPUpdate) {
	if ok, _ := body.IsEndOfRib(); ok {
		s.event("end of RIB")
		return
	}
	var reach, unreach []gobgppacket.PathNLRI
	var attributes []string
	reach, unreach = body.NLRI, body.WithdrawnRoutes
	for _, attribute := range body.PathAttributes {
		switch a := attribute.(type) {
		case *gobgppacket.PathAttributeOrigin:
		case *gobgppacket.PathAttributeMpReachNLRI:
			reach = append(reach, a.Value...)
			attributes = append(attributes, "next hop "+a.Nexthop.String())
		case *gobgppacket.PathAttributeMpUnreachNLRI:
			unreach = append(unreach, a.Value...)
		case *gobgppacket.PathAttributeNextHop:
			attributes = append(attributes, "next hop "+a.Value.String())
		case *gobgppacket.PathAttributeLargeCommunities:
			attributes = append(attributes, fmt.Sprint("large ", a.Values))
		case *gobgppacket.PathAttributeCommunities:
			var list []string
			for _, value := range a.Value {
				list = append(list, bgp.Community(value).String())
			}
			attributes = append(attributes, fmt.Sprint("communities ", list))
		default:
			attributes = append(attributes, attribute.String())
		}
	}
	slices.Sort(attributes)
	text := strings.Join(attributes, " ")
	for _, nlri := range unreach {
		s.mu.Lock()
		delete(s.table, nlri.NLRI.String())
		s.mu.Unlock()
		s.event("withdraw " + nlri.NLRI.String())
	}
	for _, nlri := range reach {
		s.mu.Lock()
		s.table[nlri.NLRI.String()] = text
		s.mu.Unlock()
		s.event("announce " + nlri.NLRI.String())
	}
}

func (s *sink) event(text string) {
	s.mu.Lock()
	s.events = append(s.events, text)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// until waits for a condition on what has been seen.
func (s *sink) until(what string, condition func() bool) {
	s.t.Helper()
	deadline := time.After(testTimeout)
	for {
		s.mu.Lock()
		ok := condition()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.changed:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			s.mu.Lock()
			defer s.mu.Unlock()
			s.t.Fatalf("sink %s: no %s after %s; events %v, table %v", s.address, what, testTimeout, s.events, s.table)
		}
	}
}

// has waits for a prefix and returns its attributes.
func (s *sink) has(prefix string) (attributes string) {
	s.t.Helper()
	s.until(prefix, func() bool {
		var ok bool
		attributes, ok = s.table[prefix]
		return ok
	})
	return attributes
}

// seen waits for an event.
func (s *sink) seen(event string) {
	s.t.Helper()
	s.until(event, func() bool { return slices.Contains(s.events, event) })
}

// forget starts a new record of events.
func (s *sink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = nil
}

// log returns the events since forget.
func (s *sink) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// prefixes returns the table's.
func (s *sink) prefixes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []string{}
	for prefix := range s.table {
		list = append(list, prefix)
	}
	slices.Sort(list)
	return list
}
