package smtp

import (
	"errors"
	"io"
	"strings"

	"mailweir/proxy/smtpwire"
)

// fromClient carries commands from the client to the server until the session is over.
func (s *session) fromClient() {
	err := s.firstBytes()
	for err == nil {
		err = s.nextCommand()
	}
	s.goodbye(err)
}

// nextCommand reads one command and carries it out. An error ends the session.
func (s *session) nextCommand() error {
	s.boundary = true
	first, err := s.client.br.Peek(1)
	if err == nil && s.draining.Load() {
		err = errDraining
	}
	s.boundary = false
	if err != nil {
		return err
	}
	if c := first[0]; c < ' ' && c != '\r' && c != '\n' && c != '\t' || c >= 0x7f {
		// No command begins like this: a TLS record, or another protocol (S-244, S-248).
		s.special("not-smtp", "binary octets from the client")
		s.abandon = true
		return s.lastWord(500, "5.5.2", "Syntax error, closing connection")
	}
	l, err := smtpwire.ReadLine(s.client.br, smtpwire.MaxAuthLine)
	if errors.Is(err, smtpwire.ErrEndless) {
		return s.lastWord(421, "4.7.0", "Line too long, closing connection")
	}
	if err != nil {
		return err // a line that has no end is no command, whatever it says
	}
	switch {
	case l.BareCR || l.NUL: // S-110: servers may split here
		return s.answer(s.reply(500, "5.5.2", "Syntax error: bare CR or NUL"))
	case l.Overlong:
		return s.answer(s.reply(500, "5.5.2", "Line too long"))
	case l.End == smtpwire.LF && (s.h.set.BareLf == "Reject" || s.strictLF):
		return s.answer(s.reply(500, "5.5.2", "Syntax error: bare LF"))
	}
	return s.command(smtpwire.ParseCommand(l.Text), l.Size)
}

// command carries out one command.
func (s *session) command(c smtpwire.Command, size int) error {
	v, known := smtpwire.Lookup(c.Verb)
	if size > v.Limit {
		return s.answer(s.reply(500, "5.5.2", "Line too long"))
	}
	if c.Odd == "control character" || c.Odd != "" && v.Has(smtpwire.EndsGroup) {
		// What is read differently by different servers must not decide how to read on.
		return s.answer(s.reply(500, "5.5.2", "Syntax error: "+c.Odd))
	}
	switch {
	case v.Has(smtpwire.Foreign):
		s.special("not-smtp", "the client says "+c.Verb)
		s.abandon = true
		return s.lastWord(500, "5.5.2", "Syntax error, closing connection")
	case c.Verb == "LHLO" && s.h.set.Lmtp:
	case v.Has(smtpwire.Trusted):
		if !s.h.xclient.has(s.c.Client) || !s.capabilities().Has(v.Keyword) {
			return s.unknown(v)
		}
	case v.Has(smtpwire.Denied):
		return s.unknown(v)
	}
	if !known && c.Verb != "LHLO" {
		return s.unknown(v)
	}
	switch c.Verb {
	case "EHLO", "LHLO":
		return s.hello(c, ehloReply)
	case "HELO":
		return s.hello(c, heloReply)
	case "MAIL":
		return s.mail(c)
	case "RCPT":
		return s.rcpt(c)
	case "DATA":
		return s.data(c)
	case "BDAT":
		return s.bdat(c)
	case "RSET":
		return s.rset(c)
	case "STARTTLS":
		return s.startTLS(c)
	case "AUTH":
		return s.authenticate(c)
	case "XCLIENT":
		if err := s.forward(c.Raw, pending{kind: restartReply}); err != nil {
			return err
		}
		return s.settle()
	case "QUIT":
		if err := s.forward(c.Raw, pending{kind: quitReply}); err != nil {
			return err
		}
		return errQuit
	}
	return s.forward(c.Raw, pending{}) // NOOP, HELP, VRFY, EXPN, ETRN, XFORWARD
}

// rset passes RSET on. Amid chunks its reply is waited for: whether a MAIL that follows at once is in order depends on
// it, and so does what becomes of the chunks.
func (s *session) rset(c smtpwire.Command) error {
	if err := s.forward(c.Raw, pending{kind: resetReply}); err != nil {
		return err
	}
	s.mu.Lock()
	amid := s.tx != nil && (s.tx.body != nil || len(s.tx.to) >= s.h.set.MaxRecipients)
	s.mu.Unlock()
	if !amid {
		return nil
	}
	return s.settle()
}

// unknown refuses a command that is not passed on.
func (s *session) unknown(v smtpwire.Verb) error {
	if s.badVerbs++; s.badVerbs >= s.h.set.MaxBadVerbs {
		return s.lastWord(421, "4.7.0", "Too many unknown commands, closing connection")
	}
	text := "Command not implemented"
	if v.Code == 500 {
		text = "Command unrecognized"
	}
	return s.answer(s.reply(v.Code, v.Enhanced, text))
}

// forward passes a command line on. It is sent when the client has no more to say for the moment.
func (s *session) forward(line string, p pending) error {
	if err := s.expect(p); err != nil {
		return err
	}
	s.server.out = append(append(s.server.out, line...), '\r', '\n')
	if len(s.server.out) < lineBuffer {
		return nil
	}
	if err := s.server.flush(); err != nil {
		return s.serverWriteFailed(err)
	}
	return nil
}

// hello passes EHLO, HELO or LHLO on and waits for the reply, since it decides how to read what follows.
func (s *session) hello(c smtpwire.Command, kind replyKind) error {
	s.auth = authExchange{}
	p := pending{kind: kind, path: strings.TrimSpace(c.Rest), lmtp: c.Verb == "LHLO"}
	if err := s.forward(c.Raw, p); err != nil {
		return err
	}
	return s.settle()
}

// lastWord says something to the client and ends the session.
func (s *session) lastWord(code int, enhanced, text string) error {
	if err := s.answer(s.reply(code, enhanced, text)); err != nil {
		return err
	}
	return errSaid
}

// reply makes a reply of ours. Enhanced codes are for clients that know of them (RFC 2034): those to whom the server
// announced them, and those who have not asked yet.
func (s *session) reply(code int, enhanced, text string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replyLocked(code, enhanced, text)
}

func (s *session) replyLocked(code int, enhanced, text string) []byte {
	if s.state.helo != "" && !s.caps.Has("ENHANCEDSTATUSCODES") {
		enhanced = ""
	}
	return smtpwire.FormatReply(code, enhanced, text)
}

func (s *session) capabilities() smtpwire.Capabilities {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.caps.Capabilities
}

// isEnd reports whether err says that a peer has ended its direction, whether or not at a good place.
func isEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
