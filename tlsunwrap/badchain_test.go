package tlsunwrap

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"

	"mailweir/tlsunwrap/tlstest"
)

// badChain is a bad chain and what is to be seen of it from outside.
type badChain struct{ tlstest.BadChain }

func classOf(err error) string {
	var name x509.HostnameError
	var inv x509.CertificateInvalidError
	var unk x509.UnknownAuthorityError
	switch {
	case err == nil:
		return tlstest.ClassNone
	case errors.As(err, &name):
		return tlstest.ClassName
	case errors.As(err, &inv) && inv.Reason == x509.Expired:
		return tlstest.ClassTime
	case errors.As(err, &inv), errors.As(err, &unk), errors.As(err, &x509.UnhandledCriticalExtension{}):
		return tlstest.ClassIssuer
	}
	return err.Error()
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey { return tlstest.RSAKey(t, bits) }

// listener is a server that tells how much it got of the client's data.
type listener struct {
	cfg *tls.Config
	got int
}

func (l *listener) serve(c net.Conn) error {
	t := tls.Server(c, l.cfg)
	if err := t.Handshake(); err != nil {
		return err
	}
	buf := make([]byte, 1024)
	for {
		n, err := t.Read(buf)
		l.got += n
		if err != nil {
			return err
		}
		if _, err := t.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// TestBadChains is the harness TB: each bad chain under each policy.
func TestBadChains(t *testing.T) {
	for _, c := range tlstest.BadChains(mx) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c := badChain{c}
			t.Run("strict", func(t *testing.T) { c.strict(t) })
			t.Run("mirror", func(t *testing.T) { c.mirror(t, Settings{TlsVerify: verifyMirrorInvalid}, 465) })
			t.Run("opportunistic", func(t *testing.T) { c.mirror(t, Settings{}, 25) })
		})
	}
}

func (c badChain) server(t *testing.T, b *bench) *listener {
	trust := &tlstest.Trust{Roots: []*tlstest.CA{b.root}}
	cfg := serverConfig(c.Make(t, trust))
	b.cfg.Roots = tlstest.Pool(trust.Roots...)
	b.open()
	cfg.MaxVersion = c.Max
	return &listener{cfg: cfg}
}

// strict: refused, the client gets an alert, the server gets nothing of what the client has to say.
func (c badChain) strict(t *testing.T) {
	b := newBench(t, Settings{})
	s := c.server(t, b)
	out := b.run(flow{client: b.talk(), server: s.serve})
	if out.err == nil {
		t.Fatalf("let through: %+v", out.session.Info)
	}
	if out.err.Event != EventUpstreamCert || !strings.Contains(out.err.Error(), c.Detail) {
		t.Errorf("error %v, want %s with %q", out.err, EventUpstreamCert, c.Detail)
	}
	if _, ok := remoteAlert(out.client); !ok {
		t.Errorf("the client got %v, want an alert", out.client)
	}
	if s.got != 0 {
		t.Errorf("the server got %d octets", s.got)
	}
}

// mirror: a client that verifies sees trouble of the same class; one that does not can work.
func (c badChain) mirror(t *testing.T, s Settings, port uint16) {
	b := newBench(t, s)
	srv := c.server(t, b)
	out := b.run(flow{port: port, client: b.talk(), server: srv.serve})
	if c.Refuse {
		if out.err == nil || out.err.Event != EventUpstreamCert {
			t.Fatalf("outcome %v, want refused", out.err)
		}
		return
	}
	if got := classOf(out.client); got != c.Class {
		t.Errorf("the verifying client got %v (%v), want class %s", got, out.client, c.Class)
	}
	if srv.got != 0 {
		t.Errorf("the server got %d octets of a client that refused", srv.got)
	}
	if out.err == nil || out.err.Event != EventUnknownCA {
		t.Errorf("outcome %v, want %s", out.err, EventUnknownCA)
	}
	var seen *x509.Certificate
	out = b.run(flow{port: port, server: srv.serve, client: b.talk(func(cfg *tls.Config) {
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { seen = cs.PeerCertificates[0]; return nil }
	})})
	if out.err != nil || out.client != nil {
		t.Fatalf("the client that does not verify: %v, %v", out.err, out.client)
	}
	if i := out.session.Info; i.Verified || !strings.Contains(i.Reason, c.Detail) {
		t.Errorf("info %+v, want the reason %q", i, c.Detail)
	}
	like := tlstest.Parse(t, srv.cfg.Certificates[0].Certificate[0])
	if !strings.Contains(seen.Issuer.CommonName, "UNTRUSTED") {
		t.Errorf("issuer %v", seen.Issuer)
	}
	if strings.Join(seen.DNSNames, " ") != strings.Join(like.DNSNames, " ") || !seen.NotBefore.Equal(like.NotBefore) || !seen.NotAfter.Equal(like.NotAfter) {
		t.Errorf("the mirror differs: %v %v-%v, server %v %v-%v", seen.DNSNames, seen.NotBefore, seen.NotAfter, like.DNSNames, like.NotBefore, like.NotAfter)
	}
	if len(seen.UnhandledCriticalExtensions) > 0 || seen.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("copied: %v, %v", seen.UnhandledCriticalExtensions, seen.SignatureAlgorithm)
	}
}
