package smtp

// How tests of this package are made.
//
// Most are dialogues: testdata/*.dlg, in the language of package proxytest. Their "option" lines set Settings by key
// (option EodPolicy Normalize, option ReplyTimeout 50ms) and these:
//
//	option port 587       the port that the client meant (25 by default)
//	option implicit yes   TLS starts at once on that port
//	option unwrap yes     TLS is opened, by a real tlsunwrap.Unwrapper; the step "tls" works (a good certificate)
//	option unwrap strict  the same, but the certificate is not good, and has to be
//	option unwrap mirror  the same, and does not have to be; the client does not verify either
//	option tls raw        TLS is not opened, and the step "tls" works between client and server
//	option spool-max 100  SpoolMaxMessage;  option spool-quota 1000  SpoolQuota
//
// For bytes, faults and concurrency there is newHarness: a handler over real TCP connections, with the test playing
// client and server at its own pace:
//
//	h := newHarness(t, func(cfg *Config) { cfg.ReplyTimeout = time.Second })
//	h.greet("SIZE 1000")                    // banner, EHLO; the keywords are the server's
//	h.envelope("a@x.example", "b@y.example")
//	h.c.say("DATA"); h.c.want("354 ")       // want: the next line begins so
//	h.s.wantLine("DATA")                    // at the server
//	h.end()                                 // closes both; the handler must end
//
// h.scanner, h.events are those of proxytest; harnesses in a synctest bubble are made by newPipeHarness, with
// net.Pipe in place of TCP.

import (
	"bufio"
	"context"
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

	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/proxytest"
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
	port, implicit := uint16(25), false
	for k, v := range e.Options {
		switch k {
		case "port":
			n, _ := strconv.Atoi(v)
			port = uint16(n)
		case "implicit":
			implicit = true
		case "spool-max":
			set.SpoolMaxMessage, _ = strconv.ParseInt(v, 10, 64)
		case "spool-quota":
			set.SpoolQuota, _ = strconv.ParseInt(v, 10, 64)
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
		case *int64:
			*f, err = strconv.ParseInt(value, 10, 64)
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

func testSpool(t testing.TB, set spool.Settings) *spool.Pool {
	p, err := spool.New(spool.Config{Settings: set, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// harness is a handler with one session.
type harness struct {
	t        *testing.T
	c, s     *side
	scanner  *proxytest.Scanner
	events   *proxytest.Events
	pool     *spool.Pool
	draining chan struct{}
	stop     context.CancelFunc
	done     chan struct{}
}

// newHarness starts a session over TCP on the loopback. change may alter the configuration.
func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	client, front := tcpPair(t)
	server, back := tcpPair(t)
	return startHarness(t, change, client, front, server, back)
}

// newPipeHarness starts one over net.Pipe, for synctest bubbles: every wait is durable and time is the bubble's.
func newPipeHarness(t *testing.T, change func(*Config)) *harness {
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

func startHarness(t *testing.T, change func(*Config), client, front, server, back net.Conn) *harness {
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
	conn := &proxy.Conn{
		Conn: front, ID: proxy.NewConnID(), Divert: "forward",
		Client: netip.MustParseAddrPort("192.0.2.1:40000"), Server: netip.MustParseAddrPort("198.51.100.1:25"),
	}
	h.c, h.s = newSide(t, "client", client), newSide(t, "server", server)
	ctx, cancel := context.WithCancel(t.Context())
	h.stop = cancel
	door := New(cfg)
	go func() {
		defer close(h.done)
		door.Serve(ctx, h.draining, conn)
	}()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		cancel()
		<-h.done
	})
	return h
}

// end closes both sides; the handler must end by itself and leave nothing in the spool.
func (h *harness) end() {
	h.t.Helper()
	h.c.Close()
	h.s.Close()
	h.ended()
}

// ended waits until the handler has ended.
func (h *harness) ended() {
	h.t.Helper()
	select {
	case <-h.done:
	case <-time.After(10 * time.Second):
		h.t.Fatal("the handler does not end")
	}
	if files, octets := h.pool.Usage(); files != 0 || octets != 0 {
		h.t.Errorf("%d octets in %d files are left in the spool", octets, files)
	}
}

// greet has banner and EHLO exchanged.
func (h *harness) greet(keywords ...string) {
	h.t.Helper()
	h.s.say("220 mx.example ESMTP")
	h.c.want("220 mx.example ESMTP")
	h.c.say("EHLO client.example")
	h.s.wantLine("EHLO client.example")
	lines := append([]string{"mx.example"}, keywords...)
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + l
	}
	h.s.say(lines...)
	h.c.reply("250")
}

// envelope has MAIL and RCPTs accepted.
func (h *harness) envelope(from string, to ...string) {
	h.t.Helper()
	cmds := []string{"MAIL FROM:<" + from + ">"}
	for _, a := range to {
		cmds = append(cmds, "RCPT TO:<"+a+">")
	}
	for _, c := range cmds {
		h.c.say(c)
		h.s.wantLine(c)
		h.s.say("250 ok")
		h.c.want("250 ok")
	}
}

// take plays the server for one message by DATA, to which it replies; it returns the content's wire octets.
func (h *harness) take(reply string) string {
	h.t.Helper()
	h.s.wantLine("DATA")
	h.s.say("354 go")
	wire := h.s.block()
	h.s.say(reply)
	return wire
}

// side is a client or a server played by the test.
type side struct {
	net.Conn
	t    *testing.T
	name string
	br   *bufio.Reader
}

func newSide(t *testing.T, name string, c net.Conn) *side {
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

// reply reads a whole reply of that code and returns its lines.
func (p *side) reply(code string) (lines []string) {
	p.t.Helper()
	for {
		l := p.want(code)
		lines = append(lines, l)
		if len(l) == 3 || l[3] == ' ' {
			return lines
		}
	}
}

// block reads up to the end of data and returns the wire octets before it.
func (p *side) block() string {
	p.t.Helper()
	var b strings.Builder
	b.WriteString("\r\n")
	for !strings.HasSuffix(b.String(), "\r\n.\r\n") {
		p.SetReadDeadline(time.Now().Add(patience))
		c, err := p.br.ReadByte()
		if err != nil {
			p.t.Fatalf("%s: block: %v after %q", p.name, err, b.String())
		}
		b.WriteByte(c)
	}
	return strings.TrimSuffix(b.String()[2:], ".\r\n")
}

// rest reads to the end of the connection and returns what came, and whether the end was orderly.
func (p *side) rest() (octets string, orderly bool) {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(p.br)
	if err != nil && (isTimeout(err) || errors.Is(err, net.ErrClosed)) {
		p.t.Fatalf("%s: the connection does not end: %v after %q", p.name, err, b)
	}
	return string(b), err == nil
}

// reset ends the connection by RST.
func (p *side) reset() { proxy.Reset(p.Conn) }

// tcpPair returns both ends of a TCP connection.
func tcpPair(t *testing.T) (dialed, accepted *net.TCPConn) {
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
