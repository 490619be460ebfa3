package tlsunwrap

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"mailweir/tlsunwrap/tlstest"
)

// seenBy makes a client keep what it is shown.
func seenBy(leaf **x509.Certificate) func(*tls.Config) {
	return func(c *tls.Config) {
		c.VerifyConnection = func(cs tls.ConnectionState) error { *leaf = cs.PeerCertificates[0]; return nil }
	}
}

func fine(t *testing.T, out outcome) {
	t.Helper()
	if out.err != nil || out.client != nil || out.server != nil && !errors.Is(out.server, io.EOF) {
		t.Fatalf("gateway %v, client %v, server %v", out.err, out.client, out.server)
	}
}

func TestT002(t *testing.T) {
	b := newBench(t, Settings{})
	offered := "not asked"
	cfg := serverConfig(b.root.Leaf(t, []string{"default.example"}))
	cfg.GetConfigForClient = func(chi *tls.ClientHelloInfo) (*tls.Config, error) { offered = chi.ServerName; return nil, nil }
	for _, name := range []string{"", "198.51.100.7"} { // crypto/tls sends no server name for an address
		t.Run("T-002 no server name: "+name, func(t *testing.T) {
			var leaf *x509.Certificate
			out := b.run(flow{server: echo(cfg), client: b.talk(seenBy(&leaf), func(c *tls.Config) {
				c.ServerName, c.InsecureSkipVerify = name, true
			})})
			fine(t, out)
			if offered != "" {
				t.Errorf("the server was asked for %q", offered)
			}
			if !slices.Equal(leaf.DNSNames, []string{"default.example"}) {
				t.Errorf("names %v", leaf.DNSNames)
			}
			if i := out.session.Info; !i.Verified || !strings.Contains(i.Reason, "the name could not be") {
				t.Errorf("%+v", i)
			}
			// The client's own check decides.
			roots := b.clientRoots()
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "default.example"}); err != nil {
				t.Error(err)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "198.51.100.7"}); classOf(err) != tlstest.ClassName {
				t.Error(err)
			}
		})
	}
	t.Run("T-002 no server name and a bad chain: refused", func(t *testing.T) {
		bad := serverConfig(tlstest.NewCA(t, "x").Leaf(t, []string{mx}))
		out := b.run(flow{server: echo(bad), client: b.talk(func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "", true })})
		if out.err == nil || out.err.Event != EventUpstreamCert {
			t.Errorf("%v", out.err)
		}
	})
}

func TestT003(t *testing.T) {
	evil := func(b *bench) *tls.Config { return serverConfig(b.root.Leaf(t, []string{"evil.example"})) }
	t.Run("T-003 strict: alert", func(t *testing.T) {
		b := newBench(t, Settings{})
		out := b.run(flow{server: echo(evil(b)), client: b.talk(func(c *tls.Config) { c.ServerName = "good.example" })})
		if code, ok := remoteAlert(out.client); !ok || code != alertBadCertificate || out.err == nil {
			t.Errorf("%v, %v", out.err, out.client)
		}
	})
	t.Run("T-003 mirror: the client sees evil.example", func(t *testing.T) {
		b := newBench(t, Settings{TlsVerify: verifyMirrorInvalid})
		out := b.run(flow{server: echo(evil(b)), client: b.talk(func(c *tls.Config) { c.ServerName = "good.example" })})
		var h x509.HostnameError
		if !errors.As(out.client, &h) || !slices.Equal(h.Certificate.DNSNames, []string{"evil.example"}) {
			t.Errorf("client %v", out.client)
		}
	})
}

func TestT004(t *testing.T) {
	for _, c := range []struct {
		name, sni, cert string
		asked           string // what the server is asked for
		event           string // if refused
	}{
		{"T-004 upper case is forwarded as it is", "MX.Example", mx, "MX.Example", ""},
		{"T-004 underscore", "mx_1.example", "mx_1.example", "mx_1.example", ""},
		{"T-004 A-label", "xn--mller-kva.example", "xn--mller-kva.example", "xn--mller-kva.example", ""},
		{"T-004 U-label matches no certificate", "müller.example", "xn--mller-kva.example", "müller.example", EventUpstreamCert},
		{"T-004 300 octets", strings.Repeat("a.", 146) + "example", mx, "", EventBadHello},
		{"T-004 NUL", "mx.example\x00.evil.example", mx, "", EventBadHello},
		{"T-004 blank", "mx .example", mx, "", EventBadHello},
		{"T-004 control", "mx\r\n.example", mx, "", EventBadHello},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Settings{})
			asked, touched := "", false
			cfg := serverConfig(b.root.Leaf(t, []string{c.cert}))
			cfg.GetConfigForClient = func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
				asked, touched = chi.ServerName, true
				return nil, nil
			}
			out := b.run(flow{server: echo(cfg), client: b.talk(func(x *tls.Config) { x.ServerName, x.InsecureSkipVerify = c.sni, true })})
			if c.event == "" {
				fine(t, out)
			} else if out.err == nil || out.err.Event != c.event {
				t.Fatalf("%v, want %s", out.err, c.event)
			} else if _, ok := remoteAlert(out.client); !ok {
				t.Errorf("the client got %v", out.client)
			}
			if asked != c.asked || touched != (c.asked != "") {
				t.Errorf("the server was asked for %q (%v), want %q", asked, touched, c.asked)
			}
		})
	}
	// What a client of crypto/tls cannot be made to send: bent hellos.
	hello := recordHello(t, "mx.example")
	for _, c := range []struct {
		name string
		bend func([]byte) []byte
	}{
		{"T-004 trailing dot", func(h []byte) []byte { return bytes.Replace(h, []byte("mx.example"), []byte("mx.exampl."), 1) }},
		{"T-004 extension twice", duplicateSNI},
		{"T-004 length beyond the end", func(h []byte) []byte {
			i := bytes.Index(h, []byte("mx.example"))
			h[i-1] = 200
			return h
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Settings{})
			out := b.run(flow{server: nothing(t), client: sends(c.bend(bytes.Clone(hello)))})
			if out.err == nil || out.err.Event != EventBadHello {
				t.Errorf("%v", out.err)
			}
		})
	}
	t.Run("T-004 address as server name: asked for no name, verified as address", func(t *testing.T) {
		b := newBench(t, Settings{})
		cfg := serverConfig(b.root.Leaf(t, []string{"192.0.2.9"}))
		asked := "x"
		cfg.GetConfigForClient = func(chi *tls.ClientHelloInfo) (*tls.Config, error) { asked = chi.ServerName; return nil, nil }
		h := bytes.Replace(recordHello(t, "9.example"), []byte("9.example"), []byte("192.0.2.9"), 1)
		out := b.run(flow{server: echo(cfg), client: glimpse(h)})
		if asked != "" || out.err != nil && out.err.Event == EventUpstreamCert {
			t.Errorf("asked for %q, %v", asked, out.err)
		}
		bad := serverConfig(b.root.Leaf(t, []string{"192.0.2.10"}))
		if out = b.run(flow{server: echo(bad), client: glimpse(h)}); out.err == nil || out.err.Event != EventUpstreamCert {
			t.Errorf("another address: %v", out.err)
		}
	})
}

// recordHello returns the hello of a client of crypto/tls.
func recordHello(t testing.TB, name string, change ...func(*tls.Config)) []byte {
	t.Helper()
	cfg := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	for _, c := range change {
		c(cfg)
	}
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		tls.Client(near, cfg).Handshake()
		near.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// duplicateSNI appends a second server_name extension to a hello.
func duplicateSNI(h []byte) []byte {
	i := bytes.Index(h, []byte("mx.example")) - 9 // type 2, length 2, list 2, kind 1, length 2
	ext := bytes.Clone(h[i : i+9+len("mx.example")])
	return addExtension(h, ext)
}

// addExtension appends an extension, in its wire form, to a hello in one record.
func addExtension(h, ext []byte) []byte {
	at := 5 + 4 + 2 + 32
	at += 1 + int(h[at])                   // session id
	at += 2 + int(h[at])<<8 + int(h[at+1]) // cipher suites
	at += 1 + int(h[at])                   // compression
	add := func(p []byte, n int) { v := new(big.Int).SetBytes(p); v.Add(v, big.NewInt(int64(n))).FillBytes(p) }
	add(h[3:5], len(ext))
	add(h[6:9], len(ext))
	add(h[at:at+2], len(ext))
	return append(h, ext...)
}

// sends is a client that says p and reads to the end.
func sends(p []byte) func(net.Conn) error {
	return func(c net.Conn) error {
		if _, err := c.Write(p); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}
}

// glimpse is a client that says p and leaves when it is answered.
func glimpse(p []byte) func(net.Conn) error {
	return func(c net.Conn) error {
		if _, err := c.Write(p); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
}

// nothing is a server that must not get a single octet.
func nothing(t testing.TB) func(net.Conn) error {
	return func(c net.Conn) error {
		got, err := io.ReadAll(c)
		if len(got) > 0 {
			t.Errorf("the server got %q", got)
		}
		return err
	}
}

func TestT026T027(t *testing.T) {
	now := time.Now()
	type revocation struct {
		staple func(t *testing.T, ca *tlstest.CA, leaf *x509.Certificate) []byte
		crl    func(t *testing.T, ca *tlstest.CA, leaf *x509.Certificate) []byte
		change tlstest.Change
	}
	answer := func(status int, from, to time.Time) func(*testing.T, *tlstest.CA, *x509.Certificate) []byte {
		return func(t *testing.T, ca *tlstest.CA, leaf *x509.Certificate) []byte {
			der, err := ocsp.CreateResponse(ca.Cert, ca.Cert, ocsp.Response{Status: status, SerialNumber: leaf.SerialNumber,
				ThisUpdate: from, NextUpdate: to, RevokedAt: from}, ca.Key)
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
	}
	// delegated signs the answer with a certificate that ca issued for another purpose.
	delegated := func(usage x509.ExtKeyUsage, status int) func(*testing.T, *tlstest.CA, *x509.Certificate) []byte {
		return func(t *testing.T, ca *tlstest.CA, leaf *x509.Certificate) []byte {
			k := tlstest.Key(t)
			d := ca.LeafKey(t, k, []string{"ocsp.example"}, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} })
			cert := tlstest.Parse(t, d.Certificate[0])
			der, err := ocsp.CreateResponse(ca.Cert, cert, ocsp.Response{Status: status, SerialNumber: leaf.SerialNumber,
				ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour), Certificate: cert}, k)
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
	}
	list := func(ofLeaf bool, from, to time.Time, signer *tlstest.CA) func(*testing.T, *tlstest.CA, *x509.Certificate) []byte {
		return func(t *testing.T, ca *tlstest.CA, leaf *x509.Certificate) []byte {
			tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to}
			if ofLeaf {
				tmpl.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: leaf.SerialNumber, RevocationTime: from}}
			}
			if signer != nil {
				ca = signer
			}
			der, err := x509.CreateRevocationList(rand.Reader, tmpl, ca.Cert, ca.Key)
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
	}
	hour := time.Hour
	must := func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkixExtension(oidTLSFeature, []byte{0x30, 3, 2, 1, 5}))
	}
	forged := tlstest.NewCA(t, "test root") // the name of the real one
	for _, c := range []struct {
		name       string
		r          revocation
		soft, hard bool // accepted
	}{
		{"T-026 nothing known", revocation{}, true, false},
		{"T-026 stapled: good", revocation{staple: answer(ocsp.Good, now.Add(-hour), now.Add(hour))}, true, true},
		{"T-026 stapled: revoked", revocation{staple: answer(ocsp.Revoked, now.Add(-hour), now.Add(hour))}, false, false},
		{"T-026 stapled: revoked, outdated", revocation{staple: answer(ocsp.Revoked, now.Add(-3*hour), now.Add(-hour))}, false, false},
		{"T-026 stapled: good, outdated", revocation{staple: answer(ocsp.Good, now.Add(-3*hour), now.Add(-hour))}, true, false},
		{"T-026 stapled: good, of the future", revocation{staple: answer(ocsp.Good, now.Add(hour), now.Add(2*hour))}, true, false},
		{"T-026 stapled: garbage", revocation{staple: func(*testing.T, *tlstest.CA, *x509.Certificate) []byte { return []byte("garbage") }}, true, false},
		{"T-026 stapled: good, signed by a delegate", revocation{staple: delegated(x509.ExtKeyUsageOCSPSigning, ocsp.Good)}, true, true},
		{"T-026 stapled: good, signed by another server", revocation{staple: delegated(x509.ExtKeyUsageServerAuth, ocsp.Good)}, true, false},
		{"T-026 list: revoked", revocation{crl: list(true, now.Add(-hour), now.Add(hour), nil)}, false, false},
		{"T-026 list: not in it", revocation{crl: list(false, now.Add(-hour), now.Add(hour), nil)}, true, true},
		{"T-026 list: revoked, outdated", revocation{crl: list(true, now.Add(-3*hour), now.Add(-hour), nil)}, false, false},
		{"T-026 list: not in it, outdated", revocation{crl: list(false, now.Add(-3*hour), now.Add(-hour), nil)}, true, false},
		{"T-026 list: forged", revocation{crl: list(true, now.Add(-hour), now.Add(hour), forged)}, true, false},
		{"T-026 list says revoked, staple says good", revocation{crl: list(true, now.Add(-hour), now.Add(hour), nil), staple: answer(ocsp.Good, now.Add(-hour), now.Add(hour))}, false, false},
		{"T-027 must-staple without staple", revocation{change: must}, true, false},
		{"T-027 must-staple with staple", revocation{change: must, staple: answer(ocsp.Good, now.Add(-hour), now.Add(hour))}, true, true},
	} {
		for _, mode := range []string{"Soft", "Hard"} {
			t.Run(c.name+" "+mode, func(t *testing.T) {
				b := newBench(t, Settings{Revocation: mode})
				var ch []tlstest.Change
				if c.r.change != nil {
					ch = append(ch, c.r.change)
				}
				cert := b.root.Leaf(t, []string{mx}, ch...)
				leaf := tlstest.Parse(t, cert.Certificate[0])
				if c.r.staple != nil {
					cert.OCSPStaple = c.r.staple(t, b.root, leaf)
				}
				if c.r.crl != nil {
					b.cfg.TlsCrlDir = t.TempDir()
					tlstest.WriteFile(t, filepath.Join(b.cfg.TlsCrlDir, "x.crl"), c.r.crl(t, b.root, leaf))
					b.open()
				}
				var seen *x509.Certificate
				out := b.run(flow{server: echo(serverConfig(cert)), client: b.talk(seenBy(&seen))})
				want := c.soft
				if mode == "Hard" {
					want = c.hard
				}
				if (out.err == nil) != want {
					t.Fatalf("accepted: %v, want %v: %v", out.err == nil, want, out.err)
				}
				if out.err == nil && hasExtension(seen, oidTLSFeature) {
					t.Error("must-staple was copied")
				}
				if out.err != nil && strings.Contains(out.err.Error(), "revoked") {
					if code, _ := remoteAlert(out.client); code != alertRevoked {
						t.Errorf("the client got %v", out.client)
					}
				}
			})
		}
	}
	t.Run("T-026 revoked, mirrored", func(t *testing.T) {
		b := newBench(t, Settings{TlsVerify: verifyMirrorInvalid})
		cert := b.root.Leaf(t, []string{mx})
		cert.OCSPStaple = answer(ocsp.Revoked, now.Add(-hour), now.Add(hour))(t, b.root, tlstest.Parse(t, cert.Certificate[0]))
		out := b.run(flow{server: echo(serverConfig(cert)), client: b.talk()})
		if classOf(out.client) != tlstest.ClassIssuer {
			t.Errorf("client %v", out.client)
		}
	})
	t.Run("T-026 revoked intermediate", func(t *testing.T) {
		b := newBench(t, Settings{})
		ca := b.root.Intermediate(t, "x")
		b.cfg.TlsCrlDir = t.TempDir()
		tlstest.WriteFile(t, filepath.Join(b.cfg.TlsCrlDir, "x.crl"), list(true, now.Add(-hour), now.Add(hour), nil)(t, b.root, ca.Cert))
		b.open()
		out := b.run(flow{server: echo(serverConfig(ca.Leaf(t, []string{mx}))), client: b.talk()})
		if out.err == nil || !strings.Contains(out.err.Error(), "revoked") {
			t.Errorf("%v", out.err)
		}
	})
}

func TestT028(t *testing.T) {
	for _, s := range []Settings{{}, {TlsVerify: verifyMirrorInvalid}, {TlsVerify: verifyOpportunistic}} {
		for _, trusted := range []bool{true, false} {
			t.Run(fmt.Sprintf("T-028 leaf of our own authority (trusted %v), %s", trusted, s.TlsVerify), func(t *testing.T) {
				b := newBench(t, s)
				// The worst case: our authority has got into the roots.
				pool := tlstest.Pool(b.root)
				for _, c := range b.authority.Certificates() {
					pool.AddCert(c)
				}
				b.cfg.Roots = pool
				b.open()
				like := tlstest.Parse(t, b.root.Leaf(t, []string{mx}).Certificate[0])
				stolen, err := b.authority.Mint(like, trusted, false)
				if err != nil {
					t.Fatal(err)
				}
				out := b.run(flow{server: echo(serverConfig(*stolen)), client: b.talk()})
				if out.err == nil || out.err.Event != EventOwnCA {
					t.Errorf("%v", out.err)
				}
			})
		}
	}
}

func TestT029T080(t *testing.T) {
	b := newBench(t, Settings{})
	names := []string{"Superfish, Inc.", "eDellRoot", "DSDTestProvider", "DigiNotar Root CA", "CNNIC ROOT", "WoSign CA", "TrustCor RootCert CA-1"}
	var bundle []byte
	bundle = append(bundle, tlstest.PEM(b.root.Cert.Raw)...)
	for _, n := range names {
		bundle = append(bundle, tlstest.PEM(tlstest.NewCA(t, n).Cert.Raw)...)
	}
	for _, c := range b.authority.Certificates() {
		bundle = append(bundle, tlstest.PEM(c.Raw)...)
	}
	path := filepath.Join(t.TempDir(), "bundle.pem")
	tlstest.WriteFile(t, path, bundle)
	t.Setenv("SSL_CERT_FILE", path)
	b.cfg.Roots = nil
	b.open()
	t.Run("T-029 T-080 bad roots and our own are not taken from the store", func(t *testing.T) {
		i := b.u.Roots()
		if i.Count != 1 || len(i.Dropped) != len(names)+2 || !slices.Equal(i.Files, []string{path}) {
			t.Errorf("%+v", i)
		}
		if st, _ := os.Stat(path); !i.Dated.Equal(st.ModTime()) {
			t.Errorf("dated %v", i.Dated)
		}
		fine(t, b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()}))
	})
	t.Run("T-080 the store is read anew on reload", func(t *testing.T) {
		other := tlstest.NewCA(t, "another root")
		cert := serverConfig(other.Leaf(t, []string{mx}))
		if out := b.run(flow{server: echo(cert), client: b.talk()}); out.err == nil {
			t.Error("accepted before")
		}
		tlstest.WriteFile(t, path, tlstest.PEM(other.Cert.Raw))
		if err := b.u.Reload(b.cfg.Settings); err != nil {
			t.Fatal(err)
		}
		fine(t, b.run(flow{server: echo(cert), client: b.talk()}))
		if out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()}); out.err == nil {
			t.Error("the old root is still trusted")
		}
	})
	t.Run("T-080 additional authorities", func(t *testing.T) {
		extra := filepath.Join(t.TempDir(), "extra.pem")
		tlstest.WriteFile(t, extra, tlstest.PEM(b.root.Cert.Raw))
		s := b.cfg.Settings
		s.TlsTrustedCa = []string{extra}
		if err := b.u.Reload(s); err != nil {
			t.Fatal(err)
		}
		fine(t, b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()}))
	})
}

func TestT031(t *testing.T) {
	for _, c := range []struct{ cert, ask string }{
		{"*.example", "mx.example"}, {"*", "mx"}, {"*", "mx.example"}, {"m*.example", "mx.example"}, {"*x.example", "mx.example"},
		{"*.mx.example", "mx.example"}, {"*.example", "a.mx.example"}, {"mx.*.example", "mx.a.example"},
		{"mx.example\x00.evil.example", "mx.example"}, {"xn--mller-kva.example", "XN--MLLER-KVA.example"}, {"MX.EXAMPLE", "mx.example"},
		{"*.xn--mller-kva.example", "a.xn--mller-kva.example"},
	} {
		t.Run(fmt.Sprintf("T-031 %q for %s", c.cert, c.ask), func(t *testing.T) {
			b := newBench(t, Settings{})
			cert := b.root.Leaf(t, []string{c.cert})
			want := tlstest.Parse(t, cert.Certificate[0]).VerifyHostname(c.ask) == nil
			out := b.run(flow{server: echo(serverConfig(cert)), client: b.talk(func(x *tls.Config) { x.ServerName = c.ask })})
			if got := out.err == nil && out.client == nil; got != want {
				t.Errorf("accepted %v, crypto/x509 says %v (%v, %v)", got, want, out.err, out.client)
			}
		})
	}
}

func TestT032(t *testing.T) {
	t.Run("T-032 the missing intermediate is supplied", func(t *testing.T) {
		b := newBench(t, Settings{})
		ca := b.root.Intermediate(t, "the missing one")
		cert := ca.Leaf(t, []string{mx})
		cert.Certificate = cert.Certificate[:1]
		path := filepath.Join(t.TempDir(), "x.pem")
		tlstest.WriteFile(t, path, tlstest.PEM(ca.Cert.Raw))
		b.cfg.TlsIntermediates = []string{path}
		b.open()
		fine(t, b.run(flow{server: echo(serverConfig(cert)), client: b.talk()}))
	})
	t.Run("T-032 an expired path beside a good one", func(t *testing.T) {
		b := newBench(t, Settings{})
		k := tlstest.Key(t)
		old := tlstest.NewCA(t, "old root", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
		viaOld, viaNew := old.IntermediateKey(t, "cross", k), b.root.IntermediateKey(t, "cross", k)
		b.cfg.Roots = tlstest.Pool(b.root, old)
		b.open()
		cert := viaOld.Leaf(t, []string{mx}) // the path that has expired first
		cert.Certificate = append(cert.Certificate, old.Cert.Raw, viaNew.Cert.Raw)
		fine(t, b.run(flow{server: echo(serverConfig(cert)), client: b.talk()}))
	})
	t.Run("T-032 a path that only our own checks refuse beside a good one", func(t *testing.T) {
		b := newBench(t, Settings{})
		k := tlstest.Key(t)
		weak := tlstest.NewCAKey(t, "weak root", rsaKey(t, 1024))
		viaWeak, viaNew := weak.IntermediateKey(t, "cross", k), b.root.IntermediateKey(t, "cross", k)
		b.cfg.Roots = tlstest.Pool(b.root, weak)
		b.open()
		cert := viaWeak.Leaf(t, []string{mx})
		cert.Certificate = append(cert.Certificate, viaNew.Cert.Raw)
		fine(t, b.run(flow{server: echo(serverConfig(cert)), client: b.talk()}))
	})
}

func TestT034(t *testing.T) {
	for _, starttls := range []bool{false, true} {
		t.Run(fmt.Sprintf("T-034 self-signed without name, good with (STARTTLS %v)", starttls), func(t *testing.T) {
			b := newBench(t, Settings{})
			good, other := b.root.Leaf(t, []string{mx}), tlstest.NewCA(t, "self").Leaf(t, []string{"invalid"})
			asked := ""
			cfg := &tls.Config{GetCertificate: func(chi *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if asked = chi.ServerName; asked == "" {
					return &other, nil
				}
				return &good, nil
			}}
			client, server := b.talk(func(c *tls.Config) { c.ServerName = "Mx.Example" }), echo(cfg)
			if !starttls {
				fine(t, b.run(flow{client: client, server: server}))
			} else {
				// The plaintext before STARTTLS is relayed here, as a door does.
				out := b.run(flow{
					before: func(client, server net.Conn) error {
						return errors.Join(expect(server, "220 go\r\n"), say(client, "220 go\r\n"))
					},
					client: func(c net.Conn) error { return errors.Join(expect(c, "220 go\r\n"), client(c)) },
					server: func(c net.Conn) error { return errors.Join(say(c, "220 go\r\n"), server(c)) },
				})
				fine(t, out)
			}
			if asked != "Mx.Example" {
				t.Errorf("the server was asked for %q", asked)
			}
		})
	}
}

func say(c net.Conn, s string) error { _, err := io.WriteString(c, s); return err }

func expect(c net.Conn, want string) error {
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		return fmt.Errorf("got %q, %v", buf, err)
	}
	return nil
}
