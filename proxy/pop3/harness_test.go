package pop3

// How tests of this package are made.
//
// Most are dialogues: testdata/*.dlg, in the language of package proxytest. Their "option" lines set Settings by key
// (option ReadBy Retr) and these:
//
//	option port 995       the port that the client meant (110 by default)
//	option implicit yes   TLS starts at once on that port
//	option unwrap yes     TLS is opened, by a real tlsunwrap.Unwrapper; the step "tls" works (a good certificate)
//	option unwrap strict  the same, but the certificate is not good, and has to be
//	option tls raw        TLS is not opened, and the step "tls" works between client and server
//	option spool-max 100  SpoolMaxMessage
//
// "verdict reject" is one whose original nobody has kept, "verdict discard" one whose original is in the quarantine.
// For bytes, faults and time there is newHarness, with the test playing client and server at its own pace, and
// newPipeHarness, which works in a synctest bubble.

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mailweir/certs"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/proxytest"
	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDialogues(t *testing.T) {
	t.Parallel()
	proxytest.RunDialogues(t, "testdata/*.dlg", makeHandler)
}

// makeHandler makes the handler of a dialogue.
func makeHandler(e *proxytest.Env) proxy.Handler {
	e.T.Helper()
	cfg := Config{Dial: e.Dial, Scanner: e.Scanner, Events: e.Events, Log: e.Log}
	set := spool.Settings{}
	port, implicit := uint16(110), false
	for k, v := range e.Options {
		switch k {
		case "port":
			n, _ := strconv.Atoi(v)
			port = uint16(n)
		case "implicit":
			implicit = true
		case "spool-max":
			set.SpoolMaxMessage, _ = strconv.ParseInt(v, 10, 64)
		case "unwrap", "tls":
			dialogueTLS(e, &cfg, v)
		default:
			option(e.T, &cfg.Settings, k, v)
		}
	}
	cfg.Spool = testSpool(e.T, set)
	h := New(cfg)
	return handlerFunc(func(ctx context.Context, draining <-chan struct{}, c *proxy.Conn) {
		c.Server, c.Implicit = netip.AddrPortFrom(c.Server.Addr(), port), implicit
		h.Serve(ctx, draining, c)
		if files, octets := cfg.Spool.Usage(); files != 0 || octets != 0 {
			e.T.Errorf("%d octets in %d files are left in the spool", octets, files)
		}
	})
}

type handlerFunc func(context.Context, <-chan struct{}, *proxy.Conn)

func (f handlerFunc) Serve(ctx context.Context, d <-chan struct{}, c *proxy.Conn) { f(ctx, d, c) }

// option sets a field of Settings by its key.
func option(t testing.TB, s *Settings, key, value string) {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("key") != key {
			continue
		}
		var err error
		switch f := v.Field(i).Addr().Interface().(type) {
		case *time.Duration:
			*f, err = time.ParseDuration(value)
		case *string:
			*f = value
		case *bool:
			*f = value == "Yes"
		case *int:
			*f, err = strconv.Atoi(value)
		case *[]string:
			*f = strings.Fields(value)
		}
		if err != nil {
			t.Fatalf("option %s: %v", key, err)
		}
		return
	}
	t.Fatalf("no option %s", key)
}

// dialogueTLS sets a dialogue's TLS up.
func dialogueTLS(e *proxytest.Env, cfg *Config, how string) {
	root := tlstest.NewCA(e.T, "test root")
	e.ServerTLS = &tls.Config{Certificates: []tls.Certificate{root.Leaf(e.T, []string{"pop.example"})}}
	if how == "raw" {
		e.ClientTLS = &tls.Config{ServerName: "pop.example", RootCAs: tlstest.Pool(root)}
		return
	}
	a, err := certs.Open(e.T.TempDir(), "gw.test")
	if err != nil {
		e.T.Fatal(err)
	}
	conf := tlsunwrap.Config{Minter: a, OwnCAs: a.Certificates(), Roots: tlstest.Pool(root), Log: e.Log, Events: e.Events}
	conf.UnwrapSsl = true
	if how == "strict" {
		conf.Roots, conf.TlsVerify = x509.NewCertPool(), "Strict"
	}
	if cfg.TLS, err = tlsunwrap.New(conf); err != nil {
		e.T.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.PEM())
	e.ClientTLS = &tls.Config{ServerName: "pop.example", RootCAs: roots}
}

func testSpool(t testing.TB, set spool.Settings) *spool.Pool {
	p, err := spool.New(spool.Config{Settings: set, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// harness is a handler with one session.
type harness struct {
	t        testing.TB
	c, s     *side
	scanner  *proxytest.Scanner
	events   *proxytest.Events
	pool     *spool.Pool
	draining chan struct{}
	stop     context.CancelFunc
	done     chan struct{}
	door     *Handler
}

// newHarness starts a session over TCP on the loopback. change may alter the configuration.
func newHarness(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	client, front := tcpPair(t)
	server, back := tcpPair(t)
	return startHarness(t, change, client, front, server, back)
}

// newPipeHarness starts one over net.Pipe, for synctest bubbles: every wait is durable and time is the bubble's.
func newPipeHarness(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	client, front := net.Pipe()
	server, back := net.Pipe()
	h := startHarness(t, change, client, front, server, back)
	h.c.br, h.s.br = bufio.NewReader(pump(client)), bufio.NewReader(pump(server))
	return h
}

// pump gives a net.Pipe what a socket has, a buffer at the reader: it always reads, until the end.
func pump(c net.Conn) io.Reader {
	p := &pumped{more: make(chan []byte, 1<<12)}
	go func() {
		defer close(p.more)
		for {
			b := make([]byte, 4096)
			n, err := c.Read(b)
			if p.more <- b[:n]; err != nil {
				return
			}
		}
	}()
	return p
}

type pumped struct {
	more chan []byte
	have []byte
}

// Read implements io.Reader.
func (p *pumped) Read(b []byte) (int, error) {
	for len(p.have) == 0 {
		var ok bool
		if p.have, ok = <-p.more; !ok {
			return 0, io.EOF
		}
	}
	n := copy(b, p.have)
	p.have = p.have[n:]
	return n, nil
}

func startHarness(t testing.TB, change func(*Config), client, front, server, back net.Conn) *harness {
	t.Helper()
	h := &harness{t: t, scanner: &proxytest.Scanner{}, events: &proxytest.Events{}, draining: make(chan struct{}), done: make(chan struct{})}
	h.pool = testSpool(t, spool.Settings{})
	cfg := Config{
		Scanner: h.scanner, Events: h.events, Spool: h.pool,
		Dial: func(context.Context, *proxy.Conn) (net.Conn, error) { return back, nil },
	}
	if change != nil {
		change(&cfg)
	}
	h.c, h.s = newSide(t, "client", client), newSide(t, "server", server)
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	h.door = New(cfg)
	go func() {
		defer close(h.done)
		h.door.Serve(ctx, h.draining, testConn(front))
	}()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		cancel()
		<-h.done
	})
	return h
}

func testConn(c net.Conn) *proxy.Conn {
	return &proxy.Conn{
		Conn: c, ID: proxy.NewConnID(), Divert: "forward",
		Client: netip.MustParseAddrPort("192.0.2.1:40000"), Server: netip.MustParseAddrPort("198.51.100.1:110"),
	}
}

// login says the greeting and logs in.
func (h *harness) login() {
	h.t.Helper()
	h.s.say("+OK ready <1.2@pop.example>")
	h.c.wantLine("+OK ready <1.2@pop.example>")
	for _, l := range []string{"USER alice", "PASS secret"} {
		h.c.say(l)
		h.s.wantLine(l)
		h.s.say("+OK")
		h.c.wantLine("+OK")
	}
}

// ended waits until the handler has ended and has left nothing in the spool.
func (h *harness) ended() {
	h.t.Helper()
	select {
	case <-h.done:
	case <-time.After(patience):
		h.t.Fatal("the handler does not end")
	}
	if files, octets := h.pool.Usage(); files != 0 || octets != 0 {
		h.t.Errorf("%d octets in %d files are left in the spool", octets, files)
	}
}

// side is a client or a server played by the test.
type side struct {
	net.Conn
	t    testing.TB
	name string
	br   *bufio.Reader
}

func newSide(t testing.TB, name string, c net.Conn) *side {
	return &side{Conn: c, t: t, name: name, br: bufio.NewReader(c)}
}

// say sends lines in one write.
func (p *side) say(lines ...string) {
	p.t.Helper()
	p.send(strings.Join(lines, "\r\n") + "\r\n")
}

// send sends octets.
func (p *side) send(octets string) {
	p.t.Helper()
	p.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(p.Conn, octets); err != nil {
		p.t.Fatalf("%s: send: %v", p.name, err)
	}
}

// patience is long in real time and beyond all time-outs in a synctest bubble.
const patience = 10 * time.Hour

// line reads a line.
func (p *side) line() string {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(patience))
	l, err := p.br.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%s: read: %v after %q", p.name, err, l)
	}
	return strings.TrimSuffix(l, "\r\n")
}

// want reads a line that begins so.
func (p *side) want(prefix string) string {
	p.t.Helper()
	l := p.line()
	if !strings.HasPrefix(l, prefix) {
		p.t.Fatalf("%s: want %q, got %q", p.name, prefix, l)
	}
	return l
}

// wantLine reads a line that is exactly this.
func (p *side) wantLine(line string) {
	p.t.Helper()
	if l := p.line(); l != line {
		p.t.Fatalf("%s: want %q, got %q", p.name, line, l)
	}
}

// rest reads to the end of the connection and returns what came.
func (p *side) rest() string {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(p.br)
	if err != nil && (isTimeout(err) || errors.Is(err, net.ErrClosed)) {
		p.t.Fatalf("%s: the connection does not end: %v after %q", p.name, err, b)
	}
	return string(b)
}

// tcpPair returns both ends of a TCP connection.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), a.(*net.TCPConn)
}
