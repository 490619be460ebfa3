package proxytest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
)

// Env is what a handler under test is made from.
type Env struct {
	T       testing.TB
	Options map[string]string // the dialogue's "option" lines
	Scanner *Scanner
	Events  *Events
	Dial    proxy.Dialer // reaches the dialogue's server
	Log     *slog.Logger

	// For the step "tls": set by the Maker where the dialogue needs it.
	ClientTLS *tls.Config
	ServerTLS *tls.Config
}

// Maker makes the handler under test.
type Maker func(*Env) proxy.Handler

// RunDialogues runs the dialogues of the files that match pattern, each as a subtest named by its title.
func RunDialogues(t *testing.T, pattern string, mk Maker) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues match %s (%v)", pattern, err)
	}
	for _, f := range files {
		list, err := parseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			t.Run(strings.ReplaceAll(d.title, "/", "-"), func(t *testing.T) { runVaried(t, d, mk) })
		}
	}
}

// runVaried runs d once, or once for each combination of its variables' values.
func runVaried(t *testing.T, d *dialogue, mk Maker) {
	if len(d.vary) == 0 {
		run(t, d, mk)
		return
	}
	for _, vars := range d.combinations() {
		var name []string
		for _, v := range d.vary {
			name = append(name, v.name+"="+vars[v.name])
		}
		t.Run(strings.ReplaceAll(strings.Join(name, " "), "/", "-"), func(t *testing.T) {
			one, err := parseDialogue(d.file, d.text, d.first, vars)
			if err != nil {
				t.Fatal(err)
			}
			run(t, one, mk)
		})
	}
}

// runner is a dialogue that runs.
type runner struct {
	t       testing.TB
	env     *Env
	srv     *proxy.Server
	client  *peer
	server  *peer // nil until the gateway has connected
	serverL net.Listener
	timeout time.Duration
	script  []string // what happened
	last    *Scanned
	stop    context.CancelFunc
	drained chan error
}

// one is a proxy.Listener that gives one connection.
type one struct {
	net.Listener
	target netip.AddrPort
	ready  chan struct{} // closed once the client knows that it is connected: a reset must not come before
}

// AcceptConn implements proxy.Listener.
func (o *one) AcceptConn() (*proxy.Conn, error) {
	c, err := o.Accept()
	if err != nil {
		return nil, err
	}
	<-o.ready
	return &proxy.Conn{Conn: c, ID: proxy.NewConnID(), Client: addrPort(c.RemoteAddr()), Server: o.target, Divert: "forward"}, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// run runs one dialogue.
func run(t testing.TB, d *dialogue, mk Maker) {
	r := &runner{t: t, timeout: 5 * time.Second}
	serverL, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer serverL.Close()
	r.serverL = serverL
	target := addrPort(serverL.Addr())
	if d.refuses {
		serverL.Close()
	}
	gateL, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.env = &Env{T: t, Options: d.options, Scanner: &Scanner{}, Events: &Events{}, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	r.env.Dial = func(ctx context.Context, c *proxy.Conn) (net.Conn, error) {
		return r.srv.Dialer(func(ctx context.Context, _ *proxy.Conn) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", target.String())
		})(ctx, c)
	}
	r.srv = proxy.NewServer(proxy.Config{Handler: mk(r.env), Log: r.env.Log, Events: r.env.Events})
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	served, ready := make(chan error, 1), make(chan struct{})
	go func() { served <- r.srv.Serve(ctx, &one{gateL, target, ready}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	c, err := net.Dial("tcp", gateL.Addr().String())
	close(ready)
	if err != nil {
		t.Fatal(err)
	}
	r.client = newPeer("C", c)
	defer r.client.close()
	ok := r.steps(d.steps)
	r.finish(ok)
}

// testWriter sends the log to the test.
type testWriter struct{ t testing.TB }

// Write implements io.Writer.
func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimRight(p, "\n")))
	return len(p), nil
}

// steps runs the steps and reports whether all were as written.
func (r *runner) steps(steps []step) bool {
	for i := 0; i < len(steps); i++ {
		s := steps[i]
		if s.op == ">" || s.op == ">>" {
			// What is sent in a row leaves at once.
			out := s.octets
			for i+1 < len(steps) && steps[i+1].side == s.side && (steps[i+1].op == ">" || steps[i+1].op == ">>") {
				r.note(s.line)
				i++
				s = steps[i]
				out = append(out[:len(out):len(out)], s.octets...)
			}
			s.octets = out
		}
		if err := r.step(&s); err != nil {
			r.t.Errorf("%s: %s\n%v\nso far:\n%s\nevents:\n%s", s.where, short(s.line), err, r.sofar(), r.env.Events.JSON())
			return false
		}
		r.note(s.line)
	}
	return true
}

// note remembers a step that was made.
func (r *runner) note(line string) {
	r.script = append(r.script, "    "+short(line))
	if len(r.script) > 60 {
		r.script = r.script[1:]
	}
}

func (r *runner) sofar() string { return strings.Join(r.script, "\n") }

func short(s string) string {
	if len(s) > 160 {
		return s[:150] + "…"
	}
	return s
}

// differ is how a mismatch is shown.
func differ(want, got string) error {
	if len(want)+len(got) > 2000 {
		i := 0
		for i < len(want) && i < len(got) && want[i] == got[i] {
			i++
		}
		cut := func(s string) string { return s[max(0, i-40):min(len(s), i+100)] }
		return fmt.Errorf("  - want …%q… (%d octets)\n  + got  …%q… (%d octets), the first difference is octet %d", cut(want), len(want), cut(got), len(got), i)
	}
	return fmt.Errorf("  - want %q\n  + got  %q", want, got)
}

// step makes one step.
func (r *runner) step(s *step) error {
	if s.side != 0 {
		p, err := r.side(s)
		if err != nil || p == nil {
			return err
		}
		return p.step(s, r.timeout)
	}
	switch s.op {
	case "verdict":
		return r.verdict(s)
	case "scanned", "scanned~", "view", "view~":
		return r.scanned(s)
	case "event":
		return r.until("event "+s.args[0], func() bool { return r.env.Events.Has(s.args[0]) })
	case "event~":
		return r.until("event like "+s.re.String(), func() bool { return r.env.Events.Match(s.re) })
	case "no-event":
		if r.env.Events.Has(s.args[0]) {
			return fmt.Errorf("event %s was recorded", s.args[0])
		}
	case "pause":
		time.Sleep(s.d)
	case "timeout":
		r.timeout = s.d
	case "stop":
		r.stop()
	case "drain":
		r.drained = make(chan error, 1)
		go func() { r.drained <- r.srv.Drain(context.Background()) }()
		return r.until("draining", func() bool { return r.srv.Stats().Draining })
	case "tls":
		return r.tls(len(s.args) > 0 && s.args[0] == "fails")
	}
	return nil
}

// side returns the peer of a step; the server's is accepted when it is first needed. It returns nil when the step is
// done already.
func (r *runner) side(s *step) (*peer, error) {
	if s.side == 'C' {
		return r.client, nil
	}
	if s.op == "undialed" {
		r.serverL.(*net.TCPListener).SetDeadline(time.Now().Add(40 * time.Millisecond))
		if c, err := r.serverL.Accept(); err == nil || r.server != nil {
			if c != nil {
				c.Close()
			}
			return nil, errors.New("the gateway has connected to the server")
		}
		return nil, nil
	}
	if r.server == nil {
		r.serverL.(*net.TCPListener).SetDeadline(time.Now().Add(r.timeout))
		c, err := r.serverL.Accept()
		if err != nil {
			return nil, fmt.Errorf("the gateway does not connect to the server: %w", err)
		}
		r.server = newPeer("S", c)
	}
	if s.op == "dialed" {
		return nil, nil
	}
	return r.server, nil
}

// until waits for what happens in the handler's own time.
func (r *runner) until(what string, ok func() bool) error {
	for end := time.Now().Add(r.timeout); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("no %s", what)
		}
	}
	return nil
}

var actions = map[string]inspect.Action{"pass": inspect.Pass, "modify": inspect.Modify, "reject": inspect.Reject, "defer": inspect.Defer, "discard": inspect.Discard}

func (r *runner) verdict(s *step) error {
	switch s.args[0] {
	case "after":
		r.env.Scanner.Delay(s.d)
		return nil
	case "hang":
		r.env.Scanner.Hang()
		return nil
	case "panic":
		r.env.Scanner.Panic()
		return nil
	}
	v := inspect.Verdict{Action: actions[s.args[0]], Reason: s.args[0]}
	rest := s.args[1:]
	if len(rest) > 0 && len(rest[0]) == 3 && strings.Trim(rest[0], "0123456789") == "" {
		v.Reply.Code, _ = strconv.Atoi(rest[0])
		rest = rest[1:]
	}
	if len(rest) > 0 && strings.Count(rest[0], ".") == 2 {
		v.Reply.Enhanced = rest[0]
		rest = rest[1:]
	}
	v.Reply.Text = strings.Join(rest, " ")
	if v.Action == inspect.Discard {
		v.Quarantine = "q-test"
	}
	if v.Action == inspect.Modify { // a line on top; what is below stays
		r.env.Scanner.Modify(func(*inspect.Message) *inspect.Edits {
			return &inspect.Edits{List: []inspect.Edit{{New: inspect.Bytes("X-Modified: yes\r\n")}}}
		})
		return nil
	}
	r.env.Scanner.Answer(v)
	return nil
}

func (r *runner) scanned(s *step) error {
	if s.op == "view" || s.op == "view~" {
		if r.last == nil {
			return errors.New("no message was scanned before")
		}
		for _, v := range r.last.Views {
			if s.re != nil && s.re.Match(v) || s.re == nil && bytes.Equal(v, s.octets) {
				return nil
			}
		}
		return fmt.Errorf("no such view; there are %q", r.last.Views)
	}
	if s.op == "scanned" && len(s.args) == 1 && s.args[0] == "none" {
		if m, ok := r.env.Scanner.take(); ok {
			return fmt.Errorf("a message was scanned: %q", short(string(m.Content)))
		}
		return nil
	}
	var m Scanned
	if err := r.until("scanned message", func() (ok bool) { m, ok = r.env.Scanner.take(); return ok }); err != nil {
		return err
	}
	r.last = &m
	if s.re != nil {
		if !s.re.Match(m.Content) {
			return differ(s.re.String(), string(m.Content))
		}
	} else if !bytes.Equal(m.Content, s.octets) {
		return differ(string(s.octets), string(m.Content))
	}
	return nil
}

// tls makes both handshakes at once: the gateway needs the client's hello for the server's.
func (r *runner) tls(fails bool) error {
	if r.env.ClientTLS == nil || r.env.ServerTLS == nil {
		return errors.New("the test has set no ClientTLS and ServerTLS")
	}
	server, err := r.side(&step{side: 'S'})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- server.handshake(func(c net.Conn) *tls.Conn { return tls.Server(c, r.env.ServerTLS) }, r.timeout)
	}()
	cerr := r.client.handshake(func(c net.Conn) *tls.Conn { return tls.Client(c, r.env.ClientTLS) }, r.timeout)
	if fails {
		if cerr == nil {
			<-done
			return errors.New("the client's handshake succeeded")
		}
		r.client.close()
		<-done
		return nil
	}
	serr := <-done
	if cerr != nil || serr != nil {
		return fmt.Errorf("client: %v; server: %v", cerr, serr)
	}
	return nil
}

// finish ends what is still open and looks at what is left.
func (r *runner) finish(ok bool) {
	r.client.close()
	if r.server == nil && ok {
		r.serverL.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond))
		if c, err := r.serverL.Accept(); err == nil {
			r.server = newPeer("S", c)
		}
	}
	if r.server != nil {
		left := r.server.rest(r.timeout)
		for _, l := range strings.SplitAfter(left, "\r\n") {
			if ok && l != "" && l != "QUIT\r\n" && l != "RSET\r\n" {
				r.t.Errorf("the server was sent more than the dialogue shows: %q\nso far:\n%s", short(left), r.sofar())
				break
			}
		}
		r.server.close()
	}
	r.serverL.Close()
	if ok {
		if err := r.until("end of the handler within its time", func() bool { return r.srv.Stats().Active == 0 }); err != nil {
			r.t.Errorf("%v\nso far:\n%s", err, r.sofar())
		}
	}
	if n := r.srv.Stats().Panics; n != 0 {
		r.t.Errorf("the handler panicked; see the log")
	}
	if r.drained != nil {
		if !ok {
			r.stop()
		}
		<-r.drained
	}
}

// peer is one end of a dialogue.
type peer struct {
	name  string
	raw   *net.TCPConn
	conn  net.Conn // raw, or TLS on it
	br    *bufio.Reader
	split int
	out   chan func()
	ended chan struct{}
	shut  bool
}

// newPeer makes a peer whose writes happen in the order they were asked for and do not hold up the dialogue.
func newPeer(name string, c net.Conn) *peer {
	p := &peer{name: name, raw: c.(*net.TCPConn), conn: c, br: bufio.NewReaderSize(c, 64<<10), out: make(chan func(), 4096), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		for f := range p.out {
			f()
		}
	}()
	return p
}

// close ends the peer at once.
func (p *peer) close() {
	if !p.shut {
		p.shut = true
		close(p.out)
		p.raw.SetWriteDeadline(time.Now().Add(time.Second))
		<-p.ended
		p.raw.Close()
	}
}

// rest closes the sending half and returns what still comes.
func (p *peer) rest(d time.Duration) string {
	if p.shut {
		return ""
	}
	p.raw.CloseWrite()
	p.conn.SetReadDeadline(time.Now().Add(d))
	b, _ := io.ReadAll(io.LimitReader(p.br, 1<<20))
	return string(b)
}

// flush waits until everything asked for has been written.
func (p *peer) flush() {
	done := make(chan struct{})
	p.out <- func() { close(done) }
	<-done
}

func (p *peer) handshake(f func(net.Conn) *tls.Conn, d time.Duration) error {
	p.flush()
	if n := p.br.Buffered(); n > 0 {
		b, _ := p.br.Peek(n)
		return fmt.Errorf("unread before the handshake: %q", b)
	}
	c := f(p.conn)
	c.SetDeadline(time.Now().Add(d))
	if err := c.Handshake(); err != nil {
		return err
	}
	c.SetDeadline(time.Time{})
	p.conn, p.br = c, bufio.NewReaderSize(c, 64<<10)
	return nil
}

// step makes a step of one side.
func (p *peer) step(s *step, d time.Duration) error {
	if p.shut {
		return fmt.Errorf("%s has closed already", p.name)
	}
	p.conn.SetReadDeadline(time.Now().Add(d))
	switch s.op {
	case ">", ">>":
		conn, split := p.conn, p.split
		b := s.octets
		p.out <- func() {
			for len(b) > 0 {
				n := len(b)
				if split > 0 {
					n = min(split, n)
				}
				if _, err := conn.Write(b[:n]); err != nil {
					return // what is missing shows where it is waited for
				}
				b = b[n:]
			}
		}
	case "<":
		l, err := p.br.ReadString('\n')
		if want := string(s.octets) + "\r\n"; l != want {
			return wrong(want, l, err)
		}
	case "<~":
		l, err := p.br.ReadString('\n')
		if text, ok := strings.CutSuffix(l, "\r\n"); !ok || !s.re.MatchString(text) {
			return wrong(s.re.String(), l, err)
		}
	case "<<":
		b := make([]byte, len(s.octets))
		n, err := io.ReadFull(p.br, b)
		if !bytes.Equal(b[:n], s.octets) {
			return wrong(string(s.octets), string(b[:n]), err)
		}
	case "<*":
		for {
			l, err := p.br.ReadString('\n')
			if len(l) < 5 || l[:3] != strconv.Itoa(s.n) || !strings.HasSuffix(l, "\r\n") {
				return wrong(strconv.Itoa(s.n)+" …", l, err)
			}
			if l[3] != '-' {
				return nil
			}
		}
	case "<.":
		return p.block(s)
	case "silent":
		p.conn.SetReadDeadline(time.Now().Add(s.d))
		if _, err := p.br.Peek(1); err == nil {
			b, _ := p.br.Peek(p.br.Buffered())
			return fmt.Errorf("%s is sent %q", p.name, short(string(b)))
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s: connection ended: %v", p.name, err)
		}
	case "eof", "reset", "gone":
		return p.end(s.op)
	case "split":
		p.split = s.n
	case "close", "half", "rst":
		p.finish(s.op)
	}
	return nil
}

// wrong explains a line that is not the one wanted.
func wrong(want, got string, err error) error {
	d := differ(want, got)
	if err != nil {
		return fmt.Errorf("%w (%v)", d, err)
	}
	return d
}

// block reads a dot-terminated block off the wire, as it is.
func (p *peer) block(s *step) error {
	var b bytes.Buffer
	for {
		l, err := p.br.ReadBytes('\n')
		if err != nil {
			return wrong(string(s.octets), b.String()+string(l), err)
		}
		if string(l) == ".\r\n" && (b.Len() == 0 || bytes.HasSuffix(b.Bytes(), []byte("\r\n"))) {
			break
		}
		b.Write(l)
	}
	if !bytes.Equal(b.Bytes(), s.octets) {
		return differ(string(s.octets), b.String())
	}
	return nil
}

// end expects the end of the connection.
func (p *peer) end(how string) error {
	_, err := p.br.Peek(1)
	reset := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case err == nil:
		b, _ := p.br.Peek(p.br.Buffered())
		return fmt.Errorf("  - want the end of the connection\n  + got  %q", short(string(b)))
	case how == "eof" && err == io.EOF, how == "reset" && reset, how == "gone" && (reset || err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)):
		return nil
	}
	return fmt.Errorf("  - want %s\n  + got  %v", how, err)
}

// finish ends the connection from this side.
func (p *peer) finish(how string) {
	p.flush()
	switch how {
	case "half":
		if t, ok := p.conn.(*tls.Conn); ok {
			t.CloseWrite()
		}
		p.raw.CloseWrite()
		return
	case "rst":
		p.raw.SetLinger(0)
		p.raw.Close()
	default:
		p.conn.Close()
	}
	p.shut = true
	close(p.out)
	<-p.ended
}
