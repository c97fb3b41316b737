// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/metallb-egress/metallb-egress/api/ovnkubernetes"
	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// prefix is of the namespaces' names.
const prefix = "mlb"

// scene is what the nodes hold: so many services with so many endpoints each, and more endpoints on n3 of the first service.
type scene struct {
	services, endpoints, more  int
	epoch                      int64
	primary, standby, previous string
}

func (s scene) String() string { return fmt.Sprintf("%d x %d", s.services, s.endpoints) }

func (s scene) with(more int) scene {
	s.more = more
	return s
}

func (s scene) on(epoch int64, primary, standby, previous string) scene {
	s.epoch, s.primary, s.standby, s.previous = epoch, primary, standby, previous
	return s
}

// service is the one of this number, without a role. Its endpoints are spread over the nodes, and need not be pods of the lab.
func (s scene) service(number int) dataplane.Service {
	service := dataplane.Service{
		Key: fmt.Sprintf("ladder/service-%d", number), Primary: s.primary, Standby: s.standby, Epoch: s.epoch,
		SourceIPs: []netip.Addr{address("172.19.0.0", number+1)},
	}
	for i := number * s.endpoints; i < (number+1)*s.endpoints; i++ {
		node := i%3 + 1
		service.Endpoints = append(service.Endpoints, dataplane.Endpoint{Address: address("10.244.0.0", node<<14+i/3), Node: fmt.Sprintf("n%d", node)})
	}
	if number == 0 {
		for i := range s.more {
			service.Endpoints = append(service.Endpoints, dataplane.Endpoint{Address: address("10.244.1.0", i), Node: "n3"})
		}
	}
	return service
}

func address(first string, number int) netip.Addr {
	bytes := netip.MustParseAddr(first).As4()
	binary.BigEndian.PutUint32(bytes[:], binary.BigEndian.Uint32(bytes[:])+uint32(number))
	return netip.AddrFrom4(bytes)
}

// world is the lab's nodes.
type world struct {
	procs *process.Set
	dir   string
	nodes []topology.Node
	facts map[string]dataplane.NodeFacts
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Short: the paths of unix sockets are limited.
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	procs, err := process.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	options := topology.Options{Prefix: prefix, Dir: dir}
	lab, err := topology.Up(t.Context(), options, procs, t.Logf)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := errors.Join(topology.Down(ctx, options, procs), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w, err := worldOf(lab, procs, dir)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func worldOf(lab *topology.Topology, procs *process.Set, dir string) (*world, error) {
	w := &world{procs: procs, dir: dir, nodes: lab.Nodes(), facts: map[string]dataplane.NodeFacts{}}
	for _, n := range w.nodes {
		parsed, err := ovnkubernetes.Parse(n.Annotations)
		if err != nil {
			return nil, err
		}
		w.facts[n.Name] = dataplane.NodeFacts{
			Addresses: parsed.HostAddresses, ManagementAddresses: parsed.ManagementAddresses(),
			TransitAddresses: parsed.TransitAddresses, PodSubnets: parsed.PodSubnets,
		}
	}
	return w, nil
}

// input is what egress-speaker on a node would make of a scene.
func (w *world) input(node string, s scene) dataplane.Input {
	subnet := func(p netip.Prefix) []netip.Prefix { return []netip.Prefix{p} }
	in := dataplane.Input{Node: node, Nodes: w.facts, Cluster: dataplane.Cluster{
		PodSubnets: subnet(topology.PodSubnet), ServiceSubnets: subnet(topology.ServiceSubnet), JoinSubnets: subnet(topology.JoinSubnet),
		TransitSubnets: subnet(topology.TransitSubnet), MasqueradeSubnets: subnet(topology.MasqueradeSubnet),
	}}
	for i := range s.services {
		service := s.service(i)
		switch node {
		case s.primary:
			service.Role = dataplane.RolePrimary
		case s.previous: // the standby, too
			service.Role = dataplane.RolePrevious
		case s.standby:
			service.Role = dataplane.RoleStandby
		}
		in.Services = append(in.Services, service)
		in.Guards = append(in.Guards, dataplane.Guard{Address: service.SourceIPs[0], Ports: []dataplane.Port{{Protocol: dataplane.TCP, Number: 80}}})
	}
	return in
}

// programs are the kinds of programs whose CPU time counts, by the beginning of their names on a node.
var programs = []string{"ovn-northd", "ovsdb", "ovn-controller", "ovs-vswitchd"}

// cpu is the CPU time of each kind of program, on all nodes, and the test's own, with the commands that it ran.
type cpu [5]time.Duration

func (c cpu) all() (sum time.Duration) {
	for _, part := range c {
		sum += part
	}
	return sum
}

func (w *world) cpu() (sum cpu, err error) {
	names, err := w.procs.Names()
	if err != nil {
		return sum, err
	}
	for _, name := range names {
		_, kind, _ := strings.Cut(name, ".")
		for i, program := range programs {
			if !strings.HasPrefix(kind, program) {
				continue
			}
			pid, alive := w.procs.PID(name)
			if !alive {
				return sum, fmt.Errorf("%s has ended, see %s", name, w.procs.LogPath(name))
			}
			used, err := usedBy(pid)
			if err != nil {
				return sum, err
			}
			sum[i] += used
		}
	}
	return sum, nil
}

// usedBy is the CPU time of a program's threads, which the lab's programs keep. It is finer here than in /proc/<pid>/stat, which has ticks
// of 10 ms.
func usedBy(pid int) (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		nanoseconds, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(nanoseconds)
	}
	return sum, nil
}

// own is the CPU time of this process and of the commands that it has run.
func own() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var used unix.Rusage
		if err := unix.Getrusage(who, &used); err == nil {
			sum += time.Duration(used.Utime.Nano() + used.Stime.Nano())
		}
	}
	return sum
}

// quiet returns when the programs have done next to nothing for a while.
func (w *world) quiet(ctx context.Context) error {
	const window, idle = 200 * time.Millisecond, 20 * time.Millisecond
	tick := time.NewTicker(window)
	defer tick.Stop()
	before, err := w.cpu()
	for err == nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the programs are at work: %w", ctx.Err())
		case <-tick.C:
		}
		now, problem := w.cpu()
		if problem == nil && now.all()-before.all() < idle {
			return nil
		}
		before, err = now, problem
	}
	return err
}

// thread runs functions in a network namespace: sockets that they make and commands that they run are in it.
type thread chan func()

func newThread(namespace string) (thread, error) {
	calls, ready := make(thread), make(chan error)
	go func() {
		// It ends with the goroutine.
		runtime.LockOSThread()
		handle, err := netns.GetFromName(namespace)
		if err == nil {
			err = errors.Join(netns.Set(handle), handle.Close())
		}
		ready <- err
		for call := range calls {
			call()
		}
	}()
	return calls, <-ready
}

func (t thread) do(call func() error) error {
	done := make(chan error)
	t <- func() { done <- call() }
	return <-done
}
