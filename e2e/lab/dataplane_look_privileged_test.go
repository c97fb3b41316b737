// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// families are the IP versions of the example, once testDualStack has given it both.
var families = []lab.Family{lab.IPv4, lab.IPv6}

// conversationPort is of the server outside that repeats what it is told.
const conversationPort = 7777

func examplePod(l *lab.Lab, node topology.Node) string {
	return l.Prefix + "-pod-" + lab.ExamplePod(node.Name)
}

func otherPod(l *lab.Lab, node topology.Node) string {
	return l.Prefix + "-pod-" + lab.OtherPod(node.Name)
}

// paths checks that the ToR has one path to the example's address of each family, through the node.
func paths(ctx context.Context, l *lab.Lab, node topology.Node, families ...lab.Family) error {
	var errs []error
	for _, f := range families {
		_, err := l.Path(ctx, f, node)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// noPaths checks that the ToR has none.
func noPaths(ctx context.Context, l *lab.Lab) error {
	return errors.Join(l.NoPath(ctx, lab.IPv4), l.NoPath(ctx, lab.IPv6))
}

// leaving is a namespace and the source that the server outside should see of it in a family. No address: it should not see it at all.
type leaving struct {
	netns  string
	family lab.Family
	want   netip.Addr
}

// as is what namespaces should leave as in both families.
func as(want func(lab.Family) netip.Addr, namespaces ...string) []leaving {
	var all []leaving
	for _, f := range families {
		for _, netns := range namespaces {
			all = append(all, leaving{netns, f, want(f)})
		}
	}
	return all
}

// theService is the LoadBalancer IP, nobody is no source.
func theService(f lab.Family) netip.Addr { return f.Service }
func nobody(lab.Family) netip.Addr       { return netip.Addr{} }

// theNode is the node's own address.
func theNode(node topology.Node) func(lab.Family) netip.Addr {
	return func(f lab.Family) netip.Addr { return f.Node(node) }
}

// examplePods are the namespaces of the service's pods.
func examplePods(l *lab.Lab) []string {
	var pods []string
	for _, node := range l.Topology.Nodes() {
		pods = append(pods, examplePod(l, node))
	}
	return pods
}

// leave has all of them ask at the same time.
func leave(ctx context.Context, l *lab.Lab, all ...leaving) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, s := range all {
		group.Go(func() {
			got, err := l.Source(ctx, s.netns, s.family.Outside)
			switch {
			case !s.want.IsValid() && err != nil: // as it should be
			case err != nil:
				errs[i] = fmt.Errorf("%s in %s: %w", s.netns, s.family.Name, err)
			case got != s.want:
				errs[i] = fmt.Errorf("%s leaves in %s as %s, want %s", s.netns, s.family.Name, got, s.want)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// pod is a pod of the topology.
func pod(t *testing.T, l *lab.Lab, name string) topology.Pod {
	t.Helper()
	pods, err := l.Topology.Pods()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pods, func(p topology.Pod) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("no pod %s", name)
	}
	return pods[i]
}

// change edits the example's EgressService.
func change(t *testing.T, l *lab.Lab, edit func(*egressv1.EgressService)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	egress := &egressv1.EgressService{}
	if err := l.Client.Get(ctx, lab.ExampleService, egress); err != nil {
		t.Fatal(err)
	}
	before := egress.DeepCopy()
	edit(egress)
	if err := l.Client.Patch(ctx, egress, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// moveTo has the service move to a node and waits until the ToR sends packets there.
func moveTo(t *testing.T, l *lab.Lab, node topology.Node) {
	t.Helper()
	change(t, l, func(e *egressv1.EgressService) { e.Spec.NodeSelector = hostname(node.Name) })
	await(t, "the service is at "+node.Name, func(ctx context.Context) error {
		elected, err := l.Elected(ctx)
		if err == nil && elected.Name != node.Name {
			err = fmt.Errorf("%s is elected", elected.Name)
		}
		if err == nil {
			err = paths(ctx, l, node, families...)
		}
		return err
	})
}

// rhythm is the time between two words of a conversation, and between two datagrams.
const rhythm = 20 * time.Millisecond

// A long word is enough for what a node remembers of a connection to be out of date soon after it has moved elsewhere. With short ones
// nothing is lost to full queues.
const longWord, shortWord = 16 << 10, 32

// conversations are TCP connections of pods to a server outside, which repeats each word.
type conversations struct {
	list  []*conversation
	wrong func() int
}

type conversation struct {
	name    string
	rounds  atomic.Int64
	longest atomic.Int64 // nanoseconds
	stop    chan struct{}
	ended   chan error
}

// startConversations has the example's pods on these nodes begin to talk, in both families.
func startConversations(t *testing.T, l *lab.Lab, nodes []topology.Node, word int) *conversations {
	t.Helper()
	c := &conversations{wrong: watchSources(t, l)}
	for _, node := range nodes {
		for _, f := range families {
			c.list = append(c.list, startConversation(t, l, f, examplePod(l, node), word))
		}
	}
	c.goOn(t)
	return c
}

func startConversation(t *testing.T, l *lab.Lab, f lab.Family, netns string, word int) *conversation {
	t.Helper()
	server := netip.AddrPortFrom(f.Outside.Addr(), conversationPort).String()
	serve(t, l, server)
	connection, err := topology.DialContext(netns)(t.Context(), "tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversation{name: netns + " in " + f.Name, stop: make(chan struct{}), ended: make(chan error, 1)}
	go func() { c.ended <- c.talk(connection, word) }()
	return c
}

// serve repeats what it is told, until the test ends. A server that is there already serves.
func serve(t *testing.T, l *lab.Lab, address string) {
	t.Helper()
	listener, err := topology.Listen(l.Topology.OutsideNetns(), "tcp", address)
	if err != nil {
		return // by an earlier conversation of this test
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(connection, connection)
				_ = connection.Close()
			}()
		}
	}()
}

func (c *conversation) talk(connection net.Conn, size int) error {
	defer func() { _ = connection.Close() }()
	word := make([]byte, size)
	pause := time.NewTicker(rhythm)
	defer pause.Stop()
	for {
		select {
		case <-c.stop:
			return nil
		case <-pause.C:
		}
		begin := time.Now()
		if err := connection.SetDeadline(begin.Add(patience)); err != nil {
			return err
		}
		if _, err := connection.Write(word); err != nil {
			return err
		}
		if _, err := io.ReadFull(connection, word); err != nil {
			return err
		}
		c.rounds.Add(1)
		c.longest.Store(max(c.longest.Load(), int64(time.Since(begin))))
	}
}

// goOn waits for more rounds of all.
func goOn(t *testing.T, conversations ...*conversation) {
	t.Helper()
	const more = 10
	targets := make([]int64, len(conversations))
	for i, c := range conversations {
		targets[i] = c.rounds.Load() + more
	}
	await(t, "conversations go on", func(context.Context) error {
		for i, c := range conversations {
			select {
			case err := <-c.ended:
				t.Fatalf("the conversation of %s has ended: %v", c.name, err)
			default:
			}
			if n := c.rounds.Load(); n < targets[i] {
				return fmt.Errorf("the conversation of %s: round %d, want %d", c.name, n, targets[i])
			}
		}
		return nil
	})
}

func (c *conversation) end(t *testing.T) {
	t.Helper()
	close(c.stop)
	if err := <-c.ended; err != nil {
		t.Errorf("%s: %v", c.name, err)
	}
	t.Logf("%s: %d rounds, the longest took %s", c.name, c.rounds.Load(), time.Duration(c.longest.Load()).Round(time.Millisecond))
}

func (c *conversations) goOn(t *testing.T) {
	t.Helper()
	goOn(t, c.list...)
}

// end ends all, and fails for packets with another source than the LoadBalancer IP.
func (c *conversations) end(t *testing.T) {
	t.Helper()
	for _, one := range c.list {
		one.end(t)
	}
	if n := c.wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
}

// startDatagrams has a pod ask the server outside by datagrams, until the returned function is called, which tells how many were sent and
// how many of them had no answer.
func startDatagrams(t *testing.T, f lab.Family, netns string) func() (sent, lost int) {
	t.Helper()
	connection, err := topology.DialContext(netns)(t.Context(), "udp", f.Outside.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	stop, sentAll := make(chan struct{}), make(chan int)
	go func() {
		pause := time.NewTicker(rhythm)
		defer pause.Stop()
		for sent := 0; ; sent++ {
			select {
			case <-stop:
				sentAll <- sent
				return
			case <-pause.C:
			}
			_, _ = connection.Write([]byte("?")) // one that is not sent has no answer
		}
	}()
	var answers atomic.Int64
	go func() {
		buffer := make([]byte, 64)
		for {
			if _, err := connection.Read(buffer); errors.Is(err, net.ErrClosed) {
				return
			} else if err == nil {
				answers.Add(1)
			}
		}
	}()
	return func() (sent, lost int) {
		close(stop)
		sent = <-sentAll
		_, _ = lab.Eventually(t.Context(), 2*time.Second, func(context.Context) (string, error) {
			if int(answers.Load()) < sent {
				return "", errors.New("some are under way")
			}
			return "", nil
		})
		return sent, sent - int(answers.Load())
	}
}

// watchSources counts, on the host outside, the packets of conversations with any source but the LoadBalancer IP.
func watchSources(t *testing.T, l *lab.Lab) func() int {
	t.Helper()
	const table = "watch"
	exec := func(ctx context.Context, args ...string) (string, error) {
		output, err := l.Topology.Exec(ctx, l.Topology.OutsideNetns(), append([]string{"nft"}, args...)...)
		return string(output), err
	}
	rules := fmt.Sprintf("table inet %s { counter wrong { } ; chain in { type filter hook prerouting priority -300; "+
		"tcp dport %[2]d ip saddr != %[3]s counter name wrong; tcp dport %[2]d ip6 saddr != %[4]s counter name wrong; }; }",
		table, conversationPort, lab.IPv4.Service, lab.IPv6.Service)
	if output, err := exec(t.Context(), rules); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if output, err := exec(ctx, "delete", "table", "inet", table); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	})
	return func() int {
		output, err := exec(t.Context(), "-j", "list", "counter", "inet", table, "wrong")
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return countersIn(t, output)["wrong"]
	}
}

// counters are the packets of the counters of a node's nftables table.
func counters(t *testing.T, l *lab.Lab, node topology.Node) map[string]int {
	t.Helper()
	output, err := l.Topology.Exec(t.Context(), node.Netns, "nft", "-j", "list", "counters", "table", "inet", "metallb-egress")
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return countersIn(t, string(output))
}

func countersIn(t *testing.T, text string) map[string]int {
	t.Helper()
	var document struct {
		Nftables []struct {
			Counter struct {
				Name    string `json:"name"`
				Packets int    `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	found := map[string]int{}
	for _, object := range document.Nftables {
		if object.Counter.Name != "" {
			found[object.Counter.Name] = object.Counter.Packets
		}
	}
	return found
}

func addressCounters(t *testing.T, l *lab.Lab, node topology.Node, address netip.Addr) topology.Counters {
	t.Helper()
	c, err := l.Topology.AddressCounters(t.Context(), node.Name, address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// askUDP has a server answer a datagram.
func askUDP(ctx context.Context, netns string, server netip.AddrPort) error {
	_, err := sourceOfUDP(ctx, netns, 0, server)
	return err
}

// sourceOfUDP is the source that a server sees of a datagram from a port, 0 being any.
func sourceOfUDP(ctx context.Context, netns string, port uint16, server netip.AddrPort) (netip.Addr, error) {
	connection, err := topology.DialFrom(netns, port)(ctx, "udp", server.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = connection.Close() }()
	if err := connection.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return netip.Addr{}, err
	}
	if _, err := connection.Write([]byte("?")); err != nil {
		return netip.Addr{}, err
	}
	answer := make([]byte, 64)
	n, err := connection.Read(answer)
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddrPort(strings.TrimSpace(string(answer[:n])))
	return seen.Addr(), err
}

// oneMoreEndpoint adds a pod to the service on a node and waits until it leaves with the LoadBalancer IP.
func oneMoreEndpoint(t *testing.T, l *lab.Lab, node topology.Node) {
	t.Helper()
	pod, err := l.Topology.AddPod(t.Context(), node.Name, "example-more")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Control.CreatePod(t.Context(), lab.ExampleService.Namespace, pod.Name, pod.Node, pod.Addresses(), map[string]string{"app": "example"}); err != nil {
		t.Fatal(err)
	}
	await(t, "one more pod on "+node.Name+" leaves with the LoadBalancer IP", func(ctx context.Context) error {
		return leave(ctx, l, as(theService, pod.Netns)...)
	})
	if err := errors.Join(l.Control.DeletePod(t.Context(), lab.ExampleService.Namespace, pod.Name), l.Topology.RemovePod(t.Context(), pod.Name)); err != nil {
		t.Fatal(err)
	}
}

// ownState is what a node's databases and nftables hold of ours, without counts and handles.
func ownState(t *testing.T, l *lab.Lab, node topology.Node) string {
	t.Helper()
	var lines []string
	for _, table := range []struct{ name, columns string }{
		{"Logical_Router_Policy", "priority,match,action,nexthops,options,external_ids"},
		{"Address_Set", "name,addresses,external_ids"},
		{"Logical_Router_Static_Route", "ip_prefix,nexthop,policy,external_ids"},
	} {
		output, err := l.Topology.Exec(t.Context(), node.Netns, "ovn-nbctl", "--db=unix:"+node.NorthboundSocket, "--format=csv", "--no-headings", "--columns="+table.columns, "find", table.name, "external_ids:metallb-egress=egress-speaker")
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		lines = append(lines, strings.Split(string(output), "\n")...)
	}
	// A table that is not there is a state, too.
	output, _ := l.Topology.Exec(t.Context(), node.Netns, "nft", "-j", "list", "table", "inet", "metallb-egress")
	var document struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	_ = json.Unmarshal(output, &document)
	for _, object := range document.Nftables {
		for kind, fields := range object {
			for _, changing := range []string{"handle", "packets", "bytes"} {
				delete(fields, changing)
			}
			if elements, ok := fields["elem"].([]any); ok {
				slices.SortFunc(elements, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			text, _ := json.Marshal(fields)
			lines = append(lines, kind+" "+string(text))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
