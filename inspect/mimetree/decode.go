package mimetree

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
)

// Decoder undoes a content transfer encoding. It is an io.Reader and an io.WriterTo (the faster of the two). It never
// fails because of what it reads: see Odd. An error of the body's ReadAt is returned as it is.
type Decoder struct {
	body     io.ReaderAt
	pos, end int64
	step     func(d *Decoder, in []byte, eof bool) (consumed int) // appends to out; nil for identity
	in       []byte                                               // read, not decoded yet
	out      []byte                                               // decoded
	given    int                                                  // of out
	eof      bool
	err      error
	odd      []string
	buffers  *Buffers // whence WriteTo borrows; may be nil

	// State of the steps.
	acc    uint32 // base64: bits of an open group
	count  int    // base64: characters of it
	padded bool   // base64: a '=' was seen
	inside bool   // uuencode: after "begin"; UTF-7: after '+'
	middle bool   // base64: a padding before the end
	url    bool   // base64: characters of the alphabet for URLs
	ragged bool   // base64: lines that are not whole groups

	// State of the dialects.
	stop      bool
	lineStart bool
	skip      int
	high      rune // UTF-7: the first half of a pair
}

const decodeBlock = 32 << 10

// block is what a decoder works in.
type block struct {
	in  [decodeBlock]byte
	out [decodeBlock + 16]byte
}

// Decoded returns the body of p in body with its transfer encoding undone.
func (p *Part) Decoded(body io.ReaderAt) *Decoder { return p.DecodedAs(body, p.Encoding) }

// DecodedAs is Decoded for another encoding than p's own, such as one of p.Encodings. What is not known is identity.
func (p *Part) DecodedAs(body io.ReaderAt, encoding string) *Decoder {
	return newDecoder(body, p.BodyStart, p.End, encoding)
}

func newDecoder(body io.ReaderAt, start, end int64, encoding string) *Decoder {
	d := &Decoder{body: body, pos: start, end: max(start, end)}
	switch encoding {
	case "base64":
		d.step = (*Decoder).base64
	case "quoted-printable":
		d.step = (*Decoder).quotedPrintable
	case "uuencode", "x-uuencode", "x-uue", "uue":
		d.step = (*Decoder).uu
	case dialectJoined, dialectZero, dialectFirst, dialectURL, dialectLines, dialectTails:
		d.step, d.lineStart = base64As(encoding), true
	case encodingUTF7:
		d.step = (*Decoder).utf7
	case encodingNoNUL:
		d.step = (*Decoder).noNUL
	}
	return d
}

// Borrowing makes WriteTo borrow its memory from b.
func (d *Decoder) Borrowing(b *Buffers) *Decoder {
	d.buffers = b
	return d
}

// Odd returns what was odd in what has been decoded so far.
func (d *Decoder) Odd() []string { return d.odd }

func (d *Decoder) strange(name string) {
	if !slices.Contains(d.odd, name) {
		d.odd = append(d.odd, name)
	}
}

// Read implements io.Reader.
func (d *Decoder) Read(b []byte) (int, error) {
	if d.step == nil {
		return d.identity(b)
	}
	for d.given == len(d.out) {
		if d.err != nil {
			return 0, d.err
		}
		d.fill()
	}
	n := copy(b, d.out[d.given:])
	d.given += n
	return n, nil
}

func (d *Decoder) identity(b []byte) (int, error) {
	if d.pos >= d.end {
		return 0, io.EOF
	}
	n, err := d.body.ReadAt(b[:min(int64(len(b)), d.end-d.pos)], d.pos)
	d.pos += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (d *Decoder) WriteTo(w io.Writer) (total int64, err error) {
	var lent *block
	if d.buffers != nil && d.in == nil {
		lent = d.buffers.block()
		defer d.giveBack(lent)
	}
	if d.step == nil {
		var b []byte
		if lent != nil {
			b = lent.in[:]
		} else {
			b = make([]byte, min(d.end-d.pos, decodeBlock))
		}
		for d.pos < d.end {
			n, rerr := d.identity(b)
			m, err := w.Write(b[:n])
			total += int64(m)
			if err != nil {
				return total, err
			}
			if rerr != nil {
				return total, notEOF(rerr)
			}
		}
		return total, nil
	}
	if lent != nil {
		d.in, d.out = lent.in[:0:d.blockSize()], lent.out[:0:d.blockSize()+16]
	}
	for {
		n, err := w.Write(d.out[d.given:])
		d.given += n
		total += int64(n)
		if err != nil {
			return total, err
		}
		if d.err != nil {
			return total, notEOF(d.err)
		}
		d.fill()
	}
}

// giveBack ends the loan of a block. What it still holds, if somebody wants to go on, is copied.
func (d *Decoder) giveBack(lent *block) {
	switch {
	case d.in == nil: // identity
	case d.err != nil && d.given == len(d.out):
		d.in, d.out, d.given = []byte{}, nil, 0
	default:
		d.in = append(make([]byte, 0, cap(d.in)), d.in...)
		d.out, d.given = append(make([]byte, 0, cap(d.out)), d.out[d.given:]...), 0
	}
	d.buffers.blocks.Put(lent)
}

func (d *Decoder) blockSize() int64 { return min(d.end-d.pos+8, decodeBlock) }

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// fill decodes one more block.
func (d *Decoder) fill() {
	d.out, d.given = d.out[:0], 0
	if d.in == nil {
		size := d.blockSize()
		d.in = make([]byte, 0, size)
		d.out = make([]byte, 0, size+16)
	}
	if !d.eof {
		room := d.in[len(d.in):cap(d.in)]
		n, err := d.body.ReadAt(room[:min(int64(len(room)), d.end-d.pos)], d.pos)
		d.in = d.in[:len(d.in)+n]
		d.pos += int64(n)
		switch {
		case d.pos >= d.end || err == io.EOF:
			d.eof = true
		case err != nil:
			d.err = err
			return
		}
	}
	used := d.step(d, d.in, d.eof)
	d.in = d.in[:copy(d.in, d.in[used:])]
	if d.eof && len(d.in) == 0 {
		d.err = io.EOF
	}
}

// Base64. A group of four characters is looked up in four tables, whose entries are shifted already; entries of other
// characters have the bit bad64.
const bad64 = 1 << 31

type table64 [4][256]uint32

var lookup64 = makeTable64()

func makeTable64() *table64 {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	var t table64
	for i := range t {
		for c := range t[i] {
			t[i][c] = bad64
		}
		for v, c := range []byte(alphabet) {
			t[i][c] = uint32(v) << (18 - 6*i)
		}
	}
	return &t
}

// base64 decodes RFC 2045 §6.8, skipping what is not of the alphabet. '=' ends a group wherever it stands, and what
// follows begins a new one, which is how concatenated pieces come out whole.
func (d *Decoder) base64(in []byte, eof bool) int {
	t := lookup64
	out := d.out[:cap(d.out)] // never longer than in
	n, i := 0, 0
	for i < len(in) {
		if d.count == 0 && !d.padded {
			for i+8 <= len(in) && n+8 <= len(out) {
				s := in[i : i+8 : i+8]
				v := t[0][s[0]] | t[1][s[1]] | t[2][s[2]] | t[3][s[3]]
				w := t[0][s[4]] | t[1][s[5]] | t[2][s[6]] | t[3][s[7]]
				if (v|w)&bad64 != 0 {
					break
				}
				binary.BigEndian.PutUint64(out[n:], uint64(v)<<40|uint64(w)<<16)
				n += 6
				i += 8
			}
			if i+4 <= len(in) {
				s := in[i : i+4 : i+4]
				if v := t[0][s[0]] | t[1][s[1]] | t[2][s[2]] | t[3][s[3]]; v&bad64 == 0 {
					out[n], out[n+1], out[n+2] = byte(v>>16), byte(v>>8), byte(v)
					n += 3
					i += 4
				}
			}
			if i+1 < len(in) && in[i] == '\r' && in[i+1] == '\n' {
				i += 2
				continue
			}
			if i >= len(in) {
				break
			}
		}
		c := in[i]
		i++
		d.look(c)
		switch v := t[3][c]; {
		case v != bad64:
			if d.padded {
				d.padded, d.middle = false, true
				d.strange(OddBadBase64)
			}
			d.acc = d.acc<<6 | v
			if d.count++; d.count == 4 {
				out[n], out[n+1], out[n+2] = byte(d.acc>>16), byte(d.acc>>8), byte(d.acc)
				n += 3
				d.acc, d.count = 0, 0
			}
		case c == '=':
			d.padded = true
			n += d.flush(out[n:])
		case c != '\r' && c != '\n' && c != ' ' && c != '\t':
			d.strange(OddBadBase64)
		}
	}
	if eof {
		if d.count > 0 {
			d.strange(OddBadBase64)
		}
		n += d.flush(out[n:])
	}
	d.out = out[:n]
	return len(in)
}

// flush writes the whole octets of an open group.
func (d *Decoder) flush(out []byte) (n int) {
	switch d.count {
	case 2:
		out[0] = byte(d.acc >> 4)
		n = 1
	case 3:
		out[0], out[1] = byte(d.acc>>10), byte(d.acc>>2)
		n = 2
	}
	d.acc, d.count = 0, 0
	return n
}

// unhex has 16 or more for what is no hexadecimal digit.
var unhex = makeUnhex()

func makeUnhex() (t [256]byte) {
	for i := range t {
		t[i] = 0x80
	}
	for i := range byte(10) {
		t['0'+i] = i
	}
	for i := range byte(6) {
		t['A'+i], t['a'+i] = 10+i, 10+i
	}
	return t
}

// quotedPrintable decodes RFC 2045 §6.7. A '=' that begins nothing known stands for itself.
func (d *Decoder) quotedPrintable(in []byte, eof bool) int {
	pos := 0
	for pos < len(in) {
		n := bytes.IndexByte(in[pos:], '\n')
		if n < 0 {
			break
		}
		d.qpLine(in[pos:pos+n], true)
		pos += n + 1
	}
	switch {
	case eof:
		if pos < len(in) {
			d.qpLine(in[pos:], false)
		}
		return len(in)
	case pos == 0 && len(in) == cap(d.in): // a line longer than the block: keep what may belong together
		cut := len(in)
		for cut > 0 && (in[cut-1] == ' ' || in[cut-1] == '\t' || in[cut-1] == '\r') {
			cut--
		}
		if i := bytes.LastIndexByte(in[max(0, cut-3):cut], '='); i >= 0 {
			cut = max(0, cut-3) + i
		}
		if cut == 0 {
			d.out = append(d.out, in...)
			return len(in)
		}
		d.qpText(in[:cut])
		return cut
	}
	return pos
}

// qpLine decodes one line; ended says that a LF follows it.
func (d *Decoder) qpLine(line []byte, ended bool) {
	end := line
	if ended && len(end) > 0 && end[len(end)-1] == '\r' {
		end = end[:len(end)-1]
	}
	trimmed := bytes.TrimRight(end, " \t\r") // RFC 2045 §6.7 (3)
	if n := len(trimmed); n > 0 && trimmed[n-1] == '=' {
		d.qpText(trimmed[:n-1]) // (5): a soft line break
		return
	}
	d.qpText(trimmed)
	if ended {
		if len(end) < len(line) {
			d.out = append(d.out, '\r')
		}
		d.out = append(d.out, '\n')
	}
}

// qpText decodes within a line.
func (d *Decoder) qpText(b []byte) {
	for {
		i := bytes.IndexByte(b, '=')
		if i < 0 {
			d.out = append(d.out, b...)
			return
		}
		d.out = append(d.out, b[:i]...)
		b = b[i+1:]
		if len(b) >= 2 && unhex[b[0]]|unhex[b[1]] < 16 {
			d.out = append(d.out, unhex[b[0]]<<4|unhex[b[1]])
			b = b[2:]
			continue
		}
		d.strange(OddBadQP)
		d.out = append(d.out, '=')
	}
}
