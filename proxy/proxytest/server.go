package proxytest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/proxy"
)

// Server is a fake SMTP server that keeps what it is sent: strict where SMTP is, so that a gateway which takes
// liberties is found out, except for the end of data where EOD says otherwise. Set the fields before Start.
type Server struct {
	Greeting string      // the banner; default "220 mx.example ESMTP"
	Caps     []string    // lines of the EHLO reply behind the first; they may hold anything
	TLSCaps  []string    // those after STARTTLS; nil: Caps without STARTTLS
	TLS      *tls.Config // for STARTTLS, and from the first octet with ImplicitTLS
	Implicit bool
	EOD      *EODModel // nil: strict
	MaxSize  int64     // of a message; more is answered 552

	// Reply answers a command in place of the server; "" leaves it alone. The events "banner", "354" (DATA), "dot"
	// (a message is there, not stored yet), "stored" (its reply) and "auth" (a line of SASL) are asked for, too. The
	// answer is sent with CRLF; with 354 changed to another code no content is read. A refused "dot" is not stored.
	Reply func(event, line string) string
	// Delay is how long the server thinks before it answers the event, a verb or one of those above.
	Delay func(event string) time.Duration
	// Fault is asked at every event, and what it returns happens to the connection then. "read" and "write" are asked
	// before each block of octets, with the number so far in octets.
	Fault func(event string, octets int64) Fault

	t        testing.TB
	l        net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
	dials    int
	commands []string
	messages []Stored
	stray    [][]byte
	changed  chan struct{}
	closed   bool
}

// Fault is what happens to a connection of a Server.
type Fault uint8

// The faults.
const (
	NoFault Fault = iota
	Close         // orderly
	RST
	Hang // nothing more is said; the connection ends with the server
)

// Stored is a message that a Server has accepted.
type Stored struct {
	Helo    string
	From    string   // what follows MAIL FROM:, as received
	To      []string // what follows RCPT TO:
	Content []byte   // without stuffing
	Wire    []byte   // as received, the end of data included; empty for BDAT
	BDAT    bool
	TLS     bool
	User    string
}

// Start begins to listen on a free port of the loopback; the server ends with the test.
func (s *Server) Start(t testing.TB) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.t, s.l, s.conns, s.changed = t, l, map[net.Conn]struct{}{}, make(chan struct{})
	s.wg.Add(1)
	go s.accept()
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server and its connections.
func (s *Server) Stop() {
	s.l.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Addr returns the server's address.
func (s *Server) Addr() netip.AddrPort { return addrPort(s.l.Addr()) }

// Dial returns a proxy.Dialer that reaches the server.
func (s *Server) Dial() proxy.Dialer { return DialTo(s.Addr()) }

// Messages returns what is stored so far.
func (s *Server) Messages() []Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// Commands returns the lines that were read as commands so far, of all connections.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commands)
}

// Dials returns how many connections were made.
func (s *Server) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// Active returns how many connections are open.
func (s *Server) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Stray returns what came where no octet may come, such as plaintext before a TLS handshake.
func (s *Server) Stray() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stray)
}

// Wait waits until ok is true, which it may become whenever the server has seen something.
func (s *Server) Wait(d time.Duration, ok func() bool) bool {
	end := time.After(d)
	for {
		s.mu.Lock()
		ch := s.changed
		s.mu.Unlock()
		if ok() {
			return true
		}
		select {
		case <-ch:
		case <-time.After(10 * time.Millisecond):
		case <-end:
			return ok()
		}
	}
}

// note changes what the server remembers.
func (s *Server) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		ok := true
		s.note(func() {
			s.dials++
			if ok = !s.closed; ok {
				s.conns[c] = struct{}{}
			}
		})
		if !ok {
			c.Close()
			return
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			x := &session{s: s, tcp: c}
			x.use(&faulty{Conn: c, x: x})
			x.serve()
			c.Close()
			s.note(func() { delete(s.conns, c) })
		}()
	}
}

// session is one connection of a Server.
type session struct {
	s    *Server
	tcp  net.Conn
	conn net.Conn
	br   *bufio.Reader
	tls  bool
	dead error

	helo, user string
	from       string
	mail       bool
	to         []string
	chunks     []byte
	chunking   bool
	skipLF     bool // the end of data was taken at its CR
}

// faulty counts octets and asks for faults.
type faulty struct {
	net.Conn
	x       *session
	in, out int64
}

// Read implements io.Reader.
func (f *faulty) Read(p []byte) (int, error) {
	if err := f.x.fault("read", f.in); err != nil {
		return 0, err
	}
	n, err := f.Conn.Read(p)
	f.in += int64(n)
	return n, err
}

// Write implements io.Writer.
func (f *faulty) Write(p []byte) (int, error) {
	if err := f.x.fault("write", f.out); err != nil {
		return 0, err
	}
	n, err := f.Conn.Write(p)
	f.out += int64(n)
	return n, err
}

var errFault = errors.New("fault")

// fault lets the event's fault happen.
func (x *session) fault(event string, octets int64) error {
	if x.dead != nil {
		return x.dead
	}
	if x.s.Fault == nil {
		return nil
	}
	switch x.s.Fault(event, octets) {
	case NoFault:
		return nil
	case RST:
		proxy.Reset(x.tcp)
	case Close:
		x.tcp.Close()
	case Hang:
		io.Copy(io.Discard, x.tcp) // until the other side or the test ends
	}
	x.dead = errFault
	return errFault
}

func (x *session) use(c net.Conn) { x.conn, x.br = c, bufio.NewReaderSize(c, 32<<10) }

// say answers an event; it returns the code that was sent, or an error.
func (x *session) say(event, line, reply string) (int, error) {
	if x.s.Delay != nil {
		if d := x.s.Delay(event); d > 0 {
			time.Sleep(d)
		}
	}
	if err := x.fault(event, 0); err != nil {
		return 0, err
	}
	if x.s.Reply != nil {
		if r := x.s.Reply(event, line); r != "" {
			reply = r
		}
	}
	code, _ := strconv.Atoi(reply[:min(3, len(reply))])
	if _, err := io.WriteString(x.conn, reply+"\r\n"); err != nil {
		return 0, err
	}
	return code, nil
}

// serve holds the conversation.
func (x *session) serve() {
	if x.s.Implicit {
		if !x.startTLS() {
			return
		}
	}
	greeting := x.s.Greeting
	if greeting == "" {
		greeting = "220 mx.example ESMTP"
	}
	if _, err := x.say("banner", "", greeting); err != nil {
		return
	}
	for {
		if x.skipLF {
			x.skipLF = false
			if b, err := x.br.Peek(1); err == nil && b[0] == '\n' {
				x.br.Discard(1)
			}
		}
		line, err := x.br.ReadString('\n')
		if err != nil {
			return
		}
		x.s.note(func() { x.s.commands = append(x.s.commands, strings.TrimRight(line, "\r\n")) })
		if x.s.EOD != nil { // such a server is lenient with commands, too
			line = strings.TrimRight(line, "\r\n") + "\r\n"
		}
		if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\x00") {
			if _, err := x.say("bad", line, "500 5.5.2 line does not end in CRLF, or holds CR or NUL"); err != nil {
				return
			}
			continue
		}
		if !x.command(line[:len(line)-2]) {
			return
		}
	}
}

// command carries out one command; it returns false when the connection is over.
func (x *session) command(line string) bool {
	verb, rest, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	reply := "250 2.0.0 Ok"
	switch verb {
	case "EHLO", "HELO", "LHLO":
		reply = x.hello(verb)
	case "MAIL":
		if x.helo == "" || x.mail || !strings.EqualFold(rest[:min(5, len(rest))], "FROM:") {
			reply = "503 5.5.1 bad sequence"
		}
	case "RCPT":
		if !x.mail || !strings.EqualFold(rest[:min(3, len(rest))], "TO:") {
			reply = "503 5.5.1 bad sequence"
		}
	case "DATA":
		return x.data(line)
	case "BDAT":
		return x.bdat(line)
	case "AUTH":
		return x.auth(line)
	case "STARTTLS":
		if x.s.TLS == nil || x.tls {
			reply = "502 5.5.1 no TLS"
			break
		}
		code, err := x.say(verb, line, "220 2.0.0 go ahead")
		return err == nil && (code != 220 || x.startTLS())
	case "RSET", "NOOP", "VRFY", "EXPN", "HELP", "ETRN":
	case "QUIT":
		reply = "221 2.0.0 bye"
	case "XCLIENT":
		reply = "220 mx.example ESMTP"
	default:
		reply = "500 5.5.2 unknown command"
	}
	code, err := x.say(verb, line, reply)
	if err != nil {
		return false
	}
	if code/100 == 2 {
		x.accepted(verb, rest)
	}
	return verb != "QUIT" && code != 421
}

// accepted changes the state by a command that was answered 2xx.
func (x *session) accepted(verb, rest string) {
	switch verb {
	case "EHLO", "HELO", "LHLO":
		x.helo = rest
		x.reset()
	case "RSET":
		x.reset()
	case "XCLIENT":
		x.helo = ""
		x.reset()
	case "MAIL":
		x.mail, x.from = true, strings.TrimSpace(rest[5:])
	case "RCPT":
		x.to = append(x.to, strings.TrimSpace(rest[3:]))
	}
}

func (x *session) reset() {
	x.mail, x.from, x.to, x.chunks, x.chunking = false, "", nil, nil, false
}

func (x *session) hello(verb string) string {
	if verb == "HELO" {
		return "250 mx.example"
	}
	caps := x.s.Caps
	if x.tls && x.s.TLSCaps != nil {
		caps = x.s.TLSCaps
	} else if x.tls {
		caps = slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return strings.EqualFold(c, "STARTTLS") })
	}
	lines := append([]string{"mx.example"}, caps...)
	for i := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + lines[i]
	}
	return strings.Join(lines, "\r\n")
}

// startTLS shakes hands. Octets that came before the hello are kept as stray.
func (x *session) startTLS() bool {
	if n := x.br; n != nil && n.Buffered() > 0 {
		b, _ := n.Peek(n.Buffered())
		if b[0] != 0x16 {
			stray := bytes.Clone(b)
			x.s.note(func() { x.s.stray = append(x.s.stray, stray) })
			return false
		}
	}
	c := tls.Server(&pushed{x.conn, x.br}, x.s.TLS)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if c.Handshake() != nil {
		return false
	}
	c.SetDeadline(time.Time{})
	x.tls = true
	x.helo = ""
	x.reset()
	x.use(c)
	return true
}

// pushed is a connection of which octets were read ahead.
type pushed struct {
	net.Conn
	br *bufio.Reader
}

// Read implements io.Reader.
func (p *pushed) Read(b []byte) (int, error) { return p.br.Read(b) }

// data reads a message.
func (x *session) data(line string) bool {
	reply := "354 go ahead"
	switch {
	case !x.mail || x.chunking:
		reply = "503 5.5.1 bad sequence"
	case len(x.to) == 0:
		reply = "554 5.5.1 no valid recipients"
	}
	code, err := x.say("354", line, reply)
	if err != nil {
		return false
	}
	if code != 354 {
		return code != 421
	}
	wire, err := x.block()
	if err != nil {
		return false
	}
	return x.store(Stored{Content: unstuff(wire), Wire: wire})
}

// block reads to the end of data of the server's model.
func (x *session) block() ([]byte, error) {
	model := EODModels()[0]
	if x.s.EOD != nil {
		model = *x.s.EOD
	}
	var b []byte
	for {
		if x.s.EOD == nil { // strict: by lines, which is fast for large messages
			l, err := x.br.ReadSlice('\n')
			begin := len(b) == 0 || bytes.HasSuffix(b, []byte("\r\n"))
			b = append(b, l...)
			if err != nil && err != bufio.ErrBufferFull {
				return nil, err
			}
			if begin && string(l) == ".\r\n" {
				return b, nil
			}
			continue
		}
		c, err := x.br.ReadByte()
		if err != nil {
			return nil, err
		}
		if b = append(b, c); c == '\n' || c == '\r' {
			if model.End(b) == len(b) {
				x.skipLF = c == '\r'
				return b, nil
			}
		}
	}
}

// unstuff returns the content of a block as a strict reader has it.
func unstuff(wire []byte) []byte {
	wire = bytes.TrimSuffix(wire, []byte(".\r\n"))
	var out []byte
	for l := range bytes.SplitAfterSeq(wire, []byte("\r\n")) {
		out = append(out, bytes.TrimPrefix(l, []byte("."))...)
	}
	return out
}

// store answers the end of a message and keeps it when the answer is positive.
func (x *session) store(m Stored) bool {
	m.Helo, m.From, m.To, m.TLS, m.User = x.helo, x.from, x.to, x.tls, x.user
	x.reset()
	reply := "250 2.0.0 Ok: queued as " + strconv.Itoa(len(x.s.Messages())+1)
	if x.s.MaxSize > 0 && int64(len(m.Content)) > x.s.MaxSize {
		reply = "552 5.3.4 message too big"
	}
	if x.s.Reply != nil {
		if r := x.s.Reply("dot", ""); r != "" {
			reply = r
		}
	}
	if err := x.fault("dot", 0); err != nil {
		return false
	}
	if reply[0] == '2' {
		x.s.note(func() { x.s.messages = append(x.s.messages, m) })
	}
	code, err := x.say("stored", "", reply)
	return err == nil && code != 421
}

// bdat reads a chunk (RFC 3030 §2).
func (x *session) bdat(line string) bool {
	f := strings.Fields(line)
	var n int64 = -1
	if len(f) == 2 || len(f) == 3 && strings.EqualFold(f[2], "LAST") {
		if v, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			n = v
		}
	}
	if n < 0 {
		x.say("BDAT", line, "501 5.5.4 syntax")
		return false
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, x.br, n); err != nil {
		return false
	}
	if !x.mail || len(x.to) == 0 {
		_, err := x.say("BDAT", line, "503 5.5.1 bad sequence")
		return err == nil
	}
	x.chunking = true
	x.chunks = append(x.chunks, b.Bytes()...)
	if len(f) == 3 {
		return x.store(Stored{Content: x.chunks, BDAT: true})
	}
	code, err := x.say("BDAT", line, fmt.Sprintf("250 2.0.0 %d octets", n))
	return err == nil && code != 421
}

// auth accepts every credential that has a form.
func (x *session) auth(line string) bool {
	f := strings.Fields(line)
	if len(f) < 2 {
		_, err := x.say("AUTH", line, "501 5.5.4 syntax")
		return err == nil
	}
	rounds := map[string]int{"LOGIN": 2, "CRAM-MD5": 1}[strings.ToUpper(f[1])]
	if len(f) == 2 && rounds == 0 {
		rounds = 1
	} else if len(f) == 3 && rounds > 0 {
		rounds--
	}
	event := "AUTH"
	for range rounds {
		code, err := x.say(event, line, "334 "+map[bool]string{true: "VXNlcm5hbWU6", false: ""}[rounds == 2])
		if err != nil {
			return false
		}
		if code != 334 {
			return code != 421
		}
		if line, err = x.br.ReadString('\n'); err != nil {
			return false
		}
		if event = "auth"; line == "*\r\n" {
			_, err := x.say(event, line, "501 5.7.0 cancelled")
			return err == nil
		}
	}
	code, err := x.say(event, line, "235 2.7.0 welcome")
	if code == 235 {
		x.user = f[1]
	}
	return err == nil && code != 421
}
