package lab

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
	"strconv"
	"strings"
	"sync"
	"time"
)

// Stored is one message as a server took it, octet for octet.
type Stored struct {
	From string
	To   []string
	Data []byte // content after dot-unstuffing, or the chunks together
	Verb string // DATA or BDAT
	Helo string
	Peer netip.Addr
	Port uint16
	TLS  bool
}

// Stage names a moment in a conversation with a [Sink].
type Stage string

// The moments, in order. Each comes before the sink answers.
const (
	AtConnect Stage = "connect"
	AtEhlo    Stage = "ehlo"
	AtTLS     Stage = "starttls"
	AtMail    Stage = "mail"
	AtRcpt    Stage = "rcpt"
	AtData    Stage = "data"    // DATA was said, 354 not yet
	AtContent Stage = "content" // the first octets of content are there
	AtDot     Stage = "dot"     // all content is there, nothing is stored
	AtReply   Stage = "reply"   // the message is stored, the reply not yet written
	AtDone    Stage = "done"    // the reply is written
	AtQuit    Stage = "quit"
)

// Sink is a strict SMTP or LMTP server that keeps what it gets.
type Sink struct {
	LMTP     bool
	TLS      *tls.Config // offers STARTTLS when set
	Implicit bool        // TLS from the first octet
	Keywords []string    // instead of the usual ones
	Forget   bool        // count messages only
	// At is called at each stage, by the goroutine of the conversation; an error ends the conversation without a word.
	At func(s Stage, c net.Conn) error
	// Keep stores a message instead of the memory; the reply waits for it.
	Keep func(m Stored) error

	mu      sync.Mutex
	changed chan struct{}
	stored  []Stored
	count   int
	peers   []netip.Addr
	conns   map[net.Conn]bool
	running sync.WaitGroup
	listen  []net.Listener
}

// Serve takes connections of l until Close. It returns at once.
func (s *Sink) Serve(l net.Listener) {
	s.mu.Lock()
	s.listen = append(s.listen, l)
	s.mu.Unlock()
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.conns == nil {
				s.conns = map[net.Conn]bool{}
			}
			s.conns[c] = true
			s.peers = append(s.peers, addrOf(c).Addr())
			s.running.Add(1)
			s.mu.Unlock()
			go func() {
				defer s.running.Done()
				_ = (&session{sink: s, c: c, raw: c}).run()
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}()
		}
	}()
}

func addrOf(c net.Conn) netip.AddrPort {
	a, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Close ends everything and waits for it.
func (s *Sink) Close() {
	s.mu.Lock()
	for _, l := range s.listen {
		l.Close()
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Stored returns what was stored so far.
func (s *Sink) Stored() []Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Stored(nil), s.stored...)
}

// Count returns how many messages came.
func (s *Sink) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Peers returns the addresses that connected, in order.
func (s *Sink) Peers() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.Addr(nil), s.peers...)
}

// Clear forgets what was stored.
func (s *Sink) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored, s.count, s.peers = nil, 0, nil
}

// Wait waits until n messages have come.
func (s *Sink) Wait(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		have := s.count
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d messages: have %d: %w", n, have, ctx.Err())
		}
	}
}

// Take stores a message that another sink received.
func (s *Sink) Take(m Stored) error { return s.store(m) }

func (s *Sink) store(m Stored) error {
	if s.Keep != nil {
		if err := s.Keep(m); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Keep == nil && !s.Forget {
		s.stored = append(s.stored, m)
	}
	s.count++
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return nil
}

// session is one conversation.
type session struct {
	sink *Sink
	c    net.Conn // what is spoken over, TLS or not
	raw  net.Conn
	in   *bufio.Reader
	tls  bool

	helo  string
	from  string
	to    []string
	mail  bool
	chunk []byte
	bdat  bool
}

var errStop = errors.New("conversation ends here")

func (x *session) at(s Stage) error {
	if x.sink.At == nil {
		return nil
	}
	return x.sink.At(s, x.raw)
}

func (x *session) say(lines ...string) error {
	_, err := io.WriteString(x.c, strings.Join(lines, "\r\n")+"\r\n")
	return err
}

func (x *session) run() error {
	if err := x.at(AtConnect); err != nil {
		return err
	}
	if x.sink.Implicit {
		if err := x.shake(); err != nil {
			return err
		}
	}
	x.in = bufio.NewReaderSize(x.c, 64<<10)
	if err := x.say("220 sink.lab.example ESMTP"); err != nil {
		return err
	}
	for {
		_ = x.raw.SetReadDeadline(time.Now().Add(2 * time.Minute))
		line, err := x.in.ReadString('\n')
		if err != nil {
			return err
		}
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if err := x.command(strings.ToUpper(verb), arg); err != nil {
			return err
		}
	}
}

func (x *session) shake() error {
	c := tls.Server(x.raw, x.sink.TLS)
	_ = x.raw.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.Handshake(); err != nil {
		return err
	}
	_ = x.raw.SetDeadline(time.Time{})
	x.c, x.tls = c, true
	return nil
}

func (x *session) reset() { x.mail, x.from, x.to, x.chunk, x.bdat = false, "", nil, nil, false }

func (x *session) command(verb, arg string) error {
	switch verb {
	case "EHLO", "LHLO", "HELO":
		return x.hello(verb, arg)
	case "STARTTLS":
		return x.startTLS()
	case "MAIL":
		return x.mailFrom(arg)
	case "RCPT":
		return x.rcptTo(arg)
	case "DATA":
		return x.data()
	case "BDAT":
		return x.chunked(arg)
	case "RSET":
		x.reset()
		return x.say("250 2.0.0 flushed")
	case "NOOP":
		return x.say("250 2.0.0 ok")
	case "AUTH":
		return x.auth(arg)
	case "QUIT":
		if err := x.at(AtQuit); err != nil {
			return err
		}
		_ = x.say("221 2.0.0 bye")
		return errStop
	}
	return x.say("500 5.5.2 unknown command")
}

func (x *session) hello(verb, arg string) error {
	if err := x.at(AtEhlo); err != nil {
		return err
	}
	x.reset()
	x.helo = arg
	if verb == "HELO" {
		return x.say("250 sink.lab.example")
	}
	words := x.sink.Keywords
	if words == nil {
		words = []string{"PIPELINING", "SIZE 0", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "ENHANCEDSTATUSCODES", "DSN", "AUTH PLAIN LOGIN"}
	}
	if x.sink.TLS != nil && !x.tls {
		words = append([]string{"STARTTLS"}, words...)
	}
	lines := []string{"250-sink.lab.example"}
	for _, w := range words {
		lines = append(lines, "250-"+w)
	}
	lines[len(lines)-1] = "250 " + lines[len(lines)-1][4:]
	return x.say(lines...)
}

func (x *session) startTLS() error {
	if x.sink.TLS == nil || x.tls {
		return x.say("503 5.5.1 not here")
	}
	if err := x.at(AtTLS); err != nil {
		return err
	}
	if x.in.Buffered() > 0 {
		return errStop
	}
	if err := x.say("220 2.0.0 go ahead"); err != nil {
		return err
	}
	if err := x.shake(); err != nil {
		return err
	}
	x.in = bufio.NewReaderSize(x.c, 64<<10)
	x.reset()
	return nil
}

// auth takes any name and password; what it proves is that the lines of it came through.
func (x *session) auth(arg string) error {
	mech, initial, _ := strings.Cut(arg, " ")
	prompts := map[string][]string{"PLAIN": {"334 "}, "LOGIN": {"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"}}[strings.ToUpper(mech)]
	if prompts == nil {
		return x.say("504 5.5.4 unknown mechanism")
	}
	if initial != "" {
		prompts = prompts[1:]
	}
	for _, p := range prompts {
		if err := x.say(p); err != nil {
			return err
		}
		if _, err := x.in.ReadString('\n'); err != nil {
			return err
		}
	}
	return x.say("235 2.7.0 welcome")
}

func path(arg, word string) (string, bool) {
	if len(arg) < len(word) || !strings.EqualFold(arg[:len(word)], word) {
		return "", false
	}
	s := strings.TrimSpace(arg[len(word):])
	if !strings.HasPrefix(s, "<") {
		return "", false
	}
	p, _, ok := strings.Cut(s[1:], ">")
	return p, ok
}

func (x *session) mailFrom(arg string) error {
	if err := x.at(AtMail); err != nil {
		return err
	}
	from, ok := path(arg, "FROM:")
	if !ok || x.mail {
		return x.say("503 5.5.1 bad sequence or syntax")
	}
	x.mail, x.from = true, from
	return x.say("250 2.1.0 ok")
}

func (x *session) rcptTo(arg string) error {
	if err := x.at(AtRcpt); err != nil {
		return err
	}
	to, ok := path(arg, "TO:")
	if !ok || !x.mail {
		return x.say("503 5.5.1 bad sequence or syntax")
	}
	x.to = append(x.to, to)
	return x.say("250 2.1.5 ok")
}

func (x *session) data() error {
	if len(x.to) == 0 || x.bdat {
		return x.say("503 5.5.1 no recipients")
	}
	if err := x.at(AtData); err != nil {
		return err
	}
	if err := x.say("354 go ahead"); err != nil {
		return err
	}
	content, err := x.content()
	if err != nil {
		return err
	}
	return x.finish(content, "DATA")
}

// drain reads to CRLF.CRLF and keeps nothing: as little work as a measuring sink can do.
func (x *session) drain() error {
	end := []byte("\r\n.\r\n")
	tail := []byte("\r\n") // the end of what went before: a first line of one dot ends data too
	for {
		_ = x.raw.SetReadDeadline(time.Now().Add(2 * time.Minute))
		if _, err := x.in.Peek(1); err != nil {
			return err
		}
		b, err := x.in.Peek(x.in.Buffered())
		if err != nil {
			return err
		}
		// The end may lie across two reads.
		seam := append(bytes.Clone(tail), b[:min(len(b), 4)]...)
		if i := bytes.Index(seam, end); i >= 0 {
			_, err := x.in.Discard(i + len(end) - len(tail))
			return err
		}
		if i := bytes.Index(b, end); i >= 0 {
			_, err := x.in.Discard(i + len(end))
			return err
		}
		if len(b) >= 4 {
			tail = append(tail[:0], b[len(b)-4:]...)
		} else {
			tail = append(tail, b...)
			tail = tail[max(0, len(tail)-4):]
		}
		if _, err := x.in.Discard(len(b)); err != nil {
			return err
		}
	}
}

// content reads to CRLF.CRLF, exactly.
func (x *session) content() ([]byte, error) {
	if x.sink.Forget && x.sink.At == nil {
		return nil, x.drain()
	}
	var out []byte
	fresh, first := true, true // fresh: at the beginning of a line, that is after CRLF
	for {
		_ = x.raw.SetReadDeadline(time.Now().Add(2 * time.Minute))
		piece, err := x.in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if first {
			first = false
			if err := x.at(AtContent); err != nil {
				return nil, err
			}
		}
		if fresh && string(piece) == ".\r\n" {
			return out, nil
		}
		whole := bytes.HasSuffix(piece, []byte("\r\n")) || bytes.HasSuffix(out, []byte("\r")) && string(piece) == "\n"
		if fresh && piece[0] == '.' {
			piece = piece[1:]
		}
		fresh = whole
		out = append(out, piece...)
	}
}

// chunked reads one BDAT chunk.
func (x *session) chunked(arg string) error {
	f := strings.Fields(arg)
	if len(f) == 0 {
		return errStop
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || n < 0 {
		return errStop
	}
	if !x.bdat {
		if err := x.at(AtData); err != nil {
			return err
		}
	}
	first := min(n, 1)
	buf := bytes.NewBuffer(nil)
	if _, err := io.CopyN(buf, x.in, first); err != nil {
		return err
	}
	if err := x.at(AtContent); err != nil {
		return err
	}
	if _, err := io.CopyN(buf, x.in, n-first); err != nil {
		return err
	}
	if len(x.to) == 0 {
		return x.say("503 5.5.1 no recipients")
	}
	x.bdat = true
	x.chunk = append(x.chunk, buf.Bytes()...)
	if len(f) > 1 && strings.EqualFold(f[1], "LAST") {
		return x.finish(x.chunk, "BDAT")
	}
	return x.say(fmt.Sprintf("250 2.0.0 %d octets", n))
}

func (x *session) finish(content []byte, verb string) error {
	if err := x.at(AtDot); err != nil {
		return err
	}
	peer := addrOf(x.raw)
	m := Stored{From: x.from, To: x.to, Data: content, Verb: verb, Helo: x.helo, Peer: peer.Addr(), Port: peer.Port(), TLS: x.tls}
	n := 1
	if x.sink.LMTP {
		n = len(x.to)
	}
	x.reset()
	if err := x.sink.store(m); err != nil {
		return x.say("451 4.3.0 not stored")
	}
	if err := x.at(AtReply); err != nil {
		return err
	}
	for range n {
		if err := x.say("250 2.0.0 stored"); err != nil {
			return err
		}
	}
	return x.at(AtDone)
}
