package tlsunwrap

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/tlsunwrap/tlstest"
)

// kinds of trouble as a client sees them.
const (
	classNone   = "none"
	className   = "name"
	classTime   = "time"
	classIssuer = "issuer"
)

func classOf(err error) string {
	var name x509.HostnameError
	var inv x509.CertificateInvalidError
	var unk x509.UnknownAuthorityError
	switch {
	case err == nil:
		return classNone
	case errors.As(err, &name):
		return className
	case errors.As(err, &inv) && inv.Reason == x509.Expired:
		return classTime
	case errors.As(err, &inv), errors.As(err, &unk), errors.As(err, &x509.UnhandledCriticalExtension{}):
		return classIssuer
	}
	return err.Error()
}

// badChain is one way in which a server's certificate can be bad.
type badChain struct {
	name   string
	make   func(t *testing.T, b *bench) tls.Certificate
	class  string // what a verifying client sees through a mirror
	detail string // in the reason
	refuse bool   // refused even where others are mirrored
	max    uint16 // version of the server, 0 for any
}

// rsaKey returns an RSA key; making one takes long, and tests do not need their own.
func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := map[int]func() (*rsa.PrivateKey, error){1024: rsa1024, 2048: rsa2048}[bits]()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var (
	rsa1024 = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 1024) })
	rsa2048 = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })
)

func leafWith(ch tlstest.Change) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate { return b.root.Leaf(t, []string{mx}, ch) }
}

func belowCA(ch tlstest.Change) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate {
		return b.root.Intermediate(t, "intermediate", ch).Leaf(t, []string{mx})
	}
}

func constrained(leafNames []string, mail string, ch tlstest.Change) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate {
		return b.root.Intermediate(t, "constrained", ch).Leaf(t, leafNames, func(c *x509.Certificate) {
			if mail != "" {
				c.EmailAddresses = []string{mail}
			}
		})
	}
}

// resigned replaces the leaf of a good chain.
func resigned(hash crypto.Hash, edit func(*tlstest.TBS)) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate {
		ca := b.root.IntermediateKey(t, "rsa intermediate", rsaKey(t, 2048))
		c := ca.Leaf(t, []string{mx})
		c.Certificate[0] = tlstest.Resign(t, c.Certificate[0], ca.Key, hash, edit)
		return c
	}
}

// resignedCA replaces the intermediate.
func resignedCA(hash crypto.Hash, edit func(*tlstest.TBS)) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate {
		b.root = tlstest.NewCAKey(t, "rsa root", rsaKey(t, 2048))
		b.cfg.Roots = tlstest.Pool(b.root)
		b.open()
		ca := b.root.Intermediate(t, "intermediate")
		c := ca.Leaf(t, []string{mx})
		c.Certificate[1] = tlstest.Resign(t, ca.Cert.Raw, b.root.Key, hash, edit)
		return c
	}
}

func badChains() []badChain {
	day := 24 * time.Hour
	now := time.Now().UTC().Truncate(time.Second)
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4, 5}, Critical: true, Value: []byte{5, 0}}
	_, outside, _ := net.ParseCIDR("10.0.0.0/8")
	return []badChain{
		{"T-010 self-signed leaf", func(t *testing.T, b *bench) tls.Certificate {
			k := tlstest.Key(t)
			c := tlstest.NewCAKey(t, mx, k, func(c *x509.Certificate) { *c = *tlstest.LeafTemplate(t, mx) })
			return tls.Certificate{Certificate: [][]byte{c.Cert.Raw}, PrivateKey: k}
		}, classIssuer, "unknown authority", false, 0},
		{"T-011 unknown issuer", func(t *testing.T, b *bench) tls.Certificate {
			return tlstest.NewCA(t, "stranger").Intermediate(t, "x").Leaf(t, []string{mx})
		}, classIssuer, "unknown authority", false, 0},
		{"T-011 unknown issuer of a trusted name", func(t *testing.T, b *bench) tls.Certificate {
			return tlstest.NewCA(t, "test root").Leaf(t, []string{mx})
		}, classIssuer, "unknown authority", false, 0},
		{"T-012 corrupted signature of the leaf", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Leaf(t, []string{mx})
			c.Certificate[0] = tlstest.Corrupt(t, c.Certificate[0])
			return c
		}, classIssuer, "unknown authority", false, 0},
		{"T-012 corrupted signature of the intermediate", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Intermediate(t, "x").Leaf(t, []string{mx})
			c.Certificate[1] = tlstest.Corrupt(t, c.Certificate[1])
			return c
		}, classIssuer, "unknown authority", false, 0},
		{"T-013 another host name", func(t *testing.T, b *bench) tls.Certificate {
			return b.root.Leaf(t, []string{"other.example"})
		}, className, "valid for other.example, not mx.example", false, 0},
		{"T-013 common name only", leafWith(func(c *x509.Certificate) { c.DNSNames = nil }), className, "Common Name", false, 0},
		{"T-014 expired leaf", leafWith(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-90*day), now.Add(-day) }), classTime, "expired", false, 0},
		{"T-014 leaf not yet valid", leafWith(func(c *x509.Certificate) { c.NotBefore = now.Add(day) }), classTime, "not yet valid", false, 0},
		{"T-015 expired intermediate", belowCA(func(c *x509.Certificate) { c.NotAfter = now.Add(-day / 2) }), classIssuer, "expired", false, 0},
		{"T-015 intermediate not yet valid", belowCA(func(c *x509.Certificate) { c.NotBefore = now.Add(day) }), classIssuer, "not yet valid", false, 0},
		{"T-015 expired root in the store", func(t *testing.T, b *bench) tls.Certificate {
			old := tlstest.NewCA(t, "old root", func(c *x509.Certificate) { c.NotAfter = now.Add(-day / 2) })
			b.cfg.Roots = tlstest.Pool(b.root, old)
			b.open()
			return old.Leaf(t, []string{mx})
		}, classIssuer, "expired", false, 0},
		{"T-016 intermediate that is no authority", belowCA(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }), classIssuer, "unknown authority", false, 0},
		{"T-016 intermediate without basic constraints", resignedCA(tlstest.SHA256, func(x *tlstest.TBS) {
			x.Extensions = without(x.Extensions, asn1.ObjectIdentifier{2, 5, 29, 19})
		}), classIssuer, "unknown authority", false, 0},
		{"T-017 version 1 intermediate", resignedCA(tlstest.SHA256, func(x *tlstest.TBS) { x.Version, x.Extensions = 0, nil }), classIssuer, "not authorized to sign", false, 0},
		{"T-018 path length", func(t *testing.T, b *bench) tls.Certificate {
			return b.root.Intermediate(t, "a", func(c *x509.Certificate) { c.MaxPathLenZero = true }).Intermediate(t, "b").Leaf(t, []string{mx})
		}, classIssuer, "too many intermediates", false, 0},
		{"T-019 constraint on DNS names", constrained([]string{mx}, "", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"other.example"} }), classIssuer, "not permitted", false, 0},
		{"T-019 excluded DNS name", constrained([]string{mx}, "", func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"example"} }), classIssuer, "excluded", false, 0},
		{"T-019 constraint on IP addresses", constrained([]string{mx, "192.0.2.1"}, "", func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{outside} }), classIssuer, "not permitted", false, 0},
		{"T-019 constraint on mail addresses", constrained([]string{mx}, "x@bad.example", func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"good.example"} }), classIssuer, "not permitted", false, 0},
		{"T-020 unknown critical extension in the leaf", leafWith(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} }), classIssuer, "unhandled critical extension", false, 0},
		{"T-020 unknown critical extension in the authority", belowCA(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} }), classIssuer, "unhandled critical extension", false, 0},
		{"T-021 malformed extension", resigned(tlstest.SHA256, func(x *tlstest.TBS) {
			for i := range x.Extensions {
				if x.Extensions[i].Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
					x.Extensions[i].Value = []byte{0x30, 0x82, 0xff, 0xff, 0x82}
				}
			}
		}), "", "cannot be used", true, 0},
		{"T-021 garbage in place of a certificate", func(t *testing.T, b *bench) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{[]byte("garbage")}, PrivateKey: tlstest.Key(t)}
		}, "", "cannot be used", true, 0},
		{"T-021 garbage behind a good leaf", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Leaf(t, []string{mx})
			c.Certificate = append(c.Certificate, []byte{0x30, 0x80, 0, 0})
			return c
		}, "", "cannot be used", true, 0},
		{"T-021 certificate of 100 KB", leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 100<<10)}}
		}), "", "octets", true, 0},
		{"T-021 200 certificates", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Leaf(t, []string{mx})
			x := tlstest.NewCA(t, "x").Cert.Raw
			for range 199 {
				c.Certificate = append(c.Certificate, x)
			}
			return c
		}, "", "200 certificates", true, 0},
		{"T-022 leaf whose key must not serve TLS", leafWith(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), classIssuer, "key usage", false, 0},
		{"T-022 leaf with a key usage of no bit", func(t *testing.T, b *bench) tls.Certificate {
			return b.root.Leaf(t, []string{mx}, func(c *x509.Certificate) {
				c.KeyUsage = 0
				c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0}}}
			})
		}, classIssuer, "key usage", false, 0},
		{"T-022 authority that must not sign certificates", belowCA(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), classIssuer, "", false, 0},
		{"T-022 authority with a key usage of no bit", belowCA(func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0}}}
		}), classIssuer, "key usage", false, 0},
		{"T-023 leaf for clients only", leafWith(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), classIssuer, "incompatible key usage", false, 0},
		{"T-023 authority for code only", belowCA(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), classIssuer, "", false, 0},
		{"T-024 RSA 512", smallRSA(512), "", "512 bits", true, tls.VersionTLS12},
		{"T-024 RSA 768", smallRSA(768), "", "768 bits", true, tls.VersionTLS12},
		{"T-024 T-084 RSA 1024", func(t *testing.T, b *bench) tls.Certificate { return b.root.LeafKey(t, rsaKey(t, 1024), []string{mx}) }, classIssuer, "1024 bits", false, 0},
		{"T-024 RSA 1024 in the authority", func(t *testing.T, b *bench) tls.Certificate {
			return b.root.IntermediateKey(t, "weak", rsaKey(t, 1024)).Leaf(t, []string{mx})
		}, classIssuer, "1024 bits", false, 0},
		{"T-024 ECDSA P-224 in the authority", func(t *testing.T, b *bench) tls.Certificate {
			k, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return b.root.IntermediateKey(t, "weak", k).Leaf(t, []string{mx})
		}, classIssuer, "224 bits", false, 0},
		{"T-024 ECDSA P-192", resigned(tlstest.SHA256, func(x *tlstest.TBS) { x.PublicKey = tlstest.P192() }), "", "cannot be used", true, 0},
		{"T-024 DSA", resigned(tlstest.SHA256, func(x *tlstest.TBS) { x.PublicKey = tlstest.DSA() }), "", "cannot be used", true, 0},
		{"T-025 leaf signed with MD5", resigned(tlstest.MD5, nil), classIssuer, "MD5", false, 0},
		{"T-025 T-084 leaf signed with SHA-1", resigned(tlstest.SHA1, nil), classIssuer, "SHA1", false, 0},
		{"T-025 leaf signed with ECDSA and SHA-1", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Leaf(t, []string{mx})
			c.Certificate[0] = tlstest.Resign(t, c.Certificate[0], b.root.Key, tlstest.SHA1, nil)
			return c
		}, classIssuer, "SHA1", false, 0},
		{"T-025 intermediate signed with MD5", resignedCA(tlstest.MD5, nil), classIssuer, "MD5", false, 0},
		{"T-025 intermediate signed with SHA-1", resignedCA(tlstest.SHA1, nil), classIssuer, "SHA1", false, 0},
		{"T-029 authority whose key is public", func(t *testing.T, b *bench) tls.Certificate {
			bad := tlstest.NewCA(t, "Superfish, Inc.")
			b.cfg.Roots = tlstest.Pool(b.root, bad)
			b.open()
			return bad.Leaf(t, []string{mx})
		}, classIssuer, "never trusted", false, 0},
		{"T-032 missing intermediate", func(t *testing.T, b *bench) tls.Certificate {
			c := b.root.Intermediate(t, "the missing one").Leaf(t, []string{mx})
			c.Certificate = c.Certificate[:1]
			return c
		}, classIssuer, `issued by "CN=the missing one": either that authority's certificate is missing`, false, 0},
	}
}

func smallRSA(bits int) func(*testing.T, *bench) tls.Certificate {
	return func(t *testing.T, b *bench) tls.Certificate {
		return b.root.LeafKey(t, tlstest.NewSmallRSA(t, bits), []string{mx})
	}
}

func without(list []pkix.Extension, id asn1.ObjectIdentifier) (out []pkix.Extension) {
	for _, e := range list {
		if !e.Id.Equal(id) {
			out = append(out, e)
		}
	}
	return out
}

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
	for _, c := range badChains() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			t.Run("strict", func(t *testing.T) { c.strict(t) })
			t.Run("mirror", func(t *testing.T) { c.mirror(t, Settings{TlsVerify: verifyMirrorInvalid}, 465) })
			t.Run("opportunistic", func(t *testing.T) { c.mirror(t, Settings{}, 25) })
		})
	}
}

func (c badChain) server(t *testing.T, b *bench) *listener {
	cfg := serverConfig(c.make(t, b))
	cfg.MaxVersion = c.max
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
	if out.err.Event != EventUpstreamCert || !strings.Contains(out.err.Error(), c.detail) {
		t.Errorf("error %v, want %s with %q", out.err, EventUpstreamCert, c.detail)
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
	if c.refuse {
		if out.err == nil || out.err.Event != EventUpstreamCert {
			t.Fatalf("outcome %v, want refused", out.err)
		}
		return
	}
	if got := classOf(out.client); got != c.class {
		t.Errorf("the verifying client got %v (%v), want class %s", got, out.client, c.class)
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
	if i := out.session.Info; i.Verified || !strings.Contains(i.Reason, c.detail) {
		t.Errorf("info %+v, want the reason %q", i, c.detail)
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
