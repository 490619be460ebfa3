package pop3

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
)

// event begins an event about c.
func (h *Handler) event(name string, c *proxy.Conn) inspect.Event {
	return inspect.Event{
		Time: time.Now().UTC(), Event: name, Conn: c.ID, Door: inspect.DoorPOP3, Divert: c.Divert,
		Client: c.Client.String(), Server: c.Server.String(),
	}
}

// special records something that an administrator may want to look into.
func (s *session) special(name, detail string) {
	e := s.h.event(name, s.c)
	e.User, e.Detail = s.state.user, printable(detail, 500)
	s.h.events.Record(e)
	s.log.Info(name, "detail", e.Detail)
}

// told reports whether an event was recorded before in this session.
func (s *session) told(name string) bool {
	was := s.toldOf[name]
	if s.toldOf == nil {
		s.toldOf = map[string]bool{}
	}
	s.toldOf[name] = true
	return was
}

// recordMessage records what became of a message.
func (s *session) recordMessage(m *inspect.Message, o *outcome, v *inspect.Verdict) {
	e := s.h.event("message", s.c)
	e.Msg, e.User, e.Subject, e.Size = m.ID, m.Session.User, subject(m.Body), m.Body.Size()
	e.Reason, e.Findings, e.Item = v.Reason, v.Findings, v.Quarantine
	switch o.action {
	case passed:
		e.Action = inspect.Pass.String()
	case replaced:
		e.Action = inspect.Modify.String()
	default:
		e.Action = inspect.Defer.String()
	}
	e.Detail = s.current.verb + " " + strconv.Itoa(s.current.n)
	if v.Err != nil {
		e.Detail += ": " + printable(v.Err.Error(), 500)
	}
	s.h.events.Record(e)
	s.log.Info("message", "msg", m.ID, "size", e.Size, "action", e.Action, "reason", e.Reason)
	if o.action == passed && unscanned(v) {
		e.Event = "unscanned"
		s.h.events.Record(e)
	}
}

// recordFailure records a message that could not be kept for inspection.
func (s *session) recordFailure(l *letter) {
	e := s.h.event("message", s.c)
	e.Msg, e.User = s.c.ID+"-"+strconv.Itoa(s.messages), s.state.user
	e.Action, e.Reason = inspect.Defer.String(), "spool-failed"
	e.Detail = s.current.verb + " " + strconv.Itoa(s.current.n) + ": " + printable(l.failed.Error(), 500)
	s.h.events.Record(e)
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
	e.User, e.Reason = s.state.user, s.reason
	e.Detail = fmt.Sprintf("messages=%d from-client=%d to-client=%d from-server=%d to-server=%d tls=%t seconds=%.3f",
		s.messages, s.client.received.Load(), s.client.sent.Load(), s.server.received.Load(), s.server.sent.Load(), s.state.tls,
		time.Since(s.began).Seconds())
	s.h.events.Record(e)
	s.log.Info("connection", "client", s.c.Client, "server", s.c.Server, "reason", s.reason, "totals", e.Detail)
}

// printable makes octets of strangers fit for a log: what is not printable becomes question marks.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) || r == '\ufffd' {
			return '?'
		}
		return r
	}, text)
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}

// subject returns the first line of the first Subject of the header as it is written, not decoded.
func subject(body inspect.Body) string {
	head := make([]byte, min(body.Size(), maxNoticeHeader))
	n, _ := body.ReadAt(head, 0)
	for line := range bytes.Lines(head[:n]) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if len(line) >= 8 && strings.EqualFold(string(line[:8]), "subject:") {
			return printable(string(bytes.TrimSpace(line[8:])), 500)
		}
	}
	return ""
}
