// SPDX-License-Identifier: Apache-2.0

// Whoami answers each HTTP request, and each UDP datagram, with the address it came from, as one line "<ip>:<port>".
//
// It serves both protocols on one port, IPv4 only, so that a test can ask a server which source address it saw.
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
	listen := flag.String("listen", "0.0.0.0:8080", "IPv4 address and port to serve HTTP and UDP on")
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
	datagrams, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return err
	}
	stream, err := net.Listen("tcp4", listen)
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

// answerDatagrams answers each datagram from the address that it was sent to (IP_PKTINFO, ip(7)): on a host with several
// addresses the routing table might choose another one, which the client would not recognize.
func answerDatagrams(connection *net.UDPConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var optionErr error
	if err := raw.Control(func(descriptor uintptr) {
		optionErr = unix.SetsockoptInt(int(descriptor), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}); err != nil {
		return err
	}
	if optionErr != nil {
		return optionErr
	}
	// What the datagram says does not matter; the control message must fit.
	payload, control := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
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
		if message.Header.Level == unix.IPPROTO_IP && message.Header.Type == unix.IP_PKTINFO && len(message.Data) >= unix.SizeofInet4Pktinfo {
			// struct in_pktinfo: interface index, local address, destination address of the datagram (ip(7)).
			destination := [4]byte(message.Data[8:12])
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: destination})
		}
	}
	return nil
}
