package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// private is what a key looks like wherever it is printed.
const private = "[private]"

// secret is a private key that signs and does not let itself be printed: a key in a log, a panic or a JSON dump is a
// lost authority.
type secret struct{ signer crypto.Signer }

// Public implements crypto.Signer.
func (s secret) Public() crypto.PublicKey { return s.signer.Public() }

// Sign implements crypto.Signer.
func (s secret) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.signer.Sign(r, digest, opts)
}

// decrypter is a secret that also decrypts, for the RSA key exchange of listed old clients. crypto/tls wants ECDSA keys
// not to.
type decrypter struct{ secret }

// Decrypt implements crypto.Decrypter.
func (d decrypter) Decrypt(r io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return d.signer.(crypto.Decrypter).Decrypt(r, msg, opts)
}

// Format implements fmt.Formatter for all verbs.
func (secret) Format(f fmt.State, _ rune) { io.WriteString(f, private) }

// MarshalJSON implements json.Marshaler.
func (secret) MarshalJSON() ([]byte, error) { return []byte(`"` + private + `"`), nil }

// MarshalText implements encoding.TextMarshaler.
func (secret) MarshalText() ([]byte, error) { return []byte(private), nil }

// LogValue implements slog.LogValuer.
func (secret) LogValue() slog.Value { return slog.StringValue(private) }

// Format implements fmt.Formatter: an authority prints as its name.
func (a *Authority) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "authority %q %s", a.trusted.cert.Subject.CommonName, private)
}

// LogValue implements slog.LogValuer.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.trusted.cert.Subject.CommonName) }

func parseKey(b *pem.Block) (secret, error) {
	var k any
	var err error
	switch b.Type {
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if err != nil {
		return secret{}, errors.New("cannot be read") // the cause could quote the key
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return secret{}, errors.New("cannot sign")
	}
	return secret{s}, nil
}

func samePublic(a, b any) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// leafKeys are the keys of all leaves of this process. One key for all costs nothing in security, since the gateway
// holds every one of them anyway, and saves a key generation for each name.
type leafKeys struct {
	ecOnce, rsaOnce sync.Once
	ec              secret
	rsa             decrypter
	ecErr, rsaErr   error
}

// get returns the P-256 key, or the RSA-2048 key that old clients need: made only when one comes along.
func (l *leafKeys) get(wantRSA bool) (crypto.Signer, error) {
	if wantRSA {
		l.rsaOnce.Do(func() {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			l.rsa, l.rsaErr = decrypter{secret{k}}, err
		})
		return l.rsa, l.rsaErr
	}
	l.ecOnce.Do(func() {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		l.ec, l.ecErr = secret{k}, err
	})
	return l.ec, l.ecErr
}

// Format implements fmt.Formatter.
func (i issuer) Format(f fmt.State, _ rune) { io.WriteString(f, private) }
