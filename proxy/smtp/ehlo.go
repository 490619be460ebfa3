package smtp

import (
	"strconv"
	"strings"

	"mailweir/proxy/smtpwire"
)

// capabilities are what the client was shown, and what the gateway has to know about the server beyond that.
type capabilities struct {
	smtpwire.Capabilities
	serverSize int64 // the server's own SIZE; 0: it has no limit, or none is known
	startTLS   bool  // the server offers STARTTLS
}

// inTurn deals with the reply to p, the first entry of the queue. s.mu is held.
func (s *session) inTurn(p *pending, r *smtpwire.Reply) error {
	out := r.Raw
	switch p.kind {
	case greetingReply:
		out = s.greet(r)
	case ehloReply:
		out = s.offer(p, r)
	case heloReply:
		if r.Positive() {
			s.begin(dialogue{helo: p.path})
		}
	case mailReply:
		s.mailAnswered(p, r)
	case rcptReply:
		s.rcptAnswered(p, r)
	case resetReply:
		if r.Positive() {
			s.endTransaction()
		}
	case authReply, finalReply:
		*p.own = *r
	case answerReply:
		*p.own = *r
		out = nil
	case quietReply:
		if r.Code >= 400 { // our RSET: the server's state cannot be told any more
			return s.outOfTurn(r)
		}
		out = nil
	case noopReply:
		if r.Code == 421 {
			return s.outOfTurn(r)
		}
		if out = nil; r.Code >= 400 {
			s.noops = maxKeepAlives // it does not like them
		}
	case restartReply:
		if r.Code == 220 { // Postfix XCLIENT_README: as if the session had just begun (S-044)
			s.begin(dialogue{})
		}
	case tlsReply:
		if r.Code == 220 {
			return s.readyForTLS(r)
		}
	}
	quit := p.kind == quitReply
	s.client.out = append(s.client.out, out...)
	s.taken()
	if quit {
		return errQuit
	}
	return nil
}

// begin makes the session's state that of a new dialogue over the same connections. s.mu is held.
func (s *session) begin(d dialogue) {
	d.tls, d.verified, d.sni, d.user = s.state.tls, s.state.verified, s.state.sni, s.state.user
	s.state = d
	s.caps = capabilities{}
	s.endTransaction()
}

// offer filters the server's reply to EHLO or LHLO. s.mu is held.
func (s *session) offer(p *pending, r *smtpwire.Reply) []byte {
	if !r.Positive() {
		return r.Raw
	}
	d := dialogue{helo: p.path, lmtp: p.lmtp}
	if d.helo == "" {
		d.helo = "?" // the server has accepted none
	}
	s.begin(d) // RFC 5321 §4.1.4: as RSET
	o := smtpwire.FilterEHLO(r, smtpwire.Policy{
		TLS:              s.state.tls,
		UpstreamVerified: s.state.verified,
		StartTLS:         true, // without unwrapping what follows is passed through, so nothing is weaker
		Chunking:         true,
		KeepScram:        s.h.set.ScramPolicy == "Keep",
		AuthNeedsTLS:     s.h.set.AuthNeedsTls,
		TrustedClient:    s.h.xclient.has(s.c.Client),
		MaxSize:          s.h.set.SizeLimit,
	})
	s.caps.Capabilities = o.Caps
	s.caps.startTLS = o.Server.Has("STARTTLS")
	s.caps.serverSize, _ = strconv.ParseInt(o.Server["SIZE"], 10, 64)
	s.noteRemovals(o)
	return o.Reply
}

// noteRemovals records, once a session, what the client was not shown.
func (s *session) noteRemovals(o *smtpwire.Offer) {
	var gone []string
	for _, x := range o.Removed {
		word := x.Keyword
		if word == "AUTH" {
			word += "=" + x.Item
		}
		gone = append(gone, word)
		if strings.HasPrefix(word, "XXXX") && strings.Trim(word, "XA") == "" {
			s.special("downgrade", "something before the server has masked STARTTLS as "+word) // S-073
		}
	}
	if len(gone) > 0 && !s.told("feature-removed") {
		s.special("feature-removed", strings.Join(gone, " "))
	}
	if o.NoMechanism && !s.told("no-auth-mechanism") {
		s.special("no-auth-mechanism", "none of the server's AUTH mechanisms can pass")
	}
	s.auth.downgrade = o.ScramDowngrade
}
