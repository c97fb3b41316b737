// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// patience is how long a datagram's answer is awaited before it is sent again.
const patience = time.Second

// Echo answers at an address of the namespace, to TCP and UDP: a connection gets a line with the
// source that it came from and then whatever it sends, a datagram only its source.
func (n *Namespace) Echo(t *testing.T, at netip.AddrPort) {
	t.Helper()
	n.Do(t, func() {
		listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			t.Errorf("listen: %v", err)
			return
		}
		t.Cleanup(func() { _ = listener.Close() })
		datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Errorf("listen: %v", err)
			return
		}
		t.Cleanup(func() { _ = datagrams.Close() })
		go echoConnections(t.Context(), listener)
		go echoDatagrams(datagrams)
	})
}

func echoConnections(ctx context.Context, listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		go func() {
			defer stop()
			defer func() { _ = conn.Close() }()
			if _, err := fmt.Fprintln(conn, conn.RemoteAddr()); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		}()
	}
}

func echoDatagrams(conn *net.UDPConn) {
	buffer := make([]byte, 2048)
	for {
		_, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		_, _ = conn.WriteToUDPAddrPort([]byte(from.String()+"\n"), from)
	}
}

// Conn is a connection to an Echo.
type Conn struct {
	net.Conn
	// Seen is the source that the other side saw.
	Seen netip.AddrPort

	reader *bufio.Reader
}

// Read reads what follows the first line.
func (c *Conn) Read(b []byte) (int, error) { return c.reader.Read(b) }

// Dial opens a connection to an Echo, which is reset when the test ends. With "udp" it sends until
// it is answered.
func (n *Namespace) Dial(t *testing.T, network string, from, to netip.AddrPort) *Conn {
	t.Helper()
	var c *Conn
	var err error
	n.Do(t, func() { c, err = dial(network, from, to) })
	if err != nil {
		t.Fatalf("%s from %s to %s: %v", network, from, to, err)
	}
	t.Cleanup(func() { _ = c.Conn.Close() })
	return c
}

func dial(network string, from, to netip.AddrPort) (*Conn, error) {
	until := time.Now().Add(deadline)
	dialer := net.Dialer{Deadline: until, LocalAddr: net.TCPAddrFromAddrPort(from)}
	if network == "udp" {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	conn, err := dialer.Dial(network, to.String())
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c := &Conn{Conn: conn, reader: bufio.NewReader(conn)}
	if c.Seen, err = c.greeting(network, until); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, conn.SetDeadline(until.Add(deadline))
}

func (c *Conn) greeting(network string, until time.Time) (netip.AddrPort, error) {
	for {
		wait := until
		if network == "udp" {
			wait = time.Now().Add(patience)
			// What is wrong here shows when reading.
			_, _ = c.Write([]byte("?"))
		}
		_ = c.SetReadDeadline(wait)
		line, err := c.reader.ReadString('\n')
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(until) {
			continue
		} else if err != nil {
			return netip.AddrPort{}, err
		}
		return netip.ParseAddrPort(strings.TrimSuffix(line, "\n"))
	}
}
