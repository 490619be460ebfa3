package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
)

// event begins an event about c.
func (h *Handler) event(name string, c *proxy.Conn) inspect.Event {
	return inspect.Event{
		Time: time.Now().UTC(), Event: name, Conn: c.ID, Door: inspect.DoorSMTP, Divert: c.Divert,
		Client: c.Client.String(), Server: c.Server.String(),
	}
}

// special records something that an administrator may want to look into.
func (s *session) special(name, detail string) {
	e := s.h.event(name, s.c)
	e.Detail = printable(detail, 500)
	s.h.events.Record(e)
	s.log.Info(name, "detail", e.Detail)
}

// told reports whether an event was recorded before in this session. s.mu is held.
func (s *session) told(name string) bool {
	was := s.toldOf[name]
	if s.toldOf == nil {
		s.toldOf = map[string]bool{}
	}
	s.toldOf[name] = true
	return was
}

// recordMessage records what became of a message.
func (s *session) recordMessage(m *message, action, reason string, v *inspect.Verdict) {
	e := s.h.event("message", s.c)
	e.Msg, e.User = m.ID, m.Session.User
	e.From, e.To = printable(m.Envelope.From, 320), make([]string, 0, len(m.Envelope.To))
	for _, a := range m.Envelope.To {
		e.To = append(e.To, printable(a, 320))
	}
	e.Subject, e.Size, e.Action, e.Reason = m.subject, m.Body.Size(), action, reason
	if v != nil {
		e.Findings, e.Item = v.Findings, v.Quarantine
		if v.Err != nil {
			e.Detail = printable(strings.ReplaceAll(v.Err.Error(), "\n", "; "), 500) // errors.Join puts each on its line
		}
	}
	s.h.events.Record(e)
	s.log.Info("message", "msg", m.ID, "from", e.From, "to", len(e.To), "size", e.Size, "action", action, "reason", reason)
	if v != nil && v.Action == inspect.Pass && unscanned(v) { // S-184
		e.Event = "unscanned"
		s.h.events.Record(e)
	}
}

// unscanned reports whether a message passes though something of it was not looked into.
func unscanned(v *inspect.Verdict) bool {
	for _, f := range v.Findings {
		if f.Kind == inspect.Unchecked {
			return true
		}
	}
	return v.Err != nil
}

// recordConnection records the end of the session, with its totals.
func (s *session) recordConnection() {
	e := s.h.event("connection", s.c)
	s.mu.Lock()
	e.User = s.state.user
	tls := s.state.tls
	s.mu.Unlock()
	e.Reason = s.reason
	e.Detail = fmt.Sprintf("messages=%d from-client=%d to-client=%d from-server=%d to-server=%d tls=%t seconds=%.3f",
		s.messages, s.client.received.Load(), s.client.sent.Load(), s.server.received.Load(), s.server.sent.Load(), tls,
		time.Since(s.began).Seconds())
	s.h.events.Record(e)
	s.log.Info("connection", "client", s.c.Client, "server", s.c.Server, "reason", s.reason, "totals", e.Detail)
}

// clientLost reports whether the last replies could not be written to the client.
func (s *session) clientLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Is(s.down, errClientGone)
}

// printable makes octets of strangers fit for a log: control characters and what is not UTF-8 become question marks.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufffd' || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' {
			return '?'
		}
		return r
	}, text)
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}

// subjectSpan is how much of a message is searched for its subject.
const subjectSpan = 64 << 10

// subject returns the first Subject of the header as it is written, not decoded.
func subject(body inspect.Body) string {
	head := make([]byte, min(body.Size(), subjectSpan))
	n, _ := body.ReadAt(head, 0)
	head = head[:n]
	var value []byte
	found := false
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\n"))
		head = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		switch {
		case len(line) == 0:
			return printable(string(value), 500)
		case found && (line[0] == ' ' || line[0] == '\t'):
			value = append(append(value, ' '), bytes.TrimSpace(line)...)
		case found:
			return printable(string(value), 500)
		case len(line) >= 8 && strings.EqualFold(string(line[:8]), "subject:"):
			found, value = true, append(value, bytes.TrimSpace(line[8:])...)
		}
	}
	return printable(string(value), 500)
}
