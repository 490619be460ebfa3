package mimetree

import (
	"bytes"
	"io"
	"slices"
	"unicode/utf16"
)

// The dialects of base64 that deployed programs speak besides RFC 2045's. They are names for DecodedAs and say what is
// done with a padding before the end, and with lines that are not whole groups.
const (
	dialectJoined = "base64~joined" // '=' is skipped like junk
	dialectZero   = "base64~zero"   // '=' counts as 'A'
	dialectFirst  = "base64~first"  // the first padding is the end
	dialectURL    = "base64~url"    // '-', '_' and ',' count as '+', '/' and '/' (RFC 4648 §5, RFC 3501 §5.1.3)
	dialectLines  = "base64~lines"  // every line is decoded by itself
	dialectTails  = "base64~tails"  // the same, and what is too much is at the beginning of the line
	encodingUTF7  = "utf-7"         // a charset, RFC 2152
	encodingNoNUL = "no-nul"        // text of UTF-16 or UTF-32 without its zeros; what was ASCII comes out
)

// Dialects returns the further encodings, for DecodedAs, in which what d has decoded could be read otherwise: it is to
// be asked after the end. Proper base64 has none.
func (d *Decoder) Dialects() (names []string) {
	if d.middle {
		names = append(names, dialectJoined, dialectZero, dialectFirst)
	}
	if d.url {
		names = append(names, dialectURL)
	}
	if d.ragged {
		names = append(names, dialectLines, dialectTails)
	}
	return names
}

// look notes, of an octet that the fast way of base64 has left over, what dialects it makes a difference to.
func (d *Decoder) look(c byte) {
	switch c {
	case '-', '_', ',':
		d.url = true
	case '\n', '\r':
		d.ragged = d.ragged || d.count != 0
	}
}

// base64As returns the step for a dialect.
func base64As(dialect string) func(d *Decoder, in []byte, eof bool) int {
	line := dialect == dialectLines || dialect == dialectTails
	return func(d *Decoder, in []byte, eof bool) int {
		for i, c := range in {
			if dialect == dialectURL {
				switch c {
				case '-':
					c = '+'
				case '_', ',':
					c = '/'
				}
			}
			if dialect == dialectZero && c == '=' {
				c = 'A'
			}
			switch {
			case d.stop:
			case lookup64[3][c] != bad64:
				if dialect == dialectTails && d.lineStart {
					d.skip = alphabet64(in[i:]) % 4
					d.lineStart = false
				}
				if d.skip > 0 {
					d.skip--
					continue
				}
				d.acc = d.acc<<6 | lookup64[3][c]
				if d.count++; d.count == 4 {
					d.out = append(d.out, byte(d.acc>>16), byte(d.acc>>8), byte(d.acc))
					d.acc, d.count = 0, 0
				}
			case c == '=' && dialect != dialectJoined, line && (c == '\n' || c == '\r'):
				d.out = d.whole(d.out)
				d.stop = dialect == dialectFirst
				d.lineStart = true
			}
		}
		if eof {
			d.out = d.whole(d.out)
		}
		return len(in)
	}
}

// whole appends the whole octets of an open group.
func (d *Decoder) whole(out []byte) []byte {
	var b [2]byte
	return append(out, b[:d.flush(b[:])]...)
}

// alphabet64 counts the characters of the alphabet up to the end of the line.
func alphabet64(in []byte) (n int) {
	for _, c := range in {
		if c == '\n' || c == '\r' {
			break
		}
		if lookup64[3][c] != bad64 {
			n++
		}
	}
	return n
}

// Hidden returns further encodings that a part should be read in although it does not declare them: base64, when its
// body looks like that and nothing else; quoted-printable, when it is full of that; uuencode, when a file of that begins.
func (p *Part) Hidden(body io.ReaderAt) (names []string) {
	head := make([]byte, min(4<<10, max(p.End-p.BodyStart, 0)))
	n, _ := body.ReadAt(head, p.BodyStart)
	head = head[:n]
	add := func(name string) {
		if !slices.Contains(p.Encodings, name) {
			names = append(names, name)
		}
	}
	if looks64(head) {
		add("base64")
	}
	if looksQP(head) {
		add("quoted-printable")
	}
	if begin(head, true) >= 0 {
		add("uuencode")
	}
	return names
}

// looksQP says whether text has so many escapes, or soft line ends, that some program may undo them undeclared.
func looksQP(text []byte) bool {
	escapes, soft := 0, 0
	for i := 0; i < len(text); {
		n := bytes.IndexByte(text[i:], '=')
		if n < 0 {
			break
		}
		i += n + 1
		switch {
		case i+1 < len(text) && unhex[text[i]]|unhex[text[i+1]] < 16:
			escapes++
		case i < len(text) && (text[i] == '\n' || text[i] == '\r'):
			soft++
		}
	}
	return escapes >= 4 && (soft > 0 || escapes*40 >= len(text))
}

// UTF7 says whether the part declares itself to be text in UTF-7.
func (p *Part) UTF7() bool {
	cs := lowerASCII(p.Params["charset"])
	return cs == "utf-7" || cs == "unicode-1-1-utf-7" || cs == "csutf7"
}

// looks64 says whether text is nothing but lines of base64. No writing of people is: it has blanks.
func looks64(text []byte) bool {
	chars, first, line := 0, 0, 0
	for _, c := range text {
		switch {
		case c == '\n' || c == '\r':
			if first == 0 {
				first = line
			}
			line = 0
		case lookup64[3][c] != bad64 || c == '=':
			chars++
			line++
		default:
			return false
		}
	}
	return chars >= 24 && (first == 0 || first >= 16)
}

// NewText undoes a charset: it reads the size octets of body as text in which ASCII can hide from a search for octets.
// With utf7 it is text in UTF-7, else the zeros of UTF-16 and UTF-32 are left out.
func NewText(body io.ReaderAt, size int64, utf7 bool) *Decoder {
	if utf7 {
		return newDecoder(body, 0, size, encodingUTF7)
	}
	return newDecoder(body, 0, size, encodingNoNUL)
}

// noNUL drops NULs.
func (d *Decoder) noNUL(in []byte, _ bool) int {
	for _, c := range in {
		if c != 0 {
			d.out = append(d.out, c)
		}
	}
	return len(in)
}

// utf7 decodes RFC 2152 to UTF-8.
func (d *Decoder) utf7(in []byte, _ bool) int {
	for _, c := range in {
		if !d.inside {
			if c == '+' {
				d.inside, d.lineStart = true, true
				d.acc, d.count = 0, 0
			} else {
				d.out = append(d.out, c)
			}
			continue
		}
		if v := lookup64[3][c]; v != bad64 {
			d.lineStart = false
			d.acc = d.acc<<6 | v
			if d.count += 6; d.count >= 16 {
				d.count -= 16
				d.unit(uint16(d.acc >> d.count))
				d.acc &= 1<<d.count - 1
			}
			continue
		}
		if c == '-' && d.lineStart { // "+-" is a plus
			d.out = append(d.out, '+')
		} else if c != '-' {
			d.out = append(d.out, c)
		}
		d.inside = false
	}
	return len(in)
}

// unit takes one unit of UTF-16.
func (d *Decoder) unit(u uint16) {
	switch r := rune(u); {
	case utf16.IsSurrogate(r) && d.high == 0:
		d.high = r
	case d.high != 0:
		d.out = append(d.out, string(utf16.DecodeRune(d.high, r))...)
		d.high = 0
	default:
		d.out = append(d.out, string(r)...)
	}
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// IsText says whether head begins like text in UTF-16 or UTF-32: with a byte order mark, or with every other octet zero.
func IsText(head []byte) bool {
	switch {
	case len(head) >= 2 && (head[0] == 0xff && head[1] == 0xfe || head[0] == 0xfe && head[1] == 0xff):
		return true
	case len(head) >= 8:
		zeros := func(off int) bool { return head[off] == 0 && head[off+2] == 0 && head[off+4] == 0 && head[off+6] == 0 }
		return zeros(0) != zeros(1) && slices.IndexFunc(head[:8], func(c byte) bool { return c > 0x7e || c != 0 && c < ' ' && c != '\n' && c != '\r' && c != '\t' }) < 0
	}
	return false
}
