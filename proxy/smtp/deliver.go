package smtp

import (
	"errors"
	"fmt"
	"io"

	"mailweir/inspect"
	"mailweir/proxy/dot"
	"mailweir/proxy/smtpwire"
)

var errEarlyReply = errors.New("server replied before the end of the message")

// deliverModified gives the server the message with the verdict's edits.
func (s *session) deliverModified(m *message, v *inspect.Verdict) error {
	edited, size, err := v.Edits.Apply(m.body)
	if err != nil {
		return s.cannotModify(m, v, err)
	}
	form := s.h.spool.Create()
	defer form.Close()
	if m.chunked {
		_, err = io.Copy(form, edited)
	} else {
		err = canonical(form, edited, reading{}) // S-144: what we write ourselves has no bare CR and no bare LF
		if err == nil {
			err = endsInCRLF(form)
		}
	}
	if err != nil {
		return s.cannotModify(m, v, fmt.Errorf("spool %d octets: %w", size, err))
	}
	s.mu.Lock()
	limit := s.caps.serverSize
	s.mu.Unlock()
	if limit > 0 && form.Size() > limit {
		// S-203: the server would refuse it. The original is in the quarantine; the sender learns of it.
		return s.refuse(m, "modified-too-large", &inspect.Verdict{Action: inspect.Reject, Findings: v.Findings, Quarantine: v.Quarantine},
			s.reply(550, "5.7.1", "Message refused by policy "+m.ID))
	}
	m.missing, m.grown = nil, m.size > 0 && form.Size() > m.size
	return s.deliver(m, v, form)
}

// cannotModify defers a message whose edits cannot be made: neither the original nor a half of it may pass.
func (s *session) cannotModify(m *message, v *inspect.Verdict, err error) error {
	s.log.Error("modify message", "msg", m.ID, "error", err)
	return s.refuse(m, "modify-failed", &inspect.Verdict{Action: inspect.Defer, Findings: v.Findings, Quarantine: v.Quarantine, Err: err},
		s.reply(451, "4.3.0", "Message cannot be processed now, try again later "+m.ID))
}

// endsInCRLF gives a message the line end without which it cannot be sent by DATA.
func endsInCRLF(w interface {
	inspect.Body
	io.Writer
}) error {
	n := w.Size()
	if n == 0 {
		return nil
	}
	var tail [2]byte
	w.ReadAt(tail[max(0, 2-int(min(n, 2))):], max(0, n-2))
	if string(tail[:]) == "\r\n" {
		return nil
	}
	_, err := w.Write([]byte("\r\n"))
	return err
}

// deliver gives the server a message, and the client the server's own reply to it. This is the only place where a
// message leaves the gateway, and it is passed at most once for each (S-208).
func (s *session) deliver(m *message, v *inspect.Verdict, body inspect.Body) error {
	if gone(s.client.raw) { // S-177: the client will try again
		s.recordMessage(m, "Aborted", "client-lost", v)
		return errClientGone
	}
	s.enter(phaseReplay)
	finals := make([]smtpwire.Reply, s.finals(m))
	var err error
	if m.chunked {
		err = s.replayChunk(body, finals)
	} else {
		err = s.replayData(m, body, finals)
	}
	return s.delivered(m, v, finals, err)
}

// replayData sends a message by DATA.
func (s *session) replayData(m *message, body inspect.Body, finals []smtpwire.Reply) error {
	if !s.asking {
		var r smtpwire.Reply
		if err := s.forward("DATA", pending{kind: answerReply, own: &r}); err != nil {
			return err
		}
		if err := s.settle(); err != nil {
			return err
		}
		if r.Code != 354 {
			return &refusal{r}
		}
	}
	buf := s.h.bulk.buffers.Get().(*[bulkBuffer]byte)
	defer s.h.bulk.buffers.Put(buf)
	w := dot.NewWriter(s.server, m.missing)
	w.Buffer(buf[:])
	if _, err := w.ReadFrom(&watched{Reader: inspect.Reader(body), s: s}); err != nil {
		return s.replayFailed(err)
	}
	if gone(s.client.raw) { // the last moment: behind the dot the message is the server's
		return errClientGone
	}
	if err := s.owe(finals); err != nil {
		return err
	}
	if err := w.Finish(false); err != nil {
		return s.replayFailed(err)
	}
	return s.settle()
}

// replayChunk sends a message by one BDAT (RFC 3030 §2).
func (s *session) replayChunk(body inspect.Body, finals []smtpwire.Reply) error {
	buf := s.h.bulk.buffers.Get().(*[bulkBuffer]byte)
	defer s.h.bulk.buffers.Put(buf)
	n := copy(buf[:], fmt.Sprintf("BDAT %d LAST\r\n", body.Size()))
	for r, left := io.Reader(inspect.Reader(body)), body.Size(); ; {
		k, err := io.ReadFull(r, buf[n:n+int(min(left, int64(len(buf)-n)))])
		if err != nil && left > 0 {
			return s.replayFailed(err)
		}
		n, left = n+k, left-int64(k)
		if left == 0 {
			if gone(s.client.raw) {
				return errClientGone
			}
			if err := s.owe(finals); err != nil {
				return err
			}
		} else if err := s.early(); err != nil {
			return err
		}
		if _, err := s.server.Write(buf[:n]); err != nil {
			return s.replayFailed(err)
		}
		if n = 0; left == 0 {
			return s.settle()
		}
	}
}

// owe makes the next replies of the server those to the message: the client gets them. It is called immediately
// before the end of the message leaves.
func (s *session) owe(finals []smtpwire.Reply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil || s.last != nil {
		return errEarlyReply
	}
	for i := range finals {
		s.fifo.push(pending{kind: finalReply, own: &finals[i]})
	}
	s.phase, s.asking = phaseCommands, false
	s.endTransaction()
	s.armServer()
	return nil
}

// early reports whether the server has said something, or has gone, while it should listen.
func (s *session) early() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil || s.last != nil {
		return errEarlyReply
	}
	return nil
}

// watched is content that ends when the server has had enough of it.
type watched struct {
	io.Reader
	s *session
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	if err := w.s.early(); err != nil {
		return 0, err
	}
	return w.Reader.Read(p)
}

// refusal is a server's reply to DATA other than 354.
type refusal struct{ smtpwire.Reply }

// Error implements error.
func (r *refusal) Error() string { return fmt.Sprintf("server refuses DATA with %d", r.Code) }

// replayFailed says why the server did not take the content. What it said itself before it closed counts.
func (s *session) replayFailed(err error) error {
	if errors.Is(err, errEarlyReply) || errors.Is(err, dot.ErrAmbiguous) {
		return err
	}
	return s.serverWriteFailed(err)
}

// delivered ends a message that was given, or not quite given, to the server.
func (s *session) delivered(m *message, v *inspect.Verdict, finals []smtpwire.Reply, err error) error {
	var no *refusal
	switch {
	case err == nil:
		s.noteOutcome(m, v, finals)
		return nil
	case finals[len(finals)-1].Code != 0: // every reply has arrived; only then something failed
		s.noteOutcome(m, v, finals)
		return err
	case errors.As(err, &no) && no.Code >= 400: // S-146: the reply to DATA is the reply to the message
		s.recordMessage(m, "Refused", "server", v)
		return s.finalAnswer(m, no.Raw)
	case errors.Is(err, errClientGone):
		s.recordMessage(m, "Aborted", "client-lost", v)
		return err
	case errors.Is(err, dot.ErrAmbiguous): // an edit of ours has made it so; nothing of it must end up as a message
		s.cutServer()
		s.recordMessage(m, "Defer", "ambiguous", v)
		return s.leftOver(finals, s.reply(451, "4.3.0", "Message cannot be processed now, try again later "+m.ID))
	case s.ctx.Err() != nil:
		return err
	}
	reply := s.serverLost()
	if reply == nil {
		reply = s.reply(451, "4.4.2", "Connection to the mail server lost, try again later")
	}
	s.cutServer()
	s.recordMessage(m, "Defer", "server-lost", v)
	return s.leftOver(finals, reply)
}

// leftOver gives the client the replies to a message that the server still owes, and ends the session: what the
// server has done with the message cannot be told (RFC 1047), and it is not sent again.
func (s *session) leftOver(finals []smtpwire.Reply, reply []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fifo = queue{}
	for _, f := range finals {
		if f.Code == 0 {
			s.client.out = append(s.client.out, reply...)
		}
	}
	return errors.Join(s.client.flush(), errSaid)
}

// noteOutcome records a message to which the server has replied. The client has the reply already.
func (s *session) noteOutcome(m *message, v *inspect.Verdict, finals []smtpwire.Reply) {
	action, reason := v.Action.String(), v.Reason
	accepted := false
	for _, f := range finals {
		accepted = accepted || f.Positive()
		s.insists = s.insists || m.grown && f.Code == 552 // RFC 1870 §6.3; most servers take "somewhat" more than declared
	}
	if !accepted {
		action, reason = "Refused", "server"
	}
	s.recordMessage(m, action, reason, v)
	if accepted && (s.clientLost() || gone(s.client.raw)) {
		e := s.h.event("orphan-accept", s.c) // the client will send it again (RFC 1047)
		e.Msg = m.ID
		s.h.events.Record(e)
	}
}

// cutServer makes sure that the server does not take what it has for a message.
func (s *session) cutServer() { s.abandon = true; s.endServer(); resetNow(s.server.raw) }
