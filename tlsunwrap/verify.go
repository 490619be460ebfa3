package tlsunwrap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"
)

const (
	maxChain    = 32       // certificates that a server may send
	maxCertSize = 64 << 10 // octets of one
)

var (
	oidKeyUsage   = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24} // RFC 7633
)

// flaw is what is wrong with a server's certificate.
type flaw struct {
	alert uint8
	fatal bool   // must not even be mirrored
	event string // if other than EventUpstreamCert
	err   error
}

func (f *flaw) Error() string { return f.err.Error() }

// check judges what a server showed, for the name that the client asked for (empty: the names cannot be judged). It
// returns nil, or what is wrong. It runs on every handshake, resumed ones too, and keeps nothing.
func (r *rules) check(cs tls.ConnectionState, name string, own []*x509.Certificate, now time.Time) *flaw {
	certs := cs.PeerCertificates
	if len(certs) == 0 {
		return &flaw{alert: alertBadCertificate, fatal: true, err: errors.New("the server showed no certificate")}
	}
	if len(certs) > maxChain {
		return &flaw{alert: alertBadCertificate, fatal: true, err: fmt.Errorf("the server sent %d certificates, more than %d", len(certs), maxChain)}
	}
	for _, c := range certs {
		if len(c.Raw) > maxCertSize {
			return &flaw{alert: alertBadCertificate, fatal: true, err: fmt.Errorf("a certificate of %d octets, more than %d", len(c.Raw), maxCertSize)}
		}
		if ours(c, own) {
			return &flaw{alert: alertBadCertificate, fatal: true, event: EventOwnCA, err: errors.New("the server shows a certificate of this gateway's own authority")}
		}
	}
	chains, err := r.chains(certs, name, now)
	if err != nil {
		return classify(err, certs)
	}
	var first *flaw
	for _, chain := range chains { // one good path is enough
		f := r.checkChain(chain, own)
		if f == nil {
			f = r.revoked(chain, cs.OCSPResponse, now)
		}
		if f == nil {
			return nil
		}
		if first == nil {
			first = f
		}
	}
	return first
}

// chains builds the paths to a root. crypto/x509 judges time, name, signatures, basic constraints, path length, name
// constraints, extended usage and critical extensions.
func (r *rules) chains(certs []*x509.Certificate, name string, now time.Time) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{Roots: r.roots, DNSName: name, CurrentTime: now, Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(opts)
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) && len(r.helpers) > 0 {
		for _, c := range r.helpers {
			opts.Intermediates.AddCert(c)
		}
		return certs[0].Verify(opts)
	}
	return chains, err
}

// classify finds the alert for an error of crypto/x509, and words for the commonest mistake of mail servers.
func classify(err error, certs []*x509.Certificate) *flaw {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &flaw{alert: alertExpired, err: err}
	case errors.As(err, &unknown):
		if len(certs) == 1 && !bytes.Equal(certs[0].RawIssuer, certs[0].RawSubject) {
			err = fmt.Errorf("%w: the server sent only its own certificate, issued by %q: either that authority's certificate is "+
				"missing (TlsIntermediates can supply it) or its root is not trusted (TlsTrustedCa)", err, certs[0].Issuer)
		}
		return &flaw{alert: alertUnknownCA, err: err}
	}
	return &flaw{alert: alertBadCertificate, err: err}
}

// checkChain judges what crypto/x509 leaves to its callers.
func (r *rules) checkChain(chain []*x509.Certificate, own []*x509.Certificate) *flaw {
	for i, c := range chain {
		if err := r.checkKey(c); err != nil {
			return &flaw{alert: alertBadCertificate, err: fmt.Errorf("certificate of %q: %w", c.Subject, err)}
		}
		if err := checkUsage(c, i > 0); err != nil {
			return &flaw{alert: alertBadCertificate, err: fmt.Errorf("certificate of %q: %w", c.Subject, err)}
		}
		if i < len(chain)-1 && weakSignature(c.SignatureAlgorithm) {
			return &flaw{alert: alertBadCertificate, err: fmt.Errorf("certificate of %q: signed with %v", c.Subject, c.SignatureAlgorithm)}
		}
		if ours(c, own) {
			return &flaw{alert: alertBadCertificate, fatal: true, event: EventOwnCA, err: errors.New("the chain ends at this gateway's own authority")}
		}
		if i > 0 && infamous(c) {
			return &flaw{alert: alertUnknownCA, err: fmt.Errorf("authority %q is never trusted", c.Subject)}
		}
	}
	return nil
}

func (r *rules) checkKey(c *x509.Certificate) error {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < r.MinRsaBits {
			return fmt.Errorf("RSA key of %d bits, want %d", n, r.MinRsaBits)
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("ECDSA key of %d bits, want 256", n)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of unusable kind %v", c.PublicKeyAlgorithm)
	}
	return nil
}

// checkUsage judges keyUsage. crypto/x509 looks at it only for authorities, and takes one without any bit for absent.
func checkUsage(c *x509.Certificate, authority bool) error {
	if !hasExtension(c, oidKeyUsage) {
		return nil
	}
	want, what := x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, "TLS servers"
	if authority {
		want, what = x509.KeyUsageCertSign, "signing certificates"
	}
	if c.KeyUsage&want == 0 {
		return fmt.Errorf("key usage does not allow %s", what)
	}
	return nil
}

func hasExtension(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return true
		}
	}
	return false
}

func weakSignature(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1, x509.DSAWithSHA256:
		return true
	}
	return false
}

// verdict is what the policy makes of a server's certificate.
type verdict struct {
	leaf    *x509.Certificate
	trusted bool   // the client gets a leaf by the trusted authority
	reason  string // why not, or what else there is to say
	refusal *Error // not nil: the connection ends
	alert   uint8  // with this
}

// judge is called for the server's certificate during the handshake, before it has got anything but our hello.
func (a *attempt) judge(cs tls.ConnectionState) verdict {
	u, port := a.u, a.r.ServerAddr.Port()
	now := u.now()
	v := verdict{trusted: true}
	if len(cs.PeerCertificates) > 0 {
		v.leaf = cs.PeerCertificates[0]
	}
	f := a.rules.check(cs, a.checkName(), u.own, now)
	refuse := func(event string, alert uint8, detail string) verdict {
		v.trusted, v.alert, v.reason, v.refusal = false, alert, detail, &Error{Event: event, Detail: detail}
		return v
	}
	if f != nil && f.fatal {
		event := EventUpstreamCert
		if f.event != "" {
			event = f.event
		}
		return refuse(event, f.alert, f.Error())
	}
	if pinned, ok := a.pinned(v.leaf); pinned {
		if !ok {
			return refuse(EventPin, alertBadCertificate, "the server's key is not the one of TlsPin")
		}
		v.reason = "pinned"
		return v
	}
	policy, key := a.rules.policy(port), a.destination()
	if f == nil {
		if port == 25 {
			if err := u.history.verified(key, now); err != nil {
				u.log.Warn("destination will be forgotten", "err", err)
			}
		}
		if a.sni != "" {
			a.rules.verified.add(key, now, nameBypassLife)
		} else {
			v.reason = "no server name asked for: the chain was verified, the name could not be"
		}
		return v
	}
	switch {
	case policy == verifyStrict:
		return refuse(EventUpstreamCert, f.alert, f.Error())
	case policy == verifyOpportunistic && u.history.has(key, now):
		return refuse(EventDegraded, f.alert, "this destination had a valid certificate before: "+f.Error())
	}
	v.trusted, v.reason = false, f.Error()
	return v
}

// pinned compares the server's key with the configured one, if there is one.
func (a *attempt) pinned(leaf *x509.Certificate) (configured, ok bool) {
	for _, p := range a.rules.pins {
		if !p.matchAddr(a.r) && !p.matchName(a.r, a.sni) {
			continue
		}
		configured = true
		if sha256.Sum256(leaf.RawSubjectPublicKeyInfo) == p.key {
			return true, true
		}
	}
	return configured, false
}
