package dot

import (
	"bufio"
	"io"
)

// Reader reads the content of one block. It returns io.EOF only after the strict end of the block; when the input
// ends before, the error is io.ErrUnexpectedEOF and what was read must not be taken for a message. Other errors of
// the input are returned as they are.
//
// A Reader takes from its input exactly the octets of the block, whatever it notices in them: so the dialogue stays
// in step, and the message is judged at its true end.
type Reader struct {
	br   *bufio.Reader
	info Info
	w    watch
	rest []byte // octets of the input's buffer not yet given to Read
	err  error
}

// NewReader returns a Reader for the block that begins with the next octet of br. It works in blocks of the size of
// br's buffer.
func NewReader(br *bufio.Reader) *Reader {
	r := &Reader{br: br}
	r.w = newWatch(&r.info)
	return r
}

// Info returns what was noticed so far.
func (r *Reader) Info() *Info { return &r.info }

// Done reports whether the strict end has been read.
func (r *Reader) Done() bool { return r.err == io.EOF }

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(r.rest) == 0 {
			if n > 0 && r.br.Buffered() == 0 {
				break // do not wait for more while there is something to give
			}
			if r.rest, err = r.next(); err != nil {
				break
			}
		}
		k := copy(p[n:], r.rest)
		r.rest = r.rest[k:]
		n += k
		r.br.Discard(k)
	}
	if n > 0 {
		return n, nil // a sticky error comes with the next call
	}
	return 0, err
}

// gather is the size below which WriteTo collects pieces before it writes them.
const gather = 2048

// WriteTo implements io.WriterTo: it writes the content to w in blocks as large as the input's buffer, without a copy
// of its own. When w fails, the block has not been read to its end: see Drain.
func (r *Reader) WriteTo(w io.Writer) (n int64, err error) {
	var small []byte
	flush := func() error {
		if len(small) == 0 {
			return nil
		}
		k, err := w.Write(small)
		n += int64(k)
		small = small[:0]
		return err
	}
	for {
		b := r.rest
		if len(b) == 0 {
			if b, err = r.next(); err != nil {
				if ferr := flush(); ferr != nil {
					return n, ferr
				}
				if err == io.EOF {
					err = nil
				}
				return n, err
			}
		}
		r.rest = nil
		if len(b) < gather && len(small)+len(b) <= 8*gather {
			// Lines that begin with dots and senders of single octets must not cost a Write each.
			small = append(small, b...)
			r.br.Discard(len(b))
			continue
		}
		if err = flush(); err == nil {
			var k int
			k, err = w.Write(b)
			n += int64(k)
		}
		r.br.Discard(len(b))
		if err != nil {
			return n, err
		}
	}
}

// Drain reads the rest of the block and forgets it. It returns nil when the strict end was reached.
func (r *Reader) Drain() error {
	for {
		if len(r.rest) == 0 {
			b, err := r.next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			r.rest = b
		}
		r.br.Discard(len(r.rest))
		r.rest = nil
	}
}

// next returns the next octets of content, which the caller has to discard from r.br. It never returns none without
// an error.
func (r *Reader) next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.w.bol {
		end, err := r.lineStart()
		if err != nil {
			return nil, r.fail(err)
		}
		if end {
			r.err = io.EOF
			return nil, r.err
		}
	}
	if _, err := r.br.Peek(1); err != nil {
		return nil, r.fail(err)
	}
	b, _ := r.br.Peek(r.br.Buffered())
	return b[:r.w.run(b)], nil
}

// lineStart takes a dot from the begin of a line, or the whole end of data.
func (r *Reader) lineStart() (end bool, err error) {
	b, err := r.br.Peek(1)
	if err != nil || b[0] != '.' {
		return false, err
	}
	if b, err = r.br.Peek(2); err != nil {
		return false, err
	}
	if b[1] == '\r' {
		if b, err = r.br.Peek(3); err != nil {
			return false, err
		}
		if b[2] == '\n' { // RFC 5321 §4.1.1.4: CRLF.CRLF and nothing else
			r.br.Discard(3)
			return true, nil
		}
	}
	if b[1] != '.' {
		add(&r.info.Missing, &r.info.MissingOverflow, r.w.off)
	}
	// RFC 5321 §4.5.2: the first dot of a line that holds more is removed.
	r.br.Discard(1)
	r.w.dot()
	return false, nil
}

// fail makes err the Reader's last word.
func (r *Reader) fail(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return err
}
