// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// captureBuffer is the socket's: no test may lose a packet.
const captureBuffer = 16 << 20

// Packet is what a capture keeps of an IP packet.
type Packet struct {
	// Out is whether the packet left by the device. Otherwise it came in.
	Out bool
	// Source and Destination have port 0 where the protocol has no ports.
	Source, Destination netip.AddrPort
	Protocol            uint8
	// Length is the whole packet's, with its IP header.
	Length int
	// Payload is what follows the IP header.
	Payload []byte
}

// String is for messages.
func (p Packet) String() string {
	way := "in"
	if p.Out {
		way = "out"
	}
	return fmt.Sprintf("%s protocol %d, %s > %s, %d bytes", way, p.Protocol, p.Source, p.Destination, p.Length)
}

// Capture keeps the IP packets that pass a device.
type Capture struct {
	mu      sync.Mutex
	packets []Packet
}

// Capture begins to keep what passes the device. It ends with the test.
func (n *Namespace) Capture(t *testing.T, device string) *Capture {
	t.Helper()
	var socket *os.File
	var err error
	n.Do(t, func() { socket, err = openCapture(device) })
	if err != nil {
		t.Fatalf("capture on %s: %v", device, err)
	}
	c, done := &Capture{}, make(chan struct{})
	go func() {
		defer close(done)
		c.read(socket)
	}()
	t.Cleanup(func() {
		_ = socket.Close()
		<-done
	})
	return c
}

// Count is how many packets there are so far.
func (c *Capture) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.packets)
}

// Since returns the packets that match, but for the first ones, which were there already.
func (c *Capture) Since(first int, match func(Packet) bool) []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.packets[first:]), func(p Packet) bool { return !match(p) })
}

func openCapture(device string) (*os.File, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	// Without a protocol it takes nothing until it is bound to the device.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), device)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		_ = socket.Close()
		return nil, err
	}
	// Only ETH_P_ALL sees what leaves.
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: link.Index}); err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

func (c *Capture) read(socket *os.File) {
	conn, err := socket.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, 1<<17)
	for {
		var size int
		var from unix.Sockaddr
		var received error
		if err := conn.Read(func(fd uintptr) bool {
			size, from, received = unix.Recvfrom(int(fd), buffer, 0)
			return received != unix.EAGAIN && received != unix.EINTR
		}); err != nil || received != nil {
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		if p, ok := parse(link.Protocol, buffer[:size]); ok {
			p.Out = link.Pkttype == unix.PACKET_OUTGOING
			c.mu.Lock()
			c.packets = append(c.packets, p)
			c.mu.Unlock()
		}
	}
}

// parse reads an IP packet. Of extension headers it knows nothing.
func parse(protocol uint16, data []byte) (Packet, bool) {
	p := Packet{Length: len(data)}
	var source, destination netip.Addr
	switch {
	case protocol == networkOrder(unix.ETH_P_IP) && len(data) >= 20 && len(data) >= int(data[0]&15)*4:
		p.Protocol, p.Payload = data[9], slices.Clone(data[int(data[0]&15)*4:])
		source, _ = netip.AddrFromSlice(data[12:16])
		destination, _ = netip.AddrFromSlice(data[16:20])
	case protocol == networkOrder(unix.ETH_P_IPV6) && len(data) >= 40:
		p.Protocol, p.Payload = data[6], slices.Clone(data[40:])
		source, _ = netip.AddrFromSlice(data[8:24])
		destination, _ = netip.AddrFromSlice(data[24:40])
	default:
		return p, false
	}
	var sourcePort, destinationPort uint16
	if hasPorts(p.Protocol) && len(p.Payload) >= 4 {
		sourcePort, destinationPort = binary.BigEndian.Uint16(p.Payload), binary.BigEndian.Uint16(p.Payload[2:])
	}
	p.Source, p.Destination = netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(destination, destinationPort)
	return p, true
}

func hasPorts(protocol uint8) bool {
	return protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_UDP || protocol == unix.IPPROTO_SCTP
}

func networkOrder(n uint16) uint16 { return n<<8 | n>>8 }
