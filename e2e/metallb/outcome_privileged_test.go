// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package metallb

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	frrk8sv1beta1 "github.com/metallb/frr-k8s/api/v1beta1"
	metallbv1beta1 "go.universe.tf/metallb/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/metallb-egress/metallb-egress/e2e/lab/controlplane"
)

// offers are who has to announce something: by node, a text for each peer, such as "tor1" or "tor1 localPref=200 64512:1".
type offers map[string][]string

// at is offers from some nodes, separated by spaces, to some peers; to both where none is given.
func at(nodes string, peers ...string) offers {
	if len(peers) == 0 {
		peers = []string{tor1, tor2}
	}
	all := offers{}
	for node := range strings.FieldsSeq(nodes) {
		all[node] = peers
	}
	return all
}

// everywhere is at for every node.
func everywhere(peers ...string) offers { return at("n1 n2 n3", peers...) }

// nowhere is what nobody announces.
var nowhere = offers{}

// offered is what each node announces, by prefix: as the routers say, or as the FRRConfigurations would have it.
func (w *world) offered(ctx context.Context) (map[netip.Prefix]offers, error) {
	if w.routers != nil {
		return w.routers.offered(ctx)
	}
	list := &frrk8sv1beta1.FRRConfigurationList{}
	if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
		return nil, err
	}
	all := map[netip.Prefix]offers{}
	for i := range list.Items {
		node, prefixes, err := readConfiguration(&list.Items[i])
		if err != nil {
			return nil, err
		}
		for prefix, texts := range prefixes {
			if all[prefix] == nil {
				all[prefix] = offers{}
			}
			all[prefix][node] = texts
		}
	}
	return all, nil
}

// readConfiguration reads what one node is to announce, by prefix.
func readConfiguration(configuration *frrk8sv1beta1.FRRConfiguration) (node string, offered map[netip.Prefix][]string, err error) {
	node = configuration.Spec.NodeSelector.MatchLabels[corev1.LabelHostname]
	if configuration.Name != "metallb-"+node {
		return "", nil, fmt.Errorf("FRRConfiguration %s is for node %q", configuration.Name, node)
	}
	offered = map[netip.Prefix][]string{}
	for _, router := range configuration.Spec.BGP.Routers {
		for _, neighbor := range router.Neighbors {
			for _, text := range neighbor.ToAdvertise.Allowed.Prefixes {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return "", nil, fmt.Errorf("FRRConfiguration %s: %w", configuration.Name, err)
				}
				if !slices.Contains(router.Prefixes, text) {
					return "", nil, fmt.Errorf("FRRConfiguration %s: %s is not a prefix of the router", configuration.Name, text)
				}
				offered[prefix] = append(offered[prefix], describe(neighbor, text))
			}
		}
	}
	for _, texts := range offered {
		slices.Sort(texts)
	}
	return node, offered, nil
}

// describe is one peer's text for a prefix. A prefix may have several values of localPref, though a route can have one only.
func describe(neighbor frrk8sv1beta1.Neighbor, prefix string) string {
	words := []string{neighbor.Address}
	if name, known := peerNames[neighbor.Address]; known {
		words[0] = name
	}
	for _, one := range neighbor.ToAdvertise.PrefixesWithLocalPref {
		if slices.Contains(one.Prefixes, prefix) {
			words = append(words, "localPref="+strconv.Itoa(int(one.LocalPref)))
		}
	}
	for _, one := range neighbor.ToAdvertise.PrefixesWithCommunity {
		if slices.Contains(one.Prefixes, prefix) {
			words = append(words, one.Community)
		}
	}
	return strings.Join(words, " ")
}

// announced are the offers of a service's own addresses. A dual-stack service has to be offered alike in both families.
func (w *world) announced(ctx context.Context, name string) (offers, error) {
	addresses, err := w.addresses(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := w.offered(ctx)
	if err != nil {
		return nil, err
	}
	first := all[addresses[0]]
	for _, other := range addresses[1:] {
		if diff := cmp.Diff(first, all[other]); diff != "" {
			return nil, fmt.Errorf("service %s: -%s +%s:\n%s", name, addresses[0], other, diff)
		}
	}
	if first == nil {
		return offers{}, nil
	}
	return first, nil
}

// announces waits until a service is offered like that.
func (w *world) announces(t *testing.T, name string, want offers) {
	t.Helper()
	err := poll(t.Context(), "who announces service "+name, func(ctx context.Context) error {
		got, err := w.announced(ctx, name)
		return differs(want, got, err)
	})
	if err != nil {
		t.Error(err)
	}
}

// announcesAggregate is announces for the prefix of that length around a service's address.
func (w *world) announcesAggregate(t *testing.T, name string, length int, want offers) {
	t.Helper()
	err := poll(t.Context(), fmt.Sprintf("who announces the /%d of service %s", length, name), func(ctx context.Context) error {
		addresses, err := w.addresses(ctx, name)
		if err != nil {
			return err
		}
		all, err := w.offered(ctx)
		return differs(want, all[netip.PrefixFrom(addresses[0].Addr(), length).Masked()], err)
	})
	if err != nil {
		t.Error(err)
	}
}

// reports waits until MetalLB's speakers say in ServiceBGPStatuses that they announce a service like that. Those name the peers only.
func (w *world) reports(t *testing.T, name string, want offers) {
	t.Helper()
	named := offers{}
	for node, texts := range want {
		for _, text := range texts {
			peer, _, _ := strings.Cut(text, " ")
			named[node] = append(named[node], peer)
		}
	}
	err := poll(t.Context(), "ServiceBGPStatuses of service "+name, func(ctx context.Context) error {
		got, err := w.reported(ctx, name)
		return differs(named, got, err)
	})
	if err != nil {
		t.Error(err)
	}
}

// reported reads the ServiceBGPStatuses of a service.
func (w *world) reported(ctx context.Context, name string) (offers, error) {
	list := &metallbv1beta1.ServiceBGPStatusList{}
	if err := w.client.List(ctx, list, client.InNamespace(metallbNamespace)); err != nil {
		return nil, err
	}
	all := offers{}
	for _, item := range list.Items {
		if s := item.Status; s.ServiceNamespace == exampleNamespace && s.ServiceName == name {
			all[s.Node] = append(all[s.Node], s.Peers...)
		}
	}
	return all, nil
}

func differs(want, got offers, err error) error {
	if err != nil {
		return err
	}
	if len(want) == 0 && len(got) == 0 {
		return nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("-want +got:\n%s", diff)
	}
	return nil
}

// situation is what a failed test wants to be read beside its message.
func (w *world) situation() string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var text strings.Builder
	all, err := w.offered(ctx)
	fmt.Fprintf(&text, "offered (%v):\n", err)
	for prefix, nodes := range all {
		fmt.Fprintf(&text, "  %s %v\n", prefix, nodes)
	}
	for _, name := range []string{controlplane.MetalLBControllerProcess(), controlplane.MetalLBSpeakerProcess("n1")} {
		if log, err := os.ReadFile(w.processes.LogPath(name)); err == nil {
			fmt.Fprintf(&text, "%s said at last:\n%s\n", name, log[max(0, len(log)-2000):])
		}
	}
	states := &metallbv1beta1.ConfigurationStateList{}
	err = w.client.List(ctx, states)
	fmt.Fprintf(&text, "ConfigurationStates (%v):\n", err)
	for _, state := range states.Items {
		fmt.Fprintf(&text, "  %s: %s %s\n", state.Name, state.Status.Result, state.Status.ErrorSummary)
	}
	nodes := &corev1.NodeList{}
	err = w.client.List(ctx, nodes)
	fmt.Fprintf(&text, "Nodes (%v):\n", err)
	for _, node := range nodes.Items {
		fmt.Fprintf(&text, "  %s %v\n", node.Name, node.Labels)
	}
	list := &metallbv1beta1.BGPAdvertisementList{}
	err = w.client.List(ctx, list)
	fmt.Fprintf(&text, "BGPAdvertisements (%v):\n", err)
	for _, one := range list.Items {
		fmt.Fprintf(&text, "  %s pools %v nodes %v services %v peers %v localPref %d\n",
			one.Name, one.Spec.IPAddressPools, one.Spec.NodeSelectors, one.Spec.ServiceSelectors, one.Spec.Peers, one.Spec.LocalPref)
	}
	return text.String()
}
