package lab

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Talk is the client's side of an SMTP conversation in which every octet is the test's own choice.
type Talk struct {
	Conn net.Conn
	in   *bufio.Reader
}

// Reply is a reply with its lines as sent, without line ends.
type Reply struct {
	Code  int
	Lines []string
}

// String returns the reply in one line.
func (r Reply) String() string { return strings.Join(r.Lines, " / ") }

// Good reports whether the reply is a positive completion.
func (r Reply) Good() bool { return r.Code >= 200 && r.Code < 300 }

// talkTimeout ends a conversation in which nothing moves any more.
const talkTimeout = 30 * time.Second

// NewTalk begins a conversation over c; the banner is read by the first call of Reply.
func NewTalk(c net.Conn) *Talk { return &Talk{Conn: c, in: bufio.NewReader(c)} }

// Close closes the connection.
func (t *Talk) Close() { t.Conn.Close() }

// Reset ends the connection by a reset.
func (t *Talk) Reset() {
	c := t.Conn
	if s, ok := c.(*tls.Conn); ok {
		c = s.NetConn()
	}
	if c, ok := c.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	c.Close()
}

// Write sends octets as they are.
func (t *Talk) Write(p []byte) (int, error) {
	_ = t.Conn.SetWriteDeadline(time.Now().Add(talkTimeout))
	return t.Conn.Write(p)
}

// Reply reads one whole reply.
func (t *Talk) Reply() (r Reply, err error) {
	_ = t.Conn.SetReadDeadline(time.Now().Add(talkTimeout))
	for {
		line, err := t.in.ReadString('\n')
		if err != nil {
			return r, fmt.Errorf("read reply: %w", err)
		}
		line = strings.TrimRight(line, "\r\n")
		if len(line) < 3 {
			return r, fmt.Errorf("read reply: %q is none", line)
		}
		if r.Code, err = strconv.Atoi(line[:3]); err != nil {
			return r, fmt.Errorf("read reply: %q is none", line)
		}
		r.Lines = append(r.Lines, line)
		if len(line) == 3 || line[3] != '-' {
			return r, nil
		}
	}
}

// Cmd sends one command and reads its reply.
func (t *Talk) Cmd(format string, a ...any) (Reply, error) {
	if _, err := fmt.Fprintf(t, format+"\r\n", a...); err != nil {
		return Reply{}, fmt.Errorf("send command: %w", err)
	}
	return t.Reply()
}

// Must is Cmd that fails unless the reply has the code.
func (t *Talk) Must(code int, format string, a ...any) error {
	r, err := t.Cmd(format, a...)
	if err != nil {
		return err
	}
	if r.Code != code {
		return fmt.Errorf("%s: got %s, want %d", fmt.Sprintf(format, a...), r, code)
	}
	return nil
}

// StartTLS upgrades the conversation.
func (t *Talk) StartTLS(cfg *tls.Config) error {
	if err := t.Must(220, "STARTTLS"); err != nil {
		return err
	}
	return t.Handshake(cfg)
}

// Handshake speaks TLS from here on.
func (t *Talk) Handshake(cfg *tls.Config) error {
	c := tls.Client(t.Conn, cfg)
	_ = c.SetDeadline(time.Now().Add(talkTimeout))
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("shake hands: %w", err)
	}
	_ = c.SetDeadline(time.Time{})
	t.Conn, t.in = c, bufio.NewReader(c)
	return nil
}

// Greet reads the banner and says EHLO.
func (t *Talk) Greet() error {
	r, err := t.Reply()
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return fmt.Errorf("greeted with %s", r)
	}
	return t.Must(250, "EHLO client.lab.example")
}

// Envelope sends MAIL and RCPT.
func (t *Talk) Envelope(from string, to ...string) error {
	if err := t.Must(250, "MAIL FROM:<%s>", from); err != nil {
		return err
	}
	for _, r := range to {
		if err := t.Must(250, "RCPT TO:<%s>", r); err != nil {
			return err
		}
	}
	return nil
}

// Data sends content by DATA and returns the reply to the final dot.
func (t *Talk) Data(content []byte) (Reply, error) {
	if err := t.Must(354, "DATA"); err != nil {
		return Reply{}, err
	}
	if _, err := t.Write(Stuff(content)); err != nil {
		return Reply{}, fmt.Errorf("send content: %w", err)
	}
	return t.Reply()
}

// Bdat sends content by BDAT in chunks of at most size octets and returns the reply to the last.
func (t *Talk) Bdat(content []byte, size int) (r Reply, err error) {
	for {
		chunk := content[:min(size, len(content))]
		content = content[len(chunk):]
		last := ""
		if len(content) == 0 {
			last = " LAST"
		}
		if _, err := t.Write(append(fmt.Appendf(nil, "BDAT %d%s\r\n", len(chunk), last), chunk...)); err != nil {
			return r, fmt.Errorf("send chunk: %w", err)
		}
		if r, err = t.Reply(); err != nil || last != "" || !r.Good() {
			return r, err
		}
	}
}

// Deliver holds a whole conversation up to the reply to the message. at, when set, is called before each step; its error
// ends the conversation. The steps are AtConnect, AtMail, AtRcpt, AtData, AtContent (the first half goes out), AtDot
// (the second half) and AtReply.
func (t *Talk) Deliver(content []byte, to string, bdat bool, at func(Stage) error) (Reply, error) {
	type step struct {
		stage Stage
		do    func() error
	}
	steps := []step{
		{AtConnect, t.Greet},
		{AtMail, func() error { return t.Must(250, "MAIL FROM:<a@client.example>") }},
		{AtRcpt, func() error { return t.Must(250, "RCPT TO:<%s>", to) }},
	}
	send := func(b []byte) func() error {
		return func() error { _, err := t.Write(b); return err }
	}
	half := len(content) / 2
	if bdat {
		first := append(fmt.Appendf(nil, "BDAT %d\r\n", half), content[:half]...)
		second := append(fmt.Appendf(nil, "BDAT %d LAST\r\n", len(content)-half), content[half:]...)
		steps = append(steps, step{AtData, func() error {
			if err := send(first)(); err != nil {
				return err
			}
			r, err := t.Reply()
			if err == nil && !r.Good() {
				err = fmt.Errorf("first chunk: got %s", r)
			}
			return err
		}}, step{AtContent, send(second[:len(second)-1])}, step{AtDot, send(second[len(second)-1:])})
	} else {
		wire := Stuff(content)
		steps = append(steps, step{AtData, func() error { return t.Must(354, "DATA") }},
			step{AtContent, send(wire[:len(wire)/2])}, step{AtDot, send(wire[len(wire)/2:])})
	}
	steps = append(steps, step{AtReply, func() error { return nil }})
	for _, s := range steps {
		if at != nil {
			if err := at(s.stage); err != nil {
				return Reply{}, err
			}
		}
		if err := s.do(); err != nil {
			return Reply{}, fmt.Errorf("at %s: %w", s.stage, err)
		}
	}
	return t.Reply()
}

// Next sends one more message in a conversation that has said EHLO already.
func (t *Talk) Next(content []byte) (Reply, error) {
	if err := t.Envelope("a@client.example", "b@server.example"); err != nil {
		return Reply{}, err
	}
	return t.Data(content)
}

// Stuff returns content as DATA sends it: dots doubled after CRLF, and the end. Content that lacks a final CRLF gets
// one, since DATA cannot say otherwise.
func Stuff(content []byte) []byte {
	out := bytes.ReplaceAll(content, []byte("\r\n."), []byte("\r\n.."))
	if bytes.HasPrefix(content, []byte(".")) {
		out = append([]byte("."), out...)
	}
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\r\n")) {
		out = append(bytes.Clone(out), "\r\n"...)
	}
	return append(bytes.Clone(out), ".\r\n"...)
}

// Closed waits for the other side to end the conversation and returns what it said before.
func (t *Talk) Closed() (rest string, err error) {
	_ = t.Conn.SetReadDeadline(time.Now().Add(talkTimeout))
	b, err := io.ReadAll(t.in)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return string(b), fmt.Errorf("wait for close: %w", err)
	}
	return string(b), nil
}
