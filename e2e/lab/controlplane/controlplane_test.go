// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
)

func binaries(string) (string, error) { return "/bin/false", nil }

func TestOptionsComplete(t *testing.T) {
	tests := map[string]struct {
		options Options
		want    Options
		failure string
	}{
		"defaults": {
			options: Options{Dir: "/lab", Binaries: binaries},
			want: Options{Address: netip.MustParseAddr("127.0.0.1"),
				ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
		},
		"a fixed port in a namespace": {
			options: Options{Dir: "/lab", Binaries: binaries, Netns: "control", Address: netip.MustParseAddr("10.250.0.1")},
			want: Options{Netns: "control", Address: netip.MustParseAddr("10.250.0.1"), APIPort: 6443,
				ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
		},
		"no folder":         {options: Options{Binaries: binaries}, failure: "no folder"},
		"no binaries":       {options: Options{Dir: "/lab"}, failure: "no binaries"},
		"an unset prefix":   {options: Options{Dir: "/lab", Binaries: binaries, PodCIDRs: []netip.Prefix{{}}}, failure: "not a prefix"},
		"an unset service":  {options: Options{Dir: "/lab", Binaries: binaries, ServiceCIDRs: []netip.Prefix{{}}}, failure: "not a prefix"},
		"prefixes are kept": {options: Options{Dir: "/lab", Binaries: binaries, ServiceCIDRs: prefixes("fd00::/112"), PodCIDRs: prefixes("fd01::/48")}, want: Options{Address: netip.MustParseAddr("127.0.0.1"), ServiceCIDRs: prefixes("fd00::/112"), PodCIDRs: prefixes("fd01::/48")}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.options.complete()
			if test.failure != "" {
				if err == nil || !strings.Contains(err.Error(), test.failure) {
					t.Fatalf("got %v, want an error with %q", err, test.failure)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Binaries, test.want.Dir = nil, "/lab"
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestServerArgumentsPublishNoLoopbackAddress(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1":  "--endpoint-reconciler-type=none",
		"10.250.0.1": "--advertise-address=10.250.0.1",
	} {
		arguments := serverArguments(Options{Dir: "/lab", Address: netip.MustParseAddr(address), APIPort: 6443, ServiceCIDRs: prefixes("10.96.0.0/16", "fd00::/112")})
		for _, flag := range []string{want, "--bind-address=" + address, "--service-cluster-ip-range=10.96.0.0/16,fd00::/112", "--anonymous-auth=false"} {
			if !slices.Contains(arguments, flag) {
				t.Errorf("%s: no %s in %q", address, flag, arguments)
			}
		}
	}
}

func TestServerNames(t *testing.T) {
	addresses, _ := serverNames(Options{Address: netip.MustParseAddr("10.250.0.1"), ServiceCIDRs: prefixes("10.96.0.0/16", "fd00::/112")})
	var got []string
	for _, address := range addresses {
		got = append(got, address.String())
	}
	if diff := cmp.Diff([]string{"10.250.0.1", "127.0.0.1", "10.96.0.1", "fd00::1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAuthority(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	made, err := newAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	if err := made.save(dir); err != nil {
		t.Fatal(err)
	}
	opened, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(made.certificate)
	parse := func(pair keyPair, err error) *x509.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "certificate")
		if err := os.WriteFile(path, pair.certificate, 0o600); err != nil {
			t.Fatal(err)
		}
		der, err := readPEM(path)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return certificate
	}

	server := parse(opened.server(now, []netip.Addr{netip.MustParseAddr("10.250.0.1")}, []string{"kubernetes"}))
	for _, name := range []string{"10.250.0.1", "kubernetes"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("server as %s: %v", name, err)
		}
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.250.0.2"}); err == nil {
		t.Error("the server's certificate is good for an address that it was not issued for")
	}

	client := parse(opened.client(now, "egress-speaker", []string{"metallb-egress:speakers"}))
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("client: %v", err)
	}
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a user's certificate can serve as a server's")
	}
	if client.IsCA {
		t.Error("a user's certificate is an authority's")
	}
	if diff := cmp.Diff([]string{"egress-speaker", "metallb-egress:speakers"}, append([]string{client.Subject.CommonName}, client.Subject.Organization...)); diff != "" {
		t.Error(diff)
	}
}

func TestPrepareLeavesNothingReadableByOthers(t *testing.T) {
	o, err := Options{Dir: filepath.Join(t.TempDir(), "lab"), Binaries: binaries, APIPort: 6443}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := prepare(o); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(o.storeDir(), "of an earlier run")
	if err := os.WriteFile(leftover, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepare(o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the store was not emptied: %v", err)
	}
	err = filepath.WalkDir(o.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfigPath(adminUser))
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:6443" || config.Insecure || len(config.CAData) == 0 || len(config.KeyData) == 0 {
		t.Errorf("the admin's kubeconfig: %v", config)
	}
}

func TestParseManifests(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    []string
		failure bool
	}{
		"two and a comment":  {text: "# a comment\n---\nkind: A\napiVersion: v1\nmetadata: {name: a}\n---\n# nothing\n---\nkind: B\napiVersion: v1\nmetadata: {name: b}\n", want: []string{"A a", "B b"}},
		"nothing":            {text: ""},
		"no name":            {text: "kind: A\napiVersion: v1\n", failure: true},
		"not an object":      {text: "- 1\n", failure: true},
		"no kind":            {text: "metadata: {name: a}\n", failure: true},
		"broken second part": {text: "kind: A\napiVersion: v1\nmetadata: {name: a}\n---\n{", failure: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			objects, err := parseManifests([]byte(test.text))
			if (err != nil) != test.failure {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			var got []string
			for _, object := range objects {
				got = append(got, object.GetKind()+" "+object.GetName())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadManifestsTakesYAMLFilesOnly(t *testing.T) {
	one := &fstest.MapFile{Data: []byte("kind: A\napiVersion: v1\nmetadata: {name: a}\n")}
	objects, err := readManifests(fstest.MapFS{"a.yaml": one, "below/a.yml": one, "README.md": {Data: []byte("# no YAML")}})
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 2 {
		t.Errorf("got %d objects, want 2", len(objects))
	}
}

func TestMetalLBRoles(t *testing.T) {
	object := func(kind, name string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"name": name}}}
	}
	got := metallbRoles([]*unstructured.Unstructured{
		object("Namespace", "metallb-system"), object("CustomResourceDefinition", "bgppeers.metallb.io"), object("ServiceAccount", "speaker"),
		object("ServiceAccount", "frr-k8s-daemon"), object("ClusterRole", "frr-k8s-proxy-role"), object("ClusterRole", "metallb-system:speaker"),
		object("DaemonSet", "speaker"), object("ValidatingWebhookConfiguration", "metallb-webhook-configuration"), object("RoleBinding", "pod-lister"),
	})
	var names []string
	for _, o := range got {
		names = append(names, o.GetKind()+" "+o.GetName())
	}
	want := []string{"Namespace metallb-system", "ServiceAccount speaker", "ClusterRole metallb-system:speaker", "RoleBinding pod-lister"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

func TestFreePortsAreDistinct(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	ports, err := freePorts("", loopback, 20)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ports)
	if got := len(slices.Compact(ports)); got != 20 {
		t.Errorf("%d different ports, want 20", got)
	}
	if err := inNamespace("metallb-egress-no-such-namespace", func() error { return nil }); err == nil {
		t.Error("no error for a namespace that is not there")
	}
}

func TestPoll(t *testing.T) {
	failure := errors.New("not yet")
	tests := map[string]struct {
		probe    func(call int) error
		cancel   time.Duration
		want     error
		duration time.Duration
	}{
		"at once":                {probe: func(int) error { return nil }},
		"after some calls":       {probe: func(call int) error { return map[bool]error{true: failure}[call < 4] }, duration: 150 * time.Millisecond},
		"a process has ended":    {probe: func(int) error { return &deadError{name: "etcd"} }, want: &deadError{name: "etcd"}},
		"the time is over":       {probe: func(int) error { return failure }, want: failure, duration: time.Second},
		"the caller has stopped": {probe: func(int) error { return failure }, cancel: 70 * time.Millisecond, want: context.Canceled, duration: 70 * time.Millisecond},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.cancel > 0 {
					time.AfterFunc(test.cancel, cancel)
				}
				begin, calls := time.Now(), 0
				err := poll(ctx, time.Second, "it", func(context.Context) error {
					calls++
					return test.probe(calls)
				})
				var dead *deadError
				switch wantsDead := errors.As(test.want, &dead); {
				case wantsDead && !errors.As(err, &dead), !wantsDead && !errors.Is(err, test.want):
					t.Errorf("got %v, want %v", err, test.want)
				}
				if got := time.Since(begin); got != test.duration {
					t.Errorf("took %v, want %v", got, test.duration)
				}
			})
		})
	}
}
