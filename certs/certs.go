// Package certs is the gateway's certificate authority: it is made once, at the first start, and mints the leaves that
// clients see in place of a server's own certificate.
//
// There are two authorities. The trusted one is what an administrator distributes (mailweir certificate > ca.pem); it
// vouches for servers whose certificate was verified. The untrusted one signs mirrors of certificates that were not,
// so that a client which checks will refuse them as it would have refused the server; it is never exported.
//
// Both live in one directory: ca.key and untrusted.key hold the private key with its certificate, mode 0600, and
// appear whole or not at all; ca.pem is the public certificate. Existing files are never replaced: whatever does not
// fit together is an error that says what to do. Keys leave neither those files nor this process, and values that hold
// them print as "[private]". The package opens no connection and verifies nothing.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Names of the files in an authority's directory.
const (
	keyFile       = "ca.key"        // key and certificate of the trusted authority, 0600
	certFile      = "ca.pem"        // its certificate, for everyone
	untrustedFile = "untrusted.key" // key and certificate of the untrusted authority, 0600
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	backDate      = 48 * time.Hour // for clients whose clock is behind
)

// Authority mints leaves. It is safe for concurrent use.
type Authority struct {
	trusted, untrusted issuer
	leaves             *cache
	keys               leafKeys
	now                func() time.Time
}

// issuer is a certificate that signs.
type issuer struct {
	cert *x509.Certificate
	key  secret
}

// Open returns the authority whose files are in dir, and makes dir and them when there are none. host is put into the
// name of a new authority, so that people with several gateways can tell them apart. Several processes may open a new
// directory at once: they get the same authority.
func Open(dir, host string) (*Authority, error) { return open(dir, host, time.Now) }

func open(dir, host string, now func() time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make certificate directory: %w", err)
	}
	if err := checkOrphan(dir); err != nil {
		return nil, err
	}
	trusted, err := load(filepath.Join(dir, keyFile), "mailweir CA "+host, now)
	if err != nil {
		return nil, err
	}
	untrusted, err := load(filepath.Join(dir, untrustedFile), "mailweir UNTRUSTED "+host, now)
	if err != nil {
		return nil, err
	}
	if err := publish(filepath.Join(dir, certFile), trusted.cert); err != nil {
		return nil, err
	}
	return &Authority{trusted: trusted, untrusted: untrusted, leaves: newCache(maxLeaves), now: now}, nil
}

// checkOrphan refuses to make a new authority beside the certificate of an old one: clients trust the old one.
func checkOrphan(dir string) error {
	pemPath, keyPath := filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
	if _, err := os.Lstat(keyPath); !errors.Is(err, fs.ErrNotExist) {
		return nil // there, or a reading error that load will report
	}
	if _, err := os.Lstat(pemPath); err == nil {
		// Another process may just be making both: the key always comes first.
		if _, err := os.Lstat(keyPath); err == nil {
			return nil
		}
		return fmt.Errorf("open authority: %s is there but its key %s is not: restore the key from a backup, or remove "+
			"%s to have a new authority made (clients must then be given the new certificate)", pemPath, keyPath, pemPath)
	}
	return nil
}

// load reads the issuer in path, or makes it.
func load(path, name string, now func() time.Time) (issuer, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = newIssuer(name, now()); err != nil {
			return issuer{}, err
		}
		if data, err = createWhole(path, data); err != nil {
			return issuer{}, err
		}
	}
	if err != nil {
		return issuer{}, fmt.Errorf("read authority: %w", err)
	}
	if err := checkMode(path); err != nil {
		return issuer{}, err
	}
	i, err := parseIssuer(data)
	if err != nil {
		return issuer{}, fmt.Errorf("read authority %s: %w: restore the file from a backup, or remove it together with %s "+
			"to have a new authority made (clients must then be given the new certificate)", path, err, certFile)
	}
	return i, nil
}

func checkMode(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("read authority: %s may be read by others (mode %04o): chmod 600 it; if it may have been copied, "+
			"remove it and %s to have a new authority made", path, st.Mode().Perm(), certFile)
	}
	return nil
}

// newIssuer makes a key and its self-signed certificate, as PEM.
func newIssuer(name string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id := hex.EncodeToString(serial.FillBytes(make([]byte, 16))[:4])
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"mailweir"}, CommonName: clip(name, 64-9) + " " + id},
		NotBefore:             now.Add(-backDate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(authorityLife).UTC().Truncate(time.Second),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if t.SubjectKeyId, err = keyID(&key.PublicKey); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign authority certificate: %w", err)
	}
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode authority key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}

// parseIssuer reads what newIssuer made; an administrator may also have put a company's own authority there.
func parseIssuer(data []byte) (issuer, error) {
	var i issuer
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		var err error
		switch b.Type {
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			i.key, err = parseKey(b)
		case "CERTIFICATE":
			i.cert, err = x509.ParseCertificate(b.Bytes)
		}
		if err != nil {
			return i, fmt.Errorf("%s: %w", b.Type, err)
		}
	}
	switch {
	case i.key.signer == nil:
		return i, errors.New("holds no private key")
	case i.cert == nil:
		return i, errors.New("holds no certificate")
	case !samePublic(i.key.Public(), i.cert.PublicKey):
		return i, errors.New("key and certificate do not belong together")
	case !i.cert.IsCA:
		return i, errors.New("the certificate is not one of an authority")
	}
	return i, nil
}

// publish writes the public certificate, if it is not there already.
func publish(path string, cert *x509.Certificate) error {
	want := encodePEM(cert)
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if have, err = createWhole(path, want); err == nil {
			err = os.Chmod(path, 0o644)
		}
	}
	if err != nil {
		return fmt.Errorf("write authority certificate: %w", err)
	}
	if b, _ := pem.Decode(have); b == nil || !bytes.Equal(b.Bytes, cert.Raw) {
		return fmt.Errorf("open authority: %s is not the certificate of %s: restore the one that clients trust from a backup, "+
			"or remove %s to have it written anew", path, keyFile, path)
	}
	return nil
}

// ReadCertificate returns the certificate of the authority in dir, without need of its key.
func ReadCertificate(dir string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, fmt.Errorf("read authority certificate: %w (the gateway writes it at its first start)", err)
	}
	b, _ := pem.Decode(data)
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("read authority certificate: %s holds no certificate", filepath.Join(dir, certFile))
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read authority certificate: %w", err)
	}
	return encodePEM(cert), nil
}

// PEM returns the certificate of the trusted authority.
func (a *Authority) PEM() []byte { return encodePEM(a.trusted.cert) }

// DER returns the certificate of the trusted authority.
func (a *Authority) DER() []byte { return bytes.Clone(a.trusted.cert.Raw) }

// Certificates returns the certificates of both authorities. No server may present anything signed by them.
func (a *Authority) Certificates() []*x509.Certificate {
	return []*x509.Certificate{a.trusted.cert, a.untrusted.cert}
}

func encodePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// newSerial returns 127 random bits: never used twice, even when caches are lost (NSS refuses a second certificate of
// the same issuer and serial). RFC 5280 §4.1.2.2 allows 20 octets, positive.
func newSerial() (*big.Int, error) {
	var b [16]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("make serial number: %w", err)
		}
		b[0] &= 0x7f
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n, nil
		}
	}
}

// keyID is the subject key identifier of RFC 7093 §2 method 1.
func keyID(pub any) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return sum[:20], nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
