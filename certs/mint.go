package certs

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"time"
)

const (
	maxLeaves  = 4096                 // leaves kept ready
	leafReuse  = 24 * time.Hour       // a leaf is minted anew after a day
	maxLeaf    = 397 * 24 * time.Hour // longest life that all clients accept of a leaf
	maxCN      = 64                   // RFC 5280 appendix A.1, ub-common-name
	sanURI     = 6                    // RFC 5280 §4.2.1.6, tags of GeneralName
	sanIP      = 7
	sanDNS     = 2
	sanMailbox = 1
)

var (
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Mint returns a leaf that says what the certificate like says of its subject: the same names and the same period of
// validity, never a longer one. It is signed by the trusted authority only if trusted. rsaKey asks for an RSA key, for
// clients that cannot do ECDSA. The same certificate gives the same leaf for a day; concurrent calls sign once.
func (a *Authority) Mint(like *x509.Certificate, trusted, rsaKey bool) (*tls.Certificate, error) {
	k := leafID{sha256.Sum256(like.Raw), trusted, rsaKey}
	return a.leaves.get(k, a.now(), func() (*tls.Certificate, error) { return a.mint(like, trusted, rsaKey) })
}

func (a *Authority) mint(like *x509.Certificate, trusted, rsaKey bool) (*tls.Certificate, error) {
	by := a.untrusted
	if trusted {
		by = a.trusted
	}
	key, err := a.keys.get(rsaKey)
	if err != nil {
		return nil, fmt.Errorf("make leaf key: %w", err)
	}
	t, err := template(like, by.cert, trusted, rsaKey, a.now())
	if err != nil {
		return nil, err
	}
	if t.SubjectKeyId, err = keyID(key.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read own leaf: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// template lists everything that a leaf takes from the server's certificate. What is not here is not copied: SCTs,
// must-staple, CRL and OCSP addresses, policies, the key, unknown extensions.
func template(like, ca *x509.Certificate, trusted, rsaKey bool, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if rsaKey {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if cn := like.Subject.CommonName; len(cn) <= maxCN {
		t.Subject = pkix.Name{CommonName: strings.ToValidUTF8(cn, "?")}
	}
	san, err := copySAN(like, t.Subject.CommonName == "")
	if err != nil {
		return nil, err
	}
	if san != nil {
		t.ExtraExtensions = append(t.ExtraExtensions, *san)
	}
	t.NotBefore, t.NotAfter = window(like, ca, trusted, now)
	return t, nil
}

// copySAN copies the DNS, IP, mail and URI names, octet for octet, and leaves out what a mail client has no use for.
// Without a subject the extension is critical: RFC 5280 §4.2.1.6.
func copySAN(like *x509.Certificate, critical bool) (*pkix.Extension, error) {
	var names []asn1.RawValue
	for _, e := range like.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var all []asn1.RawValue
		if _, err := asn1.Unmarshal(e.Value, &all); err != nil {
			return nil, fmt.Errorf("read subject alternative names: %w", err)
		}
		for _, n := range all {
			if n.Class == asn1.ClassContextSpecific && (n.Tag == sanDNS || n.Tag == sanIP || n.Tag == sanMailbox || n.Tag == sanURI) {
				names = append(names, asn1.RawValue{FullBytes: n.FullBytes})
			}
		}
	}
	if names == nil {
		return nil, nil
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		return nil, fmt.Errorf("write subject alternative names: %w", err)
	}
	return &pkix.Extension{Id: oidSAN, Critical: critical, Value: value}, nil
}

// window returns the leaf's period of validity: within the server's own, within the authority's life, at most maxLeaf.
// A longer one is cut so that it begins a little in the past, for clients whose clock is behind. The period of an
// untrusted mirror is a defect that the client is to see, and is not fitted to the authority's life.
func window(like, ca *x509.Certificate, trusted bool, now time.Time) (from, to time.Time) {
	from, to = like.NotBefore, like.NotAfter
	if trusted && to.After(ca.NotBefore) {
		from, to = later(from, ca.NotBefore), earlier(to, ca.NotAfter)
	}
	if to.Sub(from) <= maxLeaf {
		return from, to
	}
	if to.Before(now) { // expired: keep the end
		return to.Add(-maxLeaf), to
	}
	from = later(from, now.Add(-backDate).UTC().Truncate(time.Second))
	return from, earlier(to, from.Add(maxLeaf))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
