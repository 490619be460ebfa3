package smtpwire

import (
	"bufio"
	"bytes"
	"io"
)

// Ending says how a line ended.
type Ending uint8

// The endings.
const (
	None Ending = iota // the input ended
	LF                 // a bare LF
	CRLF
)

// String returns the name of the ending.
func (e Ending) String() string {
	switch e {
	case LF:
		return "LF"
	case CRLF:
		return "CRLF"
	}
	return "none"
}

// Line is one line as it was received.
type Line struct {
	Text     []byte // without its end; valid until the next read
	End      Ending
	BareCR   bool // a CR inside
	NUL      bool // a NUL inside
	Overlong bool // longer than allowed: Text holds only its begin, the rest was swallowed
	Size     int  // octets taken from the input
}

// Clean reports whether every reader would see exactly this line.
func (l *Line) Clean() bool { return l.End == CRLF && !l.BareCR && !l.NUL && !l.Overlong }

// ReadLine reads one line of at most limit octets, its end included. A longer one is swallowed to its end and
// reported as Overlong; one that has no end within MaxSwallow octets gives ErrEndless, after which the input is out
// of step. At the end of the input the error is io.EOF before a line, and io.ErrUnexpectedEOF inside of one, with
// Text holding what there was.
func ReadLine(br *bufio.Reader, limit int) (Line, error) {
	var l Line
	part, err := br.ReadSlice('\n')
	l.Size = len(part)
	if err == nil { // the usual case: no copy
		l.set(part, limit)
		return l, nil
	}
	var whole []byte
	scan := func(p []byte) {
		if keep := limit + 1 - len(whole); keep > 0 {
			whole = append(whole, p[:min(keep, len(p))]...)
		}
	}
	scan(part)
	for err == bufio.ErrBufferFull {
		if l.Size >= MaxSwallow {
			l.set(whole, limit)
			l.Overlong = true
			return l, ErrEndless
		}
		part, err = br.ReadSlice('\n')
		l.Size += len(part)
		scan(part)
	}
	if err == nil {
		l.set(whole, limit)
		if l.Size > limit {
			l.End = LF
			if n := len(part); n > 1 && part[n-2] == '\r' {
				l.End = CRLF
			}
		}
		return l, nil
	}
	l.set(whole, limit)
	if err == io.EOF && l.Size > 0 {
		err = io.ErrUnexpectedEOF
	}
	return l, err
}

// set fills l from raw octets, the line end included if there is one.
func (l *Line) set(raw []byte, limit int) {
	if n := len(raw); n > 0 && raw[n-1] == '\n' {
		l.End = LF
		raw = raw[:n-1]
		if n > 1 && raw[n-2] == '\r' {
			l.End = CRLF
			raw = raw[:n-2]
		}
	}
	if l.Size > limit {
		l.Overlong = true
		raw = raw[:min(len(raw), limit)]
	}
	l.Text = raw
	l.BareCR = bytes.IndexByte(raw, '\r') >= 0
	l.NUL = bytes.IndexByte(raw, 0) >= 0
}

// LineBuffered reports whether a whole line can be read from br without waiting: while that is so, replies need not
// be flushed.
func LineBuffered(br *bufio.Reader) bool {
	b, _ := br.Peek(br.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}
