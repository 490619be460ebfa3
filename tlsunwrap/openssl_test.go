package tlsunwrap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/tlsunwrap/tlstest"
)

// These tests have openssl(1) on one side of the gateway: another implementation's opinion.

func needOpenssl(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
}

// gate is a gateway on a loopback port.
type gate struct {
	addr string
	errs chan *Error
}

// lastErr returns the error of the one connection, once it is known.
func (g *gate) lastErr(t testing.TB) *Error {
	t.Helper()
	select {
	case e := <-g.errs:
		return e
	case <-time.After(15 * time.Second):
		t.Fatal("no connection was refused")
		return nil
	}
}

// listen relays connections to server through the gateway until the test ends.
func (b *bench) listen(server string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String(), errs: make(chan *Error, 100)}
	var wg sync.WaitGroup
	b.t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.pass(g, c, server) })
		}
	})
	return g
}

func (b *bench) pass(g *gate, c net.Conn, server string) {
	defer c.Close()
	s, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer s.Close()
	session, err := b.u.Unwrap(context.Background(), Request{Client: c, Server: s, Door: inspect.DoorSMTP,
		ClientAddr: netip.MustParseAddrPort(c.RemoteAddr().String()), ServerAddr: netip.MustParseAddrPort(server)})
	var e *Error
	if errors.As(err, &e) {
		g.errs <- e
		return
	}
	relay(session)
}

// serveTLS runs a server of crypto/tls on a port.
func serveTLS(t testing.TB, cfg *tls.Config) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); echo(cfg)(c) })
		}
	})
	return l.Addr().String()
}

// sServer is a running openssl s_server.
type sServer struct {
	addr string
	in   io.WriteCloser
	out  *lines
}

// opensslServer starts openssl s_server with the certificate.
func opensslServer(t testing.TB, c tls.Certificate, args ...string) *sServer {
	t.Helper()
	needOpenssl(t)
	certPath, keyPath := tlstest.Files(t, c)
	args = append([]string{"s_server", "-accept", "127.0.0.1:0", "-cert", certPath, "-cert_chain", certPath, "-key", keyPath}, args...)
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{seen: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	line := out.await(t, "ACCEPT")
	return &sServer{strings.TrimSpace(strings.TrimPrefix(line, "ACCEPT")), in, out}
}

// lines is output that can be waited for.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	seen chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.seen <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns the first whole line that contains what.
func (l *lines) await(t testing.TB, what string) string {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		s := bufio.NewScanner(strings.NewReader(l.String()))
		for s.Scan() {
			if strings.Contains(s.Text(), what) && strings.Contains(l.String(), s.Text()+"\n") {
				return s.Text()
			}
		}
		select {
		case <-l.seen:
		case <-limit:
			t.Fatalf("no %q in:\n%s", what, l.String())
		}
	}
}

// sClient is a running openssl s_client.
type sClient struct {
	in   io.WriteCloser
	out  *lines
	wait func() error
}

func opensslClient(t testing.TB, b *bench, addr string, args ...string) *sClient {
	t.Helper()
	needOpenssl(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	tlstest.WriteFile(t, ca, b.authority.PEM())
	args = append([]string{"s_client", "-connect", addr, "-CAfile", ca}, args...)
	cmd := exec.Command("openssl", append(args, "-verify_return_error")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{seen: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { in.Close(); cmd.Process.Kill() })
	return &sClient{in, out, func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(15 * time.Second):
			return fmt.Errorf("still running: %s", out)
		}
	}}
}

func TestOpensslClient(t *testing.T) {
	needOpenssl(t)
	b := newBench(t, Settings{})
	good := b.listen(serveTLS(t, serverConfig(b.root.Leaf(t, []string{mx}))))
	bad := b.listen(serveTLS(t, serverConfig(tlstest.NewCA(t, "stranger").Leaf(t, []string{mx}))))
	for _, v := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("T-001 openssl verifies the minted leaf "+v, func(t *testing.T) {
			c := opensslClient(t, b, good.addr, v, "-servername", mx, "-verify_hostname", mx)
			c.out.await(t, "Verify return code: 0 (ok)")
			io.WriteString(c.in, "hello there\n")
			c.out.await(t, "hello there")
			c.in.Close()
			if err := c.wait(); err != nil {
				t.Error(err)
			}
		})
		t.Run("T-011 openssl gets an alert "+v, func(t *testing.T) {
			c := opensslClient(t, b, bad.addr, v, "-servername", mx)
			if err := c.wait(); err == nil || !strings.Contains(c.out.String(), "alert unknown ca") {
				t.Errorf("%v: %s", err, c.out)
			}
		})
	}
	for _, v := range []string{"-tls1_2", "-tls1_3"} { // with TLS 1.3 openssl sends its alert unencrypted
		t.Run("T-070 openssl does not trust our authority "+v, func(t *testing.T) {
			b := newBench(t, Settings{})
			g := b.listen(serveTLS(t, serverConfig(b.root.Leaf(t, []string{mx}))))
			for range 3 {
				c := opensslClient(t, b, g.addr, v, "-servername", mx, "-CAfile", rootFile(t, b))
				if err := c.wait(); err == nil {
					t.Fatalf("openssl is content: %s", c.out)
				}
				if e := g.lastErr(t); e == nil || e.Event != EventUnknownCA {
					t.Fatalf("got %v", e)
				} else if code, ok := remoteAlert(e.Err); !ok || code != alertUnknownCA {
					t.Fatalf("the alert is not told: %v", e)
				}
			}
			if e := b.recorded("bypass-suggested"); len(e) != 1 {
				t.Errorf("events %v", e)
			}
		})
	}
	t.Run("T-053 openssl renegotiates", func(t *testing.T) {
		c := opensslClient(t, b, good.addr, "-tls1_2", "-servername", mx)
		c.out.await(t, "Verify return code: 0 (ok)")
		io.WriteString(c.in, "R\n")
		c.out.await(t, "RENEGOTIATING")
		err := c.wait() // closed with an alert
		if text := c.out.String(); err == nil && strings.Count(text, "Verify return code") > 1 {
			t.Errorf("renegotiated: %s", text)
		}
		// The gateway is well.
		c = opensslClient(t, b, good.addr, "-servername", mx)
		c.out.await(t, "Verify return code: 0 (ok)")
	})
}

func TestT054(t *testing.T) {
	b := newBench(t, Settings{})
	early := opensslServer(t, b.root.Leaf(t, []string{mx}), "-early_data", "-max_early_data", "16384")
	g := b.listen(early.addr)
	dir := t.TempDir()
	sess, data := filepath.Join(dir, "sess.pem"), filepath.Join(dir, "early")
	tlstest.WriteFile(t, data, []byte("MAIL FROM:<early@example>\r\n"))
	// A session from before the gateway stood here.
	direct := opensslClient(t, &bench{t: t, authority: b.authority}, early.addr, "-servername", mx, "-sess_out", sess, "-CAfile", rootFile(t, b))
	io.WriteString(direct.in, "first\n")
	early.out.await(t, "first")
	direct.in.Close()
	direct.wait()
	if _, err := os.Stat(sess); err != nil {
		t.Skip("openssl kept no session")
	}
	t.Run("T-054 early data is refused", func(t *testing.T) {
		c := opensslClient(t, b, g.addr, "-servername", mx, "-sess_in", sess, "-early_data", data)
		err := c.wait()
		if text := c.out.String(); err == nil || strings.Contains(text, "Early data was accepted") {
			t.Errorf("%v: %s", err, text)
		}
		if strings.Contains(early.out.String(), "early@example") {
			t.Error("early data reached the server")
		}
	})
	t.Run("T-054 the client comes back without and works", func(t *testing.T) {
		c := opensslClient(t, b, g.addr, "-servername", mx, "-sess_in", sess)
		c.out.await(t, "Verify return code: 0 (ok)")
		io.WriteString(c.in, "again\n")
		early.out.await(t, "again")
		if text := c.out.String(); strings.Contains(text, "Max Early Data: 16384") {
			t.Error("our own tickets allow early data")
		}
	})
}

func rootFile(t testing.TB, b *bench) string {
	path := filepath.Join(t.TempDir(), "root.pem")
	tlstest.WriteFile(t, path, tlstest.PEM(b.root.Cert.Raw))
	return path
}

// TestT052: openssl asks for a certificate amid the session, by renegotiation (TLS 1.2) and after the handshake (TLS 1.3).
func TestT052(t *testing.T) {
	for _, v := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("T-052 the server asks for a certificate amid the session "+v, func(t *testing.T) {
			b := newBench(t, Settings{})
			s := opensslServer(t, b.root.Leaf(t, []string{mx}), v)
			g := b.listen(s.addr)
			near, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			near.SetDeadline(time.Now().Add(15 * time.Second))
			// TLS 1.3: only a client that said so may be asked later, and we do not; the request comes raw in T-052 below.
			c := tls.Client(near, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
			if _, err := io.WriteString(c, "hello\n"); err != nil {
				t.Fatal(err)
			}
			s.out.await(t, "hello")
			if v == "-tls1_3" {
				io.WriteString(s.in, "c\n")
				s.out.await(t, "extension not received")
				return
			}
			io.WriteString(s.in, "R\n")
			io.Copy(io.Discard, c) // until the gateway closes; the event comes before that
			if e := b.recorded(EventRenegotiation); len(e) != 1 {
				t.Errorf("events %v\n%s", e, s.out)
			}
		})
	}
}

func TestOpensslServer(t *testing.T) {
	b := newBench(t, Settings{})
	leaf := b.root.LeafKey(t, rsaKey(t, 2048), []string{mx})
	for _, c := range []struct {
		name  string
		args  []string
		event string
	}{
		{"T-050 a certificate is asked for", []string{"-rev", "-verify", "1"}, ""},
		{"T-051 a certificate is demanded, TLS 1.2", []string{"-rev", "-Verify", "1", "-tls1_2"}, EventMTLS},
		{"T-059 only pre-shared keys", []string{"-rev", "-tls1_2", "-nocert", "-psk", "1234", "-cipher", "PSK"}, EventNoCipher},
		{"T-059 only a cipher that we do not speak", []string{"-rev", "-tls1_2", "-cipher", "ARIA128-GCM-SHA256"}, EventNoCipher},
		{"T-006 only TLS 1.1", []string{"-rev", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, EventNoVersion},
		{"T-006 only TLS 1.2", []string{"-rev", "-tls1_2"}, ""},
		{"T-007 only static DH and CBC", []string{"-rev", "-tls1_2", "-cipher", "DHE-RSA-AES128-SHA:AES128-SHA"}, EventNoCipher},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := opensslServer(t, leaf, c.args...)
			g := b.listen(s.addr)
			near, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			near.SetDeadline(time.Now().Add(15 * time.Second))
			x := tls.Client(near, &tls.Config{ServerName: mx, RootCAs: b.clientRoots()})
			_, err = io.WriteString(x, "hello\n")
			if c.event != "" {
				if e := g.lastErr(t); err == nil || e == nil || e.Event != c.event {
					t.Errorf("client %v, gateway %v, want %s\n%s", err, e, c.event, s.out)
				}
				return
			}
			if err == nil {
				err = expect(x, "olleh\n")
			}
			if err != nil {
				t.Errorf("%v\n%s", err, s.out)
			}
		})
	}
}
