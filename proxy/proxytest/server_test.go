package proxytest

import (
	"context"
	"errors"
	"io"
	"net/smtp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mailweir/proxy"
)

func TestServerStores(t *testing.T) {
	s := (&Server{Caps: []string{"PIPELINING", "CHUNKING", "AUTH PLAIN LOGIN"}}).Start(t)
	if err := smtp.SendMail(s.Addr().String(), nil, "a@x", []string{"b@y", "c@z"}, []byte("one\r\n.two\r\n")); err != nil {
		t.Fatal(err)
	}
	c := Connect(t, s.Addr())
	if err := errors.Join(c.Hello(), c.Expect("AUTH PLAIN AGEAYg==", "235"), c.Envelope("a", "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "BDAT 3\r\nabc"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Reply(); err != nil || !strings.HasPrefix(r, "250") {
		t.Fatal(r, err)
	}
	if _, err := io.WriteString(c, "BDAT 4 LAST\r\n\n.\r\n"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Reply(); err != nil || !strings.HasPrefix(r, "250") {
		t.Fatal(r, err)
	}
	if err := errors.Join(c.Expect("AUTH LOGIN", "334"), c.Expect("YQ==", "334"), c.Expect("Yg==", "235"), c.Expect("DATA", "503"), c.Expect("QUIT", "221")); err != nil {
		t.Fatal(err)
	}
	m := s.Messages()
	if len(m) != 2 || string(m[0].Content) != "one\r\n.two\r\n" || string(m[0].Wire) != "one\r\n..two\r\n.\r\n" ||
		!slices.Equal(m[0].To, []string{"<b@y>", "<c@z>"}) || m[1].User != "PLAIN" || string(m[1].Content) != "abc\n.\r\n" || !m[1].BDAT {
		t.Errorf("stored %+v", m)
	}
}

func TestServerIsStrict(t *testing.T) {
	s := (&Server{}).Start(t)
	c := Connect(t, s.Addr())
	if err := errors.Join(c.Hello(), c.Expect("RCPT TO:<a>", "503"), c.Expect("NO\x00OP", "500"), c.Expect("DATA", "503"), c.Expect("STARTTLS", "502")); err != nil {
		t.Fatal(err)
	}
}

// TestServerWithModel shows how a lenient server is led astray by octets that a strict one takes for text.
func TestServerWithModel(t *testing.T) {
	for i, m := range EODModels() {
		s := (&Server{EOD: &EODModels()[i]}).Start(t)
		c := Connect(t, s.Addr())
		if err := errors.Join(c.Hello(), c.Envelope("a", "b")); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Data("x\r\n\x00.\r\nMAIL FROM:<evil>\r\n.\r\n"); err != nil || !strings.HasPrefix(r, "250") {
			t.Fatal(m.Name, r, err)
		}
		if _, err := io.WriteString(c, "QUIT\r\n"); err != nil {
			t.Fatal(err)
		}
		c.End()
		if got := slices.Contains(s.Commands(), "MAIL FROM:<evil>"); got != m.dropNUL {
			t.Errorf("model %s: smuggled = %v", m.Name, got)
		}
	}
}

func TestServerFaults(t *testing.T) {
	for _, f := range []struct {
		event  string
		fault  Fault
		stored int
		want   error
	}{
		{"MAIL", Close, 0, io.EOF}, {"dot", RST, 0, syscall.ECONNRESET}, {"stored", Close, 1, io.EOF},
	} {
		s := (&Server{Fault: func(e string, _ int64) Fault {
			if e == f.event {
				return f.fault
			}
			return NoFault
		}}).Start(t)
		c := Connect(t, s.Addr())
		err := errors.Join(c.Hello(), c.Envelope("a", "b"))
		if err == nil {
			_, err = c.Data("x\r\n.\r\n")
		}
		if !errors.Is(err, f.want) || len(s.Messages()) != f.stored {
			t.Errorf("%s: err %v, %d stored", f.event, err, len(s.Messages()))
		}
	}
	s := (&Server{Fault: func(e string, n int64) Fault {
		if e == "read" && n >= 10 {
			return Close
		}
		return NoFault
	}}).Start(t)
	c := Connect(t, s.Addr())
	if err := c.Hello(); err == nil {
		err = c.Expect("NOOP", "250")
		if err == nil {
			t.Error("the server survived its fault")
		}
	}
}

func TestServerReplies(t *testing.T) {
	s := (&Server{Greeting: "220-a\r\n220 b", MaxSize: 3, Reply: func(event, line string) string {
		if line == "NOOP" {
			return "421 4.3.2 going"
		}
		return ""
	}, Delay: func(e string) time.Duration { return time.Millisecond }}).Start(t)
	c := Connect(t, s.Addr())
	if r, err := c.Reply(); r != "220-a\r\n220 b\r\n" || err != nil {
		t.Fatal(r, err)
	}
	if err := errors.Join(c.Expect("HELO x", "250"), c.Envelope("a", "b")); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Data("abcd\r\n.\r\n"); err != nil || !strings.HasPrefix(r, "552") {
		t.Error(r, err)
	}
	if err := c.Expect("NOOP", "421"); err != nil {
		t.Error(err)
	}
	if left, err := c.End(); left != "" || err != nil {
		t.Error(left, err)
	}
}

func TestGateway(t *testing.T) {
	s := (&Server{}).Start(t)
	g := StartGateway(t, proxy.Config{}, s.Addr(), func(d proxy.Dialer) proxy.Handler { return through{d} })
	c := Connect(t, g.Addr)
	if err := errors.Join(c.Hello(), c.Expect("QUIT", "221")); err != nil || g.Stats().Dialed != 1 {
		t.Error(err, g.Stats())
	}
}

type through struct{ dial proxy.Dialer }

func (h through) Serve(ctx context.Context, _ <-chan struct{}, c *proxy.Conn) {
	if s, err := h.dial(ctx, c); err == nil {
		proxy.Relay(ctx, c.Conn, s)
	}
}
