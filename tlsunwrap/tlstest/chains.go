package tlstest

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
	"net"
	"sync"
	"testing"
	"time"
)

// Kinds of trouble with a certificate, as a client sees them.
const (
	ClassNone   = "none"
	ClassName   = "name"
	ClassTime   = "time"
	ClassIssuer = "issuer"
)

// Trust is what the one who judges a chain trusts.
type Trust struct{ Roots []*CA }

// Root is the authority that issues, unless a chain says otherwise.
func (b *Trust) Root() *CA { return b.Roots[0] }

// BadChain is one way in which a server's certificate can be bad.
type BadChain struct {
	Name   string                                       // with the case that it belongs to
	Make   func(t testing.TB, b *Trust) tls.Certificate // may change whom b trusts
	Class  string                                       // what a verifying client sees of a faithful mirror
	Detail string                                       // in the reason for which the gateway refuses it
	Refuse bool                                         // it cannot even be mirrored
	Max    uint16                                       // version of the server, 0 for any
}

// RSAKey returns an RSA key of 1024 or 2048 bits; making one takes long, and tests do not need their own.
func RSAKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := map[int]func() (*rsa.PrivateKey, error){1024: rsa1024, 2048: rsa2048}[bits]()
	must(t, err)
	return k
}

var (
	rsa1024 = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 1024) })
	rsa2048 = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })
)

// maker makes chains for one name.
type maker struct{ mx string }

func (m maker) leafWith(ch Change) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate { return b.Root().Leaf(t, []string{m.mx}, ch) }
}

func (m maker) belowCA(ch Change) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate {
		return b.Root().Intermediate(t, "intermediate", ch).Leaf(t, []string{m.mx})
	}
}

func (m maker) constrained(leafNames []string, mail string, ch Change) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate {
		return b.Root().Intermediate(t, "constrained", ch).Leaf(t, leafNames, func(c *x509.Certificate) {
			if mail != "" {
				c.EmailAddresses = []string{mail}
			}
		})
	}
}

// resigned replaces the leaf of a good chain.
func (m maker) resigned(hash crypto.Hash, edit func(*TBS)) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate {
		ca := b.Root().IntermediateKey(t, "rsa intermediate", RSAKey(t, 2048))
		c := ca.Leaf(t, []string{m.mx})
		c.Certificate[0] = Resign(t, c.Certificate[0], ca.Key, hash, edit)
		return c
	}
}

// resignedCA replaces the intermediate.
func (m maker) resignedCA(hash crypto.Hash, edit func(*TBS)) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate {
		root := NewCAKey(t, "rsa root", RSAKey(t, 2048))
		b.Roots = []*CA{root}
		ca := root.Intermediate(t, "intermediate")
		c := ca.Leaf(t, []string{m.mx})
		c.Certificate[1] = Resign(t, ca.Cert.Raw, root.Key, hash, edit)
		return c
	}
}

func (m maker) smallRSA(bits int) func(testing.TB, *Trust) tls.Certificate {
	return func(t testing.TB, b *Trust) tls.Certificate {
		return b.Root().LeafKey(t, NewSmallRSA(t, bits), []string{m.mx})
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

// BadChains returns every way in which a chain is bad, for a server called mx, in the order of the cases.
func BadChains(mx string) []BadChain {
	m := maker{mx}
	day := 24 * time.Hour
	now := time.Now().UTC().Truncate(time.Second)
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4, 5}, Critical: true, Value: []byte{5, 0}}
	_, outside, _ := net.ParseCIDR("10.0.0.0/8")
	return []BadChain{
		{"T-010 self-signed leaf", func(t testing.TB, b *Trust) tls.Certificate {
			k := Key(t)
			c := NewCAKey(t, mx, k, func(c *x509.Certificate) { *c = *LeafTemplate(t, mx) })
			return tls.Certificate{Certificate: [][]byte{c.Cert.Raw}, PrivateKey: k}
		}, ClassIssuer, "unknown authority", false, 0},
		{"T-011 unknown issuer", func(t testing.TB, b *Trust) tls.Certificate {
			return NewCA(t, "stranger").Intermediate(t, "x").Leaf(t, []string{mx})
		}, ClassIssuer, "unknown authority", false, 0},
		{"T-011 unknown issuer of a trusted name", func(t testing.TB, b *Trust) tls.Certificate {
			return NewCA(t, "test root").Leaf(t, []string{mx})
		}, ClassIssuer, "unknown authority", false, 0},
		{"T-012 corrupted signature of the leaf", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Leaf(t, []string{mx})
			c.Certificate[0] = Corrupt(t, c.Certificate[0])
			return c
		}, ClassIssuer, "unknown authority", false, 0},
		{"T-012 corrupted signature of the intermediate", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Intermediate(t, "x").Leaf(t, []string{mx})
			c.Certificate[1] = Corrupt(t, c.Certificate[1])
			return c
		}, ClassIssuer, "unknown authority", false, 0},
		{"T-013 another host name", func(t testing.TB, b *Trust) tls.Certificate {
			return b.Root().Leaf(t, []string{"other.example"})
		}, ClassName, "valid for other.example, not mx.example", false, 0},
		{"T-013 common name only", m.leafWith(func(c *x509.Certificate) { c.DNSNames = nil }), ClassName, "Common Name", false, 0},
		{"T-014 expired leaf", m.leafWith(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-90*day), now.Add(-day) }), ClassTime, "expired", false, 0},
		{"T-014 leaf not yet valid", m.leafWith(func(c *x509.Certificate) { c.NotBefore = now.Add(day) }), ClassTime, "not yet valid", false, 0},
		{"T-015 expired intermediate", m.belowCA(func(c *x509.Certificate) { c.NotAfter = now.Add(-day / 2) }), ClassIssuer, "expired", false, 0},
		{"T-015 intermediate not yet valid", m.belowCA(func(c *x509.Certificate) { c.NotBefore = now.Add(day) }), ClassIssuer, "not yet valid", false, 0},
		{"T-015 expired root in the store", func(t testing.TB, b *Trust) tls.Certificate {
			old := NewCA(t, "old root", func(c *x509.Certificate) { c.NotAfter = now.Add(-day / 2) })
			b.Roots = append(b.Roots, old)
			return old.Leaf(t, []string{mx})
		}, ClassIssuer, "expired", false, 0},
		{"T-016 intermediate that is no authority", m.belowCA(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }), ClassIssuer, "unknown authority", false, 0},
		{"T-016 intermediate without basic constraints", m.resignedCA(SHA256, func(x *TBS) {
			x.Extensions = without(x.Extensions, asn1.ObjectIdentifier{2, 5, 29, 19})
		}), ClassIssuer, "unknown authority", false, 0},
		{"T-017 version 1 intermediate", m.resignedCA(SHA256, func(x *TBS) { x.Version, x.Extensions = 0, nil }), ClassIssuer, "not authorized to sign", false, 0},
		{"T-018 path length", func(t testing.TB, b *Trust) tls.Certificate {
			return b.Root().Intermediate(t, "a", func(c *x509.Certificate) { c.MaxPathLenZero = true }).Intermediate(t, "b").Leaf(t, []string{mx})
		}, ClassIssuer, "too many intermediates", false, 0},
		{"T-019 constraint on DNS names", m.constrained([]string{mx}, "", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"other.example"} }), ClassIssuer, "not permitted", false, 0},
		{"T-019 excluded DNS name", m.constrained([]string{mx}, "", func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"example"} }), ClassIssuer, "excluded", false, 0},
		{"T-019 constraint on IP addresses", m.constrained([]string{mx, "192.0.2.1"}, "", func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{outside} }), ClassIssuer, "not permitted", false, 0},
		{"T-019 constraint on mail addresses", m.constrained([]string{mx}, "x@bad.example", func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"good.example"} }), ClassIssuer, "not permitted", false, 0},
		{"T-020 unknown critical extension in the leaf", m.leafWith(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} }), ClassIssuer, "unhandled critical extension", false, 0},
		{"T-020 unknown critical extension in the authority", m.belowCA(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} }), ClassIssuer, "unhandled critical extension", false, 0},
		{"T-021 malformed extension", m.resigned(SHA256, func(x *TBS) {
			for i := range x.Extensions {
				if x.Extensions[i].Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
					x.Extensions[i].Value = []byte{0x30, 0x82, 0xff, 0xff, 0x82}
				}
			}
		}), "", "cannot be used", true, 0},
		{"T-021 garbage in place of a certificate", func(t testing.TB, b *Trust) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{[]byte("garbage")}, PrivateKey: Key(t)}
		}, "", "cannot be used", true, 0},
		{"T-021 garbage behind a good leaf", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Leaf(t, []string{mx})
			c.Certificate = append(c.Certificate, []byte{0x30, 0x80, 0, 0})
			return c
		}, "", "cannot be used", true, 0},
		{"T-021 certificate of 100 KB", m.leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 100<<10)}}
		}), "", "octets", true, 0},
		{"T-021 200 certificates", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Leaf(t, []string{mx})
			x := NewCA(t, "x").Cert.Raw
			for range 199 {
				c.Certificate = append(c.Certificate, x)
			}
			return c
		}, "", "200 certificates", true, 0},
		{"T-022 leaf whose key must not serve TLS", m.leafWith(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), ClassIssuer, "key usage", false, 0},
		{"T-022 leaf with a key usage of no bit", func(t testing.TB, b *Trust) tls.Certificate {
			return b.Root().Leaf(t, []string{mx}, func(c *x509.Certificate) {
				c.KeyUsage = 0
				c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0}}}
			})
		}, ClassIssuer, "key usage", false, 0},
		{"T-022 authority that must not sign certificates", m.belowCA(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), ClassIssuer, "", false, 0},
		{"T-022 authority with a key usage of no bit", m.belowCA(func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 7, 0}}}
		}), ClassIssuer, "key usage", false, 0},
		{"T-023 leaf for clients only", m.leafWith(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), ClassIssuer, "incompatible key usage", false, 0},
		{"T-023 authority for code only", m.belowCA(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), ClassIssuer, "", false, 0},
		{"T-024 RSA 512", m.smallRSA(512), "", "512 bits", true, tls.VersionTLS12},
		{"T-024 RSA 768", m.smallRSA(768), "", "768 bits", true, tls.VersionTLS12},
		{"T-024 T-084 RSA 1024", func(t testing.TB, b *Trust) tls.Certificate {
			return b.Root().LeafKey(t, RSAKey(t, 1024), []string{mx})
		}, ClassIssuer, "1024 bits", false, 0},
		{"T-024 RSA 1024 in the authority", func(t testing.TB, b *Trust) tls.Certificate {
			return b.Root().IntermediateKey(t, "weak", RSAKey(t, 1024)).Leaf(t, []string{mx})
		}, ClassIssuer, "1024 bits", false, 0},
		{"T-024 ECDSA over secp224r1 in the authority", func(t testing.TB, b *Trust) tls.Certificate {
			k, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return b.Root().IntermediateKey(t, "weak", k).Leaf(t, []string{mx})
		}, ClassIssuer, "224 bits", false, 0},
		{"T-024 ECDSA over secp192r1", m.resigned(SHA256, func(x *TBS) { x.PublicKey = P192() }), "", "cannot be used", true, 0},
		{"T-024 DSA", m.resigned(SHA256, func(x *TBS) { x.PublicKey = DSA() }), "", "cannot be used", true, 0},
		{"T-025 leaf signed with MD5", m.resigned(MD5, nil), ClassIssuer, "MD5", false, 0},
		{"T-025 T-084 leaf signed with SHA-1", m.resigned(SHA1, nil), ClassIssuer, "SHA1", false, 0},
		{"T-025 leaf signed with ECDSA and SHA-1", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Leaf(t, []string{mx})
			c.Certificate[0] = Resign(t, c.Certificate[0], b.Root().Key, SHA1, nil)
			return c
		}, ClassIssuer, "SHA1", false, 0},
		{"T-025 intermediate signed with MD5", m.resignedCA(MD5, nil), ClassIssuer, "MD5", false, 0},
		{"T-025 intermediate signed with SHA-1", m.resignedCA(SHA1, nil), ClassIssuer, "SHA1", false, 0},
		{"T-029 authority whose key is public", func(t testing.TB, b *Trust) tls.Certificate {
			bad := NewCA(t, "Superfish, Inc.")
			b.Roots = append(b.Roots, bad)
			return bad.Leaf(t, []string{mx})
		}, ClassIssuer, "never trusted", false, 0},
		{"T-032 missing intermediate", func(t testing.TB, b *Trust) tls.Certificate {
			c := b.Root().Intermediate(t, "the missing one").Leaf(t, []string{mx})
			c.Certificate = c.Certificate[:1]
			return c
		}, ClassIssuer, `issued by "CN=the missing one": either that authority's certificate is missing`, false, 0},
	}
}
