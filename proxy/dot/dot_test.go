package dot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// parse reads one block from in through a buffer of size octets and returns content, info and what was left unread.
func parse(in string, size int, one bool) (content string, info *Info, rest string, err error) {
	var src io.Reader = strings.NewReader(in)
	if one {
		src = iotest.OneByteReader(src)
	}
	br := bufio.NewReaderSize(src, size)
	r := NewReader(br)
	b, err := io.ReadAll(r)
	left, _ := io.ReadAll(br)
	return string(b), r.Info(), string(left), err
}

// chunks is a reader that gives n octets at once.
type chunks struct {
	r io.Reader
	n int
}

func (c chunks) Read(p []byte) (int, error) { return c.r.Read(p[:min(c.n, len(p))]) }

// write sends content through a Writer, in pieces of size octets, or by ReadFrom when size is not positive: at once,
// or in pieces of -size.
func write(content string, missing []int64, size int, addCRLF bool) (string, error) {
	var out bytes.Buffer
	w := NewWriter(&out, missing)
	if size <= 0 {
		var r io.Reader = strings.NewReader(content)
		if size < 0 {
			r = chunks{r, -size}
		}
		if _, err := w.ReadFrom(r); err != nil {
			return out.String(), err
		}
		err := w.Finish(addCRLF)
		return out.String(), err
	}
	for at := 0; at < len(content); at += size {
		if _, err := io.WriteString(w, content[at:min(at+size, len(content))]); err != nil {
			return out.String(), err
		}
	}
	err := w.Finish(addCRLF)
	return out.String(), err
}

func TestReader(t *testing.T) {
	for _, c := range []struct {
		name, in, content, rest string
		missing                 []int64
	}{
		{"empty message", ".\r\nQUIT\r\n", "", "QUIT\r\n", nil},
		{"one line", "a\r\n.\r\n", "a\r\n", "", nil},
		{"S-135 stuffed dots, a line of one dot, 1000 dots", "..x\r\n..\r\n" + strings.Repeat(".", 1000) + "\r\n.\r\n",
			".x\r\n.\r\n" + strings.Repeat(".", 999) + "\r\n", "", nil},
		{"S-136 single dot not stuffed", "a\r\n.x\r\n.y.\r\n.\r\n", "a\r\nx\r\ny.\r\n", "", []int64{3, 6}},
		{"S-137 dots after a bare LF", "a\n..\r\nb\n.x\r\n.\r\nR", "a\n..\r\nb\n.x\r\n", "R", nil},
		{"S-138 the last CRLF is content", "abc\r\n.\r\n", "abc\r\n", "", nil},
		{"S-139 NULs", "MZ\x00\x00\r\n.\r\n", "MZ\x00\x00\r\n", "", nil},
		{"S-143 BDAT as content", "BDAT 10 LAST\r\nx\r\n.\r\nNOOP\r\n", "BDAT 10 LAST\r\nx\r\n", "NOOP\r\n", nil},
		{"S-134 commands behind the end stay", "a\r\n.\r\nMAIL FROM:<b>\r\n", "a\r\n", "MAIL FROM:<b>\r\n", nil},
		{"bare CR before CRLF", "a\r\r\n.\r\n", "a\r\r\n", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{16, 17, 4096} {
				for _, one := range []bool{false, true} {
					content, info, rest, err := parse(c.in, size, one)
					if err != nil || content != c.content || rest != c.rest {
						t.Fatalf("size %d: content %q, rest %q, err %v", size, content, rest, err)
					}
					if fmt.Sprint(info.Missing) != fmt.Sprint(c.missing) || info.EODLike != 0 || !info.Exact() {
						t.Errorf("size %d: info %+v", size, info)
					}
					if info.Octets != int64(len(content)) || info.Wire != int64(len(c.in)-len(rest)-3) {
						t.Errorf("size %d: octets %d, wire %d", size, info.Octets, info.Wire)
					}
					for _, k := range []int{0, -1, -2, -3, 1, 2, 3, 5, 4096} {
						wire, err := write(content, info.Missing, k, false)
						if want := c.in[:len(c.in)-len(rest)]; err != nil || wire != want {
							t.Fatalf("pieces of %d: wrote %q, want %q, err %v", k, wire, want, err)
						}
					}
				}
			}
		})
	}
}

// evil follows every sequence: what a lenient server would run as commands.
const evil = "MAIL FROM:<evil>\r\nRCPT TO:<victim>\r\nDATA\r\nx\r\n.\r\n"

// TestEODLike shows for each sequence that it does not end the message, that it is flagged, and that the reader goes
// on to the true end, wherever the octets are split.
func TestEODLike(t *testing.T) {
	for _, c := range []struct{ name, seq string }{
		{"S-120 LF dot LF", "\n.\n"},
		{"S-121 LF dot CRLF", "\n.\r\n"},
		{"S-122 CR dot CRLF", "\r.\r\n"},
		{"S-123 CR dot CR", "\r.\r"},
		{"S-124 CR dot LF", "\r.\n"},
		{"S-125 LF dot CR", "\n.\r"},
		{"S-126 CRLF dot LF", "\r\n.\n"},
		{"S-127 CRLF dot CR, then no LF", "\r\n.\r"},
		{"S-128 CRLF dot CR CRLF", "\r\n.\r\r\n"},
		{"S-129 CR CRLF dot CR CRLF", "\r\r\n.\r\r\n"},
		{"S-130 CRLF NUL dot CRLF", "\r\n\x00.\r\n"},
		{"S-131a CRLF dot NUL CRLF", "\r\n.\x00\r\n"},
		{"S-131b CRLF NUL dot CR", "\r\n\x00.\r"},
		{"S-131c CRLF NUL dot LF", "\r\n\x00.\n"},
		{"S-132a LF LF dot CRLF", "\n\n.\r\n"},
		{"S-132b LF dot LF dot LF", "\n.\n.\n"},
		{"S-132c CRLF dot CR dot CRLF", "\r\n.\r.\r\n"},
		{"S-132d many NULs", "\r\n\x00\x00\x00.\x00\x00\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, head := range []string{"", "Subject: x\r\n\r\ntext"} {
				block := head + c.seq + evil
				for cut := 0; cut <= len(block); cut++ {
					src := io.MultiReader(strings.NewReader(block[:cut]), strings.NewReader(block[cut:]+"NOOP\r\n"))
					br := bufio.NewReaderSize(src, 4096)
					r := NewReader(br)
					content, err := io.ReadAll(r)
					if err != nil {
						t.Fatalf("cut %d: %v", cut, err)
					}
					if r.Info().EODLike == 0 || r.Info().Exact() {
						t.Fatalf("cut %d: not flagged: %+v", cut, r.Info())
					}
					if !bytes.HasSuffix(content, []byte("DATA\r\nx\r\n")) {
						t.Fatalf("cut %d: ended early: %q", cut, content)
					}
					if rest, _ := io.ReadAll(br); string(rest) != "NOOP\r\n" {
						t.Fatalf("cut %d: rest %q", cut, rest)
					}
				}
			}
		})
	}
	t.Run("S-131d NUL before a real end", func(t *testing.T) {
		content, info, rest, err := parse("abc\x00\r\n.\r\nNOOP\r\n", 16, false)
		if err != nil || content != "abc\x00\r\n" || rest != "NOOP\r\n" || info.EODLike != 0 || info.NUL != 1 {
			t.Errorf("content %q, rest %q, info %+v, err %v", content, rest, info, err)
		}
	})
}

// TestWriterRefuses shows that nothing EOD-like leaves by a Writer, whatever the content came from.
func TestWriterRefuses(t *testing.T) {
	for _, content := range []string{"a\n.\r\nb\r\n", "a\r.\rb\r\n", "\n.\n", "a\r\n\x00.\r\n", ".\r\x00\n"} {
		for _, k := range []int{0, -1, -2, 1, 2, 100} {
			out, err := write(content, nil, k, true)
			if content == ".\r\x00\n" {
				if err != nil || !strings.HasPrefix(out, "..\r\x00") {
					t.Errorf("%q in pieces of %d: %q, %v", content, k, out, err)
				}
				continue
			}
			if !errors.Is(err, ErrAmbiguous) || strings.HasSuffix(out, "\r\n.\r\n") {
				t.Errorf("%q in pieces of %d: err %v, wrote %q", content, k, err, out)
			}
		}
	}
	for _, missing := range [][]int64{{0, 0}, {1}, {9}, {3}} { // lists that are not of this content
		if _, err := write("a\r\n\r\n", missing, 0, false); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("missing %v: err %v", missing, err)
		}
	}
}

func TestFinishWithoutFinalCRLF(t *testing.T) {
	for _, c := range []struct {
		content, want string
	}{
		{"abc", "abc\r\n.\r\n"}, {"abc\r", "abc\r\r\n.\r\n"}, {"abc\n", "abc\n\r\n.\r\n"}, {".", "..\r\n.\r\n"},
	} {
		if out, err := write(c.content, nil, 0, false); !errors.Is(err, ErrNoFinalCRLF) || strings.Contains(out, "\r\n.\r\n") {
			t.Errorf("%q: out %q, err %v", c.content, out, err)
		}
		if out, err := write(c.content, nil, 1, true); err != nil || out != c.want {
			t.Errorf("%q: out %q, err %v", c.content, out, err)
		}
	}
	if out, err := write("a\n.", nil, 1, true); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("a CRLF that completes an EOD-like sequence: out %q, err %v", out, err)
	}
}

// TestAborted cuts a block at every octet: never a success.
func TestAborted(t *testing.T) {
	block := "a\r\n..b\r\n.c\r\n\r\n.\r\n"
	for cut := 0; cut < len(block); cut++ {
		if content, _, _, err := parse(block[:cut], 16, false); err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %d: content %q, err %v", cut, content, err)
		}
		r := NewReader(bufio.NewReader(strings.NewReader(block[:cut])))
		if _, err := r.WriteTo(io.Discard); err != io.ErrUnexpectedEOF || r.Done() {
			t.Errorf("WriteTo, cut at %d: err %v", cut, err)
		}
		r = NewReader(bufio.NewReader(strings.NewReader(block[:cut])))
		if err := r.Drain(); err != io.ErrUnexpectedEOF || r.Done() {
			t.Errorf("Drain, cut at %d: err %v", cut, err)
		}
	}
	r := NewReader(bufio.NewReader(io.MultiReader(strings.NewReader("a\r\n."), iotest.ErrReader(io.ErrClosedPipe))))
	if err := r.Drain(); err != io.ErrClosedPipe {
		t.Errorf("input error: %v", err)
	}
}

// TestSplits cuts a block and what follows at every octet, as TCP may: a true end is found, wherever it is cut.
func TestSplits(t *testing.T) {
	t.Run("S-133 end of data cut at every octet", func(t *testing.T) {
		block := "a\r\n..b\r\n.c\r\n\r\n.\r\nNOOP\r\n"
		for i := 0; i <= len(block); i++ {
			for j := i; j <= len(block); j++ {
				br := bufio.NewReaderSize(io.MultiReader(strings.NewReader(block[:i]), strings.NewReader(block[i:j]), strings.NewReader(block[j:])), 64)
				r := NewReader(br)
				content, err := io.ReadAll(r)
				rest, _ := io.ReadAll(br)
				if err != nil || string(content) != "a\r\n.b\r\nc\r\n\r\n" || string(rest) != "NOOP\r\n" || !r.Info().Exact() {
					t.Fatalf("cut at %d and %d: %q, rest %q, %v", i, j, content, rest, err)
				}
			}
		}
	})
}

// endless gives one octet again and again.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	p[0] = byte(e)
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
	return len(p), nil
}

// TestLongLines: there is no line buffer.
func TestLongLines(t *testing.T) {
	t.Run("S-140 100 MB without a line end", func(t *testing.T) {
		const size = 100 << 20
		br := bufio.NewReaderSize(io.MultiReader(io.LimitReader(endless('a'), size), strings.NewReader("\r\n.\r\n")), 64<<10)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := NewReader(br)
		w := NewWriter(io.Discard, nil)
		n, err := r.WriteTo(w)
		runtime.ReadMemStats(&after)
		if err != nil || n != size+2 || w.Finish(false) != nil || w.Wire() != size+2 {
			t.Fatalf("%d octets, %v", n, err)
		}
		if info := r.Info(); info.Longest != size || info.Octets != size+2 || !info.Exact() {
			t.Errorf("%+v", info)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%d octets of memory", n)
		}
	})
}

// limited fails after n octets.
type limited struct{ n int }

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestDrainAfterFullSpool(t *testing.T) {
	br := bufio.NewReaderSize(strings.NewReader(strings.Repeat("line\r\n", 10000)+".\r\nQUIT\r\n"), 4096)
	r := NewReader(br)
	if _, err := r.WriteTo(&limited{10000}); err != errFull {
		t.Fatalf("err = %v", err)
	}
	if err := r.Drain(); err != nil || !r.Done() {
		t.Fatalf("Drain: %v", err)
	}
	if rest, _ := io.ReadAll(br); string(rest) != "QUIT\r\n" || r.Info().Octets != 60000 {
		t.Errorf("rest %q, octets %d", rest, r.Info().Octets)
	}
}

func TestOffsetsAreBounded(t *testing.T) {
	_, info, _, err := parse(strings.Repeat(".x\r\n", MaxOffsets+1)+".\r\n", 4096, false)
	if err != nil || len(info.Missing) != MaxOffsets || !info.MissingOverflow || info.Exact() {
		t.Errorf("%d missing, overflow %v, err %v", len(info.Missing), info.MissingOverflow, err)
	}
	_, info, _, err = parse(strings.Repeat("\n.x", MaxOffsets+1)+"\r\n.\r\n", 4096, false)
	if err != nil || len(info.Loose) != MaxOffsets || !info.LooseOverflow || !info.Exact() {
		t.Errorf("%d loose, overflow %v, err %v", len(info.Loose), info.LooseOverflow, err)
	}
}

var eodLike = regexp.MustCompile("[\r\n]\x00*\\.\x00*[\r\n]")

// overlapping counts the matches of eodLike, a line end being the end of one and the begin of the next.
func overlapping(s string) (n int64) {
	for {
		m := eodLike.FindStringIndex(s)
		if m == nil {
			return n
		}
		n++
		s = s[m[1]-1:]
	}
}

// check compares the reader with plain models of what it promises, and the writer with the reader.
func check(t *testing.T, in string, size int, one bool) {
	t.Helper()
	content, info, rest, err := parse(in, size, one)
	end := 0
	if !strings.HasPrefix(in, ".\r\n") {
		if end = strings.Index(in, "\r\n.\r\n") + 2; end < 2 {
			if err != io.ErrUnexpectedEOF {
				t.Fatalf("%q has no end, but err = %v", in, err)
			}
			return
		}
	}
	if err != nil || rest != in[end+3:] {
		t.Fatalf("%q: rest %q, err %v", in, rest, err)
	}
	wire := in[:end]
	var want strings.Builder
	for i, l := range strings.SplitAfter(wire, "\r\n") {
		_ = i
		want.WriteString(strings.TrimPrefix(l, "."))
	}
	if content != want.String() {
		t.Fatalf("%q: content %q, want %q", in, content, want.String())
	}
	crlf := int64(strings.Count(wire, "\r\n"))
	cr, lf, nul := int64(strings.Count(wire, "\r")), int64(strings.Count(wire, "\n")), int64(strings.Count(wire, "\x00"))
	if info.BareCR != cr-crlf || info.BareLF != lf-crlf || info.NUL != nul || info.EODLike != overlapping("\r\n"+wire) {
		t.Fatalf("%q: info %+v, want %d bare CR, %d bare LF, %d NUL, %d EOD-like", in, info, cr-crlf, lf-crlf, nul, overlapping("\r\n"+wire))
	}
	longest := 0
	for _, l := range strings.Split(content, "\r\n") {
		longest = max(longest, len(l))
	}
	// A dot that was removed never joins a CR and a LF, so that lines of the content are lines of the wire.
	if strings.Count(content, "\r\n") == int(crlf) && info.Longest != int64(longest) {
		t.Fatalf("%q: longest %d, want %d", in, info.Longest, longest)
	}
	if !info.Exact() {
		return
	}
	for _, k := range []int{0, -1, -2, 1, 3, 100000} {
		out, err := write(content, info.Missing, k, false)
		if err != nil || out != in[:end+3] {
			t.Fatalf("%q came out as %q in pieces of %d, err %v", in, out, k, err)
		}
	}
}

func TestAllShortStrings(t *testing.T) {
	const letters = "\r\n.\x00a"
	var all func(prefix string, left int)
	all = func(prefix string, left int) {
		check(t, prefix+"\r\n.\r\n.\r\n", 16, false)
		check(t, "b"+prefix+"\r\n.\r\n", 16, true)
		if left > 0 {
			for i := range letters {
				all(prefix+letters[i:i+1], left-1)
			}
		}
	}
	all("", 5)
}

func FuzzRoundTrip(f *testing.F) {
	for _, s := range []string{"", ".", "a\r\n.x\r\n..\r\n", "a\n.\r\nb", "\r\x00.\n", "\r\n.\r.\r\n", "\x00.\r"} {
		f.Add(s, 16, true)
		f.Add(strings.Repeat(s+"0123456789", 7), 17, false)
	}
	f.Fuzz(func(t *testing.T, s string, size int, one bool) {
		check(t, s+"\r\n.\r\nQUIT\r\n", 16+(size&0xff), one)
	})
}

// base64Text is mail as it mostly is.
func base64Text(n int) []byte {
	line := []byte(strings.Repeat("TWltZSBpcyBmdW4u", 5)[:76] + "\r\n")
	return bytes.Repeat(line, n/len(line))
}

func BenchmarkReaderBase64(b *testing.B) {
	text := append(base64Text(8<<20), ".\r\n"...)
	b.SetBytes(int64(len(text)))
	br := bufio.NewReaderSize(nil, 64<<10)
	for b.Loop() {
		br.Reset(bytes.NewReader(text))
		r := NewReader(br)
		if _, err := r.WriteTo(io.Discard); err != nil || r.Info().EODLike != 0 {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriterBase64(b *testing.B) {
	text := base64Text(8 << 20)
	b.SetBytes(int64(len(text)))
	buf := make([]byte, 64<<10)
	for b.Loop() {
		w := NewWriter(io.Discard, nil)
		w.Buffer(buf)
		if _, err := w.ReadFrom(struct{ io.Reader }{bytes.NewReader(text)}); err != nil {
			b.Fatal(err)
		}
		if err := w.Finish(false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReaderDots(b *testing.B) {
	text := append(bytes.Repeat([]byte("..\r\n"), 1<<18), ".\r\n"...)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		r := NewReader(bufio.NewReaderSize(bytes.NewReader(text), 64<<10))
		if _, err := r.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
