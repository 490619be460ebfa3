package smtp

import (
	"encoding/base64"
	"errors"
	"strings"

	"mailweir/proxy/smtpwire"
)

// authExchange is what is remembered of a SASL exchange. It never holds a secret.
type authExchange struct {
	mechanism string
	step      int
	user      string // as far as the mechanism tells it
	bindsFlag bool   // SCRAM: the client says that it could bind the channel and thinks the server could not
	downgrade bool   // SCRAM is shown though the server binds its channel
}

// authenticate passes AUTH and the exchange that follows on, without looking for commands in it: between 334 and the
// next other reply the client's lines are SASL data (RFC 4954 §4).
func (s *session) authenticate(c smtpwire.Command) error {
	a, err := smtpwire.ParseAuth(c.Rest)
	if err != nil {
		return s.answer(s.reply(501, "5.5.4", "Syntax error in AUTH"))
	}
	s.mu.Lock()
	caps, state := s.caps, s.state
	s.mu.Unlock()
	switch {
	case !state.tls && s.h.requireTLS.has(s.c.Server):
		return s.tlsRequired()
	case s.h.set.AuthNeedsTls && !state.tls:
		return s.answer(s.reply(538, "5.7.11", "Encryption required for authentication"))
	case !caps.Mechanism(a.Mechanism):
		return s.answer(s.reply(504, "5.5.4", "Authentication mechanism not available"))
	}
	x := authExchange{mechanism: a.Mechanism, downgrade: s.auth.downgrade}
	if a.Given {
		x.learn(a.Initial)
	} else if x.mechanism == "LOGIN" || x.mechanism == "CRAM-MD5" {
		x.step = 0
	}
	line := c.Raw
	for {
		var r smtpwire.Reply
		if err := s.forward(line, pending{kind: authReply, own: &r}); err != nil {
			return err
		}
		if err := s.settle(); err != nil {
			return err
		}
		if r.Code != 334 {
			s.authenticated(&x, r.Code)
			return nil
		}
		if line, err = s.saslLine(); err != nil {
			return err
		}
		x.learn(line)
	}
}

// saslLine reads one line of SASL data.
func (s *session) saslLine() (string, error) {
	l, err := smtpwire.ReadLine(s.client.br, smtpwire.MaxAuthLine)
	switch {
	case errors.Is(err, smtpwire.ErrEndless):
		return "", s.lastWord(421, "4.7.0", "Line too long, closing connection")
	case err != nil:
		return "", err
	case l.Overlong || l.BareCR || l.NUL:
		return "*", nil // RFC 4954 §4: cancels; the server's 501 goes to the client
	}
	return string(l.Text), nil
}

// learn takes the user's name from what the client says, and nothing else.
func (x *authExchange) learn(data string) {
	x.step++
	if data == "*" || len(data) > smtpwire.MaxCommand*8 {
		return
	}
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return
	}
	text := string(raw)
	switch {
	case x.mechanism == "PLAIN" && x.step == 1: // RFC 4616: authzid NUL authcid NUL password
		if f := strings.Split(text, "\x00"); len(f) == 3 {
			x.user = f[1]
		}
	case x.mechanism == "LOGIN" && x.step == 1:
		x.user = text
	case x.mechanism == "CRAM-MD5" && x.step == 1: // RFC 2195: user, blank, digest
		if i := strings.LastIndexByte(text, ' '); i >= 0 {
			x.user = text[:i]
		}
	case x.mechanism == "XOAUTH2" && x.step == 1:
		if rest, ok := strings.CutPrefix(text, "user="); ok {
			x.user, _, _ = strings.Cut(rest, "\x01")
		}
	case x.mechanism == "OAUTHBEARER" && x.step == 1: // RFC 7628: gs2 header "n,a=user,"
		if f := strings.SplitN(text, ",", 3); len(f) == 3 {
			x.user = strings.TrimPrefix(f[1], "a=")
		}
	case strings.HasPrefix(x.mechanism, "SCRAM-") && x.step == 1: // RFC 5802 §7: "y,,n=user,r=nonce"
		x.bindsFlag = strings.HasPrefix(text, "y,")
		for _, f := range strings.Split(text, ",") {
			if u, ok := strings.CutPrefix(f, "n="); ok {
				x.user = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(u)
			}
		}
	}
}

// authenticated takes note of the outcome.
func (s *session) authenticated(x *authExchange, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if code == 235 {
		s.state.user = printable(x.user, 256)
	}
	if code == 535 && x.bindsFlag && x.downgrade { // S-087
		s.special("scram-cb-downgrade", "the client can bind the channel and was refused; list the server for bypass, or let "+
			"ScramPolicy hide SCRAM")
	}
}
