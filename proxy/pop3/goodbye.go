package pop3

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"mailweir/proxy"
)

const (
	// lingerTimeout is how long a client that is still talking may take to read our last word.
	lingerTimeout = time.Second
	lingerOctets  = 1 << 20
)

// goodbye ends the conversation: what one side did is passed on to the other (G-11). The server never sees a QUIT that
// the client has not sent: without it nothing is deleted (RFC 1939 §6), and a client that does not know whether its
// message was complete does not want it deleted (P-037).
func (s *session) goodbye(err error) {
	s.reason = reasonOf(err)
	if s.ctx.Err() != nil {
		return
	}
	switch {
	case errors.Is(err, errSaid):
		s.linger = true
		s.client.flush()
	case errors.Is(err, errQuit), errors.Is(err, errClosed), errors.Is(err, errDraining):
		s.linger = true
		s.client.flush()
	case errors.Is(err, errNotPOP3):
		s.notPOP3()
	case errors.Is(err, errIdle):
		// RFC 1939 §3: closes without a word, and without removing anything.
	case errors.Is(err, syscall.ECONNRESET):
		proxy.Reset(s.server.raw)
		proxy.Reset(s.client.raw)
		return
	}
	s.hangUp()
}

// reasonOf is the word for err in the event.
func reasonOf(err error) string {
	for _, x := range []struct {
		err  error
		word string
	}{
		{errQuit, "quit"}, {errTunnelled, "not-inspected"}, {errSaid, "refused"}, {errDraining, "drain"}, {errIdle, "idle"},
		{errServerSlow, "server-slow"}, {errCut, "cut"}, {errUnsolicited, "unsolicited-reply"}, {errNotPOP3, "not-pop"},
		{errMalformed, "malformed-reply"}, {errInjection, "starttls-injection"}, {errTLS, "tls"}, {errClientGone, "client-lost"},
		{errClosed, "server-closed"}, {io.EOF, "client-closed"}, {io.ErrUnexpectedEOF, "client-closed"},
	} {
		if errors.Is(err, x.err) {
			return x.word
		}
	}
	return "lost"
}

// notPOP3 ends a connection to a server of another protocol, or passes it through if the administrator says so.
func (s *session) notPOP3() {
	first := s.server.unread()
	s.special("not-pop", "the server says "+printable(string(first[:min(len(first), 80)]), 80))
	if !s.h.tunnel.Has(s.c.Server) {
		return
	}
	if _, err := s.client.Write(first); err != nil {
		return
	}
	if _, err := s.server.Write(s.client.unread()); err != nil {
		return
	}
	s.passThrough("NotPop3Tunnel")
}

// hangUp closes both legs so that the peers get the last word, and know that it was one.
func (s *session) hangUp() {
	if s.mine && s.server.conn != s.server.raw {
		closeWrite(s.server.conn) // RFC 8446 §6.1: close_notify
	}
	s.server.raw.Close()
	if s.client.conn != s.client.raw {
		s.client.raw.SetWriteDeadline(time.Now().Add(lingerTimeout))
		closeWrite(s.client.conn)
	}
	if !s.linger || closeWrite(s.client.raw) != nil {
		return
	}
	// RFC 1122 §4.2.2.13: closing with octets unread resets the connection, and the client loses what it has not read.
	s.client.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
	io.CopyN(io.Discard, s.client.raw, lingerOctets)
}

// closeWrite ends one direction of c.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
