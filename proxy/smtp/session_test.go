package smtp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/proxytest"
	"mailweir/proxy/smtpwire"
)

// TestPipelined sends messages in one segment with the commands of the next.
func TestPipelined(t *testing.T) {
	t.Run("S-105 100 messages, each behind the dot of the one before", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet("PIPELINING")
		var verdicts []string
		go keepServer(h)
		h.c.say("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
		for i := range 100 {
			h.c.want("250")
			h.c.want("250")
			h.c.want("354")
			h.c.say(fmt.Sprint("message ", i), ".", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA")
			verdicts = append(verdicts, h.c.line())
		}
		for i, m := range h.scanner.Scanned() {
			if string(m.Content) != fmt.Sprintf("message %d\r\n", i) || verdicts[i] != "250 stored" {
				t.Errorf("message %d is %q, its reply %q", i, m.Content, verdicts[i])
			}
		}
		if n := len(h.scanner.Scanned()); n != 100 {
			t.Errorf("%d messages were scanned", n)
		}
		h.end()
	})
}

// TestUnreachable shows what the client sees of a server that cannot be reached.
func TestUnreachable(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		reset bool
	}{
		{"G-17 refused", syscall.ECONNREFUSED, true},
		{"G-17 host unreachable", fmt.Errorf("dial: %w", syscall.EHOSTUNREACH), true},
		{"G-17 no answer", os.ErrDeadlineExceeded, false},
		{"G-16 our own address", errors.New("refuse to connect to the gateway itself"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t, func(cfg *Config) {
				cfg.Dial = func(context.Context, *proxy.Conn) (net.Conn, error) { return nil, c.err }
			})
			rest, orderly := h.c.rest()
			if rest != "" || orderly == c.reset {
				t.Errorf("the client reads %q, and a reset: %v", rest, !orderly)
			}
			h.ended()
		})
	}
}

// TestSecrets logs in by every mechanism, fails and succeeds, and looks for what was secret in all that was written.
func TestSecrets(t *testing.T) {
	const secret = "hunter2-Zm9v"
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	t.Run("G-15 passwords and tokens are written nowhere", func(t *testing.T) {
		var mu sync.Mutex
		var log bytes.Buffer
		out := writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		})
		h := newHarness(t, func(c *Config) {
			c.Log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug - 8}))
		})
		h.greet("AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER CRAM-MD5 SCRAM-SHA-256")
		var said []string
		for _, x := range [][]string{
			{"AUTH PLAIN " + b64("\x00joe\x00"+secret)},
			{"AUTH PLAIN", b64(secret + "\x00" + secret + "\x00" + secret + "\x00" + secret)},
			{"AUTH LOGIN", b64("joe"), b64(secret)},
			{"AUTH LOGIN " + b64("joe"), b64(secret)},
			{"AUTH XOAUTH2 " + b64("user=joe\x01auth=Bearer "+secret+"\x01\x01")},
			{"AUTH OAUTHBEARER " + b64("n,a=joe,\x01auth=Bearer "+secret+"\x01\x01")},
			{"AUTH CRAM-MD5", b64("joe " + secret)},
			{"AUTH SCRAM-SHA-256 " + b64("n,,n=joe,r="+secret), b64("c=biws,p=" + secret)},
			{"AUTH PLAIN " + b64("\x00joe\x00"+secret) + " " + secret},
			{"AUTH " + secret + " " + secret},
			{"AUTHX " + secret},
		} {
			for i, l := range x {
				h.c.say(l)
				said = append(said, l)
				if strings.HasSuffix(l, " "+secret) {
					h.c.want("50")
					continue
				}
				h.s.wantLine(l)
				reply := "334 more"
				if i == len(x)-1 {
					reply = "535 no"
				}
				h.s.say(reply)
				h.c.want(reply)
			}
		}
		h.content()
		h.c.say("x", ".")
		h.take("250 ok")
		h.c.want("250")
		h.end()
		mu.Lock()
		all := log.String() + h.events.JSON()
		mu.Unlock()
		for _, l := range append(said, secret) {
			for _, w := range strings.Fields(l) {
				if len(w) > 10 && w != "OAUTHBEARER" && w != "SCRAM-SHA-256" && strings.Contains(all, w) {
					t.Errorf("%q is written", w)
				}
			}
		}
	})
}

type writerFunc func([]byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestStorms connects many clients that only waste the gateway's time.
func TestStorms(t *testing.T) {
	t.Run("S-246 S-247 a thousand clients that close or reset at once", func(t *testing.T) {
		srv := (&proxytest.Server{}).Start(t)
		g := proxytest.StartGateway(t, proxy.Config{Log: slog.New(slog.DiscardHandler)}, srv.Addr(), func(dial proxy.Dialer) proxy.Handler {
			return New(Config{Dial: dial, Spool: testSpool(t, spool.Settings{}), Scanner: &proxytest.Scanner{}})
		})
		for i := range 1000 {
			c, err := net.Dial("tcp", g.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				c.Close()
			} else {
				proxy.Reset(c)
			}
		}
		if !srv.Wait(10*time.Second, func() bool { return srv.Active() == 0 && g.Stats().Active == 0 }) {
			t.Errorf("%d connections are left at the server, %d in the gateway", srv.Active(), g.Stats().Active)
		}
		if n := srv.Dials(); n > 1000 {
			t.Errorf("%d dials", n)
		}
	})
}

// FuzzSession plants octets at each state of a session. Whatever they are, the server sees only commands that the
// gateway knows, each as one clean line, and the session ends.
func FuzzSession(f *testing.F) {
	states := []string{
		"",
		"EHLO c\r\n",
		"EHLO c\r\nMAIL FROM:<a@x>\r\n",
		"EHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n",
		"EHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n",
		"EHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 3\r\nabc",
		"EHLO c\r\nAUTH LOGIN\r\n",
	}
	for i := range states {
		f.Add(byte(i), []byte("x\r\n.\r\nMAIL FROM:<c@x>\r\nQUIT\r\n"))
		f.Add(byte(i), []byte("BDAT 5 LAST\r\nQUIT\r\nNOOP\nRSET\r\x00\n\r\n.\r\n"))
		f.Add(byte(i), []byte("\r\n.\n\x16\x03\x01STARTTLS\r\nRCPT TO:<a>\rRCPT TO:<b>\r\n"))
	}
	f.Fuzz(func(t *testing.T, state byte, octets []byte) {
		if len(octets) > 4096 {
			return
		}
		h := newPipeHarness(t, func(c *Config) { c.Scanner = scanFunc(passAll) })
		seen := make(chan error, 1)
		go func() { seen <- strictPeer(h.s) }()
		go io.Copy(io.Discard, h.c.br)
		io.WriteString(h.c.Conn, states[int(state)%len(states)]) // errors: the session may be over
		h.c.Conn.Write(octets)
		h.c.Close()
		if err := <-seen; err != nil {
			t.Error(err)
		}
		h.s.Close()
		h.ended()
	})
}

func passAll(*inspect.Message) inspect.Verdict { return inspect.Verdict{Action: inspect.Pass} }

// strictPeer is a server that takes nothing for granted: every octet must be part of a known, clean command or of a
// message in its frame.
func strictPeer(s *side) error {
	say := func(l string) { io.WriteString(s.Conn, l+"\r\n") }
	say("220 mx")
	defer s.Close()
	for {
		l, err := smtpwire.ReadLine(s.br, smtpwire.MaxAuthLine)
		if err == io.EOF {
			return nil
		}
		if err != nil || !l.Clean() {
			return fmt.Errorf("the server sees %q, %v", l.Text, err)
		}
		c := smtpwire.ParseCommand(l.Text)
		switch v, known := smtpwire.Lookup(c.Verb); {
		case !known || v.Has(smtpwire.Denied):
			return fmt.Errorf("the server sees %q", c.Raw)
		case c.Verb == "EHLO":
			say("250-mx\r\n250-CHUNKING\r\n250-STARTTLS\r\n250 AUTH LOGIN")
		case c.Verb == "STARTTLS":
			say("454 not now")
		case c.Verb == "AUTH":
			say("334 ")
			if _, err := smtpwire.ReadLine(s.br, smtpwire.MaxAuthLine); err != nil {
				return nil
			}
			say("535 no")
		case c.Verb == "DATA":
			say("354 go")
			last := "\r\n"
			for last != "\r\n.\r\n" {
				b, err := s.br.ReadByte()
				if err != nil {
					return fmt.Errorf("content that does not end")
				}
				last += string(rune(b))
				last = last[max(0, len(last)-5):]
			}
			say("250 stored")
		case c.Verb == "BDAT":
			n, _, err := smtpwire.ParseBDAT(c)
			if err != nil {
				return err
			}
			if _, err := io.CopyN(io.Discard, s.br, n); err != nil {
				return fmt.Errorf("a chunk that does not end")
			}
			say("250 stored")
		case c.Verb == "QUIT":
			say("221 bye")
			return nil
		default:
			say("250 ok")
		}
	}
}
