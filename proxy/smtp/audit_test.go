package smtp

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mailweir/inspect"
)

// TestChunksAreReadLikeData: what lenient receivers make of bare CRs, bare LFs and NULs is laid beside a message that
// comes by BDAT as well. A server may store it, and those who fetch it read it as they like.
func TestChunksAreReadLikeData(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, content, view string }{
		{"bare CR", "Subject: x\r\rhello\r.dot\r", "Subject: x\r\n\r\nhello\r\n.dot\r\n"},
		{"bare LF", "Subject: x\n\nhello\n.dot\n", "Subject: x\r\n\r\nhello\r\n.dot\r\n"},
		{"NUL", "Subject: x\r\n\r\nhel\x00lo\r\n", "Subject: x\r\n\r\nhello\r\n"},
		{"proper", "Subject: x\r\n\r\nhello\r\n.dot\r\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, nil)
			h.scanner.Answer(inspect.Verdict{Action: inspect.Reject})
			h.greet("CHUNKING")
			h.envelope("a@x.example", "b@y.example")
			half := len(c.content) / 2
			h.c.send(fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%s", half, c.content[:half], len(c.content)-half, c.content[half:]))
			h.c.want("250 ")
			h.c.want("550 ")
			got := h.scanner.Scanned()[0].Views
			if c.view == "" && len(got) > 0 || c.view != "" && !slices.ContainsFunc(got, func(b []byte) bool { return string(b) == c.view }) {
				t.Errorf("views %q, want %q", got, c.view)
			}
			h.s.wantLine("RSET")
			h.s.say("250 ok")
			h.end()
		})
	}
}

// TestServerLeavesBetweenChunks: a client that is amid a message learns at its end that it was not taken.
func TestServerLeavesBetweenChunks(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.greet("CHUNKING")
	h.envelope("a@x.example", "b@y.example")
	h.c.send("BDAT 3\r\nabc")
	h.c.want("250 ")
	h.s.Close()
	time.Sleep(50 * time.Millisecond) // whichever comes first, the client must not be told that all is well
	h.c.send("BDAT 3 LAST\r\ndef")
	got, _ := h.c.rest()
	if !strings.HasPrefix(got, "451 ") || strings.Contains(got, "\n2") {
		t.Errorf("the client is told %q", got)
	}
	h.end()
}

// TestResetAndMailAtOnce: RSET, MAIL and RCPT may come in one piece (RFC 2920 §3.1), amid chunks as well.
func TestResetAndMailAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.greet("CHUNKING", "PIPELINING")
	h.envelope("a@x.example", "b@y.example")
	h.c.send("BDAT 3\r\nabcRSET\r\nMAIL FROM:<c@x.example>\r\nRCPT TO:<d@y.example>\r\nBDAT 1 LAST\r\nx")
	h.c.want("250 ")
	for _, l := range []string{"RSET", "MAIL FROM:<c@x.example>", "RCPT TO:<d@y.example>", "BDAT 1 LAST"} {
		h.s.wantLine(l)
		if l == "BDAT 1 LAST" {
			if c, err := h.s.br.ReadByte(); c != 'x' || err != nil {
				t.Errorf("the server gets %q, %v", c, err)
			}
		}
		h.s.say("250 ok " + l[:4])
		h.c.wantLine("250 ok " + l[:4])
	}
	h.end()
}

// TestNestedMail: a second MAIL is refused here, whatever the server would make of the recipients.
func TestNestedMail(t *testing.T) {
	t.Parallel()
	h := newHarness(t, nil)
	h.greet("PIPELINING")
	h.c.say("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "MAIL FROM:<c@x.example>", "RCPT TO:<d@y.example>")
	for _, l := range []string{"MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>"} {
		h.s.wantLine(l)
		h.s.say("250 ok")
		h.c.want("250 ok")
	}
	h.c.want("503 ")
	h.s.wantLine("RCPT TO:<d@y.example>")
	h.s.say("250 ok")
	h.c.want("250 ok")
	h.c.say("DATA")
	h.c.want("354 ")
	h.c.send("Subject: x\r\n\r\nhello\r\n.\r\n")
	h.take("250 taken")
	h.c.want("250 taken")
	if e := h.scanner.Scanned()[0].Message.Envelope; e.From != "a@x.example" || len(e.To) != 2 {
		t.Errorf("envelope %v", e)
	}
	h.c.say("MAIL FROM:<c@x.example>", "RSET", "MAIL FROM:<d@x.example>")
	for _, l := range []string{"MAIL FROM:<c@x.example>", "RSET", "MAIL FROM:<d@x.example>"} {
		h.s.wantLine(l)
		h.s.say("250 ok")
		h.c.want("250 ok")
	}
	h.end()
}
