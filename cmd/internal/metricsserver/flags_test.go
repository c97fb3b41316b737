// SPDX-License-Identifier: Apache-2.0

package metricsserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

func TestFlags(t *testing.T) {
	type options struct {
		Address          string
		Secure, Filtered bool
		CertDir          string
	}
	tests := []struct {
		name string
		args []string
		want options
	}{
		{"by default: secure", nil, options{ControllerAddress, true, true, ""}},
		{"another address and a certificate", []string{"-metrics-bind-address=127.0.0.1:1", "-metrics-cert-dir=/tls"}, options{"127.0.0.1:1", true, true, "/tls"}},
		{"without TLS nobody is asked who they are", []string{"-metrics-secure=false", "-metrics-cert-dir=/tls"}, options{ControllerAddress, false, false, ""}},
		{"off", []string{"-metrics-bind-address=0"}, options{Address: "0"}},
		{"an empty address is not controller-runtime's default", []string{"-metrics-bind-address="}, options{Address: "0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := parseMetrics(t, test.args...)
			if diff := cmp.Diff(test.want, options{got.BindAddress, got.SecureServing, got.FilterProvider != nil, got.CertDir}); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got := (&Flags{}).Options(); got.BindAddress != "0" {
		t.Errorf("the zero value serves on %q", got.BindAddress)
	}
}

func parseMetrics(t *testing.T, args ...string) metricsserver.Options {
	t.Helper()
	var m Flags
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	m.Register(flags, ControllerAddress)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return m.Options()
}

// serve runs a metrics server on a free port until the test ends, and returns its address.
func serve(t *testing.T, config *rest.Config, args ...string) string {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	server, err := metricsserver.NewServer(parseMetrics(t, append(args, "-metrics-bind-address=127.0.0.1:0")...), config, client)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	bound := server.(interface{ GetBindAddr() string })
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for bound.GetBindAddr() == "" {
		select {
		case err := <-ended:
			ended <- err
			t.Fatal(err)
		case <-tick.C:
		}
	}
	return bound.GetBindAddr()
}

// get asks for a page, as somebody with a token if there is one.
func get(t *testing.T, tlsConfig *tls.Config, url, token string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// isExposition is true for what Prometheus reads: the metrics server has this metric itself.
func isExposition(body string) bool {
	return strings.Contains(body, "\ncertwatcher_read_certificate_total ")
}

func TestMetricsInClear(t *testing.T) {
	address := serve(t, &rest.Config{}, "-metrics-secure=false")
	if code, body := get(t, nil, "http://"+address+"/metrics", ""); code != http.StatusOK || !isExposition(body) {
		t.Errorf("%d: %s", code, body)
	}
	if code, _ := get(t, nil, "http://"+address+"/debug/pprof/", ""); code != http.StatusNotFound {
		t.Errorf("another page: %d", code)
	}
}

// apiServer answers what it is asked about tokens and permissions: everybody's token is their name,
// prometheus may get /metrics, and visitor may not.
func apiServer(t *testing.T) *rest.Config {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		name := review.Spec.Token
		if name == "prometheus" || name == "visitor" {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: name}}
		}
		answer(t, w, review)
	})
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authorizationv1.SubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		page := review.Spec.NonResourceAttributes
		review.Status.Allowed = review.Spec.User == "prometheus" && page != nil && page.Path == "/metrics" && page.Verb == "get"
		answer(t, w, review)
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})}}
}

func answer(t *testing.T, w http.ResponseWriter, review any) {
	t.Helper()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(review); err != nil {
		t.Error(err)
	}
}

func TestMetricsSecured(t *testing.T) {
	dir := t.TempDir()
	certificate, key, err := certutil.GenerateSelfSignedCertKey("metrics.example", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(certificate) {
		t.Fatal("the certificate can't be read")
	}
	given := serve(t, apiServer(t), "-metrics-cert-dir="+dir)
	trusted := &tls.Config{RootCAs: roots, ServerName: "metrics.example"}

	tests := []struct {
		name, token string
		want        int
	}{
		{"nobody", "", http.StatusUnauthorized},
		// controller-runtime's own answer to any failed review.
		{"a token that the API server does not know", "forged", http.StatusInternalServerError},
		{"somebody without the permission", "visitor", http.StatusForbidden},
		{"somebody with it", "prometheus", http.StatusOK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code, body := get(t, trusted, "https://"+given+"/metrics", test.token)
			if code != test.want || isExposition(body) != (test.want == http.StatusOK) {
				t.Errorf("%d, want %d: %s", code, test.want, body)
			}
		})
	}
	t.Run("a self-signed certificate where none is given", func(t *testing.T) {
		own := serve(t, apiServer(t), "-metrics-cert-dir="+t.TempDir())
		if code, body := get(t, &tls.Config{InsecureSkipVerify: true}, "https://"+own+"/metrics", "prometheus"); code != http.StatusOK || !isExposition(body) {
			t.Errorf("%d: %s", code, body)
		}
	})
	t.Run("not in clear", func(t *testing.T) {
		if code, body := get(t, nil, "http://"+given+"/metrics", "prometheus"); code != http.StatusBadRequest || isExposition(body) {
			t.Errorf("%d: %s", code, body)
		}
	})
}
