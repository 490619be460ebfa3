package tlsunwrap

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mailweir/tlsunwrap/tlstest"
)

// pinning is a client that knows the server's own root and nothing else.
func pinning(b *bench) func(net.Conn) error {
	return b.talk(func(c *tls.Config) { c.RootCAs = tlstest.Pool(b.root) })
}

func TestT070(t *testing.T) {
	t.Run("T-070 three alerts: an event; the fourth connection is opened all the same", func(t *testing.T) {
		b := newBench(t, Settings{})
		server := echo(serverConfig(b.root.Leaf(t, []string{mx})))
		for i := range 4 {
			out := b.run(flow{server: server, client: pinning(b)})
			if out.err == nil || out.err.Event != EventUnknownCA || classOf(out.client) != tlstest.ClassIssuer {
				t.Fatalf("connection %d: %v, %v", i+1, out.err, out.client)
			}
			want := 0
			if i >= 2 {
				want = 1
			}
			e := b.recorded("bypass-suggested")
			if len(e) != want {
				t.Errorf("after %d refusals %d events", i+1, len(e))
			}
			if want == 1 && (!strings.Contains(e[0].Detail, "TlsBypass = 198.51.100.7:465") || strings.Contains(e[0].Detail, "DANE") || e[0].Client == "") {
				t.Errorf("event %+v", e[0])
			}
		}
		fine(t, b.run(flow{server: server, client: b.talk()}))
	})
	for name, code := range map[string]byte{"bad_certificate": 42, "certificate_unknown": 46, "unknown_ca": 48} {
		t.Run("T-070 "+name, func(t *testing.T) {
			b := newBench(t, Settings{})
			for range 3 {
				out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: func(c net.Conn) error {
					// A client of TLS 1.2 still speaks in the clear when it sees the certificate.
					h := recordHello(t, mx, versions(tls.VersionTLS12, tls.VersionTLS12))
					return errors.Join(glimpse(h)(c), say(c, string([]byte{21, 3, 3, 0, 2, 2, code})))
				}})
				if out.err == nil || out.err.Event != EventUnknownCA {
					t.Fatalf("%v", out.err)
				}
			}
			if len(b.recorded("bypass-suggested")) != 1 {
				t.Error("no event")
			}
		})
	}
	t.Run("T-070 closed on seeing the certificate", func(t *testing.T) {
		b := newBench(t, Settings{})
		for range 3 {
			out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: glimpse(recordHello(t, mx))})
			if out.err == nil || out.err.Event != EventUnknownCA {
				t.Fatalf("%v", out.err)
			}
		}
		if len(b.recorded("bypass-suggested")) != 1 {
			t.Error("no event")
		}
	})
	t.Run("T-070 clients and destinations are counted apart", func(t *testing.T) {
		b := newBench(t, Settings{})
		server := echo(serverConfig(b.root.Leaf(t, []string{mx})))
		for i := range 3 {
			b.run(flow{server: server, client: pinning(b), from: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
			b.run(flow{server: server, client: pinning(b), addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})})
		}
		if e := b.recorded("bypass-suggested"); len(e) != 0 {
			t.Errorf("events %v", e)
		}
	})
	t.Run("T-070 bounded", func(t *testing.T) {
		b := newBench(t, Settings{})
		for i := range 3 * maxDistrust {
			b.u.distrusted(Request{ClientAddr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)}, "")
		}
		if n := b.u.distrust.seen.size(); n > maxDistrust {
			t.Errorf("%d pairs watched", n)
		}
	})
}

func TestT071(t *testing.T) {
	leafOf := func(b *bench, name string) *tls.Config { return serverConfig(b.root.Leaf(t, []string{name})) }
	raw := func(b *bench, name string) func(net.Conn) error { // a client that pins the server's root
		return b.talk(func(c *tls.Config) { c.RootCAs, c.ServerName = tlstest.Pool(b.root), name })
	}
	for _, c := range []struct{ name, bypass string }{
		{"T-071 by destination", "198.51.100.7"},
		{"T-071 by net and port", "198.51.100.0/24:465"},
		{"T-071 by client", "client:192.0.2.44"},
		{"T-071 by client net", "client:192.0.2.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Settings{TlsBypass: []string{c.bypass}})
			out := b.run(flow{server: echo(leafOf(b, mx)), client: raw(b, mx)})
			fine(t, out)
			if i := out.session.Info; !i.Tunnel || !strings.Contains(i.Reason, c.bypass) || i.SNI != mx {
				t.Errorf("%+v", i)
			}
			for _, other := range []flow{{addr: netip.MustParseAddr("198.51.101.7"), from: netip.MustParseAddr("192.0.3.1")}} {
				other.server, other.client = echo(leafOf(b, mx)), b.talk()
				if out := b.run(other); out.err != nil || out.session.Info.Tunnel {
					t.Errorf("another connection: %v, %+v", out.err, out.session)
				}
			}
		})
	}
	t.Run("T-071 the client lies: bypassed name, evil address", func(t *testing.T) {
		for _, policy := range []string{verifyStrict, verifyMirrorInvalid} {
			b := newBench(t, Settings{TlsBypass: []string{"bypassed.example"}, TlsVerify: policy})
			evil := tlstest.NewCA(t, "evil").Leaf(t, []string{"bypassed.example"})
			for i := range 3 { // learning must not happen either
				probed := 0
				s := &listener{cfg: serverConfig(evil)}
				out := b.run(flow{server: s.serve, client: b.talk(func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "bypassed.example", true }),
					probe: func(context.Context) (net.Conn, error) { probed++; return probeOf(t, echo(serverConfig(evil))), nil }})
				if out.session != nil && out.session.Info.Tunnel || probed != 1 {
					t.Errorf("%s, connection %d was let through, probed %d times", policy, i+1, probed)
				}
			}
		}
	})
	t.Run("T-071 by name, verified on a connection of its own", func(t *testing.T) {
		b := newBench(t, Settings{TlsBypass: []string{"*.example"}})
		cfg := leafOf(b, mx)
		probed := 0
		probe := func(context.Context) (net.Conn, error) { probed++; return probeOf(t, echo(cfg)), nil }
		for range 2 {
			out := b.run(flow{server: echo(cfg), client: raw(b, mx), probe: probe})
			fine(t, out)
			if !out.session.Info.Tunnel {
				t.Error("not let through")
			}
		}
		if probed != 1 {
			t.Errorf("probed %d times", probed)
		}
	})
	t.Run("T-071 by name, the probe fails: opened", func(t *testing.T) {
		b := newBench(t, Settings{TlsBypass: []string{mx}})
		out := b.run(flow{server: echo(leafOf(b, mx)), client: b.talk(), probe: func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }})
		fine(t, out)
		if out.session.Info.Tunnel {
			t.Error("let through")
		}
	})
	t.Run("T-071 by name, learned: the first connection is opened, the second let through, another address opened", func(t *testing.T) {
		b := newBench(t, Settings{TlsBypass: []string{mx}})
		cfg := leafOf(b, mx)
		fine(t, b.run(flow{server: echo(cfg), client: b.talk()}))
		out := b.run(flow{server: echo(cfg), client: raw(b, mx)})
		fine(t, out)
		if !out.session.Info.Tunnel {
			t.Error("not let through")
		}
		out = b.run(flow{server: echo(cfg), client: b.talk(), addr: netip.MustParseAddr("203.0.113.66")})
		fine(t, out)
		if out.session.Info.Tunnel {
			t.Error("another address was let through")
		}
		if err := b.u.Reload(b.cfg.Settings); err != nil {
			t.Fatal(err)
		}
		out = b.run(flow{server: echo(cfg), client: b.talk()})
		fine(t, out)
		if out.session.Info.Tunnel {
			t.Error("let through for what was verified by the rules before")
		}
	})
}

// probeOf returns a connection to a server of the test's.
func probeOf(t testing.TB, server func(net.Conn) error) net.Conn {
	near, far := pair(t)
	done := make(chan struct{})
	t.Cleanup(func() { near.Close(); <-done })
	go func() {
		defer close(done)
		server(far)
		far.Close()
	}()
	return near
}

// TestT072: a client that does DANE accepts exactly the server's own key (TLSA 3 1 1).
func TestT072(t *testing.T) {
	b := newBench(t, Settings{})
	cert := b.root.Leaf(t, []string{mx})
	want := spki(tlstest.Parse(t, cert.Certificate[0]))
	dane := b.talk(func(c *tls.Config) {
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if spki(cs.PeerCertificates[0]) != want {
				return errors.New("TLSA mismatch")
			}
			return nil
		}
	})
	for range 3 {
		if out := b.run(flow{port: 25, server: echo(serverConfig(cert)), client: dane}); out.err == nil || out.err.Event != EventUnknownCA {
			t.Fatalf("T-072: %v", out.err)
		}
	}
	e := b.recorded("bypass-suggested")
	if len(e) != 1 || !strings.Contains(e[0].Detail, "DANE") || !strings.Contains(e[0].Detail, "TlsBypass = client:192.0.2.44") {
		t.Fatalf("T-072: events %v", e)
	}
	if err := b.u.Reload(Settings{TlsBypass: []string{"client:192.0.2.44"}}); err != nil {
		t.Fatal(err)
	}
	fine(t, b.run(flow{port: 25, server: echo(serverConfig(cert)), client: dane}))
}

func TestT073(t *testing.T) {
	open := func(c *tls.Config) { c.InsecureSkipVerify = true } // an MTA that does not verify
	bad := func(t *testing.T) *tls.Config { return serverConfig(tlstest.NewCA(t, "self").Leaf(t, []string{mx})) }
	t.Run("T-073 a destination once valid does not degrade on 25", func(t *testing.T) {
		b := newBench(t, Settings{}, func(c *Config) { c.HistoryPath = filepath.Join(t.TempDir(), "history") })
		fine(t, b.run(flow{port: 25, server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk(open)}))
		for restart := range 2 {
			s := &listener{cfg: bad(t)}
			out := b.run(flow{port: 25, server: s.serve, client: b.talk(open)})
			if out.err == nil || out.err.Event != EventDegraded || s.got != 0 {
				t.Errorf("after %d restarts: %v", restart, out.err)
			}
			if err := b.u.Close(); err != nil {
				t.Fatal(err)
			}
			b.open()
		}
		// Another destination, or another name, has no history.
		fine(t, b.run(flow{port: 25, addr: netip.MustParseAddr("203.0.113.1"), server: echo(bad(t)), client: b.talk(open)}))
		fine(t, b.run(flow{port: 25, server: echo(bad(t)), client: b.talk(open, func(c *tls.Config) { c.ServerName = "other.example" })}))
		// And the good certificate is still good.
		fine(t, b.run(flow{port: 25, server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk(open)}))
	})
	t.Run("T-073 history ends after half a year", func(t *testing.T) {
		now := time.Now()
		b := newBench(t, Settings{}, func(c *Config) { c.Now = func() time.Time { return now } })
		b.u.history.verified("k", now)
		if !b.u.history.has("k", now.Add(historyLife-time.Hour)) || b.u.history.has("k", now.Add(historyLife+time.Hour)) {
			t.Error("life of an entry")
		}
	})
	t.Run("T-073 history is bounded, private, and survives a cut line", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "history")
		now := time.Now()
		h, err := openHistory(path, now)
		if err != nil {
			t.Fatal(err)
		}
		for i := range maxHistory + 100 {
			if err := h.verified(fmt.Sprintf("192.0.2.1:25|%d.example", i), now.Add(time.Duration(i)*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		if len(h.last) != maxHistory || h.has("192.0.2.1:25|5.example", now) || !h.has("192.0.2.1:25|10050.example", now) {
			t.Errorf("%d entries", len(h.last))
		}
		h.close()
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, "20")
		f.Close()
		if h, err = openHistory(path, now.Add(24*time.Hour)); err != nil || len(h.last) != maxHistory {
			t.Errorf("%v, %d entries", err, len(h.last))
		}
		h.close()
	})
}

func TestT075(t *testing.T) {
	b := newBench(t, Settings{})
	public := tlstest.NewCA(t, "public root") // what the world trusts
	real := public.Leaf(t, []string{"mx.own.example"})
	certPath, keyPath := tlstest.Files(t, real)
	b.cfg.ServeCert = []string{"198.51.100.7:25=" + certPath + ":" + keyPath}
	b.open()
	inner := echo(serverConfig(tlstest.NewCA(t, "snake oil").Leaf(t, []string{"localhost"}))) // the server behind the gateway
	want := spki(tlstest.Parse(t, real.Certificate[0]))
	sender := b.talk(func(c *tls.Config) { // MTA-STS: PKIX and name; DANE: the real key
		c.RootCAs, c.ServerName = tlstest.Pool(public), "mx.own.example"
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if spki(cs.PeerCertificates[0]) != want {
				return errors.New("TLSA mismatch")
			}
			return nil
		}
	})
	t.Run("T-075 a foreign sender that demands our real certificate delivers", func(t *testing.T) {
		fine(t, b.run(flow{port: 25, server: inner, client: sender}))
	})
	t.Run("T-075 elsewhere it is not served", func(t *testing.T) {
		if out := b.run(flow{port: 25, addr: netip.MustParseAddr("203.0.113.1"), server: inner, client: sender}); out.client == nil {
			t.Error("a foreign server appeared under our certificate")
		}
	})
	t.Run("T-075 a name does not choose it", func(t *testing.T) {
		if _, err := parseServe("mx.own.example=a:b"); err == nil {
			t.Error("accepted")
		}
	})
}

func TestT077(t *testing.T) {
	b := newBench(t, Settings{TlsBypass: []string{"198.51.100.7"}})
	leaf := b.root.Leaf(t, []string{mx})
	var wire int64
	big := bytes.Repeat([]byte("x"), 1<<20)
	out := b.run(flow{
		server: func(c net.Conn) error {
			n := &counted{Conn: c}
			x := tls.Server(n, serverConfig(leaf))
			_, err := io.ReadFull(x, make([]byte, len(big)))
			x.Close()
			wire = n.read
			return err
		},
		client: func(c net.Conn) error {
			x := tls.Client(c, &tls.Config{ServerName: mx, RootCAs: tlstest.Pool(b.root)})
			_, err := x.Write(big)
			io.Copy(io.Discard, x)
			return err
		},
	})
	fine(t, out)
	out.session.Account(out.toServer, out.toClient)
	e := b.recorded("not-inspected")
	if len(e) != 1 {
		t.Fatalf("T-077: events %v", e)
	}
	if e[0].Size < 1<<20 || e[0].Size != out.session.Forwarded+out.toServer+out.toClient || out.session.Forwarded+out.toServer < wire {
		t.Errorf("T-077: %d octets in the event, %d forwarded, %d and %d relayed, %d on the wire", e[0].Size, out.session.Forwarded, out.toServer, out.toClient, wire)
	}
	if st := b.u.Stats(); st.TunnelBytes != e[0].Size || st.Tunnelled != 1 {
		t.Errorf("T-077: %+v", st)
	}
	if e[0].Server != "198.51.100.7:465" || !strings.Contains(e[0].Reason, "TlsBypass") || !strings.Contains(e[0].Detail, mx) {
		t.Errorf("T-077: %+v", e[0])
	}
}

// counted counts what is read.
type counted struct {
	net.Conn
	read int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read += int64(n)
	return n, err
}

func TestPin(t *testing.T) {
	b := newBench(t, Settings{})
	cert := tlstest.NewCA(t, "private").Leaf(t, []string{mx})
	sum := spki(tlstest.Parse(t, cert.Certificate[0]))
	b64 := base64.StdEncoding.EncodeToString(sum[:])
	for _, c := range []struct {
		name, pin, event string
	}{
		{"the right key, by address", "198.51.100.7:465=sha256/" + b64, ""},
		{"the right key, by name, hexadecimal", mx + "=sha256/" + fmt.Sprintf("%x", sum), ""},
		{"another key", "198.51.100.7=sha256/" + hex32(7), EventPin},
		{"no pin for this destination", "198.51.100.8=sha256/" + b64, EventUpstreamCert},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.cfg.TlsPin = []string{c.pin}
			b.open()
			out := b.run(flow{server: echo(serverConfig(cert)), client: b.talk()})
			if c.event == "" {
				fine(t, out)
			} else if out.err == nil || out.err.Event != c.event {
				t.Errorf("%v, want %s", out.err, c.event)
			}
		})
	}
	t.Run("a good chain with another key", func(t *testing.T) {
		b.cfg.TlsPin = []string{mx + "=sha256/" + b64}
		b.open()
		out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()})
		if out.err == nil || out.err.Event != EventPin {
			t.Errorf("%v", out.err)
		}
	})
}

func TestSettingsCheck(t *testing.T) {
	for _, c := range []struct {
		s    Settings
		want string
	}{
		{Settings{}, ""},
		{Settings{TlsVerify: "never"}, "want Auto, Strict"},
		{Settings{Revocation: "x"}, "want Soft or Hard"},
		{Settings{TlsBypass: []string{"a b"}}, "want an address, a net or a server name"},
		{Settings{TlsBypass: []string{"192.0.2.0/33"}}, "want a net"},
		{Settings{TlsBypass: []string{"client:mx.example"}}, "a client is named by its address"},
		{Settings{TlsBypass: []string{"mx.example:99999"}}, "is no port"},
		{Settings{TlsBypass: []string{"[2001:db8::1]:25", "2001:db8::/32", "*.example.com:25", "client:2001:db8::7"}}, ""},
		{Settings{TlsLegacy: []string{""}}, "want an address"},
		{Settings{TlsPin: []string{"mx.example"}}, "want DESTINATION=sha256/HASH"},
		{Settings{TlsPin: []string{"mx.example=sha256/abc"}}, "32 octets"},
		{Settings{ServeCert: []string{"192.0.2.1=a"}}, "want SERVER=CERTIFICATE.pem:KEY.pem"},
		{Settings{ServeCert: []string{"client:192.0.2.1=a:b"}}, "must be an address"},
	} {
		err := c.s.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.s, err, c.want)
		}
	}
	for _, s := range []Settings{
		{TlsTrustedCa: []string{"/nonexistent"}}, {TlsIntermediates: []string{"/nonexistent"}}, {TlsCrlDir: "/nonexistent"},
		{ServeCert: []string{"192.0.2.1=/nonexistent:/nonexistent"}},
	} {
		if _, err := New(Config{Settings: s, Minter: brokenMinter{}}); err == nil || !strings.Contains(err.Error(), "nonexistent") {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

// TestContext: a caller that gives up ends the handshake at once, on both sides of it.
func TestContext(t *testing.T) {
	b := newBench(t, Settings{})
	silent := func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err }
	for name, client := range map[string]func(net.Conn) error{"waiting for the hello": silent, "waiting for the server": sends(recordHello(t, mx))} {
		t.Run(name, func(t *testing.T) {
			clientFar, clientNear := pair(t)
			serverNear, serverFar := pair(t)
			go client(clientFar)
			go silent(serverFar)
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			_, err := b.u.Unwrap(ctx, Request{Client: clientNear, Server: serverNear})
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestTimeouts: S-075 at this level; the door's own test shows that the server's session ends too.
func TestTimeouts(t *testing.T) {
	silent := func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err }
	b := newBench(t, Settings{HelloTimeout: 50 * time.Millisecond, HandshakeTimeout: 50 * time.Millisecond})
	if out := b.run(flow{client: silent, server: nothing(t)}); out.err == nil || out.err.Event != EventHelloTimeout {
		t.Errorf("%v", out.err)
	}
	out := b.run(flow{client: sends(recordHello(t, mx)), server: silent})
	if out.err == nil || out.err.Event != EventUpstreamTLS || !strings.Contains(out.err.Detail, "in time") {
		t.Errorf("%v", out.err)
	}
}

// TestEarly: octets read before are the beginning of the hello.
func TestEarly(t *testing.T) {
	b := newBench(t, Settings{})
	var early []byte
	ready := make(chan struct{})
	client := func(c net.Conn) error {
		return b.talk()(&fragmenter{Conn: c, cut: func(h []byte) [][]byte {
			early = h[:100]
			close(ready)
			return [][]byte{h[100:]}
		}})
	}
	f := flow{client: client, server: echo(serverConfig(b.root.Leaf(t, []string{mx})))}
	f.before = func(net.Conn, net.Conn) error { <-ready; return nil }
	f.earlyFn = func() []byte { return early }
	fine(t, b.run(f))
	// And what is no hello is refused without a word to the server.
	out := b.run(flow{client: sends(nil), server: nothing(t), early: []byte("MAIL FROM:<x>\r\n")})
	if out.err == nil || out.err.Event != EventBadHello {
		t.Errorf("%v", out.err)
	}
}

// TestPipe: any net.Conn will do.
func TestPipe(t *testing.T) {
	b := newBench(t, Settings{})
	fine(t, b.run(flow{dial: func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
		server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()}))
}
