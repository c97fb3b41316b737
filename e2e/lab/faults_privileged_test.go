// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/metallb-egress/metallb-egress/dataplane"
	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

// testOVNProcesses kills what a zone consists of, one after another, on the elected node and on another one.
func testOVNProcesses(t *testing.T, l *lab.Lab) {
	elected, err := l.Elected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := l.Topology.Nodes()[0]
	if other.Name == elected.Name {
		other = l.Topology.Nodes()[1]
	}
	wrong := watchSources(t, l)
	for _, node := range []topology.Node{elected, other} {
		for _, name := range []string{"ovn-northd", "ovn-controller", "ovsdb-nb", "ovsdb-sb"} {
			process := node.Name + "." + name
			kill(t, l, process)
			leaveWithService(t, l)
			if err := l.Processes.Restart(t.Context(), process); err != nil {
				t.Fatal(err)
			}
			leaveWithService(t, l)
		}
		// What comes now needs all of them.
		oneMoreEndpoint(t, l, node)
	}
	if n := wrong(); n != 0 {
		t.Errorf("%d packets with a wrong source", n)
	}
}

// testDrift takes away on every node what is ours.
func testDrift(t *testing.T, l *lab.Lab) {
	before := map[string]string{}
	for _, node := range l.Topology.Nodes() {
		before[node.Name] = ownState(t, l, node)
		northbound := func(args ...string) {
			if output, err := l.Topology.Exec(t.Context(), node.Netns, append([]string{"ovn-nbctl", "--db=unix:" + node.NorthboundSocket}, args...)...); err != nil {
				t.Fatalf("%v: %v: %s", args, err, output)
			}
		}
		northbound("lr-policy-del", "ovn_cluster_router", strconv.Itoa(dataplane.PrioritySteer))
		northbound("lr-policy-del", "ovn_cluster_router", strconv.Itoa(dataplane.PriorityExempt))
		if output, err := l.Topology.Exec(t.Context(), node.Netns, "nft", "delete", "table", "inet", "metallb-egress"); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	await(t, "everything is there again", func(ctx context.Context) error {
		for _, node := range l.Topology.Nodes() {
			if after := ownState(t, l, node); after != before[node.Name] {
				return fmt.Errorf("%s: before\n%s\nafter\n%s", node.Name, before[node.Name], after)
			}
		}
		return nil
	})
	leaveWithService(t, l)
}

// kill ends a process without mercy.
func kill(t *testing.T, l *lab.Lab, process string) {
	t.Helper()
	pid, ok := l.Processes.PID(process)
	if !ok {
		t.Fatalf("%s does not run", process)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, process+" is dead", func(context.Context) error {
		if l.Processes.Alive(process) {
			return errors.New("it lives")
		}
		return nil
	})
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
