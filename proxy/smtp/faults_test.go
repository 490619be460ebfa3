package smtp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/proxytest"
)

// cut is a connection that ends after so many octets in one direction.
type cut struct {
	net.Conn
	reads, writes int // octets until it ends; negative: never
	how           func(net.Conn)
}

// Read implements io.Reader.
func (c *cut) Read(p []byte) (int, error) {
	if c.reads == 0 {
		c.how(c.Conn)
		return 0, errCut
	}
	if c.reads > 0 {
		p = p[:min(len(p), c.reads)]
	}
	n, err := c.Conn.Read(p)
	if c.reads > 0 {
		c.reads -= n
	}
	return n, err
}

// Write implements io.Writer.
func (c *cut) Write(p []byte) (int, error) {
	if c.writes < 0 {
		return c.Conn.Write(p)
	}
	k := min(len(p), c.writes)
	n, err := c.Conn.Write(p[:k])
	if c.writes -= n; c.writes == 0 && err == nil {
		c.how(c.Conn)
		err = errCut
	}
	return n, err
}

var errCut = errors.New("cut")

func closeConn(c net.Conn) { c.Close() }

// store is a server that stores messages; it may be cut.
type store struct {
	mu       sync.Mutex
	messages []string
	begun    int // DATA and BDAT commands seen
	content  int // octets of content seen
}

// serve speaks for the server until the end.
func (st *store) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReaderSize(c, 16)
	say := func(s string) bool { _, err := io.WriteString(c, s+"\r\n"); return err == nil }
	if !say("220 mx") {
		return
	}
	for {
		l, err := br.ReadString('\n')
		if err != nil {
			return
		}
		reply := "250 ok"
		switch verb, _, _ := strings.Cut(strings.TrimSpace(l), " "); verb {
		case "EHLO":
			reply = "250-mx\r\n250-CHUNKING\r\n250 PIPELINING"
		case "DATA":
			st.mu.Lock()
			st.begun++
			st.mu.Unlock()
			if !say("354 go") {
				return
			}
			b := []byte("\r\n")
			for !bytes.HasSuffix(b, []byte("\r\n.\r\n")) {
				o, err := br.ReadByte()
				if err != nil {
					return
				}
				b = append(b, o)
				st.mu.Lock()
				st.content++
				st.mu.Unlock()
			}
			st.store(string(b))
		case "BDAT":
			st.mu.Lock()
			st.begun++
			st.mu.Unlock()
			var n int
			fmt.Sscanf(l, "BDAT %d LAST", &n)
			b := make([]byte, n)
			if _, err := io.ReadFull(br, b); err != nil {
				return
			}
			st.store(string(b))
		case "QUIT":
			say("221 bye")
			return
		}
		if !say(reply) {
			return
		}
	}
}

func (st *store) store(m string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.messages = append(st.messages, m)
}

func (st *store) count() (messages, begun, content int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.messages), st.begun, st.content
}

// scanFunc makes a function a Scanner.
type scanFunc func(*inspect.Message) inspect.Verdict

// Scan implements inspect.Scanner.
func (f scanFunc) Scan(_ context.Context, m *inspect.Message) inspect.Verdict { return f(m) }

// steps of a client, one message each way.
var sessions = map[string][][]string{
	"DATA": {{""}, {"EHLO c\r\n"}, {"MAIL FROM:<a@x>\r\n"}, {"RCPT TO:<b@y>\r\n"}, {"DATA\r\n"}, {"Subject: x\r\n\r\n..text\r\n.\r\n"}},
	"BDAT": {{""}, {"EHLO c\r\n"}, {"MAIL FROM:<a@x>\r\n"}, {"RCPT TO:<b@y>\r\n"}, {"BDAT 4\r\nabcd"}, {"BDAT 3 LAST\r\nefg"}},
}

// converse plays a client. It returns the reply to each step, as far as they came.
func converse(c net.Conn, steps [][]string) (replies []string) {
	br := bufio.NewReader(c)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, s := range steps {
		if s[0] != "" {
			if _, err := io.WriteString(c, s[0]); err != nil {
				return replies
			}
		}
		for {
			l, err := br.ReadString('\n')
			if err != nil {
				return replies
			}
			if len(l) > 3 && l[3] == ' ' {
				replies = append(replies, l)
				break
			}
		}
	}
	return replies
}

// faulted runs one session with one leg cut and checks the promises. It reports whether the cut was reached.
func faulted(t *testing.T, name, way string, client, server func(net.Conn) net.Conn) (success bool, st *store) {
	t.Helper()
	st = &store{}
	h := newHarness(t, func(c *Config) {
		c.Scanner = scanFunc(func(*inspect.Message) inspect.Verdict {
			if m, begun, content := st.count(); m+begun+content != 0 {
				t.Errorf("%s: at the verdict the server has seen %d messages, %d DATA, %d octets of content", name, m, begun, content)
			}
			return inspect.Verdict{Action: inspect.Pass}
		})
	})
	served := make(chan struct{})
	go func() { defer close(served); st.serve(server(h.s.Conn)) }()
	replies := converse(client(h.c.Conn), sessions[way])
	h.c.Close()
	<-served
	h.ended()
	success = len(replies) == len(sessions[way]) && strings.HasPrefix(replies[len(replies)-1], "2")
	messages, begun, _ := st.count()
	if success && messages != 1 {
		t.Errorf("%s: the client was told success, and the server has %d messages", name, messages)
	}
	if messages > 1 || begun > 1 {
		t.Errorf("%s: the server has %d messages of %d transactions", name, messages, begun)
	}
	return success, st
}

func whole(c net.Conn) net.Conn { return c }

func TestFaults(t *testing.T) {
	t.Parallel()
	for way := range sessions {
		for how, f := range map[string]func(net.Conn){"FIN": closeConn, "RST": func(c net.Conn) { proxy.Reset(c) }} {
			t.Run(fmt.Sprintf("G-02 G-03 G-11 S-172 S-173 X-002 %s, the server cut by %s at every octet", way, how), func(t *testing.T) {
				n := 0
				for ; ; n++ { // octets that the server reads
					if ok, _ := faulted(t, fmt.Sprint("read ", n), way, whole, func(c net.Conn) net.Conn { return &cut{c, n, -1, f} }); ok {
						break
					}
				}
				for n = 1; ; n++ { // and that it writes
					if ok, _ := faulted(t, fmt.Sprint("write ", n), way, whole, func(c net.Conn) net.Conn { return &cut{c, -1, n, f} }); ok {
						break
					}
				}
			})
			t.Run(fmt.Sprintf("G-04 G-11 S-159 S-176 X-002 %s, the client cut by %s at every octet", way, how), func(t *testing.T) {
				total := 0
				for _, s := range sessions[way] {
					total += len(s[0])
				}
				for n := 1; n < total; n++ {
					if _, st := faulted(t, fmt.Sprint("write ", n), way, func(c net.Conn) net.Conn { return &cut{c, -1, n, f} }, whole); len(st.messages) != 0 {
						t.Errorf("cut at octet %d of %d, the server stores %q", n, total, st.messages)
					}
				}
			})
		}
	}
	t.Run("S-173 the server closes after 1 KB of the replay", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet()
		h.content()
		h.c.send(strings.Repeat(strings.Repeat("x", 998)+"\r\n", 5000) + ".\r\n")
		h.s.wantLine("DATA")
		h.s.say("354 go")
		io.CopyN(io.Discard, h.s.br, 1024)
		h.s.Close()
		h.c.want("451 ")
		if rest, _ := h.c.rest(); rest != "" {
			t.Errorf("and then %q", rest)
		}
		h.ended()
	})
	t.Run("S-175 the server refuses after 10 KB of the replay", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet()
		h.content()
		go io.WriteString(h.c.Conn, strings.Repeat(strings.Repeat("x", 998)+"\r\n", 20000)+".\r\n")
		h.s.wantLine("DATA")
		h.s.say("354 go")
		io.CopyN(io.Discard, h.s.br, 10<<10)
		h.s.say("552 5.3.4 enough")
		go io.Copy(io.Discard, h.s.br)
		h.c.wantLine("552 5.3.4 enough")
		h.ended()
	})
	t.Run("S-177 the client resets while the verdict is made", func(t *testing.T) {
		h := newHarness(t, nil)
		began := h.scanner.Began()
		h.scanner.Delay(80 * time.Millisecond)
		h.greet()
		h.content()
		h.c.say("x", ".")
		<-began
		h.c.reset()
		if rest, _ := h.s.rest(); strings.Contains(rest, "DATA") {
			t.Errorf("the server sees %q", rest)
		}
		h.ended()
	})
	t.Run("S-177 the client resets behind the final dot at the server", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet()
		h.content()
		h.c.say("x", ".")
		h.s.wantLine("DATA")
		h.s.say("354 go")
		h.s.block()
		h.c.reset()
		time.Sleep(20 * time.Millisecond) // the reset has to arrive
		h.s.say("250 stored")
		h.ended()
		if !h.events.Has("orphan-accept") {
			t.Errorf("no event orphan-accept:\n%s", h.events.JSON())
		}
	})
	t.Run("S-184 passed though not looked into: identical, and an event", func(t *testing.T) {
		h := newHarness(t, nil)
		h.scanner.Answer(inspect.Verdict{Action: inspect.Pass, Reason: "unchecked:unavailable",
			Findings: []inspect.Finding{{Kind: inspect.Unchecked, Category: inspect.Unavailable}},
			Err:      errors.Join(errors.New("engine a: gone"), errors.New("engine b: gone"))})
		h.greet()
		h.content()
		h.c.say("x", ".")
		if wire := h.take("250 ok"); wire != "x\r\n" {
			t.Errorf("the server gets %q", wire)
		}
		h.c.want("250 ok")
		h.end()
		if !h.events.Has("unscanned") {
			t.Error("no event unscanned")
		}
		if text := h.events.JSON(); !strings.Contains(text, `"detail":"engine a: gone; engine b: gone"`) {
			t.Errorf("the errors are not told apart:\n%s", text)
		}
	})
	t.Run("S-185 a header on top, everything else as it was", func(t *testing.T) {
		h := newHarness(t, nil)
		h.scanner.Modify(func(*inspect.Message) *inspect.Edits {
			return &inspect.Edits{List: []inspect.Edit{{New: inspect.Bytes("X-Mailweir: seen\r\n")}}}
		})
		h.greet()
		h.content()
		body := "DKIM-Signature: x\r\nSubject:  odd   blanks \r\n\r\n\ttext \r\n"
		h.c.send(body + ".\r\n")
		if wire := h.take("250 ok"); wire != "X-Mailweir: seen\r\n"+body {
			t.Errorf("the server gets %q", wire)
		}
		h.c.want("250 ok")
		h.end()
	})
	t.Run("S-202 S-203 edits that do not fit are an error, never the original", func(t *testing.T) {
		h := newHarness(t, nil)
		h.scanner.Modify(func(*inspect.Message) *inspect.Edits {
			return &inspect.Edits{List: []inspect.Edit{{Start: 5, End: 5000}}}
		})
		h.greet()
		h.content()
		h.c.say("x", ".")
		h.c.want("451 ")
		h.s.wantLine("RSET")
		h.s.say("250 ok")
		h.end()
	})
	t.Run("G-13 the scanner panics: no reply, and the server has nothing", func(t *testing.T) {
		st := &proxytest.Server{}
		st.Start(t)
		g := proxytest.StartGateway(t, proxy.Config{Log: slog.New(slog.DiscardHandler)}, st.Addr(), func(dial proxy.Dialer) proxy.Handler {
			return New(Config{Dial: dial, Spool: testSpool(t, spool.Settings{}), Scanner: scanFunc(func(*inspect.Message) inspect.Verdict { panic("x") })})
		})
		c := proxytest.Connect(t, g.Addr)
		if err := errors.Join(c.Hello(), c.Envelope("a@x", "b@y")); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Data("x\r\n.\r\n"); err == nil {
			t.Errorf("the client is told %q", r)
		}
		if m := st.Messages(); len(m) != 0 {
			t.Errorf("the server has %v", m)
		}
	})
}
