package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
	"mailweir/proxy/smtpwire"
	"mailweir/tlsunwrap"
)

var (
	errInjection = errors.New("octets behind STARTTLS")
	errTunnelled = errors.New("passed through uninspected")
	errTLS       = errors.New("TLS handshake failed")
)

// startTLS passes STARTTLS on and, when the server is ready, stands between the two ends of the handshake.
func (s *session) startTLS(c smtpwire.Command) error {
	if c.Rest != "" {
		return s.answer(s.reply(501, "5.5.4", "Syntax error (no parameters allowed)"))
	}
	if s.client.pending() > 0 {
		// RFC 3207 §4.2 and CVE-2011-0411: what was sent in clear must not be taken for what was sent under TLS.
		s.special("starttls-injection", "the client sends more behind STARTTLS in clear")
		return errInjection
	}
	if err := s.forward(c.Raw, pending{kind: tlsReply}); err != nil {
		return err
	}
	go220, err := s.settleTLS()
	if err != nil || go220 == nil {
		return err // nil, nil: the server does not want to, which the client has been told
	}
	if s.client.pending() > 0 {
		s.special("starttls-injection", "the client sends more behind STARTTLS in clear")
		return errInjection
	}
	if err := s.client.write(go220.Raw); err != nil {
		return err
	}
	return s.unwrap(nil)
}

// readyForTLS pauses the server's direction once the server has said 220. s.mu is held.
func (s *session) readyForTLS(r *smtpwire.Reply) error {
	if s.server.pending() > 0 || s.state.tls { // S-062: would be read as if it had come under TLS
		s.special("starttls-injection", "the server sends more behind its reply in clear")
		return errInjection
	}
	s.parkTLS = r
	s.fifo.pop()
	s.pause()
	return nil
}

// settleTLS waits for the reply to STARTTLS: the 220 that the client has not been given yet, or nil.
func (s *session) settleTLS() (*smtpwire.Reply, error) {
	if err := s.server.flush(); err != nil {
		return nil, s.serverWriteFailed(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.down == nil && s.fifo.len() > 0 {
		s.cond.Wait()
	}
	if s.down != nil {
		return nil, s.down
	}
	return s.parkTLS, s.client.flush()
}

// unwrap does both handshakes; first is what the client has sent of its own already, nil behind STARTTLS. The server's
// direction pauses meanwhile.
func (s *session) unwrap(first []byte) error {
	if s.h.tls == nil {
		return s.relayTLS(first)
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.h.set.HandshakeTimeout)
	defer cancel()
	s.client.raw.SetDeadline(time.Time{})
	s.server.raw.SetDeadline(time.Time{})
	got, err := s.h.tls.Unwrap(ctx, tlsunwrap.Request{
		ID: s.c.ID, Client: s.client.raw, Server: s.server.raw, Early: first, ClientAddr: s.c.Client, ServerAddr: s.c.Server,
		Door: inspect.DoorSMTP, Divert: s.c.Divert, Probe: s.probe(first == nil),
	})
	if err != nil {
		if e := (*tlsunwrap.Error)(nil); errors.As(err, &e) && s.ctx.Err() == nil {
			s.special(e.Event, strings.TrimPrefix(e.Error(), e.Event+": "))
		}
		return fmt.Errorf("%w: %w", errTLS, err)
	}
	if got.Info.Tunnel {
		in, out, err := s.relay(got.Client, got.Server)
		got.Account(in, out)
		return err
	}
	s.client.become(got.Client)
	s.server.become(got.Server)
	s.mu.Lock()
	s.state = dialogue{tls: true, verified: got.Info.Verified, sni: got.Info.SNI}
	s.caps = capabilities{}
	s.endTransaction() // RFC 3207 §4.2: nothing from before is known any more
	s.mu.Unlock()
	s.auth = authExchange{}
	s.resume()
	return nil
}

// relayTLS passes octets through, if they are TLS on both sides: anything else would be a way around inspection.
func (s *session) relayTLS(first []byte) error {
	client, err := s.opens(s.client.raw, first)
	if err != nil {
		return err
	}
	if !tlsunwrap.IsClientHello(client) {
		s.special("starttls-injection", "the client does not begin TLS after STARTTLS")
		return errInjection
	}
	if err := s.server.write(client); err != nil {
		return err
	}
	server, err := s.opens(s.server.raw, nil)
	if err != nil {
		return err
	}
	const alert, handshake = 21, 22 // RFC 8446 §5.1
	if server[0] != handshake && server[0] != alert {
		s.special("not-smtp", "the server does not answer with TLS")
		return errInjection
	}
	if err := s.client.write(server); err != nil {
		return err
	}
	return s.passThrough("UnwrapSsl No")
}

// opens returns the first octets of c, which begin with those in first: enough to tell TLS.
func (s *session) opens(c net.Conn, first []byte) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(s.h.set.HandshakeTimeout))
	defer c.SetReadDeadline(time.Time{})
	buf := make([]byte, lineBuffer)
	n := copy(buf, first)
	for n < 6 {
		if s.ctx.Err() != nil {
			return nil, s.ctx.Err()
		}
		k, err := c.Read(buf[n:])
		if n += k; err != nil && n < 6 {
			return nil, err
		}
	}
	return append(buf[:n:n], first[min(n, len(first)):]...), nil
}

// relay passes octets through until both ends are done, and returns how many went each way.
func (s *session) relay(client, server net.Conn) (in, out int64, err error) {
	s.client.raw.SetDeadline(time.Time{})
	s.server.raw.SetDeadline(time.Time{})
	in, out, err = proxy.Relay(s.ctx, client, server)
	s.client.received.Add(in)
	s.server.sent.Add(in)
	s.server.received.Add(out)
	s.client.sent.Add(out)
	if err != nil {
		return in, out, fmt.Errorf("%w: %w", errTunnelled, err)
	}
	return in, out, errTunnelled
}

// passThrough relays without looking, and records what was not inspected, and why.
func (s *session) passThrough(reason string) error {
	s.log.Info("not inspected", "reason", reason)
	in, out, err := s.relay(s.client.raw, s.server.raw)
	e := s.h.event("not-inspected", s.c)
	e.Reason, e.Size = reason, in+out
	s.h.events.Record(e)
	return err
}
