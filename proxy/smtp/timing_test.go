package smtp

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mailweir/inspect"
	"mailweir/proxy"
)

// bubble runs f in a synctest bubble: hours pass at once, and nothing depends on the machine's speed.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// content has a message begun by DATA.
func (h *harness) content() {
	h.t.Helper()
	h.envelope("a@x", "b@y")
	h.c.say("DATA")
	h.c.want("354")
}

func TestTimes(t *testing.T) {
	t.Parallel()
	bubble(t, "S-002 S-230 S-245 a banner after 200 s", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		time.Sleep(299 * time.Second)
		h.s.say("220 late")
		h.c.want("220 late")
		h.end()
	})
	bubble(t, "S-002 no banner at all", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		began := time.Now()
		if rest, _ := h.c.rest(); rest != "" && !strings.HasPrefix(rest, "421") {
			t.Errorf("the client is told %q", rest)
		}
		if d := time.Since(began); d < 5*time.Minute {
			t.Errorf("the session ends after %v", d)
		}
		h.ended()
	})
	bubble(t, "S-003 a banner in pieces 6 s apart", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		began := time.Now()
		h.s.say("220-x")
		h.c.wantLine("220-x")
		if d := time.Since(began); d > 200*time.Millisecond {
			t.Errorf("the first line takes %v", d)
		}
		time.Sleep(6 * time.Second)
		h.s.say("220 y")
		h.c.wantLine("220 y")
		h.end()
	})
	for _, verb := range []string{"MAIL FROM:<a@x>", "RCPT TO:<b@y>", "NOOP"} {
		bubble(t, "S-231 a reply after 250 s to "+verb[:4], func(t *testing.T) {
			h := newPipeHarness(t, nil)
			h.greet()
			h.c.say(verb)
			h.s.wantLine(verb)
			time.Sleep(250 * time.Second)
			h.s.say("250 slowly")
			h.c.wantLine("250 slowly")
			h.end()
		})
	}
	bubble(t, "S-232 DATA is answered at once", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		h.envelope("a@x", "b@y")
		began := time.Now()
		h.c.say("DATA")
		h.c.want("354")
		if d := time.Since(began); d > 50*time.Millisecond {
			t.Errorf("354 takes %v", d)
		}
		h.end()
	})
	bubble(t, "S-233 an octet a minute is alive", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		h.content()
		go keepServer(h)
		for range 10 {
			h.c.send("x")
			time.Sleep(time.Minute)
		}
		h.c.send("\r\n.\r\n")
		h.c.want("250 stored")
		h.end()
	})
	bubble(t, "S-233 but not for ever", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		h.content()
		go keepServer(h)
		began, fed := time.Now(), make(chan struct{})
		go func() {
			defer close(fed)
			for {
				if _, err := io.WriteString(h.c.Conn, "x"); err != nil {
					return
				}
				time.Sleep(time.Minute)
			}
		}()
		h.c.want("421")
		if d := time.Since(began); d < 119*time.Minute || d > 121*time.Minute {
			t.Errorf("it ends after %v", d)
		}
		h.ended()
		<-fed
	})
	bubble(t, "S-233 silence within a message", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		h.content()
		go keepServer(h)
		h.c.send("x")
		began := time.Now()
		h.c.want("421 ")
		if d := time.Since(began); d != 5*time.Minute {
			t.Errorf("it ends after %v", d)
		}
		h.ended()
	})
	for _, c := range []struct {
		port   string
		budget time.Duration
	}{{"587", 50 * time.Second}, {"25", 5 * time.Minute}} {
		bubble(t, "S-234 S-186 G-13 the verdict never comes, port "+c.port, func(t *testing.T) {
			h := newPipeHarness(t, onPort(c.port))
			h.scanner.Hang()
			h.greet("ENHANCEDSTATUSCODES")
			h.content()
			began := time.Now()
			h.c.say("x", ".")
			for {
				// The server is kept awake meanwhile.
				l := h.s.line()
				h.s.say("250 ok")
				if l == "RSET" {
					break
				} else if l != "NOOP" {
					t.Fatalf("the server sees %q", l)
				}
			}
			h.c.want("451 4.7.1")
			if d := time.Since(began); d != c.budget {
				t.Errorf("the reply comes after %v", d)
			}
			h.c.say("NOOP")
			h.s.wantLine("NOOP")
			h.s.say("250 ok")
			h.c.want("250")
			h.end()
		})
	}
	bubble(t, "S-235 an idle client: the server's time-out wins", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		time.Sleep(310 * time.Second)
		h.s.say("421 4.4.2 timeout")
		h.c.wantLine("421 4.4.2 timeout")
		h.ended()
	})
	bubble(t, "S-235 an idle client and a patient server", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		began := time.Now()
		go io.Copy(io.Discard, h.s.br)
		h.c.want("421 ")
		if d := time.Since(began); d < 5*time.Minute {
			t.Errorf("the session ends after %v", d)
		}
		h.ended()
	})
	bubble(t, "S-231 a server that never answers", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		began := time.Now()
		h.c.say("NOOP")
		h.s.wantLine("NOOP")
		h.c.want("421 ")
		if d := time.Since(began); d < 5*time.Minute {
			t.Errorf("the session ends after %v", d)
		}
		h.ended()
	})
	bubble(t, "S-193 G-12 NOOP while a message arrives, seldom enough and never seen by the client", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		noops, done := 0, make(chan struct{})
		go func() {
			defer close(done)
			for {
				l, err := h.s.br.ReadString('\n')
				if err != nil {
					return
				}
				switch l {
				case "NOOP\r\n":
					noops++
				case "DATA\r\n":
					io.WriteString(h.s.Conn, "354 go\r\n")
					for l != ".\r\n" && err == nil {
						l, err = h.s.br.ReadString('\n')
					}
				}
				io.WriteString(h.s.Conn, "250 ok\r\n")
			}
		}()
		h.c.say("MAIL FROM:<a@x>")
		h.c.want("250")
		h.c.say("RCPT TO:<b@y>")
		h.c.want("250")
		h.c.say("DATA")
		h.c.want("354")
		for range 100 { // 100 minutes
			h.c.say("a line")
			time.Sleep(time.Minute)
		}
		h.c.say(".")
		h.c.wantLine("250 ok")
		h.end()
		<-done
		if noops < 10 || noops > maxKeepAlives {
			t.Errorf("%d NOOPs in 100 minutes", noops)
		}
	})
	bubble(t, "S-236 draining while a verdict is made: the message completes once", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.scanner.Delay(30 * time.Second)
		h.greet()
		h.content()
		h.c.say("x", ".")
		time.Sleep(10 * time.Second)
		close(h.draining)
		if wire := h.take("250 2.0.0 stored"); wire != "x\r\n" {
			t.Errorf("the server gets %q", wire)
		}
		h.c.wantLine("250 2.0.0 stored")
		h.c.want("421 ")
		h.s.wantLine("QUIT")
		h.ended()
	})
	bubble(t, "S-236 draining while the client is idle, or in the middle of an envelope", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		h.envelope("a@x", "b@y")
		synctest.Wait()
		close(h.draining)
		h.c.want("421 ")
		h.s.wantLine("QUIT")
		h.ended()
	})
	bubble(t, "S-236 draining before the connection", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		close(h.draining)
		h.s.say("220 mx")
		h.c.want("220 mx")
		h.c.want("421 ")
		h.s.wantLine("QUIT")
		h.ended()
	})
	bubble(t, "S-236 the context ends: at once, without any completion", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.scanner.Hang()
		h.greet()
		h.content()
		h.c.say("x", ".")
		synctest.Wait()
		h.stop()
		if rest, _ := h.c.rest(); rest != "" {
			t.Errorf("the client is told %q", rest)
		}
		h.ended()
	})
	bubble(t, "S-190 S-188 from the dot to the reply: the verdict and the server, nothing else", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.scanner.Delay(2 * time.Second)
		h.greet()
		h.content()
		for range 100 { // 100 s of upload
			h.c.send(strings.Repeat("0123456789abcde\r\n", 600))
			time.Sleep(time.Second)
		}
		began := time.Now()
		h.c.say(".")
		h.take("250 ok")
		answered := time.Now()
		h.c.want("250 ok")
		if d := time.Since(began); d > 2*time.Second+time.Millisecond {
			t.Errorf("the reply takes %v", d)
		}
		if d := time.Since(answered); d > time.Millisecond {
			t.Errorf("between the server's reply and the client's lie %v", d)
		}
		h.end()
	})
	bubble(t, "S-246 a client that says nothing and closes", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.c.Close()
		if rest, _ := h.s.rest(); rest != "" {
			t.Errorf("the server sees %q", rest)
		}
		h.ended()
	})
	bubble(t, "S-247 G-09 half-open: a peer that is only silent", func(t *testing.T) {
		h := newPipeHarness(t, func(c *Config) { c.Next = nil })
		time.Sleep(24 * time.Hour)
		h.ended()
	})
}

// onPort sets the port that the client meant.
func onPort(port string) func(*Config) {
	return func(c *Config) {
		n := 25
		fmt.Sscan(port, &n)
		c.Events = inspect.Discarding
		c.Next = portNext{c.Dial, uint16(n)}
	}
}

// keepServer plays a server that takes everything.
func keepServer(h *harness) {
	for {
		l, err := h.s.br.ReadString('\n')
		if err != nil {
			return
		}
		if l == "DATA\r\n" {
			io.WriteString(h.s.Conn, "354 go\r\n")
			for l != ".\r\n" && err == nil {
				l, err = h.s.br.ReadString('\n')
			}
			io.WriteString(h.s.Conn, "250 stored\r\n")
			continue
		}
		io.WriteString(h.s.Conn, "250 ok\r\n")
	}
}

// portNext is a Next that pretends that the client meant another port.
type portNext struct {
	dial proxy.Dialer
	port uint16
}

// Open implements Next.
func (p portNext) Open(ctx context.Context, c *proxy.Conn) (net.Conn, error) {
	c.Server = netip.AddrPortFrom(c.Server.Addr(), p.port)
	return p.dial(ctx, c)
}
