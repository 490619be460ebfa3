package maild

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHostileSizes: what is made to be slow is judged in time that is proportional to its size.
func TestHostileSizes(t *testing.T) {
	nested := "Content-Type: multipart/mixed; boundary=b0\r\n\r\n"
	for i := range 90 {
		nested += fmt.Sprintf("--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n", i, i+1)
	}
	bad := b64(strings.Repeat("x", 57))
	// What counts is that the judgement ends by itself: a busy machine must not make a time-out of it.
	patient := settings(func(s *Settings) { s.ScanTimeout = 10 * time.Minute })
	for _, c := range []struct{ name, content string }{
		{"parts", "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\nx\r\n", 200_000)},
		{"fields", strings.Repeat("X-Y: z\r\n", 200_000) + "\r\nhello\r\n"},
		{"one long field", "Subject: " + strings.Repeat("x", 5<<20) + "\r\n\r\nhello\r\n"},
		{"folds", "Subject: x\r\n" + strings.Repeat(" y\r\n", 400_000) + "\r\nhello\r\n"},
		{"dashes in nested multiparts", nested + strings.Repeat("--\r\n", 400_000)},
		{"dashes and junk in nested multiparts", nested + strings.Repeat("--b90 x\r\n", 200_000)},
		{"paddings", "Content-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("QQ==", 1_000_000)},
		{"ragged lines", "Content-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("QUJDREVGR=-\r\n", 200_000)},
		{"one line without end", "Content-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("=A-_", 1_000_000)},
		{"undeclared base64", "\r\n" + strings.Repeat(bad+"\r\n", 60_000)},
		{"beginnings of uuencode", "\r\n" + strings.Repeat("begin 644 x\r\n", 200_000)},
		{"small uuencode", "\r\n" + strings.Repeat("begin 644 a\r\n#86)C\r\n`\r\nend\r\n", 60_000)},
		{"many preambles", "Content-Type: multipart/mixed; boundary=b0\r\n\r\n" + strings.Repeat("--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--z\r\n", 50_000)},
		{"UTF-16", "Content-Type: text/plain; charset=utf-7\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b64("\xff\xfe"+strings.Repeat("+AGE", 1_000_000))},
		{"message in message", strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 100_000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			v := newMailD(t, Config{Settings: patient}).Judge(t.Context(), message(c.content))
			took := time.Since(began)
			if v.Err != nil { // the time was over
				t.Errorf("%v: %v", v.Action, v.Err)
			}
			t.Logf("%d MB in %v: %v %s %v", len(c.content)>>20, took.Round(time.Millisecond), v.Action, v.Reason, v.Err)
		})
	}
}
