// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

var validPod = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// Pod is a network namespace attached to OVN.
type Pod struct {
	Name     string     `json:"name"`
	Node     string     `json:"node"`
	Netns    string     `json:"netns"`
	Address  netip.Addr `json:"address"`
	Address6 netip.Addr `json:"address6"`
	// Ready tells that AddPod came to its end.
	Ready bool `json:"ready"`
}

// Addresses are the pod's, IPv4 first.
func (p Pod) Addresses() []netip.Addr {
	return []netip.Addr{p.Address, p.Address6}
}

// MAC is the pod's MAC address, derived from its IPv4 address as OVN-Kubernetes does.
func (p Pod) MAC() net.HardwareAddr {
	return ovnMAC(p.Address)
}

// device is the node's end of the pod's veth. It is short whatever the pod's name.
func (p Pod) device() string {
	sum := sha256.Sum256([]byte(p.Name))
	return "pod" + hex.EncodeToString(sum[:5])
}

func (o Options) podFolder() string {
	return filepath.Join(o.folder(), "pod")
}

func (o Options) podRecord(name string) string {
	return filepath.Join(o.podFolder(), name+".json")
}

// AddPod attaches a pod to a node: namespace <prefix>-pod-<name>, with the lowest free number in the node's subnets. It returns when OVN
// has its flows. A pod that is there already is returned as it is; its node has to be the same. A pod's name is letters,
// digits, dots, dashes and underscores, at most 100.
func (t *Topology) AddPod(ctx context.Context, node, name string) (Pod, error) {
	pod, err := t.addPod(ctx, node, name)
	if err != nil {
		return Pod{}, fmt.Errorf("pod %s: %w", name, err)
	}
	return pod, nil
}

func (t *Topology) addPod(ctx context.Context, node, name string) (Pod, error) {
	n, err := t.Node(node)
	if err != nil {
		return Pod{}, err
	}
	if !validPod.MatchString(name) {
		return Pod{}, errors.New("not a valid name")
	}
	pod, existed, err := t.reservePod(n, name)
	if err != nil || pod.Ready {
		return pod, err
	}
	if existed {
		// An earlier AddPod was cut short.
		if err := t.detachPod(ctx, pod); err != nil {
			return Pod{}, err
		}
	}
	if err := t.attachPod(ctx, n, pod); err != nil {
		return Pod{}, err
	}
	pod.Ready = true
	return pod, t.options.writePod(pod)
}

// reservePod returns the pod's record, and makes one, with a free address, where there is none.
func (t *Topology) reservePod(n Node, name string) (pod Pod, existed bool, err error) {
	unlock, err := t.options.lockPods()
	if err != nil {
		return Pod{}, false, err
	}
	defer unlock()
	pods, err := t.Pods()
	if err != nil {
		return Pod{}, false, err
	}
	used := map[netip.Addr]bool{}
	for _, pod := range pods {
		if pod.Name == name {
			if pod.Node != n.Name {
				return Pod{}, false, fmt.Errorf("is on node %s already", pod.Node)
			}
			return pod, true, nil
		}
		used[pod.Address] = true
	}
	for host := firstPodHost; host <= lastPodHost; host++ {
		if address := hostOf(n.PodSubnet, host); !used[address] {
			pod := Pod{Name: name, Node: n.Name, Netns: t.options.podNetns(name), Address: address, Address6: hostOf(n.PodSubnet6, host)}
			return pod, false, t.options.writePod(pod)
		}
	}
	return Pod{}, false, fmt.Errorf("node %s has no free address", n.Name)
}

func (t *Topology) attachPod(ctx context.Context, n Node, pod Pod) error {
	if err := addNetns(ctx, pod.Netns); err != nil {
		return err
	}
	lines := []string{
		fmt.Sprintf("link add %s mtu %d address %s type veth peer name %s netns %s", podDevice, podMTU, pod.MAC(), pod.device(), n.Netns),
		fmt.Sprintf("link set %s up", podDevice),
	}
	for i, s := range n.stacks() {
		lines = append(lines,
			fmt.Sprintf("address add %s/%d dev %s", pod.Addresses()[i], s.pods.Bits(), podDevice),
			fmt.Sprintf("route add default via %s", s.gateway.Addr()))
	}
	if err := ipBatch(ctx, pod.Netns, lines...); err != nil {
		return err
	}
	if err := offloadOff(ctx, pod.Netns, podDevice); err != nil {
		return err
	}
	if err := leaveToDatapath(ctx, n.Netns, pod.device()); err != nil {
		return err
	}
	if err := ipBatch(ctx, n.Netns, fmt.Sprintf("link set %s up", pod.device())); err != nil {
		return err
	}
	if _, err := n.northbound(ctx, oneTransaction([][]string{
		{"lsp-add", n.Name, pod.Name},
		{"lsp-set-addresses", pod.Name, fmt.Sprintf("%s %s %s", pod.MAC(), pod.Address, pod.Address6)},
		{"set", "Logical_Switch_Port", pod.Name, "external_ids:pod=true"},
	})...); err != nil {
		return err
	}
	if _, err := n.openvswitch(ctx, oneTransaction([][]string{
		{"add-port", integrationBridge, pod.device()},
		{"set", "Interface", pod.device(), "external_ids:iface-id=" + pod.Name, "external_ids:attached_mac=\"" + pod.MAC().String() + "\""},
	})...); err != nil {
		return err
	}
	_, err := n.northbound(ctx, "wait-until", "Logical_Switch_Port", pod.Name, "up=true")
	return err
}

// RemovePod ends what runs in the pod and removes it. A pod that is not there is no error.
func (t *Topology) RemovePod(ctx context.Context, name string) error {
	pod, found, err := t.options.readPod(name)
	if err != nil || !found {
		return err
	}
	if err := t.detachPod(ctx, pod); err != nil {
		return fmt.Errorf("pod %s: %w", name, err)
	}
	return os.Remove(t.options.podRecord(name))
}

// detachPod removes what there is of a pod, except its record.
func (t *Topology) detachPod(ctx context.Context, pod Pod) error {
	n, err := t.Node(pod.Node)
	if err != nil {
		return err
	}
	if err := removeNamespaces(ctx, []string{pod.Netns}); err != nil {
		return err
	}
	if _, err := n.openvswitch(ctx, "--if-exists", "del-port", integrationBridge, pod.device()); err != nil {
		return err
	}
	// Its flows go before its address may be given to another pod.
	_, err = n.northbound(ctx, "--wait=hv", "--if-exists", "lsp-del", pod.Name)
	return err
}

// Pods returns all pods in the order of their names, those too that an AddPod was cut short of (Ready is false).
func (t *Topology) Pods() ([]Pod, error) {
	entries, err := os.ReadDir(t.options.podFolder())
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, entry := range entries {
		name, isRecord := strings.CutSuffix(entry.Name(), ".json")
		if !isRecord {
			continue
		}
		pod, found, err := t.options.readPod(name)
		if err != nil {
			return nil, err
		}
		if found {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

func (o Options) readPod(name string) (Pod, bool, error) {
	content, err := os.ReadFile(o.podRecord(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Pod{}, false, nil
	}
	if err != nil {
		return Pod{}, false, err
	}
	var pod Pod
	if err := json.Unmarshal(content, &pod); err != nil {
		return Pod{}, false, fmt.Errorf("%s: %w", o.podRecord(name), err)
	}
	return pod, true, nil
}

// writePod replaces the record at once, so that nobody reads half of it.
func (o Options) writePod(pod Pod) error {
	temporary := o.podRecord(pod.Name) + ".new"
	if err := os.WriteFile(temporary, []byte(text(pod)+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, o.podRecord(pod.Name))
}

// lockPods keeps other goroutines and other commands from choosing an address at the same time (flock(2)).
func (o Options) lockPods() (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(o.podFolder(), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	// Closing the file gives up the lock.
	return func() { _ = file.Close() }, nil
}
