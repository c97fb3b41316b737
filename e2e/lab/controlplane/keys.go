// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// File names inside the folder of keys.
const (
	authorityCertificateFile = "ca.crt"
	authorityKeyFile         = "ca.key"
	serverCertificateFile    = "apiserver.crt"
	serverKeyFile            = "apiserver.key"
	serviceAccountKeyFile    = "service-account.key"
)

// validity is far longer than any lab stays up.
const validity = 365 * 24 * time.Hour

// authority issues the certificates of one control plane: the API server's own, and one per user.
type authority struct {
	certificate    *x509.Certificate
	key            *ecdsa.PrivateKey
	certificatePEM []byte
}

// keyPair is a certificate and its private key, as PEM.
type keyPair struct {
	certificate, key []byte
}

// newAuthority makes an authority with a key of its own.
func newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certificateTemplate(pkix.Name{CommonName: "lab authority"}, now)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return parseAuthority(der, key)
}

func parseAuthority(der []byte, key *ecdsa.PrivateKey) (*authority, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate: certificate, key: key, certificatePEM: encodePEM("CERTIFICATE", der)}, nil
}

// openAuthority reads the authority that save has written.
func openAuthority(dir string) (*authority, error) {
	certificate, err := readPEM(filepath.Join(dir, authorityCertificateFile))
	if err != nil {
		return nil, err
	}
	encoded, err := readPEM(filepath.Join(dir, authorityKeyFile))
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(encoded)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", authorityKeyFile, err)
	}
	return parseAuthority(certificate, key)
}

// save writes the authority into a folder that exists.
func (a *authority) save(dir string) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, authorityCertificateFile), a.certificatePEM, 0o600),
		os.WriteFile(filepath.Join(dir, authorityKeyFile), key, 0o600))
}

// server issues the API server's certificate.
func (a *authority) server(now time.Time, addresses []netip.Addr, names []string) (keyPair, error) {
	template, err := certificateTemplate(pkix.Name{CommonName: "kube-apiserver"}, now)
	if err != nil {
		return keyPair{}, err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames = names
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	return a.issue(template)
}

// client issues a user's certificate. The API server takes the common name for the user's and the organizations for the groups
// (Kubernetes' "X509 client certificates").
func (a *authority) client(now time.Time, user string, groups []string) (keyPair, error) {
	template, err := certificateTemplate(pkix.Name{CommonName: user, Organization: groups}, now)
	if err != nil {
		return keyPair{}, err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.issue(template)
}

func (a *authority) issue(template *x509.Certificate) (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return keyPair{}, err
	}
	encoded, err := encodeKey(key)
	return keyPair{certificate: encodePEM("CERTIFICATE", der), key: encoded}, err
}

func certificateTemplate(subject pkix.Name, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity)}, nil
}

// newServiceAccountKey makes the key that signs the tokens of service accounts.
func newServiceAccountKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return encodeKey(key)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return encodePEM("EC PRIVATE KEY", der), err
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: not PEM", path)
	}
	return block.Bytes, nil
}
