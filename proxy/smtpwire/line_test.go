package smtpwire

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// lines is a reader with a small buffer, so that lines do not fit into it.
func lines(s string) *bufio.Reader { return bufio.NewReaderSize(strings.NewReader(s), 16) }

func TestReadLine(t *testing.T) {
	for _, c := range []struct {
		name, in string
		limit    int
		want     Line
		text     string
		rest     string
		err      error
	}{
		{"CRLF", "NOOP\r\nx", 512, Line{End: CRLF, Size: 6}, "NOOP", "x", nil},
		{"S-109 bare LF", "NOOP\nx", 512, Line{End: LF, Size: 5}, "NOOP", "x", nil},
		{"empty", "\r\n", 512, Line{End: CRLF, Size: 2}, "", "", nil},
		{"S-110 bare CR inside", "RCPT TO:<a>\rRCPT TO:<b>\r\nx", 512, Line{End: CRLF, BareCR: true, Size: 25}, "RCPT TO:<a>\rRCPT TO:<b>", "x", nil},
		{"bare CR before CRLF", "a\r\r\n", 512, Line{End: CRLF, BareCR: true, Size: 4}, "a\r", "", nil},
		{"S-110 NUL inside", "NO\x00OP\r\n", 512, Line{End: CRLF, NUL: true, Size: 7}, "NO\x00OP", "", nil},
		{"longest", "12345678\r\nx", 10, Line{End: CRLF, Size: 10}, "12345678", "x", nil},
		{"one more", "123456789\r\nx", 10, Line{End: CRLF, Overlong: true, Size: 11}, "123456789", "x", nil},
		{"one more than the buffer", strings.Repeat("a", 20) + "\r\nx", 22, Line{End: CRLF, Size: 22}, strings.Repeat("a", 20), "x", nil},
		{"S-111 swallowed to its end", strings.Repeat("a", 5000) + "\r\nQUIT", 512, Line{End: CRLF, Overlong: true, Size: 5002}, strings.Repeat("a", 512), "QUIT", nil},
		{"swallowed, bare LF", strings.Repeat("a", 5000) + "\nQUIT", 512, Line{End: LF, Overlong: true, Size: 5001}, strings.Repeat("a", 512), "QUIT", nil},
		{"end", "", 512, Line{}, "", "", io.EOF},
		{"end inside", "NOOP\r", 512, Line{BareCR: true, Size: 5}, "NOOP\r", "", io.ErrUnexpectedEOF},
		{"S-111 no end", strings.Repeat("a", MaxSwallow+100), 512, Line{Overlong: true}, strings.Repeat("a", 512), "-", ErrEndless},
	} {
		t.Run(c.name, func(t *testing.T) {
			br := lines(c.in)
			l, err := ReadLine(br, c.limit)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("err = %v, want %v", err, c.err)
			}
			if string(l.Text) != c.text {
				t.Errorf("text %q, want %q", l.Text, c.text)
			}
			if err != nil && c.rest == "-" {
				return // out of step
			}
			l.Text = nil
			if l.End != c.want.End || l.BareCR != c.want.BareCR || l.NUL != c.want.NUL || l.Overlong != c.want.Overlong || l.Size != c.want.Size {
				t.Errorf("got %+v, want %+v", l, c.want)
			}
			if rest, _ := io.ReadAll(br); string(rest) != c.rest {
				t.Errorf("rest %q, want %q", rest, c.rest)
			}
		})
	}
	if _, err := ReadLine(bufio.NewReader(iotest.ErrReader(io.ErrClosedPipe)), 512); err != io.ErrClosedPipe {
		t.Errorf("error of the input: %v", err)
	}
}

// TestLongLineIsBounded reads 64 MB without an end and looks at what was kept.
func TestLongLineIsBounded(t *testing.T) {
	r := io.LimitReader(endless('a'), 64<<20)
	br := bufio.NewReaderSize(r, 4096)
	n := testing.AllocsPerRun(1, func() {
		if _, err := ReadLine(br, MaxMailRcpt); err != ErrEndless {
			t.Fatal(err)
		}
	})
	if n > 10 {
		t.Errorf("%v allocations", n)
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestLineBuffered(t *testing.T) {
	br := bufio.NewReader(io.MultiReader(strings.NewReader("NOOP\r\nNO"), strings.NewReader("OP\r\n")))
	if LineBuffered(br) {
		t.Error("nothing was read, but a line is buffered")
	}
	br.Peek(1)
	if !LineBuffered(br) {
		t.Error("a line is not seen")
	}
	ReadLine(br, 512)
	if LineBuffered(br) {
		t.Error("half a line counts as one")
	}
}

// FuzzReadLine holds that no octet is lost or made up, whatever the lines look like.
func FuzzReadLine(f *testing.F) {
	for _, s := range []string{"", "NOOP\r\n", "a\rb\nc\x00\r\n", "\r\n\r\n", strings.Repeat("x", 40) + "\r\nQUIT\r\n"} {
		f.Add(s, 20)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 2 + limit&63
		br := lines(s)
		at := 0
		for {
			l, err := ReadLine(br, limit)
			part := s[at : at+l.Size]
			at += l.Size
			if err != nil {
				if err == io.EOF && l.Size != 0 || err == io.ErrUnexpectedEOF && l.Size == 0 || at != len(s) {
					t.Fatalf("%v after %d of %d octets, size %d", err, at, len(s), l.Size)
				}
				return
			}
			if strings.IndexByte(part, '\n') != len(part)-1 {
				t.Fatalf("%q is not one line", part)
			}
			if l.Overlong != (len(part) > limit) {
				t.Fatalf("%q: overlong = %v at limit %d", part, l.Overlong, limit)
			}
			end := map[Ending]string{LF: "\n", CRLF: "\r\n"}[l.End]
			if !strings.HasSuffix(part, end) || l.End == LF && strings.HasSuffix(part, "\r\n") {
				t.Fatalf("%q ends in %v", part, l.End)
			}
			if !l.Overlong && string(l.Text)+end != part {
				t.Fatalf("%q became %q", part, l.Text)
			}
			if l.Clean() != (!l.Overlong && l.End == CRLF && !strings.ContainsAny(part[:len(part)-2], "\r\x00")) {
				t.Fatalf("%q: clean = %v", part, l.Clean())
			}
		}
	})
}
