// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Users of the control plane itself.
const (
	adminUser = "admin"
	// mastersGroup may do everything (Kubernetes' RBAC bootstrap policy).
	mastersGroup    = "system:masters"
	controllersUser = "system:kube-controller-manager"
	// proxyUser has the role system:node-proxier from Kubernetes' RBAC bootstrap policy.
	proxyUser = "system:kube-proxy"
)

// KubeconfigFor writes a kubeconfig with a new client certificate for the user in those groups, readable by this process's user alone,
// and returns its path. The file is named after the user: a second call replaces it. The user may do what RBAC allows; nothing unless the
// caller binds a role to the user or to one of the groups.
func (c *ControlPlane) KubeconfigFor(ctx context.Context, user string, groups ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, err := writeKubeconfig(c.options, c.authority, c.server, user, groups)
	if err != nil {
		return "", fmt.Errorf("kubeconfig of %s: %w", user, err)
	}
	return path, nil
}

// Kubeconfig returns the path of the admin's kubeconfig, for people and for processes. Where the API server is in another network
// namespace it must be used in there.
func (c *ControlPlane) Kubeconfig() string { return c.options.kubeconfigPath(adminUser) }

func writeKubeconfig(o Options, a *authority, server netip.AddrPort, user string, groups []string) (string, error) {
	pair, err := a.client(time.Now(), user, groups)
	if err != nil {
		return "", err
	}
	text, err := clientcmd.Write(kubeconfigOf(server, a.certificatePEM, user, pair))
	if err != nil {
		return "", err
	}
	path := o.kubeconfigPath(user)
	// Written beside and renamed: a process may be reading the old one.
	temporary, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return "", err
	}
	if _, err := temporary.Write(text); err != nil {
		_ = temporary.Close()
		return "", err
	}
	if err := temporary.Close(); err != nil {
		return "", err
	}
	return path, os.Rename(temporary.Name(), path)
}

// kubeconfigOf holds everything inline, so that the file can be copied elsewhere.
func kubeconfigOf(server netip.AddrPort, authorityPEM []byte, user string, pair keyPair) clientcmdapi.Config {
	const cluster = "lab"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: "https://" + server.String(), CertificateAuthorityData: authorityPEM}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.certificate, ClientKeyData: pair.key}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user, Namespace: "default"}
	config.CurrentContext = cluster
	return *config
}
