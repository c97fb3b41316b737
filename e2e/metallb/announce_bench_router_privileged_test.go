// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

const (
	zebraProgram = "/usr/lib/frr/zebra"
	// routerASN is that of routers with a kernel: the nodes' sessions with them are external.
	routerASN = 64513
	// bgpProtocol is RTPROT_BGP, which zebra gives to routes of bgpd (linux/rtnetlink.h).
	bgpProtocol = 186
	// routeBuffer holds the kernel's messages about more routes than are ever announced at once.
	routeBuffer = 64 << 20
)

// kernelRouter is an FRR router with zebra, in a namespace of its own on the world's bridge. It tells when a route comes into its kernel or
// leaves it, and when the UPDATE (RFC 4271 §4.3) that says so was on its link.
type kernelRouter struct {
	name, netns string
	address     netip.Addr
	done        chan struct{} // ends the watch
	tap         *os.File

	mutex    sync.Mutex
	routes   map[netip.Prefix]bool
	expected expectation
	update   time.Time // of the first UPDATE since the expectation
	failure  error     // of the watch
}

// expectation is a route that is to be there or not. met gets the moment.
type expectation struct {
	prefix  netip.Prefix
	present bool
	met     chan time.Time
}

// startKernelRouter connects a router to the world's bridge and starts FRR. It has to be closed even after an error.
func (w *world) startKernelRouter(ctx context.Context, name string, address netip.Addr) (*kernelRouter, error) {
	r := &kernelRouter{name: name, address: address, done: make(chan struct{}), routes: map[netip.Prefix]bool{}}
	netns := w.netns + "-" + name
	if err := ip(ctx, "netns", "add", netns); err != nil {
		return r, err
	}
	r.netns = netns
	// A bridge takes its lowest port's MAC address for its own: a lower one would change that, and the nodes would go on with the old one.
	mac := fmt.Sprintf("fe:ff:ff:ff:ff:%02x", address.As4()[3])
	err := errors.Join(
		ip(ctx, "-n", w.netns, "link", "add", name, "address", mac, "type", "veth", "peer", "name", "eth0", "netns", netns),
		ip(ctx, "-n", w.netns, "link", "set", name, "master", bridge, "up"),
		ip(ctx, "-n", netns, "link", "set", "lo", "up"), ip(ctx, "-n", netns, "link", "set", "eth0", "up"),
		ip(ctx, "-n", netns, "address", "add", address.String()+"/24", "dev", "eth0"))
	if err != nil {
		return r, err
	}
	if err := errors.Join(r.watchKernel(), r.watchLink()); err != nil {
		return r, fmt.Errorf("router %s: %w", name, err)
	}
	return r, r.start(ctx, filepath.Join(w.routers.dir, name), w.processes)
}

// close ends the watch and removes the namespace. FRR ends with the world.
func (r *kernelRouter) close(ctx context.Context) error {
	close(r.done)
	var problems []error
	if r.tap != nil {
		problems = append(problems, r.tap.Close())
	}
	if r.netns != "" {
		problems = append(problems, ip(ctx, "netns", "delete", r.netns))
	}
	return errors.Join(problems...)
}

// start starts zebra and then bgpd, with which every node may have a session.
func (r *kernelRouter) start(ctx context.Context, folder string, processes *process.Set) error {
	config := fmt.Sprintf(`router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 neighbor NODES peer-group
 neighbor NODES remote-as %d
 neighbor NODES passive
 bgp listen range %s peer-group NODES
`, routerASN, r.address, speakersASN, underlay)
	if err := topology.FRRFolder(folder, map[string]string{"zebra.conf": "", "bgpd.conf": config, "vtysh.conf": ""}); err != nil {
		return err
	}
	for _, daemon := range []struct{ name, path, socket string }{{"zebra", zebraProgram, "zserv.api"}, {"bgpd", bgpdProgram, "bgpd.vty"}} {
		err := processes.Start(ctx, process.Spec{
			Name: r.name + "." + daemon.name, Netns: r.netns, Path: daemon.path,
			Args: []string{"-u", "frr", "-g", "frr", "-f", filepath.Join(folder, daemon.name+".conf"), "-i", filepath.Join(folder, daemon.name+".pid"),
				"-z", filepath.Join(folder, "zserv.api"), "--vty_socket", folder, "-P", "0"},
		})
		if err != nil {
			return err
		}
		err = poll(ctx, daemon.name+" of "+r.name+" listens", func(context.Context) error {
			_, err := os.Stat(filepath.Join(folder, daemon.socket))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// watchKernel follows the routes of the router's kernel.
func (r *kernelRouter) watchKernel() error {
	namespace, err := netns.GetFromName(r.netns)
	if err != nil {
		return err
	}
	// The socket stays in the namespace.
	defer func() { _ = namespace.Close() }()
	updates := make(chan netlink.RouteUpdate)
	err = netlink.RouteSubscribeWithOptions(updates, r.done, netlink.RouteSubscribeOptions{
		Namespace: &namespace, ErrorCallback: r.fail, ReceiveBufferSize: routeBuffer, ReceiveBufferForceSize: true,
	})
	if err != nil {
		return err
	}
	go func() {
		for update := range updates {
			r.note(update, time.Now())
		}
	}()
	return nil
}

func (r *kernelRouter) note(update netlink.RouteUpdate, now time.Time) {
	if update.Protocol != bgpProtocol || update.Dst == nil {
		return
	}
	address, _ := netip.AddrFromSlice(update.Dst.IP)
	length, _ := update.Dst.Mask.Size()
	prefix, present := netip.PrefixFrom(address.Unmap(), length), update.Type == unix.RTM_NEWROUTE
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if present {
		r.routes[prefix] = true
	} else {
		delete(r.routes, prefix)
	}
	if r.expected.met != nil && r.expected.prefix == prefix && r.expected.present == present {
		r.expected.met <- now
		r.expected.met = nil
	}
}

// fail keeps the first error, after which routes may have been missed.
func (r *kernelRouter) fail(err error) {
	select {
	case <-r.done:
		return // the socket was closed
	default:
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.failure == nil {
		r.failure = fmt.Errorf("routes of %s: %w", r.name, err)
	}
}

// watchLink notes when UPDATEs come in.
func (r *kernelRouter) watchLink() error {
	err := inNetns(r.netns, func() error {
		// Not those that the router sends: only a socket for all protocols would see them.
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
		if err == nil {
			r.tap = os.NewFile(uintptr(socket), "packets of "+r.name)
		}
		return err
	})
	if err != nil {
		return err
	}
	go func() {
		packet := make([]byte, 1<<16)
		for {
			n, err := r.tap.Read(packet)
			if err != nil {
				r.fail(err)
				return
			}
			if now := time.Now(); hasUpdate(packet[:n]) {
				r.noteUpdate(now)
			}
		}
	}()
	return nil
}

func (r *kernelRouter) noteUpdate(now time.Time) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.update.IsZero() {
		r.update = now
	}
}

// hasUpdate tells whether an IPv4 packet holds the head of an UPDATE.
func hasUpdate(packet []byte) bool {
	const update, markerLength, headLength = 2, 16, 19
	header := func(at, atLeast int) (length int, ok bool) { return 4 * at, 4*at >= atLeast && 4*at <= len(packet) }
	if len(packet) < 20 || packet[9] != unix.IPPROTO_TCP {
		return false
	}
	length, ok := header(int(packet[0]&0xf), 20)
	if !ok || len(packet) < length+20 {
		return false
	}
	packet = packet[length:]
	if length, ok = header(int(packet[12]>>4), 20); !ok {
		return false
	}
	// A segment begins with a message's head, unless it goes on with one that is longer than a segment.
	for packet = packet[length:]; len(packet) >= headLength && packet[0] == 0xff; {
		size := int(binary.BigEndian.Uint16(packet[markerLength:]))
		if packet[headLength-1] == update {
			return true
		}
		if size < headLength || size > len(packet) {
			return false
		}
		packet = packet[size:]
	}
	return false
}

// inNetns calls a function on a thread of its own, which is in the namespace. Sockets that it makes stay there.
func inNetns(name string, call func() error) error {
	namespace, err := netns.GetFromName(name)
	if err != nil {
		return err
	}
	defer func() { _ = namespace.Close() }()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(namespace); err != nil {
			result <- err
			return
		}
		result <- call()
	}()
	return <-result
}

// expect says what is waited for. The answer has the moment when it came to be.
func (r *kernelRouter) expect(prefix netip.Prefix, present bool) <-chan time.Time {
	met := make(chan time.Time, 1)
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.expected, r.update = expectation{prefix, present, met}, time.Time{}
	return met
}

// updated is the moment of the first UPDATE since the expectation, or zero.
func (r *kernelRouter) updated() time.Time {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.update
}

// holds is nil when the kernel has that many routes.
func (r *kernelRouter) holds(count int) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.failure != nil {
		return r.failure
	}
	if len(r.routes) != count {
		return fmt.Errorf("%s has %d routes, not %d", r.name, len(r.routes), count)
	}
	return nil
}

// hostPrefix is number i of the host prefixes in a /16.
func hostPrefix(network netip.Prefix, i int) netip.Prefix {
	bytes := network.Addr().As4()
	bytes[2], bytes[3] = byte(i>>8), byte(i)
	return netip.PrefixFrom(netip.AddrFrom4(bytes), 32)
}
