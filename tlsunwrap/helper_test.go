package tlsunwrap

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"mailweir/certs"
	"mailweir/inspect"
	"mailweir/tlsunwrap/tlstest"
)

// mx is the name of the servers in these tests.
const mx = "mx.example"

// bench is a gateway's TLS between clients that trust its authority and servers whose root it trusts.
type bench struct {
	t         testing.TB
	authority *certs.Authority
	root      *tlstest.CA
	u         *Unwrapper
	cfg       Config

	mu     sync.Mutex
	events []inspect.Event
}

// authority is one for all tests: making it writes to the disk, durably.
var authority = sync.OnceValues(func() (*certs.Authority, error) {
	dir, err := os.MkdirTemp("", "mailweir-certs-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return certs.Open(dir, "gw.test")
})

func newBench(t testing.TB, s Settings, changes ...func(*Config)) *bench {
	t.Helper()
	a, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, authority: a, root: tlstest.NewCA(t, "test root")}
	b.cfg = Config{Settings: s, Minter: a, OwnCAs: a.Certificates(), Roots: tlstest.Pool(b.root),
		Events: inspect.RecorderFunc(func(e inspect.Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		})}
	for _, c := range changes {
		c(&b.cfg)
	}
	b.open()
	return b
}

func (b *bench) open() {
	b.t.Helper()
	u, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.u = u
	b.t.Cleanup(func() { u.Close() })
}

func (b *bench) clientRoots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(b.authority.PEM())
	return p
}

// recorded returns the events of that name.
func (b *bench) recorded(name string) []inspect.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []inspect.Event
	for _, e := range b.events {
		if e.Event == name {
			out = append(out, e)
		}
	}
	return out
}

// pair returns the two ends of a TCP connection over loopback.
func pair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type res struct {
		c   net.Conn
		err error
	}
	ch := make(chan res, 1)
	go func() {
		c, err := l.Accept()
		ch <- res{c, err}
	}()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { near.Close(); r.c.Close() })
	return near, r.c
}

// flow is one connection through the gateway: what the test plays, and what came of it.
type flow struct {
	port    uint16        // of the server, 465 if zero
	addr    netip.Addr    // of the server
	from    netip.Addr    // of the client
	door    inspect.Door  // smtp if empty
	early   []byte        // Request.Early
	earlyFn func() []byte // the same, known only later
	probe   func(context.Context) (net.Conn, error)
	client  func(net.Conn) error                    // plays the client
	server  func(net.Conn) error                    // plays the server
	before  func(client, server net.Conn) error     // plays the door before TLS
	inside  func(*Session) error                    // plays the door; relays if nil
	dial    func(t testing.TB) (near, far net.Conn) // pair if nil
}

// outcome is what came of a flow.
type outcome struct {
	session            *Session
	err                *Error // of Unwrap
	client, server     error
	toServer, toClient int64
}

func (b *bench) run(f flow) outcome {
	b.t.Helper()
	dial := f.dial
	if dial == nil {
		dial = pair
	}
	clientFar, clientNear := dial(b.t)
	serverNear, serverFar := dial(b.t)
	var out outcome
	var wg sync.WaitGroup
	play := func(fn func(net.Conn) error, c net.Conn, err *error) {
		wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(15 * time.Second))
			*err = fn(c)
		})
	}
	play(f.client, clientFar, &out.client)
	play(f.server, serverFar, &out.server)
	r := Request{ID: "c1", Client: clientNear, Server: serverNear, Door: f.door, Divert: "forward", Early: f.early, Probe: f.probe}
	if f.port == 0 {
		f.port = 465
	}
	if !f.addr.IsValid() {
		f.addr = netip.MustParseAddr("198.51.100.7")
	}
	if !f.from.IsValid() {
		f.from = netip.MustParseAddr("192.0.2.44")
	}
	if r.Door == "" {
		r.Door = inspect.DoorSMTP
	}
	r.ClientAddr, r.ServerAddr = netip.AddrPortFrom(f.from, 40000), netip.AddrPortFrom(f.addr, f.port)
	if f.before != nil {
		if err := f.before(clientNear, serverNear); err != nil {
			b.t.Errorf("before: %v", err)
		}
	}
	if f.earlyFn != nil {
		r.Early = f.earlyFn()
	}
	s, err := b.u.Unwrap(context.Background(), r)
	if err != nil {
		if !errors.As(err, &out.err) {
			b.t.Errorf("Unwrap returned %T, not *Error: %v", err, err)
		}
		clientNear.Close()
		serverNear.Close()
	} else {
		out.session = s
		if f.inside != nil {
			if err := f.inside(s); err != nil {
				b.t.Errorf("inside: %v", err)
			}
			s.Client.Close()
			s.Server.Close()
		} else {
			out.toServer, out.toClient = relay(s)
		}
	}
	wg.Wait()
	return out
}

// relay carries octets until both sides are done.
func relay(s *Session) (toServer, toClient int64) {
	var wg sync.WaitGroup
	wg.Go(func() { toServer, _ = io.Copy(s.Server, s.Client); closeWrite(s.Server) })
	wg.Go(func() { toClient, _ = io.Copy(s.Client, s.Server); closeWrite(s.Client) })
	wg.Wait()
	s.Client.Close()
	s.Server.Close()
	return toServer, toClient
}

func closeWrite(c net.Conn) {
	if x, ok := c.(interface{ CloseWrite() error }); ok {
		x.CloseWrite()
	}
}

const secret = "AUTH PLAIN AHRlc3QAc2VjcmV0\r\n"

// talk is a client that trusts the gateway's authority, says the secret and wants it back.
func (b *bench) talk(change ...func(*tls.Config)) func(net.Conn) error {
	cfg := &tls.Config{ServerName: mx, RootCAs: b.clientRoots()}
	for _, c := range change {
		c(cfg)
	}
	return func(c net.Conn) error {
		t := tls.Client(c, cfg)
		if err := t.Handshake(); err != nil {
			return err
		}
		return exchange(t)
	}
}

func exchange(t net.Conn) error {
	if _, err := io.WriteString(t, secret); err != nil {
		return err
	}
	buf := make([]byte, len(secret))
	if _, err := io.ReadFull(t, buf); err != nil {
		return err
	}
	if string(buf) != secret {
		return fmt.Errorf("got %q back", buf)
	}
	return t.Close()
}

// echo is a server that gives back what it gets.
func echo(cfg *tls.Config) func(net.Conn) error {
	return func(c net.Conn) error {
		t := tls.Server(c, cfg)
		if err := t.Handshake(); err != nil {
			return err
		}
		_, err := io.Copy(t, t)
		t.Close()
		return err
	}
}

func serverConfig(c tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c}}
}

func spki(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func pkixExtension(id asn1.ObjectIdentifier, value []byte) pkix.Extension {
	return pkix.Extension{Id: id, Value: value}
}

// hex32 is a SHA-256 sum of the right form.
func hex32(b byte) string { return fmt.Sprintf("%064x", b) }
