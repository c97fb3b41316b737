// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Flags of a TCP segment.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Types of ICMP messages.
const (
	echoRequest4, echoReply4, unreachable4 = 8, 0, 3
	echoRequest6, echoReply6, unreachable6 = 128, 129, 1
	portUnreachable4, portUnreachable6     = 3, 4
	neighborSolicitation                   = 135
)

const hopLimit = 64

// Datagram is an IP packet made by hand, as a raw socket sends it.
type Datagram struct {
	Source, Destination netip.Addr
	Protocol            uint8
	// HopLimit is the system's when 0.
	HopLimit int
	Payload  []byte
}

// Send sends the datagram. Its source has to be an address of the namespace.
func (n *Namespace) Send(t *testing.T, d Datagram) {
	t.Helper()
	n.Do(t, func() {
		if err := d.send(); err != nil {
			t.Errorf("send a datagram of protocol %d from %s to %s: %v", d.Protocol, d.Source, d.Destination, err)
		}
	})
}

// Packet is the datagram as a capture shows it where it comes in.
func (d Datagram) Packet() Packet {
	protocol := uint16(unix.ETH_P_IP)
	if d.Source.Is6() {
		protocol = unix.ETH_P_IPV6
	}
	p, _ := parse(networkOrder(protocol), append(d.header(), d.Payload...))
	return p
}

func (d Datagram) send() error {
	domain, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL
	if d.Source.Is6() {
		domain, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(d.Protocol))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if d.HopLimit > 0 {
		if err := unix.SetsockoptInt(fd, level, option, d.HopLimit); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, socketAddress(d.Source)); err != nil {
		return err
	}
	return unix.Sendto(fd, d.Payload, 0, socketAddress(d.Destination))
}

func socketAddress(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// TCPSegment is a segment with these flags.
func TCPSegment(source, destination netip.AddrPort, flags uint8, data string) Datagram {
	payload := ports(source, destination)
	payload = binary.BigEndian.AppendUint32(payload, 1_000_000) // sequence number
	payload = binary.BigEndian.AppendUint32(payload, 2_000_000) // acknowledgment
	payload = append(payload, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	return transport(source, destination, unix.IPPROTO_TCP, append(payload, data...), 16)
}

// UDPDatagram is a datagram.
func UDPDatagram(source, destination netip.AddrPort, data string) Datagram {
	payload := binary.BigEndian.AppendUint16(ports(source, destination), uint16(8+len(data)))
	payload = append(payload, 0, 0)
	return transport(source, destination, unix.IPPROTO_UDP, append(payload, data...), 6)
}

// SCTPInit is a packet that opens an association.
func SCTPInit(source, destination netip.AddrPort) Datagram {
	payload := append(ports(source, destination), 0, 0, 0, 0, 0, 0, 0, 0) // verification tag, checksum
	payload = append(payload, 1, 0, 0, 20)                                // INIT, its length
	payload = binary.BigEndian.AppendUint32(payload, 0x01020304)          // initiate tag
	payload = binary.BigEndian.AppendUint32(payload, 65536)               // receiver window
	payload = append(payload, 0, 1, 0, 1)                                 // streams out and in
	payload = binary.BigEndian.AppendUint32(payload, 0x01020304)          // first sequence number
	binary.LittleEndian.PutUint32(payload[8:], sctpChecksum(payload))     // RFC 9260, appendix A
	return Datagram{Source: source.Addr(), Destination: destination.Addr(), Protocol: unix.IPPROTO_SCTP, Payload: payload}
}

// SCTPChecksumIsRight is whether the checksum in a packet of SCTP is what it has to be.
func SCTPChecksumIsRight(payload []byte) bool {
	return len(payload) >= 12 && binary.LittleEndian.Uint32(payload[8:]) == sctpChecksum(payload)
}

func sctpChecksum(payload []byte) uint32 {
	zeroed := slices.Clone(payload)
	clear(zeroed[8:12])
	return crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli))
}

// EchoRequest is what ping sends.
func EchoRequest(source, destination netip.Addr, identifier uint16) Datagram {
	kind := uint8(echoRequest4)
	if source.Is6() {
		kind = echoRequest6
	}
	rest := binary.BigEndian.AppendUint16(nil, identifier)
	return icmp(source, destination, kind, 0, append(rest, 0, 1, 'p', 'i', 'n', 'g'))
}

// PortUnreachable is what source answers to a datagram that nobody takes.
func PortUnreachable(source netip.Addr, about Datagram) Datagram {
	kind, code := uint8(unreachable4), uint8(portUnreachable4)
	if source.Is6() {
		kind, code = unreachable6, portUnreachable6
	}
	return icmp(source, about.Source, kind, code, slices.Concat([]byte{0, 0, 0, 0}, about.header(), about.Payload))
}

// NeighborSolicitation is what IPv6 asks a neighbor with that it knows: whether it is still there.
func NeighborSolicitation(source, target netip.Addr) Datagram {
	return icmp(source, target, neighborSolicitation, 0, append([]byte{0, 0, 0, 0}, target.AsSlice()...))
}

// IsEchoReply is whether a packet answers an EchoRequest.
func (p Packet) IsEchoReply() bool { return p.isICMP(echoReply4, echoReply6) }

// IsUnreachable is whether a packet is an error that says that something is unreachable. A protocol
// that is not known is an error of another type in IPv6.
func (p Packet) IsUnreachable() bool { return p.isICMP(unreachable4, unreachable6) }

func (p Packet) isICMP(kind4, kind6 uint8) bool {
	switch {
	case len(p.Payload) == 0:
		return false
	case p.Protocol == unix.IPPROTO_ICMP:
		return p.Payload[0] == kind4
	default:
		return p.Protocol == unix.IPPROTO_ICMPV6 && p.Payload[0] == kind6
	}
}

func icmp(source, destination netip.Addr, kind, code uint8, rest []byte) Datagram {
	d := Datagram{Source: source, Destination: destination, Protocol: unix.IPPROTO_ICMP, Payload: append([]byte{kind, code, 0, 0}, rest...)}
	if source.Is6() {
		d.Protocol = unix.IPPROTO_ICMPV6 // the system adds the checksum
		return d
	}
	binary.BigEndian.PutUint16(d.Payload[2:], checksum(d.Payload))
	return d
}

// header is a header as the system would write it.
func (d Datagram) header() []byte {
	if d.Source.Is6() {
		h := append([]byte{6 << 4, 0, 0, 0}, 0, byte(len(d.Payload)), d.Protocol, hopLimit)
		return slices.Concat(h, d.Source.AsSlice(), d.Destination.AsSlice())
	}
	h := append([]byte{4<<4 | 5, 0, 0, byte(20 + len(d.Payload))}, 0, 0, 0, 0, hopLimit, d.Protocol, 0, 0)
	h = slices.Concat(h, d.Source.AsSlice(), d.Destination.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

func ports(source, destination netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source.Port()), destination.Port())
}

// transport puts in the checksum, which covers the addresses too.
func transport(source, destination netip.AddrPort, protocol uint8, payload []byte, at int) Datagram {
	pseudo := slices.Concat(source.Addr().AsSlice(), destination.Addr().AsSlice(), []byte{0, protocol})
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(payload)))
	binary.BigEndian.PutUint16(payload[at:], checksum(append(pseudo, payload...)))
	return Datagram{Source: source.Addr(), Destination: destination.Addr(), Protocol: protocol, Payload: payload}
}

// checksum is the internet's, RFC 1071.
func checksum(data []byte) uint16 {
	if len(data)%2 == 1 {
		data = append(slices.Clone(data), 0)
	}
	var sum uint32
	for ; len(data) > 0; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
