package mimetree

import (
	"bytes"
	"io"
)

// UU is a uuencoded file within text: from the line "begin 644 name", or "begin-base64 644 name", to its end.
type UU struct {
	Name       string
	Start, End int64 // in the message, with both lines
	Ended      bool  // its last line was seen
	base64     bool
}

// Decoded returns the file.
func (u UU) Decoded(body io.ReaderAt) *Decoder {
	if !u.base64 {
		return newDecoder(body, u.Start, u.End, "uuencode")
	}
	w := window{body: body, base: u.Start, size: u.End}
	_, start, _ := w.line(u.Start, u.End)
	return newDecoder(body, start, u.End, "base64")
}

// FindUU looks for uuencoded files in the octets [start, end) of body, at most max of them (0: 100). Some mail programs
// show them as attachments although no header says so.
func FindUU(body io.ReaderAt, start, end int64, max int) []UU {
	return (*Buffers)(nil).FindUU(body, start, end, max)
}

// FindUU is the function FindUU in borrowed memory.
func (b *Buffers) FindUU(body io.ReaderAt, start, end int64, max int) (found []UU) {
	if max <= 0 {
		max = 100
	}
	w := window{body: body, base: start, size: end}
	b.lend(&w)
	defer b.end(&w)
	for pos, lineStart := start, true; pos < end && len(found) < max; {
		b := w.at(pos, end)
		i := begin(b, lineStart)
		if i < 0 {
			if pos+int64(len(b)) >= w.size || len(b) < 16 {
				return found
			}
			pos += int64(len(b)) - 8
			lineStart = false
			continue
		}
		at := pos + int64(i)
		if u, next, ok := w.uu(at, end); ok {
			found = append(found, u)
			pos, lineStart = next, true
		} else {
			pos, lineStart = at+5, false
		}
	}
	return found
}

// begin returns the place of the next "begin" at the beginning of a line.
func begin(b []byte, start bool) int {
	word := []byte("begin")
	for at := 0; ; {
		i := bytes.Index(b[at:], word)
		if i < 0 {
			return -1
		}
		i += at
		if i == 0 && start || i > 0 && (b[i-1] == '\n' || b[i-1] == '\r') {
			return i
		}
		at = i + len(word)
	}
}

// uu reads the block whose "begin" is at pos.
func (w *window) uu(pos, end int64) (u UU, next int64, ok bool) {
	line, next, _ := w.line(pos, end)
	name, b64, ok := uuBegin(line)
	if !ok {
		return u, next, false
	}
	u = UU{Name: name, Start: pos, base64: b64}
	for n := 0; next < end; n++ {
		line, after, _ := w.line(next, end)
		line = bytes.TrimRight(line, " \t")
		if n == 0 && !b64 && !uuLine(line) && string(line) != "end" {
			return u, next, false
		}
		next = after
		if !b64 && string(line) == "end" || b64 && string(line) == "====" {
			u.Ended = true
			break
		}
	}
	u.End = next
	return u, next, true
}

// uuBegin takes "begin 644 name" apart.
func uuBegin(line []byte) (name string, base64, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte("begin"))
	if !ok {
		return "", false, false
	}
	if r, found := bytes.CutPrefix(rest, []byte("-base64")); found {
		rest, base64 = r, true
	}
	mode, file, _ := bytes.Cut(bytes.TrimLeft(rest, " \t"), []byte(" "))
	if len(rest) == 0 || rest[0] != ' ' && rest[0] != '\t' || len(mode) < 3 || len(mode) > 6 {
		return "", false, false
	}
	for _, c := range mode {
		if c < '0' || c > '7' {
			return "", false, false
		}
	}
	return string(bytes.TrimSpace(file)), base64, true
}

// uuLine says whether line can be one of a uuencoded file: its first character tells its length.
func uuLine(line []byte) bool {
	if len(line) == 0 || line[0] < ' ' || line[0] > '`' {
		return false
	}
	n := int(line[0]-' ') & 63
	return n == 0 || len(line)-1 >= (n*4+2)/3-4 // spaces at the end may be gone
}

// uu decodes the lines after "begin", or all of them if they begin without it; text around the block is dropped.
func (d *Decoder) uu(in []byte, eof bool) int {
	pos := 0
	for pos < len(in) {
		n := bytes.IndexByte(in[pos:], '\n')
		next := pos + n + 1
		if n < 0 {
			if !eof && (pos > 0 || len(in) < cap(d.in)) {
				return pos
			}
			n = len(in) - pos // the last line, or one that is no line of a uuencoded file
			next = len(in)
		}
		d.uuDecode(trimCR(in[pos : pos+n]))
		pos = next
	}
	return pos
}

func (d *Decoder) uuDecode(line []byte) {
	switch {
	case bytes.HasPrefix(line, []byte("begin")):
		if _, _, ok := uuBegin(line); ok {
			d.inside = true
			return
		}
	case string(bytes.TrimRight(line, " \t")) == "end":
		d.inside = false
		return
	}
	if !d.inside {
		return
	}
	if !uuLine(line) {
		if len(line) > 0 {
			d.strange(OddBadUU)
		}
		return
	}
	want := int(line[0]-' ') & 63
	data := line[1:]
	at := func(i int) byte {
		if i < len(data) {
			return (data[i] - ' ') & 63
		}
		return 0
	}
	for i := 0; want > 0; i += 4 {
		a, b, c, e := at(i), at(i+1), at(i+2), at(i+3)
		three := [3]byte{a<<2 | b>>4, b<<4 | c>>2, c<<6 | e}
		d.out = append(d.out, three[:min(want, 3)]...)
		want -= 3
	}
}
