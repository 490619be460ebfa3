package pop3

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
	"mailweir/tlsunwrap"
)

var (
	errInjection = errors.New("octets behind STLS")
	errTunnelled = errors.New("passed through uninspected")
	errTLS       = errors.New("TLS handshake failed")
)

// stls passes STLS on and, when the server is ready, stands between the two ends of the handshake.
func (s *session) stls(c command) error {
	if err := s.settle(); err != nil {
		return err
	}
	if s.client.pending() > 0 {
		return s.injected("the client sends more behind STLS in clear") // RFC 2595 §4, CVE-2011-0411
	}
	s.server.out = append(append(s.server.out, c.line...), '\r', '\n')
	if err := s.ask(); err != nil {
		return err
	}
	text, positive, err := s.status()
	if err != nil {
		return err
	}
	if !positive { // P-092
		s.say(text)
		return s.flushClient()
	}
	if s.server.pending() > 0 || s.state.tls { // P-091: it would be read as if it had come under TLS
		return s.injected("the server sends more behind its reply in clear")
	}
	s.say(text)
	if err := s.flushClient(); err != nil {
		return err
	}
	return s.unwrap(nil)
}

func (s *session) injected(what string) error {
	s.special("starttls-injection", what)
	return errInjection
}

// unwrap does both handshakes; first is what the client has sent of its own already, nil behind STLS.
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
		Door: inspect.DoorPOP3, Divert: s.c.Divert, Probe: s.probe(first == nil),
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
	s.begin(dialogue{tls: true, verified: got.Info.Verified, sni: got.Info.SNI}) // nothing from before is known any more
	return nil
}

// probe returns what opens another connection to the session's server and brings it to where TLS begins.
func (s *session) probe(stls bool) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := s.h.dial(ctx, s.c)
		if err != nil || !stls {
			return c, err
		}
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
		err = askTLS(c)
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("ask server for TLS: %w", err)
		}
		return c, nil
	}
}

// askTLS holds the conversation up to the server's +OK to STLS.
func askTLS(c net.Conn) error {
	br := bufio.NewReaderSize(c, lineBuffer)
	for _, say := range []string{"", "STLS\r\n"} {
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
		l, err := br.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(l), "+OK") {
			return errors.New("the server does not want to")
		}
	}
	if br.Buffered() > 0 { // P-091
		return errInjection
	}
	return nil
}

// relayTLS passes octets through, if they are TLS on both sides: anything else would be a way around inspection.
func (s *session) relayTLS(first []byte) error {
	client, err := s.opens(s.client.raw, first)
	if err != nil {
		return err
	}
	if !tlsunwrap.IsClientHello(client) {
		return s.injected("the client does not begin TLS after STLS")
	}
	if _, err := s.server.Write(client); err != nil {
		return err
	}
	server, err := s.opens(s.server.raw, nil)
	if err != nil {
		return err
	}
	const alert, handshake = 21, 22 // RFC 8446 §5.1
	if server[0] != handshake && server[0] != alert {
		return s.injected("the server does not answer with TLS")
	}
	if _, err := s.client.Write(server); err != nil {
		return err
	}
	return s.passThrough("UnwrapSsl No")
}

// opens returns the first octets of c, which begin with those in first: enough to tell TLS.
func (s *session) opens(c net.Conn, first []byte) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(s.h.set.HandshakeTimeout))
	defer c.SetReadDeadline(time.Time{})
	for buf := make([]byte, lineBuffer); len(first) < 6; {
		if s.ctx.Err() != nil {
			return nil, s.ctx.Err()
		}
		n, err := c.Read(buf)
		if first = append(first, buf[:n]...); err != nil && len(first) < 6 {
			return nil, err
		}
	}
	return first, nil
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
