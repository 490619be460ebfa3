package tlsunwrap

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"mailweir/tlsunwrap/tlstest"
)

// changing is a server whose certificate can be replaced.
type changing struct {
	cert  atomic.Pointer[tls.Certificate]
	cfg   atomic.Pointer[tls.Config]
	hello atomic.Int32 // handshakes in which the certificate was shown
}

func newChanging(c tls.Certificate) *changing {
	s := &changing{}
	s.set(c)
	s.restart()
	return s
}

func (s *changing) set(c tls.Certificate) { s.cert.Store(&c) }

// restart gives the server new ticket keys, as a new process has.
func (s *changing) restart() {
	s.cfg.Store(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		s.hello.Add(1)
		return s.cert.Load(), nil
	}})
}

func (s *changing) serve(c net.Conn) error { return echo(s.cfg.Load())(c) }

func TestT030(t *testing.T) {
	t.Run("T-030 the certificate becomes invalid while its leaf is cached", func(t *testing.T) {
		b := newBench(t, Settings{})
		s := newChanging(b.root.Leaf(t, []string{mx}))
		fine(t, b.run(flow{server: s.serve, client: b.talk()}))
		s.set(tlstest.NewCA(t, "stranger").Leaf(t, []string{mx}))
		s.restart()
		if out := b.run(flow{server: s.serve, client: b.talk()}); out.err == nil || out.err.Event != EventUpstreamCert {
			t.Errorf("%v", out.err)
		}
	})
	t.Run("T-030 the same leaf, another chain", func(t *testing.T) {
		b := newBench(t, Settings{TlsVerify: verifyMirrorInvalid})
		c := b.root.Intermediate(t, "x").Leaf(t, []string{mx})
		s := newChanging(c)
		fine(t, b.run(flow{server: s.serve, client: b.talk()}))
		c.Certificate = c.Certificate[:1]
		s.set(c)
		s.restart()
		if out := b.run(flow{server: s.serve, client: b.talk()}); classOf(out.client) != tlstest.ClassIssuer {
			t.Errorf("the client got %v", out.client)
		}
	})
	t.Run("T-030 time passes on a resumed session", func(t *testing.T) {
		b := newBench(t, Settings{})
		var late atomic.Int64
		b.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
		b.open()
		s := newChanging(b.root.Leaf(t, []string{mx}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }))
		fine(t, b.run(flow{server: s.serve, client: b.talk()}))
		late.Store(int64(2 * time.Hour))
		if out := b.run(flow{server: s.serve, client: b.talk()}); out.err == nil || out.err.Event != EventUpstreamCert {
			t.Errorf("%v", out.err)
		}
	})
	t.Run("T-030 rules change: nothing is carried over", func(t *testing.T) {
		b := newBench(t, Settings{})
		s := newChanging(b.root.Leaf(t, []string{mx}))
		fine(t, b.run(flow{server: s.serve, client: b.talk()}))
		if err := b.u.Reload(Settings{TlsPin: []string{mx + "=sha256/" + hex32(1)}}); err != nil {
			t.Fatal(err)
		}
		if out := b.run(flow{server: s.serve, client: b.talk()}); out.err == nil || out.err.Event != EventPin {
			t.Errorf("%v", out.err)
		}
	})
}

// resuming is a client that keeps its sessions.
func resuming(cache tls.ClientSessionCache, did *bool) func(*tls.Config) {
	return func(c *tls.Config) {
		c.ClientSessionCache = cache
		c.VerifyConnection = func(cs tls.ConnectionState) error { *did = cs.DidResume; return nil }
	}
}

func TestT049(t *testing.T) {
	for name, v := range map[string]func(*tls.Config){
		"TLS 1.3": versions(tls.VersionTLS13, tls.VersionTLS13),
		"TLS 1.2": versions(tls.VersionTLS12, tls.VersionTLS12),
		"both":    versions(tls.VersionTLS12, tls.VersionTLS13),
	} {
		for _, keep := range []bool{false, true} {
			kept := map[bool]string{true: ", the server keeps its ticket keys", false: ""}[keep]
			t.Run("T-049 the server's certificate turned bad, the client resumes: refused, "+name+kept, func(t *testing.T) {
				b := newBench(t, Settings{})
				s := newChanging(b.root.Leaf(t, []string{mx}))
				if name == "both" {
					s.cfg.Load().MaxVersion = tls.VersionTLS12 // the session is of TLS 1.2, the hello of TLS 1.3
				}
				var did bool
				client := b.talk(v, resuming(tls.NewLRUClientSessionCache(8), &did))
				fine(t, b.run(flow{server: s.serve, client: client}))
				out := b.run(flow{server: s.serve, client: client})
				fine(t, out)
				if !did || !out.session.Info.Resumed {
					t.Fatal("the client could not resume")
				}
				s.set(tlstest.NewCA(t, "stranger").Leaf(t, []string{mx}))
				if !keep {
					s.restart()
				}
				if out := b.run(flow{server: s.serve, client: client}); out.err == nil || out.err.Event != EventUpstreamCert {
					t.Errorf("%v, resumed %v", out.err, did)
				}
			})
		}
	}
	t.Run("T-049 a session under a good certificate is not resumed under a mirrored one", func(t *testing.T) {
		b := newBench(t, Settings{TlsVerify: verifyMirrorInvalid})
		s := newChanging(b.root.Leaf(t, []string{mx}))
		var did bool
		client := b.talk(resuming(tls.NewLRUClientSessionCache(8), &did))
		fine(t, b.run(flow{server: s.serve, client: client}))
		s.set(tlstest.NewCA(t, "stranger").Leaf(t, []string{mx}))
		s.restart()
		if out := b.run(flow{server: s.serve, client: client}); classOf(out.client) != tlstest.ClassIssuer {
			t.Errorf("the client got %v", out.client)
		}
	})
	t.Run("T-049 a session is not resumed with another server", func(t *testing.T) {
		b := newBench(t, Settings{})
		var did bool
		client := b.talk(resuming(tls.NewLRUClientSessionCache(8), &did))
		fine(t, b.run(flow{server: newChanging(b.root.Leaf(t, []string{mx})).serve, client: client}))
		fine(t, b.run(flow{server: newChanging(b.root.Leaf(t, []string{mx})).serve, client: client}))
		if did {
			t.Error("resumed with a server that has another certificate")
		}
	})
	t.Run("T-049 the server's leg is resumed for clients that do not resume, and judged all the same", func(t *testing.T) {
		b := newBench(t, Settings{})
		s := newChanging(b.root.Leaf(t, []string{mx}))
		for range 3 {
			fine(t, b.run(flow{server: s.serve, client: b.talk()}))
		}
		if n := s.hello.Load(); n != 1 {
			t.Errorf("the certificate was shown %d times", n)
		}
	})
	t.Run("T-049 the server's leg is resumed for an hour at most", func(t *testing.T) {
		var late atomic.Int64
		b := newBench(t, Settings{}, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) } })
		s := newChanging(b.root.Leaf(t, []string{mx}))
		for i, want := range []int64{1, 1, 1, 2, 2, 2, 3} { // every 25 minutes
			late.Store(int64(i) * int64(25*time.Minute))
			fine(t, b.run(flow{server: s.serve, client: b.talk()}))
			if n := s.hello.Load(); int64(n) != want {
				t.Errorf("connection %d: the certificate was shown %d times, want %d", i, n, want)
			}
		}
	})
	t.Run("T-049 ticket keys are not shared between gateways", func(t *testing.T) {
		b := newBench(t, Settings{})
		s := newChanging(b.root.Leaf(t, []string{mx}))
		var did bool
		client := b.talk(resuming(tls.NewLRUClientSessionCache(8), &did))
		fine(t, b.run(flow{server: s.serve, client: client}))
		b.open() // a restart
		fine(t, b.run(flow{server: s.serve, client: client}))
		if did {
			t.Error("resumed after a restart: the key was kept somewhere")
		}
	})
	t.Run("T-049 ticket keys rotate", func(t *testing.T) {
		b := newBench(t, Settings{})
		var late atomic.Int64
		b.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
		b.open()
		ticket := func() string {
			near, far := pair(t)
			go func() {
				c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12,
					ClientSessionCache: tls.NewLRUClientSessionCache(1)})
				c.Handshake()
				near.Close()
			}()
			var id []byte
			cfg := serverConfig(b.root.Leaf(t, []string{mx}))
			cfg.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				var err error
				id, err = b.u.tickets.at(b.u.now()).EncryptTicket(cs, ss)
				return id, err
			}
			if err := tls.Server(far, cfg).Handshake(); err != nil {
				t.Fatal(err)
			}
			return string(id)
		}
		old := ticket()
		known := func() bool {
			ss, err := b.u.tickets.at(b.u.now()).DecryptTicket([]byte(old), tls.ConnectionState{})
			return err == nil && ss != nil
		}
		if !known() {
			t.Fatal("a ticket cannot be read back")
		}
		late.Store(int64(13 * time.Hour))
		if ticket(); !known() {
			t.Error("a ticket of half a day ago is not known")
		}
		late.Store(int64(26 * time.Hour))
		if ticket(); known() {
			t.Error("a key of yesterday is still used")
		}
	})
}

// TestT057: the end of a connection is one only if the peer said so inside TLS.
func TestT057(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *tls.Conn, raw net.Conn) error
		want error
	}{
		{"T-057 close_notify", func(t *tls.Conn, _ net.Conn) error { return t.Close() }, io.EOF},
		{"T-057 closed without close_notify", func(_ *tls.Conn, raw net.Conn) error { return raw.Close() }, io.ErrUnexpectedEOF},
	} {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, side := range []string{"server", "client"} {
				t.Run(c.name+" by the "+side+", "+tls.VersionName(v), func(t *testing.T) {
					b := newBench(t, Settings{})
					speak := func(x *tls.Conn, raw net.Conn) error {
						if _, err := io.WriteString(x, "250-half a mess"); err != nil {
							return err
						}
						return c.end(x, raw)
					}
					listen := func(x *tls.Conn) error { _, err := io.Copy(io.Discard, x); return err }
					cfg := serverConfig(b.root.Leaf(t, []string{mx}))
					cfg.MaxVersion, cfg.SessionTicketsDisabled = v, true
					out := b.run(flow{
						server: func(raw net.Conn) error {
							x := tls.Server(raw, cfg)
							if side == "server" {
								return errors.Join(x.Handshake(), speak(x, raw))
							}
							return listen(x)
						},
						client: func(raw net.Conn) error {
							x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
							if side == "client" {
								return errors.Join(x.Handshake(), speak(x, raw))
							}
							return listen(x)
						},
						inside: func(s *Session) error {
							from := s.Server
							if side == "client" {
								from = s.Client
							}
							got, err := io.ReadAll(from)
							if err == nil {
								err = io.EOF
							}
							if string(got) != "250-half a mess" || !errors.Is(err, c.want) {
								t.Errorf("got %q, %v; want %v", got, err, c.want)
							}
							return nil
						},
					})
					if out.err != nil {
						t.Fatal(out.err)
					}
				})
			}
		}
	}
	t.Run("T-057 CloseWrite says close_notify, and the other direction goes on", func(t *testing.T) {
		b := newBench(t, Settings{})
		fine(t, b.run(flow{
			server: func(raw net.Conn) error {
				x := tls.Server(raw, serverConfig(b.root.Leaf(t, []string{mx})))
				if _, err := io.Copy(io.Discard, x); err != nil { // to close_notify
					return err
				}
				_, err := io.WriteString(x, "221 bye")
				x.Close()
				return err
			},
			client: func(raw net.Conn) error {
				x := tls.Client(raw, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
				if _, err := io.WriteString(x, "QUIT"); err != nil {
					return err
				}
				if err := x.CloseWrite(); err != nil {
					return err
				}
				got, err := io.ReadAll(x)
				if string(got) != "221 bye" {
					t.Errorf("got %q, %v", got, err)
				}
				return err
			},
		}))
	})
}
