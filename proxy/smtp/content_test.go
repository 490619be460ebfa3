package smtp

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"mailweir/inspect"
	"mailweir/proxy/proxytest"
)

// strictServer plays a server that takes messages by DATA as RFC 5321 has it and hands each message's wire octets,
// without the end, to stored.
func (h *harness) strictServer(stored func(wire string)) {
	go func() {
		for {
			l, err := h.s.br.ReadString('\n')
			if err != nil {
				return
			}
			switch {
			case l == "DATA\r\n":
				io.WriteString(h.s.Conn, "354 go\r\n")
				var b bytes.Buffer
				b.WriteString("\r\n")
				for !bytes.HasSuffix(b.Bytes(), []byte("\r\n.\r\n")) {
					part, err := h.s.br.ReadSlice('\n')
					b.Write(part)
					if err != nil {
						return
					}
				}
				stored(b.String()[2:])
			case l == "QUIT\r\n":
				io.WriteString(h.s.Conn, "221 bye\r\n")
				h.s.Close()
				return
			}
			io.WriteString(h.s.Conn, "250 ok\r\n")
		}
	}()
}

// TestLookalikes sends everything that lenient servers might take for the end of data, and whatever else can be made
// of these octets, through the gateway: what arrives holds one message for every model of a server.
func TestLookalikes(t *testing.T) {
	t.Parallel()
	t.Run("S-120 S-121 S-122 S-123 S-124 S-125 S-126 S-127 S-128 S-129 S-130 S-131 S-132 normalised", func(t *testing.T) {
		seqs := []string{"\n.\n", "\n.\r\n", "\r.\r\n", "\r.\r", "\r.\n", "\n.\r", "\r\n.\n", "\r\n.\rx", "\r\n.\r\r\n", "\r\r\n.\r\r\n",
			"\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n\x00.\r", "\r\n\x00.\n", "\n\n.\r\n", "\n.\n.\n", "\r\n.\r.\r\n"}
		h := newPipeHarness(t, func(c *Config) { c.EodPolicy = "Normalize" })
		h.s.say("220 mx")
		h.c.want("220")
		var got []string
		h.strictServer(func(w string) { got = append(got, w) })
		for _, seq := range seqs {
			h.transact("text" + seq + "MAIL FROM:<evil>\r\n.\r\n")
		}
		h.c.say("QUIT")
		h.c.want("221")
		h.ended()
		if len(got) != len(seqs) {
			t.Errorf("%d messages arrive, want %d", len(got), len(seqs))
		}
		for _, w := range got {
			oneMessage(t, w)
		}
	})
	t.Run("S-148 G-05 all strings of up to 7 octets", func(t *testing.T) {
		limit := 7
		if testing.Short() || raceEnabled {
			limit = 5
		}
		h := newPipeHarness(t, nil)
		h.s.say("220 mx")
		h.c.want("220")
		arrived, last := 0, ""
		h.strictServer(func(w string) { arrived++; last = w })
		passed, refused := 0, 0
		strings5(limit, func(s string) {
			// A strict end within the string ends the message; what follows is then no content.
			wire := s + "\r\n.\r\n"
			if i := strings.Index("\r\n"+wire, "\r\n.\r\n"); i+5 < len(wire)+2 {
				return
			}
			before := arrived
			switch r := h.transact(wire); {
			case strings.HasPrefix(r, "250"):
				passed++
				if arrived != before+1 || last != wire {
					t.Fatalf("%q: %d messages arrive, the last is %q", wire, arrived-before, last)
				}
				oneMessage(t, last)
			case strings.HasPrefix(r, "550"):
				refused++
				if arrived != before {
					t.Fatalf("%q is refused and arrives", wire)
				}
			default:
				t.Fatalf("%q: %s", wire, r)
			}
		})
		h.end()
		t.Logf("%d passed, %d refused", passed, refused)
		if passed == 0 || refused == 0 {
			t.Error("nothing was tried")
		}
	})
}

// transact sends one message in as few segments as can be and returns the last reply.
func (h *harness) transact(wire string) string {
	h.t.Helper()
	h.c.send("MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n")
	h.c.want("250")
	h.c.want("250")
	h.c.want("354")
	h.c.send(wire)
	return h.c.line()
}

// oneMessage checks that every model of a server finds the end of data where it is.
func oneMessage(t *testing.T, wire string) {
	t.Helper()
	for _, m := range proxytest.EODModels() {
		// A server for which CR is enough finds the end one octet before the LF.
		if end := m.End([]byte(wire)); end < len(wire)-1 {
			t.Errorf("a server of the kind %s ends %q at octet %d", m.Name, wire, end)
		}
	}
}

// strings5 calls f with every string over CR, LF, dot, NUL and a letter of at most n octets.
func strings5(n int, f func(string)) {
	b := make([]byte, 0, n)
	var next func()
	next = func() {
		f(string(b))
		if len(b) == n {
			return
		}
		for _, c := range []byte("\r\n.\x00a") {
			b = append(b, c)
			next()
			b = b[:len(b)-1]
		}
	}
	next()
}

// TestIdentity sends content of every kind and compares what arrives.
func TestIdentity(t *testing.T) {
	t.Run("G-01 octets of every kind", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet("CHUNKING", "BINARYMIME")
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 40 {
			b := make([]byte, 1+rng.IntN(200_000))
			for j := range b {
				b[j] = byte(rng.IntN(256))
			}
			h.envelope("a@x", "b@y")
			h.c.send(fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%s", len(b)/2, b[:len(b)/2], len(b)-len(b)/2, b[len(b)/2:]))
			h.c.want("250")
			h.s.wantLine(fmt.Sprintf("BDAT %d LAST", len(b)))
			got := make([]byte, len(b))
			if _, err := io.ReadFull(h.s.br, got); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("message %d: %v, other octets arrive", i, err)
			}
			h.s.say("250 ok")
			h.c.want("250 ok")
		}
		h.end()
	})
	t.Run("S-140 G-09 100 MB without a line end, in little memory", func(t *testing.T) {
		size := 100 << 20
		if testing.Short() || raceEnabled {
			size = 20 << 20
		}
		h := newHarness(t, nil)
		h.scanner.Answer(inspect.Verdict{Action: inspect.Pass})
		h.greet()
		h.envelope("a@x", "b@y")
		h.c.say("DATA")
		h.c.want("354")
		sum, block := sha256.New(), bytes.Repeat([]byte("0123456789abcdef"), 4096)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for n := 0; n < size; n += len(block) {
				h.c.Write(block)
				sum.Write(block)
			}
			io.WriteString(h.c.Conn, "\r\n.\r\n")
			sum.Write([]byte("\r\n"))
		}()
		<-sent
		h.s.wantLine("DATA")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.s.say("354 go")
		got := sha256.New()
		if _, err := io.CopyN(got, h.s.br, int64(size+2)); err != nil {
			t.Fatal(err)
		}
		h.s.wantLine(".")
		runtime.ReadMemStats(&after)
		h.s.say("250 ok")
		h.c.want("250 ok")
		h.end()
		if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
			t.Error("other octets arrive")
		}
		// The test's scanner keeps its own copy of the message; the replay must not.
		if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 8<<20 {
			t.Errorf("the replay takes %d octets of memory", grown)
		}
	})
}

// TestBackPressure shows that whatever a client sends at once, the gateway holds little of it.
func TestBackPressure(t *testing.T) {
	t.Run("S-113 G-09 a million NOOPs at once", func(t *testing.T) {
		n := 1_000_000
		if testing.Short() || raceEnabled {
			n = 50_000
		}
		h := newHarness(t, nil)
		h.greet()
		go func() {
			block := strings.Repeat("NOOP\r\n", 1000)
			for range n / 1000 {
				if _, err := io.WriteString(h.c.Conn, block); err != nil {
					return
				}
			}
		}()
		go func() {
			reply := make([]byte, 0, 32<<10)
			for {
				if _, err := h.s.br.ReadSlice('\n'); err != nil {
					return
				}
				if reply = append(reply, "250 ok\r\n"...); h.s.br.Buffered() == 0 || len(reply) > 30<<10 {
					h.s.Conn.Write(reply)
					reply = reply[:0]
				}
			}
		}()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range n {
			if l, err := h.c.br.ReadSlice('\n'); err != nil || string(l) != "250 ok\r\n" {
				t.Fatalf("reply %d is %q, %v", i, l, err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
			t.Errorf("the heap has grown by %d octets", grown)
		}
		h.end()
	})
	t.Run("S-113 the client is not read while 1000 commands wait", func(t *testing.T) {
		h := newPipeHarness(t, nil)
		h.greet()
		go io.Copy(io.Discard, h.s.br)
		sent := make(chan int, 1)
		go func() {
			n := 0
			for {
				h.c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				if _, err := io.WriteString(h.c.Conn, "NOOP\r\n"); err != nil {
					break
				}
				n++
			}
			sent <- n
		}()
		if n := <-sent; n < 1000 || n > 1000+lineBuffer/6+1 {
			t.Errorf("%d commands were taken", n)
		}
		h.end()
	})
	t.Run("S-158 20 chunks of 1 MB at once", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet("CHUNKING")
		h.envelope("a@x", "b@y")
		chunk := strings.Repeat("x", 1<<20)
		go func() {
			for i := range 20 {
				last := ""
				if i == 19 {
					last = " LAST"
				}
				io.WriteString(h.c.Conn, fmt.Sprintf("BDAT %d%s\r\n%s", len(chunk), last, chunk))
			}
		}()
		for range 19 {
			h.c.want("250 1048576 octets")
		}
		h.s.wantLine("BDAT 20971520 LAST")
		io.CopyN(io.Discard, h.s.br, 20<<20)
		h.s.say("250 stored")
		h.c.want("250 stored")
		h.end()
	})
	t.Run("S-111 G-09 long lines", func(t *testing.T) {
		h := newHarness(t, nil)
		h.greet("AUTH PLAIN", "PIPELINING")
		h.c.say("NOOP " + strings.Repeat("x", 600))
		h.c.want("500")
		long := "MAIL FROM:<a@x> AUTH=" + strings.Repeat("x", 3900)
		h.c.say(long)
		h.s.wantLine(long)
		h.s.say("250 ok")
		h.c.want("250")
		h.c.say("RCPT TO:<" + strings.Repeat("x", 5000) + "@y>")
		h.c.want("500")
		h.c.say("NOOP " + strings.Repeat("x", 100_000))
		h.c.want("500")
		go h.c.Write(bytes.Repeat([]byte{'x'}, 10<<20))
		h.c.want("421")
		h.ended()
	})
	t.Run("G-09 recipients without end", func(t *testing.T) {
		h := newHarness(t, func(c *Config) { c.MaxRecipients = 150 })
		h.greet("PIPELINING")
		h.c.say("MAIL FROM:<a@x>")
		h.s.wantLine("MAIL FROM:<a@x>")
		h.s.say("250 ok")
		h.c.want("250")
		for i := range 160 {
			h.c.say("RCPT TO:<b@y>")
			if i < 150 {
				h.s.wantLine("RCPT TO:<b@y>")
				h.s.say("250 ok")
				h.c.want("250")
			} else {
				h.c.want("452")
			}
		}
		h.end()
	})
}
