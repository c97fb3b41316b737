// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// conversationPort is of the server outside that repeats what it is told.
const conversationPort = 7777

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
