package pop3

import (
	"errors"
	"strings"
	"time"

	"mailweir/proxy/smtpwire"
	"mailweir/tlsunwrap"
)

// maxBatch is how many commands are sent to the server before their replies are read (P-018).
const maxBatch = 100

// converse carries the conversation to its end and says why it has ended.
func (s *session) converse() error {
	err := s.firstBytes()
	if err == nil && s.down == nil {
		err = s.greeting()
	}
	for err == nil {
		err = s.nextCommand()
	}
	if errors.Is(err, errWoken) {
		err = s.serverSpoke()
	}
	return err
}

// firstBytes waits for whichever side speaks first and decides what the connection is.
func (s *session) firstBytes() error {
	if s.c.Implicit {
		s.opening = s.h.set.FirstBytes
	}
	first, err := s.client.br.Peek(1)
	s.opening = 0
	s.idle.Store(false)
	if errors.Is(err, errWoken) {
		return s.claim()
	}
	if err != nil {
		return err
	}
	if err := s.claim(); err != nil {
		return err
	}
	if first[0] != 0x16 || s.server.pending() > 0 {
		return nil // an early talker: it gets the greeting first
	}
	// A client that begins TLS at once: on a port for that, or by mistake on another (S-241).
	if first, err = s.client.br.Peek(6); err != nil {
		return err
	}
	if err := s.claim(); err != nil || !tlsunwrap.IsClientHello(first) || s.server.pending() > 0 {
		return err
	}
	return s.unwrap(s.client.unread())
}

// greeting passes the server's greeting on, octet for octet: APOP is a digest over it (P-001).
func (s *session) greeting() error {
	if err := s.claim(); err != nil {
		return err
	}
	s.patience = s.h.set.ReplyTimeout
	first, err := s.server.br.Peek(1)
	if err != nil {
		return s.fail(err)
	}
	if first[0] != '+' && first[0] != '-' {
		return errNotPOP3
	}
	l, err := smtpwire.ReadLine(s.server.br, maxReplyLine)
	if err != nil {
		return s.fail(err)
	}
	positive, ok := statusOf(l)
	if !ok {
		s.server.pre = append(append([]byte{}, l.Text...), s.server.unread()...)
		return errNotPOP3
	}
	s.say(string(l.Text))
	if !positive { // P-002: the server closes, or does not: there is nothing left to say either way
		return errSaid
	}
	return nil
}

// nextCommand reads one command and carries it out. An error ends the session.
func (s *session) nextCommand() error {
	if !smtpwire.LineBuffered(s.client.br) || len(s.fifo) >= maxBatch || len(s.server.out) > lineBuffer {
		if err := s.settle(); err != nil {
			return err
		}
	}
	first, err := s.client.br.Peek(1)
	if err == nil {
		if c := first[0]; c < ' ' && c != '\r' && c != '\n' && c != '\t' || c >= 0x7f {
			s.special("not-pop", "binary octets from the client")
			return s.lastWord("-ERR not a command, closing connection")
		}
	}
	var l smtpwire.Line
	if err == nil {
		l, err = smtpwire.ReadLine(s.client.br, smtpwire.MaxAuthLine)
	}
	s.idle.Store(false)
	switch {
	case errors.Is(err, smtpwire.ErrEndless):
		return s.lastWord("-ERR line too long, closing connection")
	case err != nil:
		return err // a line that has no end is no command, whatever it says
	case l.BareCR || l.NUL: // P-020: servers may split here
		return s.answer("-ERR bare CR or NUL in command")
	case l.Overlong:
		return s.answer("-ERR line too long")
	}
	return s.command(string(l.Text), l.Size)
}

// command carries out one command.
func (s *session) command(line string, size int) error {
	c, f, known, ok := parseCommand(line)
	switch {
	case !known:
		return s.unknown(c.verb)
	case size > maxCommand && f.reply != apart:
		return s.answer("-ERR line too long")
	case !ok:
		return s.answer("-ERR syntax error in " + c.verb)
	case f.before && !s.state.tls && s.h.requireTLS.Has(s.c.Server): // P-095
		s.special("downgrade", "the server requires TLS by configuration and the session has none")
		return s.answer("-ERR [SYS/PERM] this server may be used with TLS only")
	}
	switch c.verb {
	case "RETR":
		return s.retr(c)
	case "TOP":
		return s.top(c)
	case "STLS":
		return s.stls(c)
	case "AUTH":
		if c.bare {
			return s.forward(pending{command: c, reply: many})
		}
		return s.authenticate(c)
	case "QUIT":
		if err := s.forward(pending{command: c}); err != nil {
			return err
		}
		if err := s.settle(); err != nil {
			return err
		}
		return errQuit
	}
	return s.forward(pending{command: c, reply: f.reply})
}

// unknown refuses a command that is not passed on.
func (s *session) unknown(verb string) error {
	if v, _ := smtpwire.Lookup(verb); v.Has(smtpwire.Foreign) || verb == "EHLO" || verb == "HELO" {
		s.special("not-pop", "the client says "+printable(verb, 20))
		return s.lastWord("-ERR not a command, closing connection")
	}
	if s.badVerbs++; s.badVerbs >= s.h.set.MaxBadVerbs {
		return s.lastWord("-ERR too many unknown commands, closing connection")
	}
	return s.answer("-ERR unknown command")
}

// pending is a command whose reply has not been given to the client yet, or a reply of ours in its turn.
type pending struct {
	command
	reply reading
	local string // a reply of ours: the server is not asked
}

// forward passes a command on. It is sent when the client has no more to say for the moment.
func (s *session) forward(p pending) error {
	s.fifo = append(s.fifo, p)
	s.server.out = append(append(s.server.out, p.line...), '\r', '\n')
	return nil
}

// answer gives the client a reply of ours in its turn.
func (s *session) answer(reply string) error {
	if len(s.fifo) > 0 {
		s.fifo = append(s.fifo, pending{local: reply})
		return nil
	}
	s.say(reply)
	if len(s.client.out) < lineBuffer {
		return nil // more may follow; whoever waits next flushes
	}
	return s.flushClient()
}

// say puts a line before the client.
func (s *session) say(line string) {
	s.client.out = append(append(s.client.out, line...), '\r', '\n')
}

func (s *session) flushClient() error {
	if err := s.client.flush(); err != nil {
		return errors.Join(errClientGone, err)
	}
	return nil
}

// lastWord says something to the client in its turn and ends the session.
func (s *session) lastWord(reply string) error {
	return errors.Join(s.answer(reply), s.settle(), errSaid)
}

// settle sends everything that waits, and gives the client the replies to it.
func (s *session) settle() error {
	if len(s.fifo) > 0 {
		if err := s.ask(); err != nil {
			return err
		}
	}
	for len(s.fifo) > 0 {
		p := s.fifo[0]
		s.fifo = s.fifo[1:]
		if p.local != "" {
			s.say(p.local)
		} else if err := s.reply(p); err != nil {
			s.flushClient()
			return err
		}
		if len(s.client.out) >= lineBuffer {
			if err := s.flushClient(); err != nil {
				return err
			}
		}
	}
	s.fifo = nil
	if !smtpwire.LineBuffered(s.client.br) {
		return s.flushClient()
	}
	return nil
}

// ask takes the server's leg and sends what waits for it.
func (s *session) ask() error {
	if err := s.claim(); err != nil {
		return err
	}
	s.patience = s.h.set.ReplyTimeout
	if s.server.pending() > 0 { // before a command was sent: it cannot be its reply
		return errWoken
	}
	if err := s.server.flush(); err != nil && !isTimeout(err) {
		s.log.Debug("write to server", "error", err) // what it has still said is read, then that is it
	} else if err != nil {
		return s.fail(err)
	}
	return nil
}

// status reads the first line of a reply.
func (s *session) status() (text string, positive bool, err error) {
	l, err := smtpwire.ReadLine(s.server.br, maxReplyLine)
	if err != nil {
		return "", false, s.serverError(err)
	}
	positive, ok := statusOf(l)
	if !ok {
		return "", false, s.malformed(l)
	}
	return string(l.Text), positive, nil
}

// serverError notes an error of reading from the server.
func (s *session) serverError(err error) error {
	switch {
	case errors.Is(err, smtpwire.ErrEndless):
		err = errMalformed
	case s.ctx.Err() != nil:
		err = s.ctx.Err()
	}
	return s.fail(err)
}

func (s *session) malformed(l smtpwire.Line) error {
	s.special("malformed-reply", string(l.Text[:min(len(l.Text), 80)]))
	return s.fail(errMalformed)
}

// reply gives the client the reply to p.
func (s *session) reply(p pending) error {
	text, positive, err := s.status()
	if err != nil {
		return err
	}
	if positive {
		text = s.noted(p, text)
	}
	s.say(text)
	if p.reply != many || !positive {
		return nil
	}
	return s.listing(p)
}

// noted takes note of a positive reply and returns what of it the client is to see.
func (s *session) noted(p pending, text string) string {
	switch p.verb {
	case "USER":
		s.state.user = p.rest
	case "PASS":
		s.state.login = true
	case "APOP":
		if i := strings.LastIndexByte(p.rest, ' '); i > 0 {
			s.state.user = p.rest[:i]
		}
		s.state.login = true
	case "DELE":
		s.state.deleted[p.n] = true
	case "RSET":
		clear(s.state.deleted)
	case "STAT":
		return s.statLine(text)
	case "LIST":
		if rest, ok := strings.CutPrefix(text, "+OK "); ok && !p.bare {
			return "+OK " + s.listLine(rest)
		}
	case "UIDL":
		if !p.bare {
			s.uidlLine(strings.TrimPrefix(text, "+OK "))
		}
	}
	return text
}

// listing gives the client the lines of a reply up to the final dot.
func (s *session) listing(p pending) error {
	f := s.filter(p)
	s.patience = s.h.set.DataTimeout
	defer func() { s.patience = s.h.set.ReplyTimeout }()
	for {
		l, err := smtpwire.ReadLine(s.server.br, maxReplyLine)
		if err != nil {
			return s.serverError(err)
		}
		if !l.Clean() { // also a lone dot that is not the end for everybody
			return s.malformed(l)
		}
		text := string(l.Text)
		if text == "." {
			f.end()
			s.say(".")
			return nil
		}
		if text, ok := f.line(text); ok {
			s.say(text)
		}
		if len(s.client.out) >= lineBuffer {
			if err := s.flushClient(); err != nil {
				return err
			}
		}
	}
}

// serverSpoke deals with what the server says, or does, out of turn.
func (s *session) serverSpoke() error {
	if err := s.claim(); err != nil && s.server.pending() == 0 {
		return err
	}
	s.patience = time.Second
	l, err := smtpwire.ReadLine(s.server.br, maxReplyLine)
	if err != nil {
		return s.serverError(err)
	}
	if positive, ok := statusOf(l); ok && !positive { // its last word, as servers have it that do not wait any more
		s.say(string(l.Text))
		s.flushClient()
		return s.fail(errClosed)
	}
	s.special("unsolicited-reply", string(l.Text[:min(len(l.Text), 80)]))
	return s.fail(errUnsolicited)
}
