// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Names of the processes in the Set.
const (
	storeProcess             = "etcd"
	serverProcess            = "kube-apiserver"
	controllersProcess       = "kube-controller-manager"
	metallbControllerProcess = "metallb-controller"
)

// MetalLBSpeakerProcess is the name of a node's MetalLB speaker in the Set, for tests that stop it.
func MetalLBSpeakerProcess(node string) string { return "metallb-speaker-" + node }

// KubeProxyProcess is the name of a node's kube-proxy in the Set, for tests that stop it.
func KubeProxyProcess(node string) string { return "kube-proxy-" + node }

// MetalLBControllerProcess is the name of MetalLB's controller in the Set, for tests that stop it.
func MetalLBControllerProcess() string { return metallbControllerProcess }

// storeURL names a socket in the working directory of etcd and the API server: the paths of Unix sockets have at most 107 bytes, those of
// folders may be longer.
const storeURL = "unix://etcd.sock"

// storeArguments run etcd as a cluster of one, on sockets, without syncing to the disk: a lab's store need not survive the machine.
func storeArguments() []string {
	const peerURL = "unix://peer.sock"
	return []string{
		"--name=lab",
		"--data-dir=data",
		"--listen-client-urls=" + storeURL,
		"--advertise-client-urls=" + storeURL,
		"--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=lab=" + peerURL,
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

// serverArguments run the API server on o.Address and o.APIPort.
func serverArguments(o Options) []string {
	key := func(name string) string { return filepath.Join(o.keyDir(), name) }
	arguments := []string{
		"--etcd-servers=" + storeURL,
		"--bind-address=" + o.Address.String(),
		"--secure-port=" + strconv.Itoa(o.APIPort),
		"--tls-cert-file=" + key(serverCertificateFile),
		"--tls-private-key-file=" + key(serverKeyFile),
		"--client-ca-file=" + key(authorityCertificateFile),
		"--anonymous-auth=false",
		"--authorization-mode=RBAC",
		"--service-account-key-file=" + key(serviceAccountKeyFile),
		"--service-account-signing-key-file=" + key(serviceAccountKeyFile),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-cluster-ip-range=" + joinPrefixes(o.ServiceCIDRs),
		// Pods can be made without waiting for their namespace's service account; new nodes get no not-ready taint, which a node
		// lifecycle controller would have to take off.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
		"--allow-privileged=true",
		"--profiling=false",
	}
	if o.Address.IsLoopback() {
		// A loopback address must not be published as an endpoint of the Service "kubernetes".
		return append(arguments, "--endpoint-reconciler-type=none")
	}
	return append(arguments, "--advertise-address="+o.Address.String())
}

// controllersArguments run the controllers that a cluster without kubelets needs.
func controllersArguments(o Options, kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--controllers=" + strings.Join([]string{
			"endpointslice-controller",
			"namespace-controller",
			"garbage-collector-controller",
			"serviceaccount-controller",
			"root-ca-certificate-publisher-controller",
		}, ","),
		"--root-ca-file=" + filepath.Join(o.keyDir(), authorityCertificateFile),
		"--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
	}
}

// serverNames are the names and addresses under which the API server can be reached, from outside and from pods.
func serverNames(o Options) (addresses []netip.Addr, names []string) {
	addresses = []netip.Addr{o.Address}
	if loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1}); o.Address != loopback {
		addresses = append(addresses, loopback)
	}
	for _, prefix := range o.ServiceCIDRs {
		// The API server gives the Service "kubernetes" the first address of the range.
		addresses = append(addresses, prefix.Masked().Addr().Next())
	}
	return addresses, []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
}
