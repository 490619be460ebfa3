package smtp

import (
	"errors"
	"io"
	"strconv"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy/dot"
	"mailweir/proxy/smtpwire"
)

// message is one message under way.
type message struct {
	inspect.Message
	body    *spool.File
	views   []*spool.File
	missing []int64 // for dot.Writer; nil after BDAT
	chunked bool    // came by BDAT and goes by BDAT
	size    int64   // declared
	grown   bool    // modified to more than was declared
	subject string
	odd     string // why it is refused before anybody judges it
	refusal []byte
}

// close gives everything back.
func (m *message) close() {
	m.body.Close()
	for _, v := range m.views {
		v.Close()
	}
}

// sink is a spool file that remembers whether it was its fault.
type sink struct {
	*spool.File
	err error
}

// Write implements io.Writer.
func (w *sink) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	w.err = err
	return n, err
}

// data takes a message by DATA: answered here as soon as the server has accepted a recipient (S-103).
func (s *session) data(c smtpwire.Command) error {
	if err := s.settle(); err != nil {
		return err
	}
	s.mu.Lock()
	tx := s.tx
	s.mu.Unlock()
	switch {
	case c.Rest != "":
		return s.refuseData(501, "5.5.4", "Syntax error (no parameters allowed)")
	case tx == nil:
		return s.refuseData(503, "5.5.1", "Need MAIL before DATA")
	case tx.body != nil || tx.binary: // RFC 3030 §2, §3
		return s.refuseData(503, "5.5.1", "This message needs BDAT")
	case len(tx.to) == 0:
		return s.refuseData(554, "5.5.1", "No valid recipients")
	}
	if s.h.set.DataMode == "AskFirst" {
		if ready, err := s.askFirst(); err != nil || !ready {
			return err
		}
	}
	if err := s.answer([]byte("354 End data with <CR><LF>.<CR><LF>\r\n")); err != nil {
		return err
	}
	m := s.newMessage(tx, s.h.spool.Create())
	defer m.close()
	info, err := s.readContent(m)
	if err != nil {
		return err
	}
	m.missing = info.Missing
	if m.refusal == nil {
		err = s.examine(m, info)
	}
	if err != nil {
		return err
	}
	return s.settleMessage(m)
}

// askFirst gives the server DATA before the client has sent the content (S-147). It returns false when the server does
// not want it, which the client has been told.
func (s *session) askFirst() (ready bool, err error) {
	var r smtpwire.Reply
	if err := s.forward("DATA", pending{kind: answerReply, own: &r}); err != nil {
		return false, err
	}
	if err := s.settle(); err != nil {
		return false, err
	}
	switch {
	case r.Code == 354:
		s.asking = true
		return true, nil
	case r.Code < 400:
		s.abandon = true
		return false, s.lastWord(451, "4.3.0", "The mail server's reply makes no sense, try again later")
	}
	// The client gets the reply only now: what it has said before that is content, and what it says after is not (S-104).
	early := s.client.pending() > 0 || readable(s.client.raw)
	if err := s.answer(r.Raw); err != nil {
		return false, err
	}
	if early {
		s.special("early-data", "content before the reply to DATA")
		return false, errSaid
	}
	return false, nil
}

// refuseData refuses DATA. A client that has sent content without waiting for the answer is not heard any further:
// its content must not be executed (S-104).
func (s *session) refuseData(code int, enhanced, text string) error {
	if s.client.pending() > 0 || readable(s.client.raw) {
		s.special("early-data", "content before the reply to DATA")
		return s.lastWord(code, enhanced, text)
	}
	return s.answer(s.reply(code, enhanced, text))
}

// newMessage begins a message. Its envelope is what the server has accepted.
func (s *session) newMessage(tx *transaction, body *spool.File) *message {
	s.messages++
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &message{body: body, size: tx.size}
	m.Message = inspect.Message{
		ID:   s.c.ID + "-" + strconv.Itoa(s.messages),
		Door: inspect.DoorSMTP,
		Session: inspect.Session{
			Conn: s.c.ID, Client: s.c.Client, Server: s.c.Server, Divert: s.c.Divert, Proc: s.c.Proc,
			Helo: s.state.helo, User: s.state.user, TLS: s.state.tls, SNI: s.state.sni,
		},
		Envelope: inspect.Envelope{From: tx.from, To: tx.to},
		Body:     body,
		// What a modified form must keep to: the server's limit, and what was declared once the server has turned out
		// to insist on that (S-202, S-203).
		SizeLimit: s.caps.serverSize,
	}
	if s.insists && tx.size > 0 && (m.SizeLimit == 0 || tx.size < m.SizeLimit) {
		m.SizeLimit = tx.size
	}
	return m
}

// readContent reads the block that follows DATA to its strict end, whatever happens to it.
func (s *session) readContent(m *message) (*dot.Info, error) {
	s.beginContent()
	narrow := s.h.bulk.widen(s.client)
	defer narrow()
	r := dot.NewReader(s.client.br)
	w := &sink{File: m.body}
	_, err := r.WriteTo(w)
	if w.err != nil {
		s.spoolFailed(m, w.err)
		err = r.Drain()
	}
	if err != nil {
		s.aborted(m, err)
		return nil, err
	}
	return r.Info(), nil
}

// beginContent begins the time in which the client only talks and the server only waits.
func (s *session) beginContent() {
	s.waitUntil = time.Now().Add(s.h.set.DataTotal)
	s.enter(phaseContent)
	if s.asking {
		s.mu.Lock()
		s.noops = maxKeepAlives // the server reads content, no commands
		s.armServer()
		s.mu.Unlock()
	}
}

// spoolFailed decides what to say when there is no room: never a 2xx, and never an unjudged message.
func (s *session) spoolFailed(m *message, err error) {
	switch {
	case errors.Is(err, spool.ErrTooLarge):
		m.odd, m.refusal = "too-large", s.reply(552, "5.3.4", "Message too big for the gateway")
	case errors.Is(err, spool.ErrQuota):
		m.odd, m.refusal = "spool-full", s.reply(452, "4.3.1", "Insufficient system storage")
	default:
		m.odd, m.refusal = "spool-failed", s.reply(451, "4.3.0", "Local error, try again later")
	}
	s.log.Error("spool", "msg", m.ID, "error", err)
}

// aborted records a message that did not arrive to its end.
func (s *session) aborted(m *message, err error) {
	reason := "client-lost"
	if errors.Is(err, errSlow) {
		reason = "client-slow"
	}
	s.recordMessage(m, "Aborted", reason, nil)
}

// examine looks at how the content was framed: what may be read in several ways is refused, or put right (S-120 …
// S-132), and the readings of lenient receivers are laid beside the message to be judged with it (S-136, S-137, S-139).
func (s *session) examine(m *message, info *dot.Info) error {
	if !info.Exact() {
		s.strictLF = true
		if s.h.set.EodPolicy != "Normalize" {
			m.odd, m.refusal = "ambiguous", s.reply(550, "5.5.2", "Message holds a sequence like the end of data")
			return nil
		}
		proper := s.h.spool.Create()
		if err := canonical(proper, inspect.Reader(m.body), reading{dropNUL: true}); err != nil {
			proper.Close()
			s.spoolFailed(m, err)
			return nil
		}
		m.views = append(m.views, m.body)
		m.Views = append(m.Views, m.body)
		m.body, m.Body, m.missing = proper, proper, nil
		return nil
	}
	s.addView(m, len(info.Missing) > 0, func(w io.Writer) error { return withDots(w, m.body, info.Missing) })
	s.addView(m, info.BareLF+info.BareCR > 0, func(w io.Writer) error { return canonical(w, inspect.Reader(m.body), reading{unstuff: true}) })
	s.addView(m, info.NUL > 0, func(w io.Writer) error {
		return canonical(w, inspect.Reader(m.body), reading{unstuff: true, dropNUL: true})
	})
	return nil
}

// addView lays another reading beside the message, if there is one.
func (s *session) addView(m *message, odd bool, make func(w io.Writer) error) {
	if !odd || m.refusal != nil {
		return
	}
	view := s.h.spool.Create()
	m.views = append(m.views, view)
	m.Views = append(m.Views, view)
	if err := make(view); err != nil {
		s.spoolFailed(m, err)
	}
}
