package tlsunwrap

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// revocations are the revocation lists of a directory, by the issuer's name as in the certificate.
type revocations map[string][]*x509.RevocationList

// readCRLs reads the lists in dir. The signature is checked on use, when the issuer is known.
func readCRLs(dir string) (revocations, error) {
	if dir == "" {
		return nil, nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	crls := revocations{}
	for _, f := range list {
		ext := filepath.Ext(f.Name())
		if ext != ".crl" && ext != ".pem" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		if b, _ := pem.Decode(data); b != nil {
			data = b.Bytes
		}
		l, err := x509.ParseRevocationList(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		crls[string(l.RawIssuer)] = append(crls[string(l.RawIssuer)], l)
	}
	return crls, nil
}

type status int

const (
	unknown status = iota
	good
	revoked
)

// revoked judges a chain by the stapled OCSP answer and the revocation lists. What is known to be revoked is refused;
// not knowing is accepted unless TlsRevocation is Hard.
func (r *rules) revoked(chain []*x509.Certificate, staple []byte, now time.Time) *flaw {
	leaf := unknown
	for i, c := range chain[:len(chain)-1] {
		s := r.crls.status(c, chain[i+1], now)
		if i == 0 && s != revoked && len(staple) > 0 {
			if t := stapled(staple, c, chain[1], now); t != unknown {
				s = t
			}
		}
		if s == revoked {
			return &flaw{alert: alertRevoked, err: fmt.Errorf("certificate of %q is revoked", c.Subject)}
		}
		if i == 0 {
			leaf = s
		}
	}
	if len(chain) == 1 || leaf != unknown || r.Revocation != "Hard" {
		return nil
	}
	err := errors.New("revocation status unknown, and TlsRevocation is Hard")
	if mustStaple(chain[0]) {
		err = errors.New("the certificate demands a stapled OCSP answer, the server sent no valid one, and TlsRevocation is Hard")
	}
	return &flaw{alert: alertBadCertificate, err: err}
}

// status looks c up in the lists of issuer. An outdated list can still tell what is revoked, not what is good.
func (l revocations) status(c, issuer *x509.Certificate, now time.Time) status {
	s := unknown
	for _, crl := range l[string(c.RawIssuer)] {
		if crl.CheckSignatureFrom(issuer) != nil {
			continue // another authority of the same name
		}
		for _, e := range crl.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 && e.ReasonCode != 8 { // RFC 5280 §5.3.1: 8 is removeFromCRL
				return revoked
			}
		}
		if !now.Before(crl.ThisUpdate) && (crl.NextUpdate.IsZero() || now.Before(crl.NextUpdate)) {
			s = good
		}
	}
	return s
}

// stapled reads an OCSP answer about c.
func stapled(der []byte, c, issuer *x509.Certificate, now time.Time) status {
	resp, err := ocsp.ParseResponseForCert(der, c, issuer)
	if err != nil {
		return unknown
	}
	// RFC 6960 §4.2.2.2: a delegate must be named as one by the issuer. The library checks only who signed it.
	if d := resp.Certificate; d != nil && !bytes.Equal(d.Raw, issuer.Raw) && !slices.Contains(d.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return unknown
	}
	switch {
	case resp.Status == ocsp.Revoked:
		return revoked
	case resp.Status != ocsp.Good, now.Before(resp.ThisUpdate.Add(-5 * time.Minute)), !resp.NextUpdate.IsZero() && now.After(resp.NextUpdate):
		return unknown
	}
	return good
}

// mustStaple tells a certificate that is good only with a stapled OCSP answer: RFC 7633, feature 5.
func mustStaple(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidTLSFeature) {
			return bytes.Contains(e.Value, []byte{2, 1, 5})
		}
	}
	return false
}
