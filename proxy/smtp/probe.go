package smtp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"mailweir/proxy/smtpwire"
)

// probe returns what opens another connection to the session's server and brings it to where TLS begins: there a
// certificate can be looked at before a client's own connection is let through by the name that it asks for (T-071).
// With STARTTLS that takes the server's greeting, an EHLO in the client's name, and STARTTLS. No mail command is said.
func (s *session) probe(starttls bool) func(context.Context) (net.Conn, error) {
	s.mu.Lock()
	hello := "EHLO " + s.state.helo
	if s.state.lmtp {
		hello = "LHLO " + s.state.helo
	}
	s.mu.Unlock()
	return func(ctx context.Context) (net.Conn, error) {
		c, err := s.h.next.Open(ctx, s.c)
		if err != nil {
			return nil, err
		}
		if !starttls {
			return c, nil
		}
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
		err = askTLS(c, hello)
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

// askTLS holds the conversation up to the server's 220 to STARTTLS.
func askTLS(c net.Conn, hello string) error {
	br := bufio.NewReader(c)
	for _, step := range []struct {
		say  string
		want int
	}{{"", 220}, {hello, 250}, {"STARTTLS", 220}} {
		if step.say != "" {
			if _, err := io.WriteString(c, step.say+"\r\n"); err != nil {
				return err
			}
		}
		r, err := smtpwire.ReadReply(br, nil)
		if err != nil {
			return err
		}
		if r.Code != step.want {
			return fmt.Errorf("%q is answered by %d", step.say, r.Code)
		}
	}
	if br.Buffered() > 0 { // S-062
		return errors.New("more behind the reply in clear")
	}
	return nil
}
