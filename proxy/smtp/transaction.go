package smtp

import (
	"strconv"
	"strings"

	"mailweir/inspect/spool"
	"mailweir/proxy/smtpwire"
)

// maxEnvelope bounds the octets of all addresses of one message.
const maxEnvelope = 4 << 20

// transaction is one message from MAIL on. It lives until the message has its final reply, or RSET, a new greeting or
// TLS end it.
type transaction struct {
	from     string
	size     int64 // declared; 0: none
	to       []string
	envelope int  // octets of all addresses
	binary   bool // BODY=BINARYMIME: never by DATA

	body   *spool.File // chunks so far; nil before the first
	ends   lineEnds    // of the chunks so far
	failed bool        // a chunk was refused: the state is indeterminate until RSET (RFC 3030 §2)
}

// endTransaction forgets the transaction. s.mu is held.
func (s *session) endTransaction() {
	if s.tx != nil && s.tx.body != nil {
		s.tx.body.Close()
	}
	s.tx = nil
}

// mail passes MAIL on, if it is legal here.
func (s *session) mail(c smtpwire.Command) error {
	path, err := smtpwire.ParseMail(c.Rest)
	if err != nil {
		return s.answer(s.reply(501, "5.5.4", "Syntax error in MAIL"))
	}
	if under, err := s.underWay(); err != nil {
		return err
	} else if under {
		// RFC 5321 §4.1.4. Some servers take it, and forget the recipients or do not.
		return s.answer(s.reply(503, "5.5.1", "Nested MAIL command"))
	}
	s.mu.Lock()
	caps, state := s.caps, s.state
	s.mu.Unlock()
	if refused := smtpwire.CheckParams(path.Params, caps.Capabilities, nil); refused != nil {
		return s.answer(s.reply(refused.Code, refused.Enhanced, refused.Text))
	}
	if !state.tls && s.h.requireTLS.has(s.c.Server) {
		return s.tlsRequired()
	}
	p := pending{kind: mailReply, path: path.Address}
	if size, ok := path.Param("SIZE"); ok {
		p.size, _ = strconv.ParseInt(size.Value, 10, 64)
	}
	if body, ok := path.Param("BODY"); ok {
		p.binary = strings.EqualFold(body.Value, "BINARYMIME")
	}
	return s.forward(c.Raw, p)
}

// underWay reports whether there is a transaction. It waits for replies only where they decide that.
func (s *session) underWay() (bool, error) {
	s.mu.Lock()
	wait := s.tx != nil && s.fifo.len() > 0 || s.fifo.awaits(mailReply)
	under := s.tx != nil
	s.mu.Unlock()
	if !wait {
		return under, nil
	}
	if err := s.settle(); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx != nil, nil
}

// tlsRequired ends a session that is about to send in clear what must not be (S-073).
func (s *session) tlsRequired() error {
	s.special("downgrade", "the server requires TLS by configuration and the session has none")
	return s.lastWord(530, "5.7.0", "Must use TLS with this server")
}

// rcpt passes RCPT on.
func (s *session) rcpt(c smtpwire.Command) error {
	path, err := smtpwire.ParseRcpt(c.Rest)
	if err != nil {
		return s.answer(s.reply(501, "5.5.4", "Syntax error in RCPT"))
	}
	s.mu.Lock()
	caps, full, chunks := s.caps, false, false
	if s.tx != nil {
		full = len(s.tx.to) >= s.h.set.MaxRecipients || s.tx.envelope > maxEnvelope
		chunks = s.tx.body != nil
	}
	s.mu.Unlock()
	if chunks {
		return s.answer(s.reply(503, "5.5.1", "A message is under way"))
	}
	if full {
		return s.answer(s.reply(452, "4.5.3", "Too many recipients"))
	}
	if refused := smtpwire.CheckParams(path.Params, caps.Capabilities, nil); refused != nil {
		return s.answer(s.reply(refused.Code, refused.Enhanced, refused.Text))
	}
	return s.forward(c.Raw, pending{kind: rcptReply, path: path.Address})
}

// mailAnswered begins the transaction once the server has. s.mu is held.
func (s *session) mailAnswered(p *pending, r *smtpwire.Reply) {
	if r.Positive() && s.tx == nil {
		s.tx = &transaction{from: p.path, size: p.size, binary: p.binary}
	}
}

// rcptAnswered adds a recipient that the server has accepted: any 2xx does that (S-211). s.mu is held.
func (s *session) rcptAnswered(p *pending, r *smtpwire.Reply) {
	if r.Positive() && s.tx != nil {
		s.tx.to = append(s.tx.to, p.path)
		s.tx.envelope += len(p.path)
	}
}
