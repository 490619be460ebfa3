package smtp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"mailweir/inspect/spool"
	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

var spoolSettings = spool.Settings{}

// way is one way to TLS, and what is expected of a bad certificate there.
type way struct {
	name   string
	port   uint16
	set    tlsunwrap.Settings
	strict bool
}

func ways() []way {
	return []way{
		{"25 opportunistic", 25, tlsunwrap.Settings{}, false},
		{"587 strict", 587, tlsunwrap.Settings{}, true},
		{"465 strict", 465, tlsunwrap.Settings{}, true},
		{"587 mirror", 587, tlsunwrap.Settings{TlsVerify: "MirrorInvalid"}, false},
		{"465 mirror", 465, tlsunwrap.Settings{TlsVerify: "MirrorInvalid"}, false},
	}
}

// TestT082T087 has a server show every bad certificate, on every port that the door serves, over IPv4 and IPv6, in whole
// handshakes and to clients that resume a session from before, when the certificate was good (one family a port).
func TestT082T087(t *testing.T) {
	t.Parallel()
	for _, c := range append(tlstest.BadChains(mxName), moreBadChains()...) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			root := tlstest.NewCA(t, "test root")
			trust := &tlstest.Trust{Roots: []*tlstest.CA{root}}
			bad := c.Make(t, trust)
			trust.Roots = append(trust.Roots, root)
			x := badServer{c, bad, root.Leaf(t, []string{mxName})}
			for i, w := range ways() {
				for _, v6 := range []bool{false, true} {
					if i >= 3 && v6 != (i == 3) {
						continue // these two differ from the default in their policy only
					}
					name := fmt.Sprintf("%s IPv6 %t", w.name, v6)
					t.Run(name, func(t *testing.T) {
						d := newTLSDoor(t, w.set, trust).at(w.port, v6)
						x.whole(d, w)
					})
					if i < 3 && v6 == (i == 1) { // with the policy that the port has by default
						t.Run("T-049 T-030 "+name+" after it was good", func(t *testing.T) {
							d := newTLSDoor(t, w.set, trust).at(w.port, v6)
							x.resumed(d, w)
						})
					}
				}
			}
		})
	}
}

// badServer has a certificate that was good.
type badServer struct {
	tlstest.BadChain
	bad, good tls.Certificate
}

// turn makes the certificate bad.
func (x badServer) turn(d *tlsDoor) {
	d.server.show(x.bad, func(c *tls.Config) { c.MaxVersion = x.Max })
}

// refused: the client got an alert, the server nothing but EHLO and STARTTLS in clear, and no octet within TLS.
func refused(d *tlsDoor, err error, event string) {
	d.t.Helper()
	if !alerted(err) {
		d.t.Errorf("the client got %v, want an alert", err)
	}
	clear, inside, _ := d.server.told()
	want := []string{"EHLO client.example", "STARTTLS"}
	if d.implicit {
		want = nil
	}
	if !slices.Equal(clear, want) || len(inside) > 0 {
		d.t.Errorf("the server was told %q in clear and %q within TLS", clear, inside)
	}
	if strings.Contains(d.events.JSON(), password) {
		d.t.Error("the password is in the events")
	}
	if d.count("connection") == 0 || event != "" && !strings.Contains(d.events.JSON(), event) {
		d.t.Errorf("events, want %s:\n%s", event, d.events.JSON())
	}
}

// worked: the message and the password arrived within TLS.
func worked(d *tlsDoor, err error) {
	d.t.Helper()
	_, inside, _ := d.server.told()
	if err != nil || !slices.Contains(inside, "AUTH PLAIN "+password) || !slices.Contains(inside, "DATA") {
		d.t.Errorf("the client got %v; the server was told %q", err, inside)
	}
}

// whole: whole handshakes, by a client that verifies and one that does not.
func (x badServer) whole(d *tlsDoor, w way) {
	x.turn(d)
	_, err := d.mail(d.verifying(nil))
	if w.strict || x.Refuse {
		refused(d, err, map[bool]string{false: "upstream-cert", true: "own-ca"}[strings.HasPrefix(x.Name, "T-028")])
		return
	}
	// A mirror: whoever verifies has the trouble that there is, and sends nothing.
	if got := classOf(err); got != x.Class {
		d.t.Errorf("the verifying client got %v, class %s, want %s", err, got, x.Class)
	}
	if _, inside, _ := d.server.told(); len(inside) > 0 {
		d.t.Errorf("the server was told %q", inside)
	}
	state, err := d.mail(d.lenient())
	worked(d, err)
	if err == nil && !strings.Contains(state.PeerCertificates[0].Issuer.CommonName, "UNTRUSTED") {
		d.t.Errorf("issued by %v", state.PeerCertificates[0].Issuer)
	}
}

// moreBadChains are those that are bad for what came with them, for their issuer, or by their names.
func moreBadChains() []tlstest.BadChain {
	named := func(name string) func(testing.TB, *tlstest.Trust) tls.Certificate {
		return func(t testing.TB, b *tlstest.Trust) tls.Certificate { return b.Root().Leaf(t, []string{name}) }
	}
	return []tlstest.BadChain{
		{Name: "T-026 stapled as revoked", Class: tlstest.ClassIssuer, Make: func(t testing.TB, b *tlstest.Trust) tls.Certificate {
			c := b.Root().Leaf(t, []string{mxName})
			now := time.Now()
			staple, err := ocsp.CreateResponse(b.Root().Cert, b.Root().Cert, ocsp.Response{Status: ocsp.Revoked, ThisUpdate: now.Add(-time.Hour),
				NextUpdate: now.Add(time.Hour), RevokedAt: now.Add(-2 * time.Hour), SerialNumber: tlstest.Parse(t, c.Certificate[0]).SerialNumber}, b.Root().Key)
			if err != nil {
				t.Fatal(err)
			}
			c.OCSPStaple = staple
			return c
		}},
		{Name: "T-028 leaf of our own authority", Refuse: true, Make: func(t testing.TB, b *tlstest.Trust) tls.Certificate {
			a, err := doorAuthority()
			if err != nil {
				t.Fatal(err)
			}
			c, err := a.Mint(tlstest.Parse(t, b.Root().Leaf(t, []string{mxName}).Certificate[0]), true, false)
			if err != nil {
				t.Fatal(err)
			}
			return *c
		}},
		{Name: "T-031 wildcard of a part", Class: tlstest.ClassName, Make: named("m*.example")},
		{Name: "T-031 wildcard of everything", Class: tlstest.ClassName, Make: named("*")},
	}
}

// resumed: the client has a session from when the certificate was good.
func (x badServer) resumed(d *tlsDoor, w way) {
	cfg := d.lenient() // it would take anything, so what stops it is the gateway
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	d.server.show(x.good)
	for i := range 2 {
		state, err := d.mail(cfg)
		worked(d, err)
		if i == 1 && !state.DidResume {
			d.t.Error("T-049: the session was not resumed while the certificate was good")
		}
	}
	x.turn(d)
	_, err := d.mail(cfg)
	event := "upstream-cert"
	if strings.HasPrefix(x.Name, "T-028") {
		event = "own-ca"
	} else if !w.strict {
		event = "tls-degraded" // refused since it was good once
	}
	if x.Refuse && event != "own-ca" {
		event = "" // either
	}
	refused(d, err, event)
	// T-030: a client without a session, and a server that knows of none, while the minted leaf is in the cache.
	d.server.show(x.bad, func(c *tls.Config) { c.MaxVersion = x.Max; c.SetSessionTicketKeys([][32]byte{{2}}) })
	_, err = d.mail(d.lenient())
	refused(d, err, event)
}

func classOf(err error) string {
	var name x509.HostnameError
	var inv x509.CertificateInvalidError
	var unk x509.UnknownAuthorityError
	switch {
	case errors.As(err, &name):
		return tlstest.ClassName
	case errors.As(err, &inv) && inv.Reason == x509.Expired:
		return tlstest.ClassTime
	case errors.As(err, &inv), errors.As(err, &unk), errors.As(err, &x509.UnhandledCriticalExtension{}):
		return tlstest.ClassIssuer
	}
	return fmt.Sprint(err)
}
