package tlsunwrap

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"mailweir/tlsunwrap/tlstest"
)

func TestT050(t *testing.T) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("T-050 the server asks for a certificate, none will do, "+tls.VersionName(v), func(t *testing.T) {
			b := newBench(t, Settings{})
			cfg := serverConfig(b.root.Leaf(t, []string{mx}))
			cfg.ClientAuth, cfg.MaxVersion = tls.RequestClientCert, v
			fine(t, b.run(flow{server: echo(cfg), client: b.talk()}))
		})
	}
}

func TestT051(t *testing.T) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("T-051 the server demands a certificate, "+tls.VersionName(v), func(t *testing.T) {
			b := newBench(t, Settings{})
			real := b.root.Leaf(t, []string{mx})
			cfg := serverConfig(real)
			cfg.ClientAuth, cfg.MaxVersion = tls.RequireAnyClientCert, v
			var inside *Error
			out := b.run(flow{server: echo(cfg), client: b.talk(), inside: func(s *Session) error {
				io.WriteString(s.Server, "EHLO x\r\n")
				_, err := s.Server.Read(make([]byte, 10))
				if !errors.As(err, &inside) {
					t.Errorf("read %v", err)
				}
				return nil
			}})
			switch { // with TLS 1.3 the server says so after the handshake
			case out.err != nil && out.err.Event == EventMTLS:
			case inside != nil && inside.Event == EventMTLS && len(b.recorded(EventMTLS)) == 1:
			default:
				t.Fatalf("%v, %v, events %v", out.err, inside, b.recorded(EventMTLS))
			}
			if out.client == nil {
				t.Error("the client saw nothing")
			}
			// The administrator lets the destination through.
			if err := b.u.Reload(Settings{TlsBypass: []string{"198.51.100.7:465"}}); err != nil {
				t.Fatal(err)
			}
			out = b.run(flow{server: echo(cfg), client: b.talk(func(c *tls.Config) {
				c.RootCAs = tlstest.Pool(b.root)
				c.Certificates = []tls.Certificate{b.root.Leaf(t, []string{"client.example"})}
			})})
			fine(t, out)
			if !out.session.Info.Tunnel || out.session.Info.Verified {
				t.Errorf("%+v", out.session.Info)
			}
			out.session.Account(out.toServer, out.toClient)
			if e := b.recorded("not-inspected"); len(e) != 1 || e[0].Size == 0 {
				t.Errorf("events %v", e)
			}
		})
	}
}

// hijacked is a TLS 1.3 server that goes on with records of the test's own making.
func hijacked(b *bench, then func(s *tlstest.Sealer, raw net.Conn) error) func(net.Conn) error {
	return func(raw net.Conn) error {
		log := &tlstest.KeyLog{}
		cfg := serverConfig(b.root.Leaf(b.t, []string{mx}))
		cfg.KeyLogWriter, cfg.SessionTicketsDisabled = log, true
		x := tls.Server(raw, cfg)
		if err := x.Handshake(); err != nil {
			return err
		}
		return then(log.Sealer(b.t, "SERVER", 0), raw)
	}
}

// hijackedClient is the same for a client.
func hijackedClient(b *bench, then func(s *tlstest.Sealer, raw net.Conn) error) func(net.Conn) error {
	return func(raw net.Conn) error {
		log := &tlstest.KeyLog{}
		x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots(), KeyLogWriter: log, MinVersion: tls.VersionTLS13})
		if err := x.Handshake(); err != nil {
			return err
		}
		return then(log.Sealer(b.t, "CLIENT", 0), raw)
	}
}

// readAll returns what came of reading one leg to its end.
func readAll(t *testing.T, b *bench, f flow, side string) (string, error) {
	t.Helper()
	var got []byte
	var err error
	f.inside = func(s *Session) error {
		leg := s.Server
		if side == "client" {
			leg = s.Client
		}
		leg.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, err = io.ReadAll(leg)
		return nil
	}
	if out := b.run(f); out.err != nil {
		t.Fatal(out.err)
	}
	return string(got), err
}

func TestT052PostHandshake(t *testing.T) {
	b := newBench(t, Settings{})
	// RFC 8446 §4.3.2: context "x", signature_algorithms.
	request := []byte{13, 0, 0, 12, 1, 'x', 0, 8, 0, 13, 0, 4, 0, 2, 4, 3}
	_, err := readAll(t, b, flow{client: drain(b), server: hijacked(b, func(s *tlstest.Sealer, raw net.Conn) error {
		_, err := raw.Write(s.Seal(22, request))
		io.Copy(io.Discard, raw)
		return err
	})}, "server")
	var e *Error
	if !errors.As(err, &e) || e.Event != EventRenegotiation || len(b.recorded(EventRenegotiation)) != 1 {
		t.Errorf("%v, events %v", err, b.recorded(EventRenegotiation))
	}
}

// drain is a client that reads to the end.
func drain(b *bench) func(net.Conn) error {
	return func(raw net.Conn) error {
		x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
		_, err := io.Copy(io.Discard, x)
		return err
	}
}

func TestT056(t *testing.T) {
	data := func(s *tlstest.Sealer) []byte { return s.Seal(23, []byte("250 ok\r\n")) }
	end := func(s *tlstest.Sealer) []byte { return s.Seal(21, []byte{1, 0}) }
	ticket := append([]byte{4, 0, 0, 4 + 4 + 2 + 3 + 32 + 2, 0, 0, 1, 0, 0, 0, 0, 0, 1, 7, 0, 32}, append(make([]byte, 32), 0, 0)...)
	ticket[3] = byte(len(ticket) - 4)
	for _, c := range []struct {
		name  string
		wire  func(s *tlstest.Sealer) []byte
		works bool
	}{
		{"T-056 change_cipher_spec amid the session", func(s *tlstest.Sealer) []byte {
			return slicesConcat([]byte{20, 3, 3, 0, 1, 1}, data(s), end(s))
		}, true},
		{"T-056 KeyUpdate", func(s *tlstest.Sealer) []byte {
			return slicesConcat(s.KeyUpdate(0), data(s), s.KeyUpdate(1), end(s))
		}, true},
		{"T-056 KeyUpdate between data, 100 times", func(s *tlstest.Sealer) (w []byte) {
			for range 100 {
				w = slicesConcat(w, s.KeyUpdate(0), s.Seal(23, []byte("x")))
			}
			return slicesConcat(w, data(s), end(s))
		}, true},
		{"T-056 1000 KeyUpdates", func(s *tlstest.Sealer) (w []byte) {
			for range 1000 {
				w = append(w, s.KeyUpdate(0)...)
			}
			return slicesConcat(w, data(s), end(s))
		}, false},
		{"T-056 1000 change_cipher_specs", func(s *tlstest.Sealer) []byte {
			return slicesConcat(bytes.Repeat([]byte{20, 3, 3, 0, 1, 1}, 1000), data(s), end(s))
		}, false},
		{"T-058 empty records", func(s *tlstest.Sealer) []byte {
			return slicesConcat(s.Seal(23, nil), s.Seal(23, nil), data(s), end(s))
		}, true},
		{"T-058 1000 empty records", func(s *tlstest.Sealer) (w []byte) {
			for range 1000 {
				w = append(w, s.Seal(23, nil)...)
			}
			return slicesConcat(w, data(s), end(s))
		}, false},
		{"T-058 1000 warnings", func(s *tlstest.Sealer) (w []byte) {
			for range 1000 {
				w = append(w, s.Seal(21, []byte{1, 90})...) // user_canceled
			}
			return slicesConcat(w, data(s), end(s))
		}, false},
	} {
		for _, side := range []string{"server", "client"} {
			t.Run(c.name+" by the "+side, func(t *testing.T) {
				b := newBench(t, Settings{})
				play := func(s *tlstest.Sealer, raw net.Conn) error {
					go raw.Write(c.wire(s))
					io.Copy(io.Discard, raw)
					return nil
				}
				f := flow{client: drain(b), server: hijacked(b, play)}
				if side == "client" {
					f = flow{client: hijackedClient(b, play), server: echo(serverConfig(b.root.Leaf(t, []string{mx})))}
				}
				got, err := readAll(t, b, f, side)
				if works := strings.HasSuffix(got, "250 ok\r\n") && err == nil; works != c.works {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
	t.Run("T-056 1000 session tickets", func(t *testing.T) {
		b := newBench(t, Settings{})
		got, err := readAll(t, b, flow{client: drain(b), server: hijacked(b, func(s *tlstest.Sealer, raw net.Conn) error {
			var w []byte
			for range 1000 {
				w = append(w, s.Seal(22, ticket)...)
			}
			go raw.Write(append(w, data(s)...))
			io.Copy(io.Discard, raw)
			return nil
		})}, "server")
		if err == nil || got != "" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestT058(t *testing.T) {
	t.Run("T-058 records of one octet on both legs", func(t *testing.T) {
		b := newBench(t, Settings{})
		fine(t, b.run(flow{
			server: func(raw net.Conn) error {
				x := tls.Server(raw, serverConfig(b.root.Leaf(t, []string{mx})))
				_, err := io.CopyBuffer(struct{ io.Writer }{x}, struct{ io.Reader }{x}, make([]byte, 1))
				x.Close()
				return err
			},
			client: func(raw net.Conn) error {
				x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
				for i := range len(secret) {
					if _, err := io.WriteString(x, secret[i:i+1]); err != nil {
						return err
					}
				}
				if err := expect(x, secret); err != nil {
					return err
				}
				return x.Close()
			},
		}))
	})
	t.Run("T-058 records of 16 KB", func(t *testing.T) {
		b := newBench(t, Settings{})
		big := strings.Repeat("0123456789abcdef", 64<<10)
		fine(t, b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: func(raw net.Conn) error {
			x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots(), DynamicRecordSizingDisabled: true})
			errs := make(chan error, 1)
			go func() { errs <- say(x, big) }()
			buf := make([]byte, len(big))
			_, err := io.ReadFull(x, buf)
			if string(buf) != big {
				t.Error("the echo differs")
			}
			return errors.Join(err, <-errs, x.Close())
		}}))
	})
	t.Run("T-058 1000 warning alerts before the hello: close", func(t *testing.T) {
		b := newBench(t, Settings{})
		out := b.run(flow{server: nothing(t), client: sends(bytes.Repeat([]byte{21, 3, 1, 0, 2, 1, 90}, 1000))})
		if out.err == nil || out.err.Event != EventBadHello {
			t.Errorf("%v", out.err)
		}
	})
}

func TestT059(t *testing.T) {
	b := newBench(t, Settings{})
	cfg := serverConfig(b.root.LeafKey(t, rsaKey(t, 2048), []string{mx}))
	cfg.MaxVersion, cfg.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	out := b.run(flow{server: echo(cfg), client: b.talk()})
	if out.err == nil || out.err.Event != EventNoCipher {
		t.Errorf("%v", out.err)
	}
	if code, ok := remoteAlert(out.client); !ok || code != alertHandshakeFailure {
		t.Errorf("the client got %v", out.client)
	}
}

func TestT060(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Settings
		port uint16
	}{{"strict", Settings{}, 465}, {"opportunistic", Settings{}, 25}, {"mirror", Settings{TlsVerify: verifyMirrorInvalid}, 587}} {
		for name, answer := range map[string]string{"a banner": "220 mx.example ESMTP\r\n", "nothing, and closes": "", "an error": "500 what?\r\n"} {
			t.Run(fmt.Sprintf("T-060 the server answers with %s, %s", name, c.name), func(t *testing.T) {
				b := newBench(t, c.s)
				var got []byte
				out := b.run(flow{port: c.port, client: b.talk(func(x *tls.Config) { x.InsecureSkipVerify = true }), server: func(raw net.Conn) error {
					buf := make([]byte, 64<<10)
					n, err := raw.Read(buf)
					got = buf[:n]
					if err == nil && answer != "" {
						raw.Write([]byte(answer))
						raw.SetReadDeadline(time.Now().Add(time.Second))
						rest, _ := io.ReadAll(raw)
						got = append(got, rest...)
					}
					return err
				}})
				if out.err == nil || out.err.Event != EventUpstreamTLS {
					t.Fatalf("%v", out.err)
				}
				if code, ok := remoteAlert(out.client); !ok || code != alertHandshakeFailure {
					t.Errorf("the client got %v", out.client)
				}
				if bytes.Contains(got, []byte("AUTH")) || !IsClientHello(got) {
					t.Errorf("the server got %q", got)
				}
			})
		}
	}
}

// TestT088: after a failure the server is not asked again, in whatever way.
func TestT088(t *testing.T) {
	b := newBench(t, Settings{TlsLegacy: []string{"0.0.0.0/0"}})
	hellos := 0
	out := b.run(flow{client: b.talk(), server: func(raw net.Conn) error {
		buf := make([]byte, 64<<10)
		for {
			if _, err := raw.Read(buf); err != nil {
				return nil
			}
			hellos++
			raw.Write([]byte{21, 3, 1, 0, 2, 2, alertProtocolVersion})
		}
	}})
	if hellos != 1 || out.err == nil || out.err.Event != EventNoVersion {
		t.Errorf("T-088: %d hellos, %v", hellos, out.err)
	}
}

// TestT087: credentials that the client sends with its first flight do not reach a server that is refused.
func TestT087(t *testing.T) {
	b := newBench(t, Settings{})
	s := &listener{cfg: serverConfig(tlstest.NewCA(t, "stranger").Leaf(t, []string{mx}))}
	var raw bytes.Buffer
	out := b.run(flow{server: func(c net.Conn) error { return s.serve(&tee{Conn: c, to: &raw}) }, client: func(c net.Conn) error {
		// An impatient client: hello and secret in one segment.
		if _, err := c.Write(append(recordHello(t, mx), secret...)); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}})
	if out.err == nil || out.err.Event != EventUpstreamCert || s.got != 0 || bytes.Contains(raw.Bytes(), []byte("AUTH")) {
		t.Errorf("T-087: %v, %d octets, %q", out.err, s.got, raw.Bytes())
	}
}

func TestT083(t *testing.T) {
	t.Run("T-083 no root certificates: refused", func(t *testing.T) {
		b := newBench(t, Settings{})
		t.Setenv("SSL_CERT_FILE", "/nonexistent")
		b.cfg.Roots = nil
		b.open()
		out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()})
		if out.err == nil || out.err.Event != EventUpstreamCert || b.u.Roots().Count != 0 {
			t.Errorf("%v", out.err)
		}
	})
	t.Run("T-083 no certificate can be made: refused", func(t *testing.T) {
		b := newBench(t, Settings{}, func(c *Config) { c.Minter = brokenMinter{} })
		s := &listener{cfg: serverConfig(b.root.Leaf(t, []string{mx}))}
		out := b.run(flow{server: s.serve, client: b.talk()})
		if code, ok := remoteAlert(out.client); out.err == nil || out.err.Event != EventMint || !ok || code != alertInternalError || s.got != 0 {
			t.Errorf("%v, %v", out.err, out.client)
		}
	})
	t.Run("T-083 no minter: no gateway", func(t *testing.T) {
		if _, err := New(Config{}); err == nil {
			t.Error("opened")
		}
	})
	t.Run("T-083 the authority is not trusted by the client: it fails, and nothing reaches the server", func(t *testing.T) {
		b := newBench(t, Settings{})
		s := &listener{cfg: serverConfig(b.root.Leaf(t, []string{mx}))}
		out := b.run(flow{server: s.serve, client: b.talk(func(c *tls.Config) { c.RootCAs = tlstest.Pool(b.root) })})
		if classOf(out.client) != tlstest.ClassIssuer || out.err == nil || out.err.Event != EventUnknownCA || s.got != 0 {
			t.Errorf("%v, %v", out.err, out.client)
		}
	})
}

type brokenMinter struct{}

func (brokenMinter) Mint(*x509.Certificate, bool, bool) (*tls.Certificate, error) {
	return nil, errors.New("no entropy")
}
