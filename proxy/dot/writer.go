package dot

import (
	"bytes"
	"io"
)

// bufferSize is what a Writer sends at once.
const bufferSize = 64 << 10

// Writer writes the content of one block with stuffing. Nothing but Finish ever writes the end of the block: a Writer
// that is dropped leaves the peer with a block that did not end, which is what an aborted message must look like.
//
// Before octets leave, they are searched for what lenient peers take for an end of data; see ErrAmbiguous. After an
// error the connection cannot be used any more, since the peer waits for content.
type Writer struct {
	w       io.Writer
	missing []int64
	info    Info
	watch   watch
	buf     []byte
	tmp     []byte // for ReadFrom, once something needs stuffing
	last    byte   // the last two octets of content
	last2   byte
	err     error
}

// NewWriter returns a Writer on w. missing is Info.Missing of the block when it came from a Reader, else nil.
func NewWriter(w io.Writer, missing []int64) *Writer {
	d := &Writer{w: w, missing: missing}
	d.watch = newWatch(&d.info)
	return d
}

// Buffer lets the Writer use b as its buffer rather than make one. It must be called before anything is written and b
// must not be used by others before Finish has returned or the Writer is dropped.
func (d *Writer) Buffer(b []byte) { d.buf = b[:0:len(b)] }

// Octets returns how many octets of content were taken.
func (d *Writer) Octets() int64 { return d.info.Octets }

// Wire returns how many octets are on the wire, or in the buffer, without the end of the block.
func (d *Writer) Wire() int64 { return d.info.Wire }

// Write implements io.Writer. Small writes are gathered.
func (d *Writer) Write(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	for at := 0; at < len(p); {
		n, err := d.piece(p[at:])
		if err != nil {
			return at, err
		}
		at += n
	}
	return len(p), nil
}

// ReadFrom implements io.ReaderFrom: it sends the whole of r in large blocks, with one copy.
func (d *Writer) ReadFrom(r io.Reader) (n int64, err error) {
	if d.err != nil {
		return 0, d.err
	}
	d.grow()
	for {
		if len(d.buf) == cap(d.buf) {
			if err = d.flush(); err != nil {
				return n, err
			}
		}
		room := d.buf[len(d.buf):cap(d.buf)]
		k, rerr := r.Read(room)
		n += int64(k)
		if k > 0 {
			if err = d.inPlace(room[:k]); err != nil {
				return n, err
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// inPlace takes content that lies already behind the buffer's end.
func (d *Writer) inPlace(p []byte) error {
	if !d.needsDots(p) {
		if err := d.note(p); err != nil {
			return err
		}
		d.buf = d.buf[:len(d.buf)+len(p)]
		return nil
	}
	d.tmp = append(d.tmp[:0], p...)
	_, err := d.Write(d.tmp)
	return err
}

// needsDots reports whether p may need dots of ours.
func (d *Writer) needsDots(p []byte) bool {
	if len(d.missing) > 0 && d.missing[0] < d.info.Octets+int64(len(p)) {
		return true
	}
	return p[0] == '.' && (d.watch.bol || d.watch.cr) || p[0] == '\n' && d.watch.cr || bytes.Contains(p, []byte("\r\n."))
}

// piece writes the begin of p, up to the next place that needs a dot, and returns how much that is.
func (d *Writer) piece(p []byte) (int, error) {
	if len(d.missing) > 0 && d.missing[0] <= d.info.Octets {
		fits := d.watch.bol && d.missing[0] == d.info.Octets && p[0] != '.'
		d.missing = d.missing[1:]
		if !fits { // the list is not of this content: a broken caller, and no exact octets to be had
			return 0, d.fail(ErrAmbiguous)
		}
		if err := d.dot(); err != nil {
			return 0, err
		}
	} else if d.watch.bol && p[0] == '.' {
		if err := d.dot(); err != nil { // RFC 5321 §4.5.2
			return 0, err
		}
	}
	if len(d.missing) > 0 {
		if k := d.missing[0] - d.info.Octets; k < int64(len(p)) {
			p = p[:k]
		}
	}
	before := d.info.EODLike
	n := d.watch.run(p)
	if d.info.EODLike != before {
		return 0, d.fail(ErrAmbiguous)
	}
	return n, d.put(p[:n])
}

// note takes notes about content without dots to add.
func (d *Writer) note(p []byte) error {
	for at := 0; at < len(p); {
		at += d.watch.run(p[at:])
	}
	if d.info.EODLike != 0 {
		return d.fail(ErrAmbiguous)
	}
	d.tail(p)
	return nil
}

// dot writes a dot at the begin of a line.
func (d *Writer) dot() error {
	d.watch.dot()
	return d.send([]byte{'.'})
}

// put sends content.
func (d *Writer) put(p []byte) error {
	d.tail(p)
	return d.send(p)
}

// tail remembers the last two octets of content.
func (d *Writer) tail(p []byte) {
	switch len(p) {
	case 0:
	case 1:
		d.last2, d.last = d.last, p[0]
	default:
		d.last2, d.last = p[len(p)-2], p[len(p)-1]
	}
}

// send puts wire octets into the buffer, or past it when they are many.
func (d *Writer) send(p []byte) error {
	d.grow()
	if len(d.buf)+len(p) <= cap(d.buf) {
		d.buf = append(d.buf, p...)
		return nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	if len(p) < cap(d.buf) {
		d.buf = append(d.buf, p...)
		return nil
	}
	_, err := d.w.Write(p)
	return d.fail(err)
}

func (d *Writer) grow() {
	if cap(d.buf) == 0 {
		d.buf = make([]byte, 0, bufferSize)
	}
}

func (d *Writer) flush() error {
	if len(d.buf) == 0 {
		return nil
	}
	_, err := d.w.Write(d.buf)
	d.buf = d.buf[:0]
	return d.fail(err)
}

func (d *Writer) fail(err error) error {
	if err != nil {
		d.err = err
	}
	return err
}

// Finish writes what is still in the buffer and the end of the block, in one write where it fits, and flushes.
//
// Content that does not end in CRLF (from BDAT, or one that we made) has no exact dot-terminated form: with addCRLF
// unset Finish then writes nothing and returns ErrNoFinalCRLF, and the caller aborts the transaction; with addCRLF set
// it adds the CRLF. Empty content is exact: the CRLF of the command line begins its end.
func (d *Writer) Finish(addCRLF bool) error {
	if d.err != nil {
		return d.err
	}
	if len(d.missing) > 0 {
		return d.fail(ErrAmbiguous)
	}
	end := []byte(".\r\n")
	if d.info.Octets > 0 && !(d.last2 == '\r' && d.last == '\n') {
		if !addCRLF {
			return d.fail(ErrNoFinalCRLF)
		}
		before := d.info.EODLike
		d.watch.run([]byte("\r\n"))
		if d.info.EODLike != before {
			return d.fail(ErrAmbiguous)
		}
		end = []byte("\r\n.\r\n")
	}
	if err := d.send(end); err != nil {
		return err
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.err = ErrFinished
	return nil
}
