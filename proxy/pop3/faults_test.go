package pop3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/inspecttest"
	"mailweir/inspect/spool"
	"mailweir/proxy"
)

const mail = "Received: one\r\nFrom: a@x.example\r\nSubject: hi\r\n\r\nbody\r\n..\r\nend\r\n"

// cutServer plays a server that ends after cut octets of what it would say, while a client reads to the end.
func cutServer(t *testing.T, readBy string, cut int) (got string) {
	h := newHarness(t, func(c *Config) { c.ReadBy = readBy })
	defer h.ended()
	reply := "+OK 60 octets\r\n" + mail + ".\r\n"
	commands := 3
	if readBy == "Top" {
		commands = 4
	}
	go func() {
		defer h.s.Close()
		left := cut
		for i, part := range append([]string{"+OK ready\r\n", "+OK\r\n", "+OK\r\n"}, []string{reply, reply}[:commands-2]...) {
			if i > 0 {
				if _, err := h.s.br.ReadString('\n'); err != nil {
					return
				}
			}
			if n := min(left, len(part)); n > 0 {
				io.WriteString(h.s.Conn, part[:n])
				left -= n
			}
			if left <= 0 {
				return
			}
		}
	}()
	io.WriteString(h.c.Conn, "USER alice\r\nPASS secret\r\nRETR 1\r\n")
	got = h.c.rest()
	h.c.Close()
	return got
}

// TestX002CutServer G-11 P-035: the server ends at each octet; the client never sees the end of a message that the
// server has not given.
func TestX002G11P035CutServer(t *testing.T) {
	for _, readBy := range []string{"Top", "Retr"} {
		t.Run(readBy, func(t *testing.T) {
			reply := len("+OK 60 octets\r\n" + mail + ".\r\n")
			total := len("+OK ready\r\n+OK\r\n+OK\r\n") + reply
			if readBy == "Top" {
				total += reply
			}
			for cut := range total + 1 {
				got := cutServer(t, readBy, cut)
				_, message, ok := strings.Cut(got, "octets\r\n")
				switch whole := cut == total; {
				case whole && message != mail+".\r\n":
					t.Fatalf("cut at %d, behind the end: %q", cut, got)
				case !whole && (ok || strings.Contains(got, "body")):
					t.Fatalf("cut at %d: %q", cut, got)
				}
			}
		})
	}
}

// TestCutClient: the client ends at each octet of what it says and wherever in what it reads; the server never
// sees a QUIT, without which nothing is deleted.
func TestCutClient(t *testing.T) {
	for _, how := range []string{"close", "reset"} {
		t.Run(how, func(t *testing.T) {
			for _, read := range []int{0, 5, 30, 60, 80} {
				h := newHarness(t, nil)
				seen := make(chan string)
				go func() {
					var all strings.Builder
					defer func() { seen <- all.String() }()
					io.WriteString(h.s.Conn, "+OK 60 octets\r\n")
					for {
						l, err := h.s.br.ReadString('\n')
						if all.WriteString(l); err != nil {
							return
						}
						reply := "+OK\r\n"
						if strings.HasPrefix(l, "RETR") || strings.HasPrefix(l, "TOP") {
							reply = "+OK\r\n" + mail + ".\r\n"
						}
						io.WriteString(h.s.Conn, reply)
					}
				}()
				io.WriteString(h.c.Conn, "USER alice\r\nPASS secret\r\nDELE 2\r\nRETR 1\r\n")
				io.ReadFull(h.c.br, make([]byte, read))
				if how == "reset" {
					proxy.Reset(h.c.Conn)
				}
				h.c.Close()
				h.ended()
				if all := <-seen; strings.Contains(all, "QUIT") {
					t.Errorf("after %d octets: %q", read, all)
				}
			}
		})
	}
}

// TestP020OneOctetAWrite X-007 G-01: octets arrive one by one, on both sides.
func TestX007G01OneOctetAWrite(t *testing.T) {
	h := newHarness(t, nil)
	slow := func(w io.Writer, text string) {
		for i := range len(text) {
			io.WriteString(w, text[i:i+1])
		}
	}
	go func() {
		slow(h.s.Conn, "+OK ready\r\n")
		for range 2 {
			h.s.br.ReadString('\n')
			slow(h.s.Conn, "+OK\r\n")
		}
		for range 2 {
			h.s.br.ReadString('\n')
			slow(h.s.Conn, "+OK\r\n"+mail+".\r\n")
		}
		h.s.br.ReadString('\n')
		slow(h.s.Conn, "+OK bye\r\n")
		h.s.Close()
	}()
	go slow(h.c.Conn, "USER alice\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n")
	if got, want := h.c.rest(), "+OK ready\r\n+OK\r\n+OK\r\n+OK\r\n"+mail+".\r\n+OK bye\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	h.ended()
}

// TestManyRetrievals: UIDL, LIST and 50 RETRs in one segment.
func TestManyRetrievals(t *testing.T) {
	h := newHarness(t, nil)
	var want bytes.Buffer
	var ask strings.Builder
	ask.WriteString("USER a\r\nPASS b\r\nUIDL\r\nLIST\r\n")
	want.WriteString("+OK ready\r\n+OK\r\n+OK\r\n+OK\r\n1 a\r\n.\r\n+OK\r\n1 9\r\n.\r\n")
	for n := range 50 {
		fmt.Fprintf(&ask, "RETR %d\r\n", n+1)
		fmt.Fprintf(&want, "+OK\r\nmessage %d\r\n.\r\n", n+1)
	}
	ask.WriteString("QUIT\r\n")
	want.WriteString("+OK bye\r\n")
	go serveBox(h.s.Conn, func(n int) string { return fmt.Sprintf("message %d\r\n", n) })
	io.WriteString(h.c.Conn, ask.String())
	if got := h.c.rest(); got != want.String() {
		t.Errorf("got %.2000q", got)
	}
	h.ended()
}

// serveBox is a POP3 server with a simple mind.
func serveBox(c net.Conn, message func(n int) string) {
	defer c.Close()
	s := newSide(nil, "server", c)
	io.WriteString(c, "+OK ready\r\n")
	for {
		l, err := s.br.ReadString('\n')
		if err != nil {
			return
		}
		f := append(strings.Fields(l), "", "", "")
		n, k := 0, 0
		fmt.Sscan(f[1], &n)
		fmt.Sscan(f[2], &k)
		switch f[0] {
		case "UIDL":
			if n > 0 {
				fmt.Fprintf(c, "+OK %d a\r\n", n)
				continue
			}
			io.WriteString(c, "+OK\r\n1 a\r\n.\r\n")
		case "LIST":
			if n == 0 {
				io.WriteString(c, "+OK\r\n1 9\r\n.\r\n")
			} else {
				fmt.Fprintf(c, "+OK %d %d\r\n", n, len(message(n)))
			}
		case "RETR":
			io.WriteString(c, "+OK\r\n"+stuffed(message(n))+".\r\n")
		case "TOP":
			io.WriteString(c, "+OK\r\n"+stuffed(firstLines(message(n), k))+".\r\n")
		case "QUIT":
			io.WriteString(c, "+OK bye\r\n")
			return
		default:
			io.WriteString(c, "+OK\r\n")
		}
	}
}

// stuffed doubles dots at the begin of lines.
func stuffed(text string) string {
	return strings.ReplaceAll("\r\n"+text, "\r\n.", "\r\n..")[2:]
}

// firstLines is what TOP gives.
func firstLines(text string, k int) string {
	head, body, ok := strings.Cut(text, "\r\n\r\n")
	if !ok {
		return text
	}
	lines := strings.SplitAfter(body, "\r\n")
	return head + "\r\n\r\n" + strings.Join(lines[:min(k, len(lines))], "")
}

// slowly is a scanner that takes d.
func slowly(d time.Duration, v inspect.Verdict) inspect.Scanner {
	return inspecttest.Slow(d, inspecttest.Always(v))
}

var notPassed = inspect.Verdict{Action: inspect.Reject, Reason: "threat", Quarantine: "q1"}

// TestP080P081P082Trickle G-04: a client with a time-out of a minute and a scanner that takes 50 or 90 seconds.
func TestP080P081P082G04Trickle(t *testing.T) {
	clean := inspect.Verdict{Action: inspect.Pass, Reason: "clean"}
	for _, c := range []struct {
		name string
		d    time.Duration
		v    inspect.Verdict
	}{
		{"50 seconds clean", 50 * time.Second, clean}, {"90 seconds clean", 90 * time.Second, clean},
		{"90 seconds bad", 90 * time.Second, notPassed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newPipeHarness(t, func(cfg *Config) { cfg.Scanner = slowly(c.d, c.v) })
				h.login()
				h.c.say("RETR 1")
				h.s.wantLine("TOP 1 2147483647")
				h.s.send("+OK\r\n" + mail + ".\r\n")
				began := time.Now()
				go func() {
					for { // the gateway keeps the server awake meanwhile
						l, err := h.s.br.ReadString('\n')
						switch {
						case err != nil:
							return
						case strings.HasPrefix(l, "RETR"):
							io.WriteString(h.s.Conn, "+OK 60 octets\r\n"+mail+".\r\n")
						default:
							io.WriteString(h.s.Conn, "+OK 1 u\r\n")
						}
					}
				}()
				h.c.want("+OK")
				last := time.Now()
				if d := last.Sub(began); d > 25*time.Second {
					t.Errorf("the first sign of life comes after %v", d)
				}
				var got strings.Builder
				for {
					l := h.c.line()
					if d := time.Since(last); d > 50*time.Second {
						t.Errorf("%v pass before %q", d, l)
					}
					last = time.Now()
					if early := time.Since(began) < c.d; early && !strings.HasPrefix(l, "Received:") && !strings.HasPrefix(l, "From:") {
						t.Errorf("%q leaves before the verdict", l)
					}
					if l == "." {
						break
					}
					got.WriteString(l + "\r\n")
				}
				if c.v.Action == inspect.Pass && got.String() != mail {
					t.Errorf("a clean message is another: %q", got.String())
				}
				if c.v.Action != inspect.Pass && (!strings.HasPrefix(got.String(), "Received: one\r\nFrom: a@x.example\r\n") ||
					!strings.Contains(got.String(), "held this message back") || strings.Contains(got.String(), "body\r\n")) {
					t.Errorf("the notice: %q", got.String())
				}
				h.c.Close()
				h.s.Close()
				h.ended()
			})
		})
	}
}

// TestP085 no -ERR behind +OK: the connection ends without the end of the message. Slow client: the verdict is there
// for the next session.
func TestP085NoErrorBehindOK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipeHarness(t, func(cfg *Config) { cfg.Scanner = slowly(70*time.Second, inspect.Verdict{Action: inspect.Defer}) })
		h.login()
		h.c.say("RETR 1")
		h.s.wantLine("TOP 1 2147483647")
		h.s.send("+OK\r\n" + mail + ".\r\n")
		h.c.want("+OK")
		if got := h.c.rest(); strings.Contains(got, "-ERR") || strings.Contains(got, ".\r\n") || strings.Contains(got, "body") {
			t.Errorf("got %q", got)
		}
		h.ended()
	})
}

// TestVerdictIsKept: the client gives up; the judgement goes on, and the next session has it at once.
func TestVerdictIsKept(t *testing.T) {
	for _, v := range []inspect.Verdict{{Action: inspect.Pass}, notPassed} {
		t.Run(v.Action.String(), func(t *testing.T) {
			gate := inspecttest.NewGate(inspecttest.Always(v))
			h := newHarness(t, func(cfg *Config) { cfg.Scanner = gate })
			go serveBox(h.s.Conn, func(int) string { return mail })
			io.WriteString(h.c.Conn, "USER a\r\nPASS b\r\nRETR 1\r\n")
			<-gate.Arrived
			proxy.Reset(h.c.Conn)
			select {
			case <-h.done:
				t.Fatal("the session does not wait for the verdict")
			case <-time.After(50 * time.Millisecond):
			}
			gate.Release <- struct{}{}
			h.ended()
			// The gate is closed now: nothing else is let through.
			client, front := tcpPair(t)
			server, back := tcpPair(t)
			h.door.dial = func(context.Context, *proxy.Conn) (net.Conn, error) { return back, nil }
			go serveBox(server, func(int) string { return mail })
			done := make(chan struct{})
			go func() { defer close(done); h.door.Serve(t.Context(), nil, testConn(front)) }()
			c := newSide(t, "client", client)
			c.say("USER a", "PASS b", "RETR 1", "QUIT")
			if got := c.rest(); !strings.HasSuffix(got, ".\r\n+OK bye\r\n") || strings.Contains(got, "body\r\n") != (v.Action == inspect.Pass) {
				t.Errorf("got %q", got)
			}
			<-done
			client.Close()
		})
	}
}

// TestP023SlowClient: a client takes twelve minutes for a message; the server is kept awake and gets the QUIT.
func TestP023SlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := "From: a\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 20000)
		client, front := net.Pipe()
		server, back := net.Pipe()
		h := startHarness(t, nil, client, front, server, back)
		h.s.br.Reset(pump(server))
		quit := false
		var longest time.Duration
		over := make(chan struct{})
		go func() {
			defer close(over)
			defer server.Close()
			io.WriteString(server, "+OK\r\n")
			last := time.Now()
			for {
				l, err := h.s.br.ReadString('\n')
				if err != nil {
					return
				}
				longest = max(longest, time.Since(last))
				last = time.Now()
				switch {
				case strings.HasPrefix(l, "TOP"), strings.HasPrefix(l, "RETR"):
					io.WriteString(server, "+OK\r\n"+big+".\r\n")
				default:
					io.WriteString(server, "+OK\r\n")
				}
				if quit = strings.HasPrefix(l, "QUIT"); quit {
					return
				}
			}
		}()
		h.c.want("+OK")
		h.c.say("USER a")
		h.c.want("+OK")
		h.c.say("PASS b")
		h.c.want("+OK")
		h.c.say("RETR 1")
		h.c.want("+OK")
		buf := make([]byte, len(big)/12+1)
		var got int
		for got < len(big)+3 {
			n, err := io.ReadFull(h.c.br, buf[:min(len(buf), len(big)+3-got)])
			if got += n; err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if h.events.Has("connection") {
			t.Fatalf("the session has ended: %s %d %d", h.events.JSON(), got, len(big))
		}
		h.c.say("QUIT")
		h.c.want("+OK")
		h.c.rest()
		h.ended()
		<-over
		if !quit || longest > 9*time.Minute {
			t.Errorf("QUIT %t, longest silence %v", quit, longest)
		}
	})
}

// TestP075DuplicateUidls: verdicts go by content, whatever the server calls messages.
func TestP075DuplicateUidls(t *testing.T) {
	h := newHarness(t, func(cfg *Config) { cfg.Scanner = inspecttest.If("threat", notPassed, inspecttest.Pass()) })
	go serveBox(h.s.Conn, func(n int) string { return []string{"", "clean\r\n", "threat\r\n", "clean\r\n"}[n] }) // all are called a
	h.c.say("USER a", "PASS b", "RETR 1", "RETR 2", "RETR 3", "RETR 2", "RETR 1", "QUIT")
	got := h.c.rest()
	if strings.Contains(got, "threat\r\n.") || strings.Count(got, "clean\r\n") != 3 || strings.Count(got, "held this message back") != 2 {
		t.Errorf("got %q", got)
	}
	h.ended()
}

// TestSpoolFull: no room to keep a message: it does not pass, and the session goes on.
func TestSpoolFull(t *testing.T) {
	h := newHarness(t, func(cfg *Config) { cfg.Spool = testSpool(t, spool.Settings{SpoolQuota: 20}) })
	go serveBox(h.s.Conn, func(n int) string { return []string{"", mail, "short\r\n"}[n] })
	h.c.say("USER a", "PASS b", "RETR 1", "RETR 2", "QUIT")
	if got := h.c.rest(); strings.Count(got, "-ERR [SYS/TEMP]") != 1 || strings.Contains(got, "body") || !strings.Contains(got, "short\r\n.\r\n+OK bye") {
		t.Errorf("got %q", got)
	}
	h.ended()
}

// TestG15NoSecrets: passwords are in no event.
func TestG15NoSecrets(t *testing.T) {
	h := newHarness(t, nil)
	go serveBox(h.s.Conn, func(int) string { return mail })
	h.c.say("USER alice", "PASS topsecret", "AUTH PLAIN AGFsaWNlAHRvcHNlY3JldA==", "APOP alice 0123456789abcdef", "QUIT")
	h.c.rest()
	h.ended()
	for _, no := range []string{"topsecret", "AGFsaWNl", "0123456789abcdef"} {
		if strings.Contains(h.events.JSON(), no) {
			t.Errorf("%q is in an event", no)
		}
	}
}

// TestG17Refused: a server that refuses is a server that refuses.
func TestG17Refused(t *testing.T) {
	client, front := tcpPair(t)
	defer client.Close()
	h := New(Config{Spool: testSpool(t, spool.Settings{}), Dial: func(context.Context, *proxy.Conn) (net.Conn, error) {
		return net.Dial("tcp", "127.0.0.1:1")
	}})
	h.Serve(t.Context(), nil, testConn(front))
	if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("error %v", err)
	}
}
