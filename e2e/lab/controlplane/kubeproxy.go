// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/metallb-egress/metallb-egress/e2e/lab/process"
	"github.com/metallb-egress/metallb-egress/e2e/lab/topology"
)

const proxyTimeout = 30 * time.Second

// StartKubeProxy starts kube-proxy in a node's network namespace, which must not be this process's own, and returns when
// it says it is healthy. The node's object must exist.
func (c *ControlPlane) StartKubeProxy(ctx context.Context, node NodeProcess) error {
	if err := c.startKubeProxy(ctx, node); err != nil {
		return fmt.Errorf("kube-proxy of node %s: %w", node.Name, err)
	}
	return nil
}

func (c *ControlPlane) startKubeProxy(ctx context.Context, node NodeProcess) error {
	if node.Netns == "" {
		return errors.New("it would program this machine's own nftables")
	}
	kubeconfig, err := c.KubeconfigFor(ctx, proxyUser, "system:node-proxier")
	if err != nil {
		return err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	ports, err := freePorts(node.Netns, loopback, 2)
	if err != nil {
		return err
	}
	healthz := netip.AddrPortFrom(loopback, uint16(ports[0]))
	metrics := netip.AddrPortFrom(loopback, uint16(ports[1]))
	text, err := yaml.Marshal(proxyConfiguration(c.options, node, kubeconfig, healthz, metrics))
	if err != nil {
		return err
	}
	path := filepath.Join(c.options.proxyDir(), node.Name+".yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	name := KubeProxyProcess(node.Name)
	spec := process.Spec{Name: name, Netns: node.Netns, Dir: c.options.Dir, Args: []string{"--config=" + path}}
	if err := c.start(ctx, spec, "kube-proxy"); err != nil {
		return err
	}
	return poll(ctx, proxyTimeout, "health at "+healthz.String(), func(ctx context.Context) error {
		return c.orDead(healthy(ctx, node.Netns, "http://"+healthz.String()+"/healthz"), name)
	})
}

// proxyConfiguration is a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1). Connection tracking keeps the kernel's values: a
// network namespace may not change those that are global.
func proxyConfiguration(o Options, node NodeProcess, kubeconfig string, healthz, metrics netip.AddrPort) map[string]any {
	// Ten times as often as by default: the lab's rule sets are small, and people wait for them.
	often := map[string]any{"minSyncPeriod": "100ms", "syncPeriod": "30s"}
	return map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               cmp.Or(node.ProxyMode, "nftables"),
		"clientConnection":   map[string]any{"kubeconfig": kubeconfig},
		"clusterCIDR":        joinPrefixes(o.PodCIDRs),
		"detectLocalMode":    "ClusterCIDR",
		"hostnameOverride":   node.Name,
		"healthzBindAddress": healthz.String(),
		"metricsBindAddress": metrics.String(),
		"conntrack": map[string]any{
			"maxPerCore":            0,
			"min":                   0,
			"tcpEstablishedTimeout": "0s",
			"tcpCloseWaitTimeout":   "0s",
		},
		"nftables": often,
		"iptables": often,
	}
}

// healthy asks an HTTP server inside a namespace.
func healthy(ctx context.Context, namespace, url string) error {
	transport := &http.Transport{DialContext: topology.DialContext(namespace), DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
