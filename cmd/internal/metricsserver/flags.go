// SPDX-License-Identifier: Apache-2.0

package metricsserver

import (
	"flag"

	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// ControllerAddress and SpeakerAddress are every address of the pod or host, on ports (BGP's behind
// Kubernetes' 10, and the next) that nothing near uses by default: MetalLB and frr-k8s have 7472, 7473, 7572, 7573, 7946, 9120, 9121,
// 9140, 9141 and 17472, OVN-Kubernetes ports between 9100 and 9500, as Prometheus' exporters have, and
// Kubernetes' own programs 10248 to 10260. NodePorts begin at 30000, ports of outgoing connections at
// 32768.
const (
	ControllerAddress = ":10179"
	SpeakerAddress    = ":10180"
)

// Flags say where and to whom a program shows its metrics. The zero value is: nowhere.
type Flags struct {
	BindAddress string
	Secure      bool
	CertDir     string
}

// Register adds the flags to a set, address as the default of where.
func (m *Flags) Register(flags *flag.FlagSet, address string) {
	flags.StringVar(&m.BindAddress, "metrics-bind-address", address, "`address` to serve /metrics on; 0: not at all")
	flags.BoolVar(&m.Secure, "metrics-secure", true,
		"serve metrics by TLS, to clients that the API server knows (TokenReview) and lets get /metrics (SubjectAccessReview)")
	flags.StringVar(&m.CertDir, "metrics-cert-dir", "",
		"`folder` of the metrics server's tls.crt and tls.key, read again when they change; not there at the start: a self-signed certificate")
}

// Options are those of controller-runtime's metrics server.
func (m *Flags) Options() metricsserver.Options {
	if m.BindAddress == "" || m.BindAddress == "0" {
		// Empty would be controller-runtime's own default.
		return metricsserver.Options{BindAddress: "0"}
	}
	options := metricsserver.Options{BindAddress: m.BindAddress}
	if m.Secure {
		options.SecureServing, options.CertDir, options.FilterProvider = true, m.CertDir, filters.WithAuthenticationAndAuthorization
	}
	return options
}
