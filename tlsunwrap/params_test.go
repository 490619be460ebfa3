package tlsunwrap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"mailweir/inspect"
)

// asked makes a server keep the hello that it got.
func asked(cfg *tls.Config, chi **tls.ClientHelloInfo) *tls.Config {
	cfg.GetConfigForClient = func(i *tls.ClientHelloInfo) (*tls.Config, error) { *chi = i; return nil, nil }
	return cfg
}

func versions(lo, hi uint16) func(*tls.Config) {
	return func(c *tls.Config) { c.MinVersion, c.MaxVersion = lo, hi }
}

func TestT005(t *testing.T) {
	for _, c := range []struct {
		name           string
		door           inspect.Door
		client, server []string
		seen           []string // by the server
		got            string   // by the client
	}{
		{"T-005 imap is passed on", "imap", []string{"imap"}, []string{"imap"}, []string{"imap"}, "imap"},
		{"T-005 only what the gateway speaks is passed on", "imap", []string{"h2", "imap", "x"}, []string{"imap"}, []string{"imap"}, "imap"},
		{"T-005 pop3", "pop3", []string{"pop3"}, []string{"pop3"}, []string{"pop3"}, "pop3"},
		{"T-005 the server's choice none", "imap", []string{"imap"}, nil, []string{"imap"}, ""},
		{"T-005 only unknown ones: none", "imap", []string{"http/1.1", "h2"}, nil, nil, ""},
		{"T-005 only unknown ones, server that knows imap: none", "imap", []string{"http/1.1"}, []string{"imap"}, nil, ""},
		{"T-005 another door's", "smtp", []string{"imap"}, nil, nil, ""},
		{"T-005 none", "smtp", nil, []string{"smtp"}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Settings{})
			var chi *tls.ClientHelloInfo
			cfg := asked(serverConfig(b.root.Leaf(t, []string{mx})), &chi)
			cfg.NextProtos = c.server
			got := "?"
			out := b.run(flow{door: c.door, server: echo(cfg), client: b.talk(func(x *tls.Config) {
				x.NextProtos = c.client
				x.VerifyConnection = func(cs tls.ConnectionState) error { got = cs.NegotiatedProtocol; return nil }
			})})
			fine(t, out)
			if !slices.Equal(chi.SupportedProtos, c.seen) || got != c.got || out.session.Info.ALPN != c.got {
				t.Errorf("server saw %q, client got %q, info %q", chi.SupportedProtos, got, out.session.Info.ALPN)
			}
		})
	}
	t.Run("T-005 a strict server's refusal reaches the client", func(t *testing.T) {
		b := newBench(t, Settings{})
		// RFC 7301 §3.2: no_application_protocol, before anything else.
		strict := func(c net.Conn) error {
			if _, err := c.Read(make([]byte, 4096)); err != nil {
				return err
			}
			_, err := c.Write([]byte{21, 3, 3, 0, 2, 2, alertNoALPN})
			return err
		}
		out := b.run(flow{door: "imap", server: strict, client: b.talk(func(x *tls.Config) { x.NextProtos = []string{"h2"} })})
		if code, ok := remoteAlert(out.client); !ok || code != alertNoALPN || out.err.Event != EventNoALPN {
			t.Errorf("%v, %v", out.err, out.client)
		}
	})
}

func TestT006(t *testing.T) {
	const v10, v11, v12, v13 = tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13
	for _, c := range []struct {
		name           string
		s              Settings
		client, server [2]uint16
		want           string // "client/server" versions, or the event
	}{
		{"T-006 both new", Settings{}, [2]uint16{v12, v13}, [2]uint16{v12, v13}, "TLS 1.3/TLS 1.3"},
		{"T-006 server 1.2: the client gets no more", Settings{}, [2]uint16{v12, v13}, [2]uint16{v12, v12}, "TLS 1.2/TLS 1.2"},
		{"T-006 client 1.2", Settings{}, [2]uint16{v12, v12}, [2]uint16{v12, v13}, "TLS 1.2/TLS 1.3"},
		{"T-006 client insists on 1.3, server 1.2", Settings{}, [2]uint16{v13, v13}, [2]uint16{v12, v12}, EventNoVersion},
		{"T-006 server 1.0 only", Settings{}, [2]uint16{v10, v13}, [2]uint16{v10, v10}, EventNoVersion},
		{"T-006 server 1.1 only", Settings{}, [2]uint16{v10, v13}, [2]uint16{v10, v11}, EventNoVersion},
		{"T-006 client 1.0 only", Settings{}, [2]uint16{v10, v10}, [2]uint16{v10, v13}, EventNoVersion},
		{"T-006 server 1.0, excepted", Settings{TlsLegacy: []string{"198.51.100.7:465"}}, [2]uint16{v10, v13}, [2]uint16{v10, v10}, "TLS 1.0/TLS 1.0"},
		{"T-006 server 1.0, excepted by name", Settings{TlsLegacy: []string{mx}}, [2]uint16{v12, v13}, [2]uint16{v10, v10}, "TLS 1.2/TLS 1.0"},
		{"T-006 server 1.0, another one excepted", Settings{TlsLegacy: []string{"198.51.100.8"}}, [2]uint16{v10, v13}, [2]uint16{v10, v10}, EventNoVersion},
		{"T-006 scanner with 1.0, excepted", Settings{TlsLegacy: []string{"client:192.0.2.0/24"}}, [2]uint16{v10, v10}, [2]uint16{v12, v13}, "TLS 1.0/TLS 1.3"},
		{"T-006 scanner with 1.1, excepted", Settings{TlsLegacy: []string{"client:192.0.2.44"}}, [2]uint16{v10, v11}, [2]uint16{v12, v13}, "TLS 1.1/TLS 1.3"},
		{"T-006 the client's exception does not lower the server's leg", Settings{TlsLegacy: []string{"client:192.0.2.44"}}, [2]uint16{v10, v13}, [2]uint16{v10, v10}, EventNoVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.s)
			cfg := serverConfig(b.root.Leaf(t, []string{mx}))
			versions(c.server[0], c.server[1])(cfg)
			out := b.run(flow{server: echo(cfg), client: b.talk(versions(c.client[0], c.client[1]))})
			if out.err != nil {
				if out.err.Event != c.want {
					t.Errorf("%v, want %s", out.err, c.want)
				}
				if code, ok := remoteAlert(out.client); !ok || code != alertProtocolVersion {
					t.Errorf("the client got %v", out.client)
				}
				return
			}
			fine(t, out)
			i := out.session.Info
			if got := i.ClientVersion + "/" + i.ServerVersion; got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			legacy := b.recorded("tls-legacy")
			if old := strings.Contains(c.want, "1.0") || strings.Contains(c.want, "1.1"); old != (len(legacy) == 1) {
				t.Errorf("events %v", legacy)
			} else if old && (!strings.Contains(legacy[0].Detail, i.ClientVersion) || !strings.Contains(legacy[0].Detail, i.ServerVersion)) {
				t.Errorf("event %v", legacy[0])
			}
		})
	}
	t.Run("T-006 no SSL", func(t *testing.T) {
		// RFC 6101 §5.6.1.2, version 3.0, one suite, no extensions.
		h := append([]byte{22, 3, 0, 0, 45, 1, 0, 0, 41, 3, 0}, make([]byte, 32)...)
		h = append(h, 0, 0, 2, 0, 0x2f, 1, 0)
		b := newBench(t, Settings{TlsLegacy: []string{"0.0.0.0/0", "client:0.0.0.0/0"}})
		out := b.run(flow{server: nothing(t), client: sends(h)})
		if out.err == nil || out.err.Event != EventNoVersion {
			t.Errorf("%v", out.err)
		}
		ssl2 := []byte{0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16}
		out = b.run(flow{server: nothing(t), client: sends(ssl2)})
		if out.err == nil || out.err.Event != EventBadHello {
			t.Errorf("%v", out.err)
		}
	})
}

func TestT007T008(t *testing.T) {
	b := newBench(t, Settings{})
	var chi *tls.ClientHelloInfo
	var raw bytes.Buffer
	cfg := asked(serverConfig(b.root.Leaf(t, []string{mx})), &chi)
	cfg.MaxVersion = tls.VersionTLS12
	fine(t, b.run(flow{
		server: func(c net.Conn) error { return echo(cfg)(&tee{Conn: c, to: &raw}) },
		client: b.talk(),
	}))
	good := func(id uint16) bool {
		n := tls.CipherSuiteName(id)
		return strings.HasPrefix(n, "TLS_ECDHE_") || strings.HasPrefix(n, "TLS_AES_") || strings.HasPrefix(n, "TLS_CHACHA20_")
	}
	weak := func(id uint16) bool {
		n := tls.CipherSuiteName(id)
		return strings.Contains(n, "RC4") || strings.Contains(n, "3DES") || strings.HasPrefix(n, "0x") || strings.Contains(n, "NULL")
	}
	t.Run("T-007 offered to the server", func(t *testing.T) {
		for _, id := range chi.CipherSuites {
			if !good(id) || weak(id) {
				t.Errorf("offers %s", tls.CipherSuiteName(id))
			}
		}
	})
	t.Run("T-007 accepted from the client", func(t *testing.T) {
		var all []uint16
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			all = append(all, s.ID)
		}
		for _, legacy := range []bool{false, true} {
			b := newBench(t, Settings{})
			if legacy {
				b = newBench(t, Settings{TlsLegacy: []string{"client:192.0.2.44"}})
			}
			cfg := serverConfig(b.root.Leaf(t, []string{mx}))
			for _, id := range all {
				if slices.Contains([]uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}, id) {
					continue // TLS 1.3: not configurable
				}
				n := tls.CipherSuiteName(id)
				out := b.run(flow{server: echo(cfg), client: b.talk(versions(tls.VersionTLS12, tls.VersionTLS12), func(c *tls.Config) { c.CipherSuites = []uint16{id} })})
				want := slices.Contains(suites(legacy), id)
				if want && (weak(id) || !legacy && !good(id)) {
					t.Errorf("%s is in our list", n)
				}
				if got := out.client == nil; got != want {
					t.Errorf("%s accepted: %v, want %v (legacy %v): %v", n, got, want, legacy, out.client)
				}
			}
		}
	})
	t.Run("T-008 what is never offered", func(t *testing.T) {
		h := raw.Bytes()
		at := 5 + 4 + 2 + 32
		at += 1 + int(h[at])
		at += 2 + int(h[at])<<8 + int(h[at+1])
		if h[at] != 1 || h[at+1] != 0 {
			t.Errorf("compression methods %x", h[at:at+1+int(h[at])])
		}
		for _, ext := range chi.Extensions {
			if ext == 15 || ext == 4 || ext == 42 || ext == 13172 { // heartbeat, truncated_hmac, early_data, NPN
				t.Errorf("offers extension %d", ext)
			}
		}
		// RFC 5746 §3.4: an empty renegotiation_info is the promise of secure renegotiation, which we never begin.
		if !slices.Contains(chi.Extensions, 0xff01) {
			t.Error("no renegotiation_info")
		}
	})
}

// tee keeps what is read.
type tee struct {
	net.Conn
	to io.Writer
}

func (c *tee) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.to.Write(p[:n])
	return n, err
}

func TestT042(t *testing.T) {
	for _, c := range []struct {
		name   string
		s      Settings
		client func(*tls.Config)
		rsa    bool
	}{
		{"T-042 today's client", Settings{}, func(*tls.Config) {}, false},
		{"T-042 TLS 1.2", Settings{}, versions(tls.VersionTLS12, tls.VersionTLS12), false},
		{"T-042 TLS 1.2 with RSA suites only", Settings{}, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		}, true},
		{"T-042 TLS 1.0 without ECDSA", Settings{TlsLegacy: []string{"client:192.0.2.44"}}, func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS10, tls.VersionTLS10, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}
		}, true},
		{"T-042 TLS 1.0 with RSA key exchange", Settings{TlsLegacy: []string{"client:192.0.2.44"}}, func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS10, tls.VersionTLS10, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		}, true},
		{"T-042 no secp256r1", Settings{}, func(c *tls.Config) {
			c.MaxVersion, c.CurvePreferences = tls.VersionTLS12, []tls.CurveID{tls.X25519}
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.s)
			var leaf *x509.Certificate
			out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk(c.client, seenBy(&leaf))})
			fine(t, out)
			k, isRSA := leaf.PublicKey.(*rsa.PublicKey)
			if _, ec := leaf.PublicKey.(*ecdsa.PublicKey); isRSA != c.rsa || ec == c.rsa || isRSA && k.N.BitLen() != 2048 {
				t.Errorf("key %T", leaf.PublicKey)
			}
			if leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 {
				t.Errorf("signed with %v", leaf.SignatureAlgorithm)
			}
		})
	}
}

// slow writes what it is given in pieces, as records of rec octets of payload, in segments of seg octets.
func fragmented(h []byte, rec, seg int) [][]byte {
	body := h[5:]
	var wire []byte
	for part := range slices.Chunk(body, rec) {
		wire = append(append(wire, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return slices.Collect(slices.Chunk(wire, seg))
}

func TestT009S249(t *testing.T) {
	for _, c := range []struct {
		name     string
		rec, seg int
	}{
		{"T-009 S-249 three segments", 16384, 600},
		{"T-009 S-249 records of 100 octets, segments of 77", 100, 77},
		{"T-009 S-249 one octet a record, one a segment", 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Settings{})
			var hello int
			out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: func(conn net.Conn) error {
				return b.talk()(&fragmenter{Conn: conn, cut: func(h []byte) [][]byte { hello = len(h); return fragmented(h, c.rec, c.seg) }})
			}})
			fine(t, out)
			if hello < 1500 {
				t.Errorf("the hello has %d octets: no post-quantum share", hello)
			}
		})
	}
	t.Run("T-009 S-249 IPv6", func(t *testing.T) {
		b := newBench(t, Settings{TlsVerify: verifyStrict})
		out := b.run(flow{addr: netip.MustParseAddr("2001:db8::25"), from: netip.MustParseAddr("2001:db8::1"),
			server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk()})
		fine(t, out)
	})
	t.Run("T-009 hello of 16 KB", func(t *testing.T) {
		b := newBench(t, Settings{})
		out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: b.talk(func(c *tls.Config) {
			for i := range 400 { // only real protocols would be passed on
				c.NextProtos = append(c.NextProtos, fmt.Sprintf("x-%036d", i))
			}
		})})
		fine(t, out)
	})
	t.Run("T-009 hello without end", func(t *testing.T) {
		b := newBench(t, Settings{})
		out := b.run(flow{server: nothing(t), client: func(c net.Conn) error {
			head := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff} // 64 KB announced, and never whole
			c.Write(append(head, make([]byte, 0x4000-4)...))
			for {
				if _, err := c.Write(append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)); err != nil {
					return nil
				}
			}
		}})
		if out.err == nil || out.err.Event != EventBadHello {
			t.Errorf("%v", out.err)
		}
	})
}

// fragmenter cuts the first thing that is written.
type fragmenter struct {
	net.Conn
	cut  func([]byte) [][]byte
	done bool
}

func (f *fragmenter) Write(p []byte) (int, error) {
	if f.done {
		return f.Conn.Write(p)
	}
	f.done = true
	for _, part := range f.cut(p) {
		if _, err := f.Conn.Write(part); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func TestIsClientHello(t *testing.T) {
	for _, c := range []struct {
		first string
		want  bool
	}{
		{"", false}, {"\x16", true}, {"\x16\x03", true}, {"\x16\x03\x01", true}, {"\x16\x03\x03\x02\x00\x01", true},
		{"\x16\x03\x01\x02\x00\x02", false}, {"\x16\x10", false}, {"\x16\x03\x05", true}, {"EHLO", false}, {"\x80\x2e\x01", false}, {"\x15\x03\x01", false},
	} {
		if got := IsClientHello([]byte(c.first)); got != c.want {
			t.Errorf("%q: %v", c.first, got)
		}
	}
}

func TestSniffHello(t *testing.T) {
	h := recordHello(t, "mx.example")
	if sni, ok := SniffHello(h); !ok || sni != "mx.example" {
		t.Errorf("%q %v", sni, ok)
	}
	if sni, ok := SniffHello(bytes.Join(fragmented(h, 100, 50), nil)); !ok || sni != "mx.example" {
		t.Errorf("in pieces: %q %v", sni, ok)
	}
	if _, ok := SniffHello(h[:len(h)-1]); ok {
		t.Error("a cut hello was understood")
	}
	if _, ok := SniffHello([]byte("EHLO x\r\n")); ok {
		t.Error("EHLO was understood")
	}
}

// FuzzHello: the seeds are recorded hellos, in testdata.
func FuzzHello(f *testing.F) {
	r := &rules{}
	f.Fuzz(func(t *testing.T, h []byte) {
		sni, ok := SniffHello(h)
		if ok && !IsClientHello(h) {
			t.Errorf("%x is a hello and does not look like one", h[:min(len(h), 6)])
		}
		if sni != "" && validSNI(sni) && (len(sni) > 253 || strings.ContainsAny(sni, "\x00\r\n ")) {
			t.Errorf("name %q", sni)
		}
		if ok {
			chi := &tls.ClientHelloInfo{ServerName: sni}
			if _, err := r.offer(Request{}, chi); err == nil {
				t.Error("an offer without versions")
			}
		}
	})
}
