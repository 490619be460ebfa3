package mimetree

import (
	"bytes"
	"io"
)

// A View is another model of line ends and NULs in which a whole message may be read (V1 of the matrix).
type View uint8

// The views. In each of them CRLF and LF end a line.
const (
	ViewCR      View = iota + 1 // a CR alone ends a line as well, and CR CR LF is one line end
	ViewCRLF                    // nothing but CRLF ends a line
	ViewNoNUL                   // NULs are not there
	ViewNulLine                 // a NUL ends a line, as do CR, LF and CRLF
)

// String returns a short name for paths.
func (v View) String() string {
	return [...]string{"", "~cr", "~crlf", "~no-nul", "~nul-line"}[min(int(v), 4)]
}

// Views returns the models in which the first size octets of body differ from the one that Parse has: none for a
// message that is clean in this respect.
func (b *Buffers) Views(body io.ReaderAt, size int64) (views []View) {
	w := window{body: body, size: size}
	b.lend(&w)
	defer b.end(&w)
	var e lineEnds
	for pos := int64(0); pos < size; {
		p := w.at(pos, size)
		if len(p) == 0 {
			break // it cannot be read: whoever reads all of it meets that, too
		}
		e.note(p)
		pos += int64(len(p))
	}
	if e.cr || e.open {
		views = append(views, ViewCR)
	}
	if e.pair && (e.lf || e.cr) {
		views = append(views, ViewCRLF)
	}
	if e.nul {
		views = append(views, ViewNoNUL, ViewNulLine)
	}
	return views
}

// lineEnds gathers what line ends there are.
type lineEnds struct {
	pair, cr, lf, nul bool
	open              bool // the last octet was a CR
}

// note looks at the next octets.
func (e *lineEnds) note(p []byte) {
	if len(p) == 0 {
		return
	}
	e.nul = e.nul || bytes.IndexByte(p, 0) >= 0
	lfs, pairs := bytes.Count(p, []byte{'\n'}), 0
	if e.open {
		if e.open = false; p[0] == '\n' {
			pairs++
		} else {
			e.cr = true
		}
	}
	for i := 0; ; {
		n := bytes.IndexByte(p[i:], '\r')
		if n < 0 {
			break
		}
		if i += n + 1; i == len(p) {
			e.open = true
			break
		}
		if p[i] == '\n' {
			pairs++
		} else {
			e.cr = true
		}
	}
	e.pair = e.pair || pairs > 0
	e.lf = e.lf || lfs > pairs
}

// NewView reads the size octets of body as in v, written such that Parse reads it so.
func NewView(body io.ReaderAt, size int64, v View) *Decoder {
	d := newDecoder(body, 0, size, "")
	d.step = func(d *Decoder, in []byte, eof bool) int { return d.view(in, eof, v) }
	return d
}

// view writes in as v has it.
func (d *Decoder) view(in []byte, eof bool, v View) int {
	i := 0
	for ; i < len(in); i++ {
		c := in[i]
		if c != '\r' && c != '\n' && c != 0 {
			d.out = append(d.out, c)
			continue
		}
		if c == '\r' && i+2 >= len(in) && !eof {
			break // what follows decides
		}
		at := func(n int) byte {
			if i+n < len(in) {
				return in[i+n]
			}
			return 'x'
		}
		pair := c == '\r' && at(1) == '\n'
		switch {
		case c == 0 && v == ViewNoNUL:
		case c == 0 && v != ViewNulLine:
			d.out = append(d.out, 0)
		case pair:
			d.out = append(d.out, '\r', '\n')
			i++
		case v == ViewCR && c == '\r' && at(1) == '\r' && at(2) == '\n':
			d.out = append(d.out, '\r', '\n')
			i += 2
		case v == ViewCR, v == ViewNulLine:
			d.out = append(d.out, '\r', '\n')
		case v == ViewCRLF:
			d.out = append(d.out, ' ')
		default:
			d.out = append(d.out, c)
		}
	}
	return i
}
