// Package tlstest makes certificates, good and bad, for tests of whatever speaks TLS.
//
// A [CA] issues; what it issues can be bent in every way that crypto/x509 knows, by changing the template, and in those
// that it refuses (old hashes, broken signatures, other versions) by signing the bytes here. It is for tests only: keys
// are small and nothing is checked.
package tlstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is an authority.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	up   *CA // nil for a root
}

// Key makes a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Serial makes a serial number.
func Serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

// Change bends a template before it is signed.
type Change func(*x509.Certificate)

func caTemplate(t testing.TB, name string) *x509.Certificate {
	now := time.Now().UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber: Serial(t), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// NewCA makes a root.
func NewCA(t testing.TB, name string, changes ...Change) *CA {
	return NewCAKey(t, name, Key(t), changes...)
}

// NewCAKey makes a root with the given key.
func NewCAKey(t testing.TB, name string, key crypto.Signer, changes ...Change) *CA {
	t.Helper()
	tmpl := caTemplate(t, name)
	for _, c := range changes {
		c(tmpl)
	}
	return &CA{Cert: sign(t, tmpl, tmpl, key.Public(), key), Key: key}
}

// Intermediate makes an authority below c.
func (c *CA) Intermediate(t testing.TB, name string, changes ...Change) *CA {
	t.Helper()
	return c.IntermediateKey(t, name, Key(t), changes...)
}

// IntermediateKey makes an authority below c with the given key.
func (c *CA) IntermediateKey(t testing.TB, name string, key crypto.Signer, changes ...Change) *CA {
	t.Helper()
	tmpl := caTemplate(t, name)
	for _, ch := range changes {
		ch(tmpl)
	}
	return &CA{Cert: sign(t, tmpl, c.Cert, key.Public(), c.Key), Key: key, up: c}
}

// LeafTemplate returns what Leaf would sign.
func LeafTemplate(t testing.TB, names ...string) *x509.Certificate {
	now := time.Now().UTC().Truncate(time.Second)
	tmpl := &x509.Certificate{
		SerialNumber: Serial(t), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			continue
		}
		tmpl.DNSNames = append(tmpl.DNSNames, n)
	}
	if len(tmpl.DNSNames) > 0 {
		tmpl.Subject.CommonName = tmpl.DNSNames[0]
	}
	return tmpl
}

// Leaf issues a server certificate for names, DNS or IP. The chain that comes with it has the intermediates, not the root.
func (c *CA) Leaf(t testing.TB, names []string, changes ...Change) tls.Certificate {
	t.Helper()
	return c.LeafKey(t, Key(t), names, changes...)
}

// LeafKey issues a server certificate for the given key.
func (c *CA) LeafKey(t testing.TB, key crypto.Signer, names []string, changes ...Change) tls.Certificate {
	t.Helper()
	tmpl := LeafTemplate(t, names...)
	for _, ch := range changes {
		ch(tmpl)
	}
	return c.Chain(sign(t, tmpl, c.Cert, key.Public(), c.Key).Raw, key)
}

// Chain puts leaf before the intermediates of c.
func (c *CA) Chain(leaf []byte, key crypto.PrivateKey) tls.Certificate {
	out := tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}
	for x := c; x.up != nil; x = x.up {
		out.Certificate = append(out.Certificate, x.Cert.Raw)
	}
	return out
}

// Below makes authority x, which need not be one, appear below c in chains.
func Below(c *CA, cert *x509.Certificate, key crypto.Signer) *CA {
	return &CA{Cert: cert, Key: key, up: c}
}

// Pool returns a pool of the roots.
func Pool(roots ...*CA) *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range roots {
		p.AddCert(r.Cert)
	}
	return p
}

// PEM returns certificates in PEM.
func PEM(ders ...[]byte) []byte {
	var out []byte
	for _, d := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}

// Files writes a certificate with its chain, and its key, into a directory of the test's.
func Files(t testing.TB, c tls.Certificate) (certPath, keyPath string) {
	t.Helper()
	dir := t.TempDir()
	certPath, keyPath = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	WriteFile(t, certPath, PEM(c.Certificate...))
	WriteFile(t, keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	return certPath, keyPath
}

// WriteFile writes a file that nobody else may read.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatalf("sign certificate: %v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("read own certificate: %v", err)
	}
	return c
}
