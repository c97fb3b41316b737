// SPDX-License-Identifier: Apache-2.0

// Whoami answers each HTTP request, and each UDP datagram, with the address it came from, as one line "<ip>:<port>",
// or "[<ip>]:<port>" where it is IPv6.
//
// It serves both protocols on one port, so that a test can ask a server which source address it saw.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	listen := flag.String("listen", "[::]:8080", "IPv6 address and port to serve HTTP and UDP on; [::] is all addresses, IPv4 too")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := serve(ctx, *listen)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		os.Exit(1)
	}
}

// serve runs both servers until ctx ends or one fails.
func serve(ctx context.Context, listen string) error {
	address, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return err
	}
	stream, err := net.Listen("tcp", listen)
	if err != nil {
		return errors.Join(err, datagrams.Close())
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// A client that went away needs no answer.
			_, _ = fmt.Fprintln(w, r.RemoteAddr)
		}),
	}
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(stream) }()
	go func() { ended <- answerDatagrams(datagrams) }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	}
	return errors.Join(err, server.Close(), datagrams.Close())
}

// answerDatagrams answers each datagram from the address that it was sent to (IPV6_PKTINFO, RFC 3542): on a host with several
// addresses the routing table might choose another one, which the client would not recognize. The kernel writes IPv4 addresses as
// IPv6 ones (IPv4-mapped) on such a socket.
func answerDatagrams(connection *net.UDPConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var optionErr error
	if err := raw.Control(func(descriptor uintptr) {
		optionErr = unix.SetsockoptInt(int(descriptor), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}); err != nil {
		return err
	}
	if optionErr != nil {
		return optionErr
	}
	// What the datagram says does not matter; the control message must fit.
	payload, control := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		_, n, _, from, err := connection.ReadMsgUDPAddrPort(payload, control)
		if err != nil {
			return err
		}
		answer := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String() + "\n"
		// An answer that cannot be sent is lost, as datagrams may be.
		_, _, _ = connection.WriteMsgUDPAddrPort([]byte(answer), sentTo(control[:n]), from)
	}
}

// sentTo turns the control message of a received datagram into one that sets the source address of its answer.
func sentTo(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, message := range messages {
		if message.Header.Level == unix.IPPROTO_IPV6 && message.Header.Type == unix.IPV6_PKTINFO && len(message.Data) >= unix.SizeofInet6Pktinfo {
			// struct in6_pktinfo: destination address of the datagram, interface index.
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(message.Data)})
		}
	}
	return nil
}
