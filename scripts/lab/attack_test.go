package lab

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

// ask writes octets in one go, or one by one, and returns all that comes until the gateway closes, or 2 seconds are over.
func (r *rig) ask(t *testing.T, octets string, single bool, end func(net.Conn)) string {
	t.Helper()
	c, err := r.lab.Client.Dial(HostPort(ServerIP4, 25))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		if !single {
			io.WriteString(c, octets)
		} else {
			for i := range len(octets) {
				c.Write([]byte{octets[i]})
			}
		}
		if end != nil {
			end(c)
		}
	}()
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(c)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return string(b) // and the session goes on
	}
	return string(b)
}

// codes returns the codes of the replies in text.
func codes(text string) string {
	var out []string
	for _, l := range strings.Split(text, "\r\n") {
		if len(l) >= 3 && (len(l) == 3 || l[3] == ' ') {
			out = append(out, l[:min(3, len(l))])
		} else if len(l) > 0 && (len(l) < 4 || l[3] != '-') {
			out = append(out, "?"+l)
		}
	}
	return strings.Join(out, " ")
}

// TestAttacks talks to the gateway as no client should.
func TestAttacks(t *testing.T) {
	r := newRig(t, map[string]string{"LinuxFirewall.ThreatAction": "Reject"})
	base, err := Files(r.g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	const hello = "EHLO c.example\r\n"
	const envelope = "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@server.example>\r\n"
	eicar := string(corpus.Eicar())
	clean := "Subject: x\r\n\r\nhello\r\n"
	threat := "Subject: x\r\n\r\n" + eicar + "\r\n"
	threat64 := "Subject: x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.StdEncoding.EncodeToString(corpus.Eicar()) + "\r\n"
	bdat := func(s, last string) string { return fmt.Sprintf("BDAT %d%s\r\n%s", len(s), last, s) }
	for _, x := range []struct {
		name, octets string
		want         string // codes of the replies
		stored       int
	}{
		{"all at once", hello + envelope + "DATA\r\n" + clean + ".\r\nQUIT\r\n", "220 250 250 250 354 250 221", 1},
		{"all at once, a threat", hello + envelope + "DATA\r\n" + threat + ".\r\n" + envelope + "DATA\r\n" + clean + ".\r\nQUIT\r\n", "220 250 250 250 354 550 250 250 354 250 221", 1},
		{"lower case", strings.ToLower(hello+envelope) + "data\r\n" + clean + ".\r\nquit\r\n", "220 250 250 250 354 250 221", 1},
		{"blanks behind commands", hello + strings.ReplaceAll(envelope, "\r\n", " \r\n") + "DATA \r\n" + clean + ".\r\nQUIT \r\n", "220 250 250 250 354 250 221", 1},
		{"an argument of DATA", hello + envelope + "DATA now\r\n", "220 250 250 250 501", 0},
		{"chunks at once", hello + envelope + bdat("Subject: x\r\n", "") + bdat("\r\nhello\r\n", "") + bdat("", " LAST") + "QUIT\r\n", "220 250 250 250 250 250 250 221", 1},
		{"chunks of a threat", hello + envelope + bdat(threat64[:60], "") + bdat(threat64[60:], " LAST") + envelope + bdat(clean, " LAST") + "QUIT\r\n", "220 250 250 250 250 550 250 250 250 221", 1},
		{"chunks and RSET", hello + envelope + bdat("abc", "") + "RSET\r\n" + envelope + bdat("x\r\n", " LAST") + "QUIT\r\n", "220 250 250 250 250 250 250 250 250 221", 1},
		{"a chunk before MAIL", hello + bdat(envelope+"DATA\r\n", "") + "QUIT\r\n", "220 250 503 221", 0},
		{"a chunk behind LAST", hello + envelope + bdat(clean, " LAST") + bdat("QUIT\r\n", "") + "QUIT\r\n", "220 250 250 250 250 503 221", 1},
		{"DATA behind a chunk", hello + envelope + bdat("abc", "") + "DATA\r\n", "220 250 250 250 250 503", 0},
		{"a chunk of almost everything", hello + envelope + "BDAT 9223372036854775807 LAST\r\n" + clean, "220 250 250 250", 0},
		{"a chunk of more than that", hello + envelope + "BDAT 9223372036854775808 LAST\r\n" + clean, "220 250 250 250 501", 0},
		{"a negative chunk", hello + envelope + "BDAT -1 LAST\r\n" + clean, "220 250 250 250 501", 0},
		{"two MAILs", hello + envelope + "MAIL FROM:<other@client.example>\r\nDATA\r\n" + clean + ".\r\nQUIT\r\n", "220 250 250 250 503 354 250 221", 1},
		{"EHLO amid", hello + envelope + hello + "DATA\r\n", "220 250 250 250 250 503", 0},
		{"many recipients", hello + "MAIL FROM:<>\r\n" + strings.Repeat("RCPT TO:<b@server.example>\r\n", 3000) + "DATA\r\n" + clean + ".\r\nQUIT\r\n", "220 250 250" + strings.Repeat(" 250", 3000) + " 354 250 221", 1},
		{"NULs and CRs in commands", hello + "MAIL FROM:<a\x00@x>\r\nMAIL FROM:<a@x>\rRCPT TO:<b@x>\r\nQUIT\r\n", "220 250 500 500 221", 0},
		{"tabs", hello + "MAIL\tFROM:<a@x>\r\nQUIT\r\n", "220 250 500 221", 0},
		{"a long line", hello + "NOOP " + strings.Repeat("x", 60000) + "\r\nQUIT\r\n", "220 250 500 221", 0},
		{"a line without end", strings.Repeat("x", 3<<20), "220 421", 0},
		{"no verbs", hello + strings.Repeat("\r\n", 5) + "QUIT\r\n", "220 250 500 500 500 500 500 221", 0},
		{"STARTTLS injection", hello + "STARTTLS\r\nRSET\r\n", "220 250", 0},
		{"a TLS record amid", hello + "\x16\x03\x01\x00\x05hello", "220 250 500", 0},
		{"HTTP", "POST / HTTP/1.1\r\nHost: x\r\n\r\n" + hello + envelope + "DATA\r\n" + clean + ".\r\n", "", 0},
		{"AUTH of another kind", hello + "AUTH GSSAPI AGEAYg==\r\nQUIT\r\n", "220 250 504 221", 0},
		{"LMTP", "LHLO c\r\nQUIT\r\n", "220 500 221", 0},
		{"XCLIENT", hello + "XCLIENT ADDR=1.2.3.4\r\nQUIT\r\n", "220 250 ", 0},
		{"TURN and others", hello + "TURN\r\nSEND FROM:<a@x>\r\nBURL imap://x LAST\r\nXEXCH50 5 1\r\nQUIT\r\n", "220 250 502 502 502 502 221", 0},
	} {
		for _, single := range []bool{false, true} {
			if single && len(x.octets) > 20000 {
				continue
			}
			t.Run(fmt.Sprint(x.name, " ", single), func(t *testing.T) {
				r.sink.Clear()
				var end func(net.Conn)
				if strings.Contains(x.name, "almost everything") {
					end = func(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }
				}
				got := codes(r.ask(t, x.octets, single, end))
				if x.want != "" && got != x.want && !(strings.HasSuffix(x.want, " ") && strings.HasPrefix(got, x.want)) {
					t.Errorf("replies %.300q, want %.300q", got, x.want)
				}
				n := 0
				for _, m := range r.sink.Stored() {
					n++
					if bytes.Contains(m.Data, []byte("EICAR")) {
						t.Error("a threat was stored")
					}
				}
				if n != x.stored {
					t.Errorf("%d messages were stored, want %d", n, x.stored)
				}
			})
		}
	}
	t.Run("two thousand that do nothing", func(t *testing.T) {
		var conns []net.Conn
		for range 2000 {
			c, err := r.lab.Client.Dial(HostPort(ServerIP4, 25))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		if got := codes(r.ask(t, hello+envelope+"DATA\r\n"+clean+".\r\nQUIT\r\n", false, nil)); got != "220 250 250 250 354 250 221" {
			t.Errorf("one more gets %q", got)
		}
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				if i%2 == 0 {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			})
		}
		wg.Wait()
	})
	eventually(t, "files are given back", func() bool {
		n, err := Files(r.g.Pid())
		return err == nil && n <= base+2
	})
	if log := r.g.Log(); strings.Contains(log, "panic") {
		t.Errorf("panic: %s", log)
	}
}
