// SPDX-License-Identifier: Apache-2.0

package program

import (
	"flag"
	"fmt"
	"os"

	"github.com/go-kit/log"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	egressv1 "github.com/metallb-egress/metallb-egress/api/egressservice/v1"
	"github.com/metallb-egress/metallb-egress/api/v1alpha1"
	"github.com/metallb-egress/metallb-egress/bgp"
)

// Common are the flags that both programs take.
type Common struct {
	Kubeconfig       string
	LogLevel         string
	MetalLBNamespace string
}

// Register adds the flags to a set.
func (c *Common) Register(flags *flag.FlagSet) {
	flags.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig `file`; empty: the pod's service account")
	flags.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn, error or none")
	flags.StringVar(&c.MetalLBNamespace, "metallb-namespace", "metallb-system", "`namespace` of MetalLB's objects and of the FRRConfigurations it writes")
}

// Logger makes the program's logger.
func (c *Common) Logger() (log.Logger, error) { return NewLogger(os.Stderr, c.LogLevel) }

// RedirectLibraries sends the libraries' lines through the program's logger. It changes the process, and is
// called once, before anything else runs.
func (c *Common) RedirectLibraries() error {
	logger, err := c.Logger()
	if err != nil {
		return err
	}
	ctrllog.SetLogger(Logr(logger))
	klog.SetLogger(Logr(logger))
	return nil
}

// RESTConfig finds the API server.
func (c *Common) RESTConfig(userAgent string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	config.UserAgent = userAgent
	// client-go's own limit of 5 requests a second would decide how fast a service moves. The
	// programs bound their writes themselves, and the API server has priority and fairness.
	config.QPS = -1
	return config, nil
}

// Scheme has every kind that either program reads or writes.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, egressv1.AddToScheme, v1alpha1.AddToScheme, bgp.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	return scheme, nil
}
