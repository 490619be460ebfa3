package pop3

import (
	"errors"
	"strings"

	"mailweir/proxy/sasl"
	"mailweir/proxy/smtpwire"
)

// authenticate passes AUTH and the exchange that follows on, without looking for commands in it: as long as the server
// says "+ ", the client's lines are SASL data (RFC 5034 §4).
func (s *session) authenticate(c command) error {
	a, err := smtpwire.ParseAuth(c.rest)
	if err != nil {
		return s.answer("-ERR syntax error in AUTH")
	}
	if err := s.settle(); err != nil {
		return err
	}
	shown, downgrade := s.mechanism(a.Mechanism)
	if !shown {
		return s.answer("-ERR authentication mechanism not available")
	}
	x := sasl.Exchange{Mechanism: a.Mechanism}
	if a.Given {
		x.Client(a.Initial)
	}
	for line := c.line; ; {
		s.server.out = append(append(s.server.out, line...), '\r', '\n')
		if err := s.ask(); err != nil {
			return err
		}
		text, challenge, positive, err := s.challenge()
		if err != nil {
			return err
		}
		s.say(text)
		if !challenge {
			s.authenticated(&x, positive, downgrade)
			return nil
		}
		if err := s.flushClient(); err != nil {
			return err
		}
		if line, err = s.saslLine(); err != nil {
			return err
		}
		x.Client(line)
	}
}

// challenge reads a reply within the exchange: "+ " and a challenge, or the outcome. "+OK" is no challenge (P-010).
func (s *session) challenge() (text string, challenge, positive bool, err error) {
	l, err := smtpwire.ReadLine(s.server.br, smtpwire.MaxAuthLine)
	if err != nil {
		return "", false, false, s.serverError(err)
	}
	text = string(l.Text)
	if l.Clean() && (text == "+" || strings.HasPrefix(text, "+ ")) {
		return text, true, false, nil
	}
	positive, ok := statusOf(l)
	if !ok {
		return "", false, false, s.malformed(smtpwire.Line{Text: []byte("in AUTH")}) // it may hold a secret
	}
	return text, false, positive, nil
}

// saslLine reads one line of SASL data.
func (s *session) saslLine() (string, error) {
	l, err := smtpwire.ReadLine(s.client.br, smtpwire.MaxAuthLine)
	s.idle.Store(false)
	switch {
	case errors.Is(err, smtpwire.ErrEndless):
		return "", s.lastWord("-ERR line too long, closing connection")
	case err != nil:
		return "", err
	case l.Overlong || l.BareCR || l.NUL:
		return "*", nil // RFC 5034 §4: cancels; the server's -ERR goes to the client
	}
	return string(l.Text), nil
}

// authenticated takes note of the outcome.
func (s *session) authenticated(x *sasl.Exchange, positive, downgrade bool) {
	switch {
	case positive:
		s.state.login = true
		s.state.user = printable(x.User, 256)
	case x.CouldBind && downgrade: // S-087
		s.special("scram-cb-downgrade", "the client can bind the channel and was refused; list the server for bypass, or let "+
			"ScramPolicy hide SCRAM")
	}
}
