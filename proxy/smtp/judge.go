package smtp

import (
	"context"
	"errors"
	"strings"

	"mailweir/inspect"
	"mailweir/proxy/smtpwire"
)

// mtaPort is where mail servers talk to each other; everybody else is a mail program with less patience.
const mtaPort = 25

// settleMessage has a message judged and does what the verdict says. The client has sent all of it and waits.
func (s *session) settleMessage(m *message) error {
	if err := s.flushClient(); err != nil {
		return err
	}
	m.subject = subject(m.body)
	if m.refusal != nil {
		return s.refuse(m, m.odd, nil, m.refusal)
	}
	if reply := s.serverLost(); reply != nil { // S-174, S-193: there is nobody to give it to
		return s.refuse(m, "server-lost", nil, reply)
	}
	budget := s.h.set.ScanBudgetMua
	if s.c.Server.Port() == mtaPort {
		budget = s.h.set.ScanBudgetMta
	}
	ctx, cancel := context.WithTimeout(s.ctx, budget)
	v := s.h.scanner.Scan(ctx, &m.Message)
	cancel()
	defer v.Done()
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	switch v.Action {
	case inspect.Pass:
		return s.deliver(m, &v, m.body)
	case inspect.Modify:
		return s.deliverModified(m, &v)
	case inspect.Reject:
		return s.refuse(m, v.Reason, &v, s.verdictReply(m, &v, 550, "5.7.1", "Message refused by policy"))
	case inspect.Discard:
		return s.refuse(m, v.Reason, &v, s.verdictReply(m, &v, 250, "2.0.0", "Ok: queued as"))
	}
	return s.refuse(m, v.Reason, &v, s.verdictReply(m, &v, 451, "4.7.1", "Message cannot be checked now, try again later"))
}

// verdictReply makes the reply that a verdict asks for. Its text holds the id by which the event is found.
func (s *session) verdictReply(m *message, v *inspect.Verdict, code int, enhanced, text string) []byte {
	class := code / 100
	if v.Reply.Code/100 == class { // a Reject that says 250 would be a lie, whoever wrote it
		code = v.Reply.Code
	}
	if v.Reply.Enhanced != "" && int(v.Reply.Enhanced[0]-'0') == class {
		enhanced = v.Reply.Enhanced
	}
	if v.Reply.Text != "" {
		text = v.Reply.Text
	}
	const room = smtpwire.MaxReplyText - 80
	if len(text) > room {
		text = text[:room]
	}
	if !strings.Contains(text, m.ID) {
		text += " " + m.ID
	}
	return s.reply(code, enhanced, text)
}

// refuse answers a message here; the server is told to forget the transaction.
func (s *session) refuse(m *message, reason string, v *inspect.Verdict, reply []byte) error {
	err := s.finalAnswer(m, reply)
	action := "Reject"
	switch {
	case v != nil:
		action = v.Action.String()
	case reply[0] == '4':
		action = "Defer"
	}
	s.recordMessage(m, action, reason, v)
	return err
}

// finalAnswer gives the client the reply to its message, and the server a RSET. Without a server the session ends.
func (s *session) finalAnswer(m *message, reply []byte) error {
	reply = []byte(strings.Repeat(string(reply), s.finals(m)))
	if s.asking {
		// The server waits for content, of which there must be no end: only a reset says that (mode A of section 1.8).
		s.cutServer()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.phase, s.fifo = phaseCommands, queue{}
		s.client.out = append(append(s.client.out, reply...), s.replyLocked(421, "4.3.0", "Closing connection, connect again")...)
		return errors.Join(s.client.flush(), errSaid)
	}
	s.mu.Lock()
	s.phase = phaseCommands
	s.endTransaction()
	down := s.down
	if down != nil {
		s.fifo = queue{} // nobody answers what is still outstanding
	}
	s.armServer()
	s.mu.Unlock()
	if down != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.client.out = append(s.client.out, reply...)
		return errors.Join(s.client.flush(), errSaid)
	}
	if err := s.answer(reply); err != nil {
		return err
	}
	return s.forward("RSET", pending{kind: quietReply})
}

// finals returns how many replies a message has: one, or in LMTP one for each recipient (RFC 2033 §4.2).
func (s *session) finals(m *message) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.lmtp {
		return len(m.Envelope.To)
	}
	return 1
}

// serverLost returns the reply to a message that cannot be given to the server any more, or nil.
func (s *session) serverLost() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.last != nil && s.last.Code != 421 && s.last.Code >= 400:
		return s.last.Raw // S-175: the server's own word, kept until now
	case s.last != nil && s.last.Code == 421:
		return s.replyLocked(421, "4.4.2", "The mail server has closed the connection")
	case s.down != nil || s.last != nil:
		return s.replyLocked(451, "4.4.2", "Connection to the mail server lost, try again later")
	}
	return nil
}
