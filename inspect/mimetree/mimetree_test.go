package mimetree

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// payload stands for an attachment.
const payload = "PK\x03\x04 this is the attachment"

var payload64 = base64.StdEncoding.EncodeToString([]byte(payload))

// message makes lines end in CRLF.
func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n" }

func parse(s string) *Part { return Parse(strings.NewReader(s), int64(len(s)), Limits{}) }

// show writes a tree as text: path, kind, type, encoding, name, decoded content, oddities.
func show(p *Part, s string) string {
	var b strings.Builder
	for x := range p.All() {
		fmt.Fprintf(&b, "%q %v", x.Path, x.Kind)
		if x.Kind <= Message {
			fmt.Fprintf(&b, " %s", x.Type)
		}
		if x.Encoded() {
			fmt.Fprintf(&b, " %s", x.Encoding)
		}
		if len(x.Names) > 0 {
			fmt.Fprintf(&b, " %q", x.Names)
		}
		if x.Kind != Multipart && x.Kind != Message {
			c, _ := io.ReadAll(x.Decoded(strings.NewReader(s)))
			fmt.Fprintf(&b, " = %q", c)
		}
		if len(x.Odd) > 0 {
			fmt.Fprintf(&b, " odd %v", x.Odd)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestTree(t *testing.T) {
	attachment := []string{"Content-Type: application/zip; name=a.zip", "Content-Transfer-Encoding: base64", "", payload64}
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", `"1" leaf text/plain = ""` + "\n"},
		{"text without a header", "just a line\r\n", `"1" leaf text/plain = "just a line\r\n"` + "\n"},
		{"one leaf", message("Subject: x", "", "body"), `"1" leaf text/plain = "body\r\n"` + "\n"},
		{"header only", "Subject: x", `"1" leaf text/plain = ""` + "\n"},
		{"mixed", message(append([]string{"Content-Type: multipart/mixed; boundary=\"b\"", "", "pre", "--b", "", "text", "--b"}, append(attachment, "--b--", "post")...)...),
			`"" multipart multipart/mixed
"preamble" preamble = "pre"
"1" leaf text/plain = "text"
"2" leaf application/zip base64 ["a.zip"] = "` + strings.ReplaceAll(payload, "\x03\x04", `\x03\x04`) + `"
"epilogue" epilogue = "post\r\n"
`},
		{"nested, LF", strings.ReplaceAll(message("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: multipart/alternative; boundary=bb", "", "--bb", "", "one", "--bb  ", "", "two", "--bb--", "--b", "", "three", "--b--"), "\r\n", "\n"),
			`"" multipart multipart/mixed
"1" multipart multipart/alternative
"1.1" leaf text/plain = "one"
"1.2" leaf text/plain = "two"
"2" leaf text/plain = "three"
`},
		{"message within", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: message/rfc822", "", "Subject: in", "Content-Type: multipart/mixed; boundary=c", "", "--c", "", "deep", "--c--", "--b", "Content-Type: message/rfc822", "", "Subject: leaf", "", "x", "--b--"),
			`"" multipart multipart/mixed
"1" message message/rfc822
"1.TEXT" multipart multipart/mixed
"1.1" leaf text/plain = "deep"
"2" message message/rfc822
"2.1" leaf text/plain = "x"
`},
		{"digest", message("Content-Type: multipart/digest; boundary=b", "", "--b", "", "Subject: in", "", "x", "--b--"),
			`"" multipart multipart/digest
"1" message message/rfc822
"1.1" leaf text/plain = "x"
`},
		{"empty parts", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "--b", "", "--b", "", "", "--b--"),
			`"" multipart multipart/mixed
"1" leaf text/plain = ""
"2" leaf text/plain = ""
"3" leaf text/plain = ""
`},
		{"end missing", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "", "x"),
			"\"\" multipart multipart/mixed odd [boundary-missing-end]\n\"1\" leaf text/plain = \"x\\r\\n\"\n"},
		{"inner end missing", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: multipart/mixed; boundary=c", "", "--c", "", "x", "--b--"),
			`"" multipart multipart/mixed
"1" multipart multipart/mixed odd [boundary-missing-end]
"1.1" leaf text/plain = "x"
`},
		{"parts after the end", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "", "x", "--b--", "so long", "--b", "", "y", "--b--"),
			`"" multipart multipart/mixed odd [parts-after-close]
"1" leaf text/plain = "x"
"epilogue" epilogue = "so long"
"2" leaf text/plain = "y"
`},
		{"prefix boundaries", message("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: multipart/mixed; boundary=b--", "", "--b--", "", "x", "--b----", "--b", "", "y", "--b--"),
			`"" multipart multipart/mixed
"1" multipart multipart/mixed
"1.1" leaf text/plain = "x"
"2" leaf text/plain = "y"
`},
		{"no boundary parameter", message("Content-Type: multipart/mixed", "", "--zz", "", "x", "--zz--"),
			"\"\" multipart multipart/mixed odd [boundary-missing]\n\"1\" leaf text/plain = \"x\"\n"},
		{"another boundary", message("Content-Type: multipart/mixed; boundary=b", "", "--zz", "", "x", "--zz--"),
			`"" multipart multipart/mixed odd [boundary-not-found]
"preamble" preamble = "--zz\r\n\r\nx\r\n--zz--\r\n"
"~1" multipart multipart/mixed
"~1.1" leaf text/plain = "x"
`},
		{"encoded message", message("Content-Type: message/rfc822", "Content-Transfer-Encoding: base64", "", base64.StdEncoding.EncodeToString([]byte("Subject: x\r\n\r\nbody"))),
			`"1" leaf message/rfc822 base64 = "Subject: x\r\n\r\nbody" odd [encoded-message]
"1~1" message message/rfc822
"1~1.1" leaf text/plain = "U3ViamVjdDogeA0KDQpib2R5\r\n"
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := show(parse(c.in), c.in); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// The twelve hostile cases that were tried with four libraries before this package was written: each must show the
// attachment in some reading.
func TestHostile(t *testing.T) {
	head := "Content-Type: multipart/mixed; boundary=b"
	part := []string{"--b", "Content-Type: application/zip; name=a.zip", "Content-Transfer-Encoding: base64", "", payload64, "--b--"}
	with := func(first []string, rest ...string) string { return message(append(append(first, ""), rest...)...) }
	for _, c := range []struct{ name, in, odd string }{
		{"closing boundary missing", with([]string{head}, part[:5]...), OddNoEnd},
		{"two boundary parameters, first", with([]string{head + "; boundary=c"}, part...), OddDuplicateBoundary},
		{"two boundary parameters, second", with([]string{"Content-Type: multipart/mixed; boundary=c; boundary=b"}, part...), OddDuplicateBoundary},
		{"two Content-Type fields, first", with([]string{head, "Content-Type: text/plain"}, part...), OddDuplicateType},
		{"two Content-Type fields, second", with([]string{"Content-Type: text/plain", head}, part...), OddDuplicateType},
		{"base64 with junk and early pad", with([]string{head}, part[0], part[1], part[2], "", "!"+base64.StdEncoding.EncodeToString([]byte(payload[:4]))+"\r\n*"+base64.StdEncoding.EncodeToString([]byte(payload[4:])), "--b--"), OddBadBase64},
		{"junk header line", with([]string{"Subject: x", "this is junk", head}, part...), OddHeaderJunk},
		{"junk part header line", with([]string{head}, append([]string{"--b", "what is this"}, part[1:]...)...), OddHeaderJunk},
		{"uuencode in text", with([]string{"Subject: x"}, "hello", "begin 644 a.zip", uuencode(payload), "`", "end", "bye"), ""},
		{"CTE with a comma", with([]string{head}, part[0], part[1], "Content-Transfer-Encoding: base64,", "", payload64, "--b--"), OddBadEncoding},
		{"bare CR in a header", with([]string{"Subject: x\r" + head}, part...), OddBareCR},
		{"space before the colon", with([]string{"Content-Type : multipart/mixed; boundary=b"}, part...), OddSpaceBeforeColon},
		{"conflicting names", with([]string{head}, part[0], "Content-Disposition: attachment; filename=a.txt; filename*=UTF-8''a.exe", part[2], "", payload64, "--b--"), OddNames},
		{"comments in Content-Type", with([]string{"Content-Type: (x) multipart/(y)mixed (z); (q) boundary=b (r)"}, part...), OddDuplicateBoundary},
		{"no blank line before the body", with([]string{head}, part[0], part[1], part[2], payload64, "--b--"), OddNoSeparator},
		{"junk that looks like base64", with([]string{head}, part[0], part[1], part[2], "xyz", "", payload64, "--b--"), OddNoSeparator},
		{"delimiter instead of the blank line", message(append([]string{head}, part...)...), OddNoSeparator},
		{"leading blank line", "\r\n" + with([]string{head}, part...), OddLeadingBlank},
		{"RFC 2231 boundary", with([]string{"Content-Type: multipart/mixed; boundary*=us-ascii'en'%62; boundary=c"}, part...), OddDuplicateBoundary},
		{"folded boundary", with([]string{"Content-Type: multipart/mixed;", "\tboundary=\"b\""}, part...), ""},
		{"white line in the header", with([]string{"Content-Type: multipart/mixed;", " ", " boundary=b"}, part...), OddBlankLooking},
		{"end quote missing", with([]string{"Content-Type: multipart/mixed; boundary=\"b"}, part...), ""},
		{"NUL in the header", with([]string{"Content-Type: multipart/mixed; bound\x00ary=b"}, part...), OddNulInHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse(c.in)
			var odd []string
			found := false
			for x := range p.All() {
				odd = append(odd, x.Odd...)
				var contents []string
				for _, enc := range x.Encodings {
					d := x.DecodedAs(strings.NewReader(c.in), enc)
					b, _ := io.ReadAll(d)
					contents = append(contents, string(b))
					odd = append(odd, d.Odd()...)
				}
				for _, u := range FindUU(strings.NewReader(c.in), x.BodyStart, x.End, 0) {
					b, _ := io.ReadAll(u.Decoded(strings.NewReader(c.in)))
					contents = append(contents, string(b))
				}
				found = found || slices.Contains(contents, payload)
			}
			if !found {
				t.Errorf("the attachment is lost:\n%s", show(p, c.in))
			}
			if c.odd != "" && !slices.Contains(odd, c.odd) {
				t.Errorf("oddities %v lack %q:\n%s", odd, c.odd, show(p, c.in))
			}
		})
	}
}

func uuencode(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := min(45, len(s))
		line := s[:n]
		s = s[n:]
		b.WriteByte(byte(' ' + n))
		for i := 0; i < n; i += 3 {
			var g [3]byte
			copy(g[:], line[i:])
			for _, v := range []byte{g[0] >> 2, g[0]<<4&63 | g[1]>>4, g[1]<<2&63 | g[2]>>6, g[2] & 63} {
				if v == 0 {
					v = '`' - ' '
				}
				b.WriteByte(' ' + v)
			}
		}
		b.WriteString("\r\n")
	}
	return strings.TrimSuffix(b.String(), "\r\n")
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		header string
		want   []string
	}{
		{`Content-Type: a/b; name="x.zip"`, []string{"x.zip"}},
		{`Content-Type: a/b; name=my file.exe`, []string{"my file.exe", "my"}},
		{"Content-Type: a/b; name=\"=?utf-8?B?ZS5leGU=?=\"", []string{"e.exe", "=?utf-8?B?ZS5leGU=?="}},
		{`Content-Disposition: attachment; filename*0="long"; filename*1="er.exe"`, []string{"longer.exe"}},
		{`Content-Disposition: attachment; filename*0*=utf-8''%e2%82%ac; filename*1=.txt`, []string{"€.txt"}},
		{`Content-Disposition: attachment; filename*1=er.exe; filename*0=long`, []string{"longer.exe"}},
		{`Content-Disposition: attachment; filename*0=a; filename*2=.exe`, []string{"a", "a.exe"}},
		{`Content-Disposition: attachment; filename*=iso-8859-1''%e4.txt`, []string{"ä.txt"}},
		{`Content-Disposition: attachment; filename="a\"b;c.txt"; size=3`, []string{`a"b;c.txt`, `a\"b;c.txt`}},
		{`Content-Disposition: attachment; filename = "spaces.txt"`, []string{"spaces.txt"}},
		{`Content-Disposition: attachment; filename="open.exe`, []string{"open.exe"}},
	} {
		p := parse(c.header + "\r\n\r\n")
		if !slices.Equal(p.Names, c.want) {
			t.Errorf("%s: got %q, want %q", c.header, p.Names, c.want)
		}
	}
}

func TestBombs(t *testing.T) {
	var deep strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&deep, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	same := strings.Repeat("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n", 10_000)
	messages := strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 10_000)
	for _, c := range []struct{ name, in, odd string }{
		{"10,000 deep", deep.String(), OddTooDeep},
		{"10,000 deep, one boundary", same, ""},
		{"10,000 messages deep", messages, OddTooDeep},
		{"300,000 parts", "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\n", 300_000), OddTooManyParts},
		{"200,000 fields", strings.Repeat("A: b\r\n", 200_000), OddTooManyFields},
		{"a field of 50 MB", "A: " + strings.Repeat("x", 50<<20), OddLongLine},
		{"8 MB of continuations", "A: b\r\n" + strings.Repeat(" x\r\n", 2<<20), OddLongLine},
		{"6 MB of delimiters that are none", "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--\n", 2<<20), OddBoundaryNotFound},
		{"junk lines", "A: b\r\n" + strings.Repeat("junk\r\n", 100_000) + "B: c\r\n", ""},
		{"a comment without end", "Content-Type: " + strings.Repeat("(", 60_000), OddMalformedType},
		{"parameters", "Content-Type: multipart/mixed" + strings.Repeat("; boundary=b", 5_000) + strings.Repeat("; a*1=b", 3000), ""},
		{"hundreds of readings", strings.Repeat("Content-Type: multipart/mixed; boundary=a; boundary=b; boundary=c\r\n\r\n--a\r\n", 300), OddTooManyReadings},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			p := parse(c.in)
			var odd []string
			n := 0
			for x := range p.All() {
				n++
				odd = append(odd, x.Odd...)
			}
			if c.odd != "" && !slices.Contains(odd, c.odd) {
				t.Errorf("oddities lack %q", c.odd)
			}
			if n > 3*10_000 {
				t.Errorf("%d parts", n)
			}
			t.Logf("%d octets, %d parts, %v", len(c.in), n, time.Since(begin))
		})
	}
}

func TestEveryOctetIsInSomePart(t *testing.T) {
	in := message("Content-Type: multipart/mixed; boundary=b", "", "pre", "--b", "", "one", "--b", "Content-Type: multipart/mixed; boundary=c", "", "--c", "", "x", "--c--", "after c", "--b--", "post", "--b", "", "again")
	covered := make([]bool, len(in))
	for x := range parse(in).All() {
		if len(x.Children) == 0 {
			for i := x.Start; i < x.End; i++ {
				covered[i] = true
			}
		}
	}
	var rest bytes.Buffer
	for i, c := range covered {
		if !c {
			rest.WriteByte(in[i])
		}
	}
	for _, line := range strings.Split(rest.String(), "\r\n") {
		if line != "" && !strings.HasPrefix(line, "--") && !strings.HasPrefix(line, "Content-Type: multipart") {
			t.Errorf("not in any part: %q", line)
		}
	}
}

func TestDecodedMultipart(t *testing.T) {
	inner := message("--b", "", "one", "--b--")
	in := message("Content-Type: multipart/mixed; boundary=b", "Content-Transfer-Encoding: base64", "", base64.StdEncoding.EncodeToString([]byte(inner)))
	p := parse(in)
	if p.Kind != Multipart || !slices.Contains(p.Odd, OddEncodedMultipart) {
		t.Fatalf("%s", show(p, in))
	}
	b, _ := io.ReadAll(p.Decoded(strings.NewReader(in)))
	got := show(ParseDecoded(p, bytes.NewReader(b), int64(len(b)), Limits{}), string(b))
	if want := "\"~decoded\" multipart multipart/mixed\n\"~decoded.1\" leaf text/plain = \"one\"\n"; got != want {
		t.Errorf("got\n%s", got)
	}
}

// walkSum is the work that a scanner does with a message.
func walkSum(s []byte) (sum [32]byte) {
	r := bytes.NewReader(s)
	for x := range Parse(r, int64(len(s)), Limits{}).All() {
		h := sha256.New()
		x.Decoded(r).WriteTo(h)
		h.Sum(sum[:0])
	}
	return sum
}

func TestFindUU(t *testing.T) {
	block := "begin 644 a b.zip\r\n" + uuencode(payload) + "\r\n`\r\nend\r\n"
	b64 := "begin-base64 755 c.zip\n" + payload64 + "\n====\n"
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"none", "to begin with\r\nbegin the begin\r\nbegin 644 x\r\nno such line, it is text that does not fit at all, the length is wrong\r\n", nil},
		{"one", block, []string{"a b.zip"}},
		{"in text", "hello\r\n" + block + "bye\r\n", []string{"a b.zip"}},
		{"two", block + "\r\n" + block, []string{"a b.zip", "a b.zip"}},
		{"base64", "x\n" + b64, []string{"c.zip"}},
		{"no end", strings.TrimSuffix(block, "`\r\nend\r\n"), []string{"a b.zip"}},
		{"far away", strings.Repeat("text, text\r\n", 20_000) + block, []string{"a b.zip"}},
		{"across the window", strings.Repeat("x", windowSize-9) + "\r\n" + block, []string{"a b.zip"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			in := "before " + c.in
			for _, u := range FindUU(strings.NewReader(in), 7, int64(len(in)), 0) {
				names = append(names, u.Name)
				if b, err := io.ReadAll(u.Decoded(strings.NewReader(in))); err != nil || string(b) != payload {
					t.Errorf("content %q, %v", b, err)
				}
			}
			if !slices.Equal(names, c.want) {
				t.Errorf("names %q", names)
			}
		})
	}
}

// failing is a body whose end cannot be read.
type failing struct {
	io.ReaderAt
	from int64
}

func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if off >= f.from {
		return 0, io.ErrNoProgress
	}
	n, err := f.ReaderAt.ReadAt(b[:min(int64(len(b)), f.from-off)], off)
	if n < len(b) {
		err = io.ErrNoProgress
	}
	return n, err
}

func TestUnreadableBody(t *testing.T) {
	in := string(sample(200 << 10))
	for _, from := range []int64{0, 1, 100, 300, 1500, 70_000, 140_000} {
		body := failing{strings.NewReader(in), from}
		for p := range Parse(body, int64(len(in)), Limits{}).All() {
			if _, err := p.Decoded(body).WriteTo(io.Discard); err == nil && p.Kind == Leaf && p.BodyStart < p.End && p.End > from {
				t.Errorf("%d: no error from part %q, which ends at %d", from, p.Path, p.End)
			}
		}
	}
}

func TestLongMessageInLittleMemory(t *testing.T) {
	body := endless{head: message("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Transfer-Encoding: base64", ""), line: strings.Repeat("QUJD", 19) + "\r\n"}
	const size = 256 << 20
	var tree *Part
	n := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			tree = Parse(body, size, Limits{})
		}
	}).AllocedBytesPerOp()
	if n > 256<<10 {
		t.Errorf("%d octets allocated for %d", n, size)
	}
	if len(tree.Children) != 1 || tree.Children[0].End < size-2 {
		t.Errorf("%v", tree.Children)
	}
}

// endless is a body that needs no memory.
type endless struct{ head, line string }

func (e endless) ReadAt(b []byte, off int64) (n int, err error) {
	if off < int64(len(e.head)) {
		n = copy(b, e.head[off:])
	}
	at := int((off + int64(n) - int64(len(e.head))) % int64(len(e.line)))
	for n < len(b) {
		n += copy(b[n:], e.line[at:])
		at = 0
	}
	return n, nil
}

// failingAfter is a body whose reads fail from the n-th on: few octets, and an error.
type failingAfter struct {
	body  string
	reads int
	n     int
	give  int
}

func (f *failingAfter) ReadAt(b []byte, off int64) (int, error) {
	if f.reads++; f.reads > f.n {
		n, _ := strings.NewReader(f.body).ReadAt(b[:min(len(b), f.give)], off)
		return n, io.ErrUnexpectedEOF
	}
	return strings.NewReader(f.body).ReadAt(b, off)
}

// TestReadsThatFail: wherever a read fails, the message ends there, and nothing worse happens.
func TestReadsThatFail(t *testing.T) {
	part := "--b\r\nContent-Type: text/plain\r\n\r\n" + strings.Repeat("- a line of text -- with dashes\r\n--not a delimiter\r\n", 700) + "\r\n"
	for _, c := range []struct{ name, body string }{
		{"parts", message("Content-Type: multipart/mixed; boundary=b", "", strings.Repeat(part, 20)+"--b--")},
		{"padding without end", message("Content-Type: multipart/mixed; boundary=b", "", strings.Repeat("x", 60<<10), "--b"+strings.Repeat(" ", 200<<10), "--b--")},
		{"dashes", message("Content-Type: multipart/mixed; boundary=b", "", strings.Repeat("--b\r\n", 60<<10))},
		{"header", message("Subject: x", strings.Repeat("X-Y: "+strings.Repeat("z", 900)+"\r\n", 300)+"Content-Type: multipart/mixed; boundary=b", "", part)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n := range 40 {
				for _, give := range []int{0, 1, 2, 3000, 40_000} {
					body := &failingAfter{body: c.body, n: n, give: give}
					checkTree(t, Parse(body, int64(len(c.body)), Limits{MaxParts: 1000}), int64(len(c.body)))
				}
			}
		})
	}
}

// stopping is a writer that fails once, after some octets.
type stopping struct {
	bytes.Buffer
	after int
}

func (w *stopping) Write(b []byte) (int, error) {
	if w.after >= 0 && len(b) > w.after {
		n, _ := w.Buffer.Write(b[:w.after])
		w.after = -1
		return n, errors.New("enough for now")
	}
	if w.after > 0 {
		w.after -= len(b)
	}
	return w.Buffer.Write(b)
}

// TestBorrowedMemory: what is read in borrowed memory is what is read without, whoever else borrows it meanwhile.
func TestBorrowedMemory(t *testing.T) {
	var buffers Buffers
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			for i := range 8 {
				in := generate(rnd)
				if g == 0 && i == 0 {
					in += "begin 644 x\r\n" + uuencode(string(octets(80_000))) + "\r\nend\r\n" + string(sample(100<<10))
				}
				r, size := strings.NewReader(in), int64(len(in))
				tree := buffers.Parse(r, size, Limits{})
				if !reflect.DeepEqual(tree, Parse(r, size, Limits{})) {
					t.Errorf("another tree of %q", in)
				}
				if !reflect.DeepEqual(buffers.FindUU(r, 0, size, 0), FindUU(r, 0, size, 0)) {
					t.Errorf("other uuencoded files in %q", in)
				}
				for p := range tree.All() {
					for _, enc := range []string{p.Encoding, "base64", "quoted-printable", "uuencode", "binary"} {
						var want, got bytes.Buffer
						p.DecodedAs(r, enc).WriteTo(&want)
						d := p.DecodedAs(r, enc).Borrowing(&buffers)
						d.WriteTo(&got)
						if again, err := d.WriteTo(&got); again != 0 || err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
							t.Errorf("%s: %q is not %q", enc, got.Bytes(), want.Bytes())
						}
						for _, after := range []int{0, 1, 100, 50_000} {
							stop := &stopping{after: after}
							d := p.DecodedAs(r, enc).Borrowing(&buffers)
							for range 3 {
								d.WriteTo(stop)
							}
							if isEncoded(enc) && !bytes.Equal(stop.Bytes(), want.Bytes()) {
								t.Errorf("%s, stopped after %d: %d octets, not %d", enc, after, stop.Len(), want.Len())
							}
						}
					}
				}
			}
		})
	}
	wg.Wait()
}
