package mimetree

import (
	"bytes"
	"io"
	"sync"
)

// Sizes of the buffer. Whoever asks for octets gets at least ahead of them unless the message ends before.
const (
	windowSize = 64 << 10
	ahead      = 4 << 10
)

// Buffers lends the memory in which messages are read, so that a program that reads many of them does not allocate it
// for each. The zero value is ready for use, by several goroutines. Nothing that its methods return lies in borrowed
// memory, and all of it is given back before they return.
type Buffers struct {
	windows sync.Pool // of *[windowSize]byte
	blocks  sync.Pool // of *block
}

// lend gives w its memory; without b it makes its own when it needs some.
func (b *Buffers) lend(w *window) {
	if b == nil {
		return
	}
	var ok bool
	if w.lent, ok = b.windows.Get().(*[windowSize]byte); !ok {
		w.lent = new([windowSize]byte)
	}
}

// end takes the memory back.
func (b *Buffers) end(w *window) {
	if w.lent != nil {
		b.windows.Put(w.lent)
		w.lent, w.mem, w.buf = nil, nil, nil
	}
}

func (b *Buffers) block() *block {
	if k, ok := b.blocks.Get().(*block); ok {
		return k
	}
	return new(block)
}

// window shows a moving piece of the message.
type window struct {
	body   io.ReaderAt
	base   int64 // nothing before it is asked for
	size   int64
	buf    []byte // what is shown
	off    int64  // where in the message buf begins
	mem    []byte
	lent   *[windowSize]byte // what mem is of, when it was borrowed
	long   []byte            // the beginning of a line longer than the window
	walked int64             // octets read
}

// at returns what is known from pos on, up to limit. It is empty only at limit or where body cannot be read.
func (w *window) at(pos, limit int64) []byte {
	limit = min(limit, w.size)
	if pos >= limit {
		return nil
	}
	end := w.off + int64(len(w.buf))
	if pos < w.off || pos >= end || end-pos < ahead && end < limit {
		w.load(pos)
	}
	if pos >= w.off+int64(len(w.buf)) {
		return nil
	}
	b := w.buf[pos-w.off:]
	return b[:min(int64(len(b)), limit-pos)]
}

// load makes the window begin at pos.
func (w *window) load(pos int64) {
	if w.mem == nil {
		size := max(min(w.size-w.base, windowSize), 0)
		if w.lent != nil {
			w.mem = w.lent[:size]
		} else {
			w.mem = make([]byte, size)
		}
	}
	want := max(min(int64(len(w.mem)), w.size-pos), 0) // size may have shrunk below pos
	n, _ := w.body.ReadAt(w.mem[:want], pos)
	if int64(n) < want {
		w.size = pos + int64(n) // unreadable: the message ends here
	}
	w.off, w.buf = pos, w.mem[:n]
	w.walked += int64(n)
}

// line returns the line at pos without its LF or CRLF, where the next one begins, and whether the line was cut to the
// size of the window. The octets are valid until the next call.
func (w *window) line(pos, limit int64) (line []byte, next int64, cut bool) {
	b := w.at(pos, limit)
	i := bytes.IndexByte(b, '\n')
	if i < 0 && pos+int64(len(b)) < limit && pos > w.off {
		w.load(pos)
		b = w.at(pos, limit)
		i = bytes.IndexByte(b, '\n')
	}
	if i >= 0 {
		return trimCR(b[:i]), pos + int64(i) + 1, false
	}
	next = pos + int64(len(b))
	if next >= min(limit, w.size) {
		return trimCR(b), limit, false
	}
	w.long = append(w.long[:0], b...)
	for next < limit {
		b := w.at(next, limit)
		if len(b) == 0 {
			return w.long, limit, true
		}
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			return w.long, next + int64(i) + 1, true
		}
		next += int64(len(b))
	}
	return w.long, limit, true
}

func trimCR(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return b[:n-1]
	}
	return b
}

// dashes returns the place of the next "--" in b that follows a line end, -1 if there is none. start says that b
// begins a line.
func dashes(b []byte, start bool) int {
	i, _ := dashesOr(b, start, nil)
	return i
}

// dashesOr is dashes, and also says whether "--" and then key stand somewhere before that place, within a line.
func dashesOr(b []byte, start bool, key []byte) (at int, stray bool) {
	if start && len(b) > 1 && b[0] == '-' && b[1] == '-' {
		return 0, false
	}
	for i := 1; i < len(b); i++ {
		// A dash is rarer than a line end, and in base64 there is none: this runs at the speed of memchr.
		n := bytes.IndexByte(b[i:], '-')
		if n < 0 {
			return -1, stray
		}
		i += n
		if (b[i-1] == '\n' || b[i-1] == '\r') && i+1 < len(b) && b[i+1] == '-' {
			return i, stray
		}
		first := i
		for i+1 < len(b) && b[i+1] == '-' {
			i++ // a ruler
		}
		if i > first && len(key) > 0 && bytes.HasPrefix(b[i+1:], key) {
			stray = true
		}
	}
	return -1, stray
}
