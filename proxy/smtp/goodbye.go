package smtp

import (
	"errors"
	"io"
	"time"

	"mailweir/proxy/smtpwire"
)

const (
	// leaveTimeout is how long a server may take to close when the client has gone.
	leaveTimeout = 30 * time.Second
	// lingerTimeout is how long a client that is still talking may take to read our last word.
	lingerTimeout = time.Second
	lingerOctets  = 1 << 20
)

// goodbye ends the conversation: what one side did is passed on to the other at the right point (G-11). err says why
// the client's direction has ended.
func (s *session) goodbye(err error) {
	s.reason = reasonOf(err)
	var malformed *smtpwire.ReplyError
	switch {
	case (errors.Is(err, errSaid) || errors.Is(err, errIdle)) && !s.hasGreeted():
		// The server has not spoken yet, so there is nothing that we could say.
	case errors.Is(err, errQuit):
		s.waitForServer()
	case errors.Is(err, errTunnelled), s.ctx.Err() != nil:
	case errors.Is(err, errSaid):
		s.linger = true
		s.finishReplies()
		s.quitServer()
	case errors.Is(err, errDraining):
		s.linger = true
		s.settle()
		s.say(421, "4.3.2", "Service is restarting, try again later")
		s.quitServer()
	case errors.Is(err, errIdle):
		s.say(421, "4.4.2", "Idle for too long")
		s.quitServer()
	case errors.Is(err, errSlow):
		s.linger = true
		s.say(421, "4.4.2", "Too slow")
		s.quitServer()
	case errors.Is(err, errServerSlow):
		s.say(421, "4.4.2", "The mail server does not answer")
	case errors.As(err, &malformed):
		s.malformedReply(malformed)
	case errors.Is(err, errNotSMTP):
		s.notSMTP()
	case errors.Is(err, errClosed), errors.Is(err, errServer421):
		s.linger = true
	case errors.Is(err, errUnsolicited), errors.Is(err, errInjection), errors.Is(err, errTLS):
	case isEnd(err):
		s.clientEnded()
	default:
		s.resetOut = isReset(err)
		s.abandon = true
		resetNow(s.server.raw)
	}
}

// reasonOf is the word for err in the event.
func reasonOf(err error) string {
	for _, x := range []struct {
		err  error
		word string
	}{
		{errQuit, "quit"}, {errTunnelled, "not-inspected"}, {errSaid, "refused"}, {errDraining, "drain"}, {errIdle, "idle"},
		{errSlow, "client-slow"}, {errServerSlow, "server-slow"}, {errClosed, "server-closed"}, {errServer421, "server-421"},
		{errUnsolicited, "unsolicited-reply"}, {errNotSMTP, "not-smtp"}, {errInjection, "starttls-injection"}, {errTLS, "tls"}, {errClientGone, "client-lost"},
		{io.EOF, "client-closed"}, {io.ErrUnexpectedEOF, "client-closed"},
	} {
		if errors.Is(err, x.err) {
			return x.word
		}
	}
	var malformed *smtpwire.ReplyError
	if errors.As(err, &malformed) {
		return "malformed-reply"
	}
	return "lost"
}

// waitForServer waits until the server has said the rest and closed, or the reply to QUIT has come.
func (s *session) waitForServer() {
	if s.server.flush() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	s.armServer()
	for s.down == nil {
		s.cond.Wait()
	}
	s.client.flush()
}

// finishReplies gives the client what is still owed before our last word, which waits in the queue behind it.
func (s *session) finishReplies() {
	if s.settle() == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.flush()
}

// say tells the client something out of turn, as the last thing.
func (s *session) say(code int, enhanced, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.out = append(s.client.out, s.replyLocked(code, enhanced, text)...)
	s.client.flush()
}

// quitServer takes leave of the server, without waiting for its answer.
func (s *session) quitServer() {
	s.mu.Lock()
	down := s.down
	s.phase = phaseReplay // no more keep-alive
	s.mu.Unlock()
	if s.asking {
		s.cutServer()
		return
	}
	if down == nil && !s.abandon && s.ctx.Err() == nil {
		s.server.write([]byte("QUIT\r\n"))
	}
}

// clientEnded passes on the end of what the client has to say. The client may still listen (S-178).
func (s *session) clientEnded() {
	s.mu.Lock()
	inContent := s.phase == phaseContent
	tx := s.tx
	s.mu.Unlock()
	if inContent || tx != nil && tx.body != nil { // S-159, S-176: the server knows of no content
		s.mu.Lock()
		s.phase = phaseReplay
		s.mu.Unlock()
		if s.asking {
			s.cutServer()
			return
		}
		s.server.write([]byte("RSET\r\nQUIT\r\n"))
		return
	}
	if s.server.flush() != nil || closeWrite(s.server.conn) != nil {
		return
	}
	s.waitForServer()
}

// notSMTP ends a connection to a server of another protocol, or passes it through if the administrator says so.
func (s *session) notSMTP() {
	first := s.server.unread()
	s.special("not-smtp", "the server says "+printable(string(first[:min(len(first), 80)]), 80))
	if !s.h.tunnel.has(s.c.Server) {
		return
	}
	if s.client.write(first) == nil && s.server.write(s.client.unread()) == nil {
		s.passThrough("NotSmtpTunnel")
	}
}

// malformedReply ends a session whose server cannot be understood (S-006, S-013, S-240).
func (s *session) malformedReply(err *smtpwire.ReplyError) {
	s.mu.Lock()
	greeted := s.greeted
	s.mu.Unlock()
	if !greeted && err.First {
		s.special("not-smtp", "the server says "+printable(err.Line, 80))
		return
	}
	s.special("malformed-reply", printable(err.Error(), 200))
	s.say(421, "4.4.2", "The mail server's reply cannot be understood, closing connection")
}

// hangUp closes both legs so that the peers get the last word, and know that it was one.
func (s *session) hangUp() {
	orderly := s.ctx.Err() == nil
	if orderly && !s.abandon && s.server.conn != s.server.raw {
		closeWrite(s.server.conn) // RFC 8446 §6.1: close_notify
	}
	s.server.raw.Close()
	if s.resetOut {
		resetNow(s.client.raw)
		return
	}
	if orderly && s.client.conn != s.client.raw {
		closeWrite(s.client.conn)
	}
	if !s.linger || !orderly || closeWrite(s.client.raw) != nil {
		return
	}
	// RFC 1122 §4.2.2.13: closing with octets unread resets the connection, and the client loses what it has not read.
	s.client.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
	io.CopyN(io.Discard, s.client.raw, lingerOctets)
}
