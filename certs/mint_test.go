package certs

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
	"io"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serverLike makes a certificate as a server might show it; change may alter the template.
func serverLike(t testing.TB, a *Authority, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("imap://mail.example/")
	tmpl := &x509.Certificate{
		SerialNumber:   serial,
		Subject:        pkix.Name{CommonName: "mail.example", Organization: []string{"Example"}},
		DNSNames:       []string{"mail.example", "*.Mail.example"},
		IPAddresses:    []net.IP{net.IPv4(192, 0, 2, 7).To4(), net.ParseIP("2001:db8::7")},
		EmailAddresses: []string{"postmaster@mail.example"},
		URIs:           []*url.URL{u},
		NotBefore:      a.now().Add(-time.Hour).UTC().Truncate(time.Second),
		NotAfter:       a.now().Add(90 * 24 * time.Hour).UTC().Truncate(time.Second),
		KeyUsage:       x509.KeyUsageDigitalSignature,
		ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mintLeaf(t testing.TB, a *Authority, like *x509.Certificate, trusted, rsaKey bool) *x509.Certificate {
	t.Helper()
	c, err := a.Mint(like, trusted, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func extension(c *x509.Certificate, id asn1.ObjectIdentifier) *pkix.Extension {
	for i := range c.Extensions {
		if c.Extensions[i].Id.Equal(id) {
			return &c.Extensions[i]
		}
	}
	return nil
}

func TestT040(t *testing.T) {
	a, _ := openTest(t)
	for _, c := range []struct {
		name   string
		change func(*x509.Certificate)
		cn     string
	}{
		{"T-040 all kinds of names, the same octets", nil, "mail.example"},
		{"T-040 a long common name is left out", func(c *x509.Certificate) {
			c.Subject.CommonName = strings.Repeat("a", 65)
		}, ""},
		{"T-040 64 octets of common name are kept", func(c *x509.Certificate) {
			c.Subject.CommonName = strings.Repeat("a", 64)
		}, strings.Repeat("a", 64)},
		{"T-040 a NUL in a name stays", func(c *x509.Certificate) { c.DNSNames = []string{"good.example\x00.evil.example"} }, "mail.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			like := serverLike(t, a, c.change)
			leaf := mintLeaf(t, a, like, true, false)
			if got, want := extension(leaf, oidSAN), extension(like, oidSAN); got == nil || string(got.Value) != string(want.Value) {
				t.Errorf("names %v, want %v", got, want)
			}
			if leaf.Subject.CommonName != c.cn {
				t.Errorf("common name %q", leaf.Subject.CommonName)
			}
			if (c.cn == "") != extension(leaf, oidSAN).Critical {
				t.Error("names must be critical exactly if there is no subject") // RFC 5280 §4.2.1.6
			}
		})
	}
	t.Run("T-040 other kinds of names are left out", func(t *testing.T) {
		dns := asn1.RawValue{Class: 2, Tag: sanDNS, Bytes: []byte("a.example")}
		other, err := asn1.Marshal([]asn1.RawValue{{Class: 2, Tag: 8, Bytes: []byte{42, 3}}, dns})
		if err != nil {
			t.Fatal(err)
		}
		only, _ := asn1.Marshal([]asn1.RawValue{dns})
		like := serverLike(t, a, func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs = nil, nil, nil, nil
			c.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: other}}
		})
		if got := extension(mintLeaf(t, a, like, true, false), oidSAN); string(got.Value) != string(only) {
			t.Errorf("names %x, want %x", got.Value, only)
		}
	})
	t.Run("T-040 a common name alone makes no alternative name", func(t *testing.T) {
		like := serverLike(t, a, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs = nil, nil, nil, nil })
		leaf := mintLeaf(t, a, like, true, false)
		if extension(leaf, oidSAN) != nil || leaf.Subject.CommonName != "mail.example" {
			t.Errorf("%v %v", leaf.Subject, leaf.DNSNames)
		}
	})
}

func TestT041(t *testing.T) {
	a, _ := openTest(t)
	day := 24 * time.Hour
	now := a.now().UTC().Truncate(time.Second)
	for _, c := range []struct {
		name     string
		from, to time.Time
		trusted  bool
		wantFrom time.Time // zero: only the rules below
		wantTo   time.Time
	}{
		{"T-041 a window within the limits is copied", now.Add(-day), now.Add(90 * day), true, now.Add(-day), now.Add(90 * day)},
		{"T-041 three years are clipped to 397 days", now.Add(-300 * day), now.Add(795 * day), true, time.Time{}, time.Time{}},
		{"T-041 thirty years are clipped to 397 days", now.Add(-day), now.Add(30 * 365 * day), true, now.Add(-day), now.Add(396 * day)},
		{"T-041 expired yesterday stays expired (mirror)", now.Add(-90 * day), now.Add(-day), false, now.Add(-90 * day), now.Add(-day)},
		{"T-041 expired after three years stays expired (mirror)", now.Add(-1100 * day), now.Add(-day), false, now.Add(-398 * day), now.Add(-day)},
		{"T-041 not yet valid stays so (mirror)", now.Add(day), now.Add(90 * day), false, now.Add(day), now.Add(90 * day)},
	} {
		t.Run(c.name, func(t *testing.T) {
			like := serverLike(t, a, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = c.from, c.to })
			leaf := mintLeaf(t, a, like, c.trusted, false)
			if !c.wantTo.IsZero() && (!leaf.NotBefore.Equal(c.wantFrom) || !leaf.NotAfter.Equal(c.wantTo)) {
				t.Errorf("%v to %v, want %v to %v", leaf.NotBefore, leaf.NotAfter, c.wantFrom, c.wantTo)
			}
			if leaf.NotAfter.Sub(leaf.NotBefore) > maxLeaf {
				t.Errorf("lives %v", leaf.NotAfter.Sub(leaf.NotBefore))
			}
			if leaf.NotBefore.Before(c.from) || leaf.NotAfter.After(c.to) {
				t.Error("extends the server's window")
			}
			if c.trusted && leaf.NotAfter.After(a.trusted.cert.NotAfter) {
				t.Error("outlives its authority")
			}
			if valid := func(x *x509.Certificate) bool { return !now.Before(x.NotBefore) && !now.After(x.NotAfter) }; valid(like) != valid(leaf) {
				t.Error("valid now: server and leaf differ")
			}
		})
	}
	t.Run("T-041 clipped to the life of the authority", func(t *testing.T) {
		end := a.trusted.cert.NotAfter
		b := &Authority{trusted: a.trusted, untrusted: a.untrusted, leaves: newCache(1), now: func() time.Time { return end.Add(-10 * day) }}
		like := serverLike(t, b, nil)
		if leaf := mintLeaf(t, b, like, true, false); !leaf.NotAfter.Equal(end) {
			t.Errorf("ends %v, authority %v", leaf.NotAfter, end)
		}
	})
}

func TestT042RSALeafOnRequest(t *testing.T) {
	a, _ := openTest(t)
	like := serverLike(t, a, nil)
	ec, rs := mintLeaf(t, a, like, true, false), mintLeaf(t, a, like, true, true)
	if k, ok := ec.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("default key %T", ec.PublicKey)
	}
	if k, ok := rs.PublicKey.(*rsa.PublicKey); !ok || k.N.BitLen() != 2048 {
		t.Errorf("RSA key %T", rs.PublicKey)
	}
	if rs.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("RSA key usage %v", rs.KeyUsage)
	}
}

func TestT043(t *testing.T) {
	a, dir := openTest(t)
	like := serverLike(t, a, nil)
	leaf := mintLeaf(t, a, like, true, false)
	t.Run("T-043 shape of a leaf", func(t *testing.T) {
		if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.Version != 3 {
			t.Error("basic constraints")
		}
		if leaf.KeyUsage != x509.KeyUsageDigitalSignature || !reflect.DeepEqual(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("usage %v %v", leaf.KeyUsage, leaf.ExtKeyUsage)
		}
		if string(leaf.AuthorityKeyId) != string(a.trusted.cert.SubjectKeyId) || len(leaf.SubjectKeyId) != 20 {
			t.Error("key identifiers")
		}
		if leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 || leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 127 {
			t.Errorf("%v, serial %v", leaf.SignatureAlgorithm, leaf.SerialNumber)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(a.PEM())
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "mail.example"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("T-043 minted again after the cache was lost: a new serial", func(t *testing.T) {
		b, err := Open(dir, "gw.test")
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{leaf.SerialNumber.String(): true}
		for range 100 {
			b.leaves = newCache(1)
			s := mintLeaf(t, b, like, true, false).SerialNumber
			if seen[s.String()] || s.BitLen() < 64 {
				t.Fatalf("serial %v", s)
			}
			seen[s.String()] = true
		}
	})
	t.Run("T-043 untrusted leaves do not verify", func(t *testing.T) {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(a.PEM())
		u := mintLeaf(t, a, like, false, false)
		if _, err := u.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
			t.Error("an untrusted leaf verifies")
		}
		if u.Issuer.CommonName != a.untrusted.cert.Subject.CommonName {
			t.Errorf("issuer %v", u.Issuer)
		}
	})
}

func TestT044T033T027NotCopied(t *testing.T) {
	a, _ := openTest(t)
	extra := []asn1.ObjectIdentifier{
		{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, // SCT list
		{1, 3, 6, 1, 5, 5, 7, 1, 24},       // must-staple
		{1, 2, 3, 4, 5},                    // unknown
	}
	like := serverLike(t, a, func(c *x509.Certificate) {
		c.CRLDistributionPoints = []string{"http://crl.example/x"}
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example"}, true
		c.OCSPServer, c.IssuingCertificateURL = []string{"http://ocsp.example"}, []string{"http://ca.example"}
		c.PolicyIdentifiers = []asn1.ObjectIdentifier{{2, 23, 140, 1, 1}} // EV
		oid, err := x509.OIDFromInts([]uint64{2, 23, 140, 1, 1})
		if err != nil {
			t.Fatal(err)
		}
		c.Policies = []x509.OID{oid}
		for i, id := range extra {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Critical: i == 2, Value: []byte{0x30, 0}})
		}
	})
	leaf := mintLeaf(t, a, like, true, false)
	var ids []string
	for _, e := range leaf.Extensions {
		ids = append(ids, e.Id.String())
	}
	slices.Sort(ids)
	want := []string{"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"} // SKI, KU, SAN, BC, AKI, EKU
	check := func(t *testing.T) {
		if !slices.Equal(ids, want) {
			t.Errorf("extensions %v, want %v", ids, want)
		}
		if samePublic(like.PublicKey, leaf.PublicKey) {
			t.Error("the server's key was copied")
		}
		if len(leaf.Subject.Organization) != 0 {
			t.Error("the organisation was copied")
		}
	}
	t.Run("T-044 nothing else is copied", check)
	t.Run("T-033 no SCT list", check)
}

func TestT045(t *testing.T) {
	a, _ := openTest(t)
	t.Run("T-045 1000 at once for one server: one signature", func(t *testing.T) {
		like := serverLike(t, a, nil)
		var signed atomic.Int32
		count := issuer{a.trusted.cert, secret{countingSigner{a.trusted.key, &signed}}}
		b := &Authority{trusted: count, untrusted: a.untrusted, leaves: newCache(maxLeaves), now: time.Now}
		var wg sync.WaitGroup
		start := make(chan struct{})
		serials := make([]*big.Int, 1000)
		for i := range serials {
			wg.Go(func() {
				<-start
				c, err := b.Mint(like, true, false)
				if err != nil {
					t.Error(err)
					return
				}
				serials[i] = c.Leaf.SerialNumber
			})
		}
		close(start)
		wg.Wait()
		for _, s := range serials {
			if s == nil || s.Cmp(serials[0]) != 0 {
				t.Fatal("different leaves")
			}
		}
		if n := signed.Load(); n != 1 {
			t.Errorf("%d signatures", n)
		}
	})
	t.Run("T-045 10000 servers: bounded", func(t *testing.T) {
		made := 0
		for i := range 10000 {
			id := leafID{like: [32]byte{byte(i), byte(i >> 8)}, trusted: true}
			c, err := a.leaves.get(id, a.now(), func() (*tls.Certificate, error) { made++; return &tls.Certificate{}, nil })
			if err != nil || c == nil || made != i+1 {
				t.Fatal(i, made, err)
			}
			if n := a.leaves.size(); n > maxLeaves {
				t.Fatalf("%d leaves kept", n)
			}
		}
	})
	t.Run("T-045 authority and kind of key tell leaves apart", func(t *testing.T) {
		like := serverLike(t, a, nil)
		seen := map[string]bool{}
		for _, k := range [][2]bool{{true, false}, {false, false}, {true, true}, {false, true}} {
			seen[mintLeaf(t, a, like, k[0], k[1]).SerialNumber.String()] = true
		}
		if len(seen) != 4 {
			t.Errorf("%d leaves, want 4", len(seen))
		}
	})
	t.Run("T-045 a leaf is minted anew after a day", func(t *testing.T) {
		now := time.Now()
		b := &Authority{trusted: a.trusted, untrusted: a.untrusted, leaves: newCache(4), now: func() time.Time { return now }}
		like := serverLike(t, b, nil)
		first := mintLeaf(t, b, like, true, false).SerialNumber
		now = now.Add(leafReuse - time.Second)
		if mintLeaf(t, b, like, true, false).SerialNumber.Cmp(first) != 0 {
			t.Error("minted before its time")
		}
		now = now.Add(2 * time.Second)
		if mintLeaf(t, b, like, true, false).SerialNumber.Cmp(first) == 0 {
			t.Error("not minted anew")
		}
	})
}

type countingSigner struct {
	secret
	n *atomic.Int32
}

func (c countingSigner) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	c.n.Add(1)
	return c.secret.Sign(r, d, o)
}

func BenchmarkMint(b *testing.B) {
	a, _ := openTest(b)
	like := serverLike(b, a, nil)
	b.Run("new name", func(b *testing.B) {
		for b.Loop() {
			if _, err := a.mint(like, true, false); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cache hit", func(b *testing.B) {
		for b.Loop() {
			if _, err := a.Mint(like, true, false); err != nil {
				b.Fatal(err)
			}
		}
	})
}
