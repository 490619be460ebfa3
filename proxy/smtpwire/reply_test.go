package smtpwire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestReadReply(t *testing.T) {
	for _, c := range []struct {
		name, in, raw string
		code          int
		text, rest    string
		bareLF        bool
	}{
		{"one line", "250 ok\r\n", "250 ok\r\n", 250, "ok", "", false},
		{"code alone", "250\r\nx", "250\r\n", 250, "", "x", false},
		{"empty text", "250 \r\n", "250 \r\n", 250, "", "", false},
		{"S-001 several lines", "220-a\r\n220 b ESMTP\r\n", "220-a\r\n220 b ESMTP\r\n", 220, "b ESMTP", "", false},
		{"empty continuation", "250-\r\n250 x\r\n", "250-\r\n250 x\r\n", 250, "x", "", false},
		{"S-014 bare LF", "220 x\n", "220 x\r\n", 220, "x", "", true},
		{"S-014 bare LF in one of several", "220-x\n220 y\r\n250", "220-x\r\n220 y\r\n", 220, "y", "250", true},
		{"8-bit text", "250 gr\xfc\xc3\xbcn\r\n", "250 gr\xfc\xc3\xbcn\r\n", 250, "gr\xfc\xc3\xbcn", "", false},
		{"what follows stays", "250 a\r\n550 b\r\n", "250 a\r\n", 250, "a", "550 b\r\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			br := lines(c.in)
			r, err := ReadReply(br, nil)
			if err != nil || string(r.Raw) != c.raw || r.Code != c.code || r.Text() != c.text || r.BareLF != c.bareLF {
				t.Fatalf("%+v, %v", r, err)
			}
			if rest, _ := io.ReadAll(br); string(rest) != c.rest {
				t.Errorf("rest %q", rest)
			}
		})
	}
}

func TestReadReplyMalformed(t *testing.T) {
	for _, c := range []struct {
		name, in string
		first    bool
	}{
		{"S-013 no code", "hello\r\n", true},
		{"S-013 two digits", "25 ok\r\n", true},
		{"S-013 four digits", "2500 ok\r\n", true},
		{"S-013 code changes", "250-a\r\n550 b\r\n", false},
		{"S-013 code changes between continuations", "250-a\r\n251-b\r\n250 c\r\n", false},
		{"S-013 text in the middle", "250-a\r\nb\r\n250 c\r\n", false},
		{"S-006 another protocol", "SSH-2.0-x\r\n", true},
		{"S-240 POP3", "+OK\r\n", true},
		{"S-050 0xx", "050 verbose\r\n", true},
		{"6xx", "600 x\r\n", true},
		{"1xx", "150 x\r\n", true},
		{"tab", "250\tok\r\n", true},
		{"empty", "\r\n", true},
		{"bare CR", "250 a\r250 b\r\n", true},
		{"bare CR at the end", "250 a\r\r\n", true},
		{"NUL", "250 a\x00\r\n", true},
		{"S-012 line of 64 KB", "250-" + strings.Repeat("x", 64<<10) + "\r\n250 y\r\n", true},
		{"S-012 too many lines", strings.Repeat("250-x\r\n", MaxReply+1) + "250 y\r\n", false},
		{"S-012 endless line", "250-" + strings.Repeat("x", 2*MaxSwallow), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := ReadReply(lines(c.in), nil)
			var e *ReplyError
			if !errors.As(err, &e) || e.First != c.first || e.Reason == "" || len(e.Line) > 100 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestReadReplyEnds(t *testing.T) {
	for in, want := range map[string]error{"": io.EOF, "25": io.ErrUnexpectedEOF, "250-a\r\n": io.ErrUnexpectedEOF, "250-a\r\n250 b": io.ErrUnexpectedEOF} {
		if r, err := ReadReply(lines(in), nil); err != want {
			t.Errorf("%q: %+v, %v", in, r, err)
		}
	}
}

// TestReadReplyPartial: S-003, lines are handed on before the last has come.
func TestReadReplyPartial(t *testing.T) {
	t.Run("S-003 line by line", func(t *testing.T) {
		pr, pw := io.Pipe()
		got := make(chan string)
		done := make(chan *Reply)
		go func() {
			r, _ := ReadReply(bufio.NewReader(pr), func(l []byte) error { got <- string(l); return nil })
			done <- r
		}()
		io.WriteString(pw, "220-x\r\n")
		if l := <-got; l != "220-x\r\n" { // the server has not said more yet
			t.Errorf("first line %q", l)
		}
		io.WriteString(pw, "220 y\r\n")
		if r := <-done; string(r.Raw) != "220-x\r\n220 y\r\n" {
			t.Errorf("reply %q", r.Raw)
		}
	})
	if _, err := ReadReply(lines("220-x\r\n220 y\r\n"), func([]byte) error { return io.ErrClosedPipe }); err != io.ErrClosedPipe {
		t.Errorf("err = %v", err)
	}
}

func TestFormatReply(t *testing.T) {
	for _, c := range []struct {
		code           int
		enhanced, text string
		want           string
	}{
		{550, "5.7.1", "blocked", "550 5.7.1 blocked\r\n"},
		{250, "", "ok", "250 ok\r\n"},
		{451, "4.7.1", "a\r\n250 b\x00ü", "451 4.7.1 a??250 b???\r\n"},
		{550, "5.7.1", strings.Repeat("x", 1000), "550 5.7.1 " + strings.Repeat("x", 500) + "\r\n"},
	} {
		got := FormatReply(c.code, c.enhanced, c.text)
		if string(got) != c.want || len(got) > MaxReplyText {
			t.Errorf("got %q (%d octets), want %q", got, len(got), c.want)
		}
	}
}

// FuzzReadReply holds that a reply that was read is exactly one: read again it is the same, and nothing is left.
func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "220-a\n220 b\r\n", "250-a\r\n550 b\r\n", "250\r\n", "SSH-2.0\r\n", "250-\r\n250-\r\n250 \r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ReadReply(lines(s), nil)
		if err != nil {
			return
		}
		br := lines(string(r.Raw))
		again, err := ReadReply(br, nil)
		if err != nil || !bytes.Equal(again.Raw, r.Raw) || again.Code != r.Code || br.Buffered() != 0 || again.BareLF {
			t.Fatalf("%q: %+v, read again %+v, %v", s, r, again, err)
		}
		if n := bytes.Count(r.Raw, []byte{'\n'}); n != len(r.Lines) || bytes.Count(r.Raw, []byte("\r\n")) != n || bytes.Count(r.Raw, []byte{'\r'}) != n {
			t.Fatalf("%q: %q has %d line ends and %d lines", s, r.Raw, n, len(r.Lines))
		}
		for _, p := range []Policy{{}, {TLS: true, UpstreamVerified: true, Chunking: true, MaxSize: 100}, {StartTLS: true, KeepScram: true, TrustedClient: true}} {
			checkOffer(t, r, p)
		}
	})
}

// checkOffer holds what is true of every filtered reply.
func checkOffer(t *testing.T, r *Reply, p Policy) {
	t.Helper()
	o := FilterEHLO(r, p)
	shown, err := ReadReply(bufio.NewReader(bytes.NewReader(o.Reply)), nil)
	if err != nil || shown.Code != r.Code {
		t.Fatalf("%q filtered: %q: %v", r.Raw, o.Reply, err)
	}
	if !r.Positive() {
		if len(o.Caps) != 0 || !bytes.Equal(o.Reply, r.Raw) {
			t.Fatalf("%q: a refusal became %q", r.Raw, o.Reply)
		}
		return
	}
	if shown.Lines[0] != r.Lines[0] {
		t.Fatalf("greeting %q became %q", r.Lines[0], shown.Lines[0])
	}
	again := FilterEHLO(shown, p) // what is shown is all allowed
	if fmt.Sprint(again.Lines) != fmt.Sprint(o.Lines) || len(again.Removed) != 0 {
		t.Fatalf("%q: filtered twice: %q", o.Reply, again.Reply)
	}
	for _, l := range shown.Lines[1:] {
		kw, _, _ := splitKeyword(l)
		if !o.Caps.Has(kw) {
			t.Fatalf("%q: %q is shown and cannot be used", r.Raw, kw)
		}
		switch kw {
		case "CHUNKING", "BINARYMIME":
			if !p.Chunking {
				t.Fatalf("%q: %q is shown", r.Raw, kw)
			}
		case "STARTTLS":
			if p.TLS || !p.StartTLS {
				t.Fatalf("%q: %q is shown", r.Raw, kw)
			}
		}
	}
}
