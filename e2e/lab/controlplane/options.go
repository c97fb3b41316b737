// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
)

// Options describe a control plane.
type Options struct {
	// Dir keeps keys, kubeconfigs and the store, in folders that only their owner can read.
	Dir string
	// RepoRoot is the project's folder: its hack/tools/metallb pins the versions of MetalLB and frr-k8s. Only StartMetalLB needs it.
	RepoRoot string
	// Netns is the name of the network namespace of etcd, the API server, the controllers and MetalLB's controller; empty is this
	// process's own.
	Netns string
	// Address is where the API server listens; 127.0.0.1 where it is not set.
	Address netip.Addr
	// APIPort is the API server's port. 0 means 6443 inside Netns, and a free one in this process's own namespace.
	APIPort int
	// Binaries returns the path of etcd, kube-apiserver, kube-controller-manager, kube-proxy, metallb-controller or metallb-speaker.
	Binaries func(name string) (string, error)
	// ServiceCIDRs and PodCIDRs hold one prefix per family; 10.96.0.0/16 and 10.244.0.0/16 where they are empty.
	ServiceCIDRs, PodCIDRs []netip.Prefix
	// CRDs are installed by Up before the controllers start. The garbage collector looks for new types every 30 s only; objects of
	// types that come later are collected with that delay.
	CRDs []fs.FS
	// MetalLBLogLevel is the log level of MetalLB's programs: debug where it is empty. With debug a speaker writes its whole configuration
	// into its log for every service that it looks at, which is most of its work where there are many.
	MetalLBLogLevel string
	// MetalLB is the folder below hack/tools whose go.mod says which MetalLB: metallb where it is empty, or metallb-0.15.
	MetalLB string
	// MetalLBBGPType is METALLB_BGP_TYPE of MetalLB's programs: frr-k8s where it is empty.
	MetalLBBGPType string
}

const defaultAPIPort = 6443

// complete returns the options with their defaults filled in.
func (o Options) complete() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("no folder given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, err
	}
	o.Dir = dir
	if o.Binaries == nil {
		return o, errors.New("no binaries given")
	}
	if !o.Address.IsValid() {
		o.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if o.APIPort == 0 && o.Netns != "" {
		o.APIPort = defaultAPIPort
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, 0, 0}), 16)}
	}
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, 0}), 16)}
	}
	for _, prefix := range append(append([]netip.Prefix{}, o.ServiceCIDRs...), o.PodCIDRs...) {
		if !prefix.IsValid() {
			return o, fmt.Errorf("not a prefix: %v", prefix)
		}
	}
	return o, nil
}

func (o Options) keyDir() string        { return filepath.Join(o.Dir, "pki") }
func (o Options) storeDir() string      { return filepath.Join(o.Dir, "etcd") }
func (o Options) kubeconfigDir() string { return filepath.Join(o.Dir, "kubeconfig") }
func (o Options) proxyDir() string      { return filepath.Join(o.Dir, "kube-proxy") }

// kubeconfigPath is the kubeconfig of a user. Names of service accounts have colons, which paths had better not have.
func (o Options) kubeconfigPath(user string) string {
	return filepath.Join(o.kubeconfigDir(), strings.NewReplacer(":", "_", "/", "_").Replace(user)+".yaml")
}

// joinPrefixes writes prefixes as Kubernetes' flags and files take them.
func joinPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

func (o Options) metallb() string { return cmp.Or(o.MetalLB, "metallb") }

// oldMetalLB is true before v0.16.
func (o Options) oldMetalLB() bool { return o.MetalLB == "metallb-0.15" }
