package smtp

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	lineBuffer = 4 << 10  // for commands and replies; held as long as the session lives
	bulkBuffer = 64 << 10 // for content; borrowed while it flows
)

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)

// leg is one side of a session: a connection, read through a buffer and written in whole pieces. Each direction is for
// one goroutine at a time.
type leg struct {
	conn net.Conn // possibly TLS
	raw  net.Conn // the socket itself; deadlines are set here
	br   *bufio.Reader
	pre  []byte // octets taken from the socket earlier, to be read before it
	out  []byte // to be written in one piece

	// before is called before the reader waits for the peer: what others wait for must have been flushed by then, and
	// a deadline set.
	before func() error
	// tick is called when the deadline has passed; nil means to go on waiting.
	tick func() error

	ctx      context.Context
	patience time.Duration // how long one write may take
	received atomic.Int64
	sent     atomic.Int64
}

func newLeg(ctx context.Context, c net.Conn, patience time.Duration) *leg {
	l := &leg{conn: c, raw: c, ctx: ctx, patience: patience}
	l.br = bufio.NewReaderSize(l, lineBuffer)
	return l
}

// Read is for l.br alone.
func (l *leg) Read(p []byte) (int, error) {
	if len(l.pre) > 0 {
		n := copy(p, l.pre)
		if l.pre = l.pre[n:]; len(l.pre) == 0 {
			l.pre = nil
		}
		return n, nil
	}
	for {
		if err := l.before(); err != nil {
			return 0, err
		}
		n, err := l.conn.Read(p)
		l.received.Add(int64(n))
		if n > 0 {
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		if err := l.tick(); err != nil {
			return 0, err
		}
	}
}

// write sends p now, in one piece with what waits in l.out.
func (l *leg) write(p []byte) error {
	l.out = append(l.out, p...)
	return l.flush()
}

// flush sends what waits in l.out.
func (l *leg) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	_, err := l.Write(l.out)
	if cap(l.out) > lineBuffer {
		l.out = nil // do not keep what one long line needed
	} else {
		l.out = l.out[:0]
	}
	return err
}

// Write lets content pass to the peer.
func (l *leg) Write(p []byte) (int, error) {
	l.raw.SetWriteDeadline(time.Now().Add(l.patience))
	if l.ctx.Err() != nil {
		l.raw.SetWriteDeadline(past)
	}
	n, err := l.conn.Write(p)
	l.sent.Add(int64(n))
	return n, err
}

// become makes c, which talks through the same socket, the leg's connection. Nothing may be buffered.
func (l *leg) become(c net.Conn) {
	l.conn, l.pre = c, nil
	l.br.Reset(l)
}

// unread takes back everything that was read from the socket and not used, so that somebody else may read it.
func (l *leg) unread() []byte {
	b, _ := l.br.Peek(l.br.Buffered())
	all := append(append(make([]byte, 0, len(b)+len(l.pre)), b...), l.pre...)
	l.pre = nil
	l.br.Reset(l)
	return all
}

// pending returns how many octets were read from the socket and not used.
func (l *leg) pending() int { return l.br.Buffered() + len(l.pre) }

// bulk is a set of buffers for content.
type bulk struct {
	readers sync.Pool // of *bufio.Reader
	buffers sync.Pool // of *[bulkBuffer]byte
}

func newBulk() *bulk {
	b := &bulk{}
	b.readers.New = func() any { return bufio.NewReaderSize(nil, bulkBuffer) }
	b.buffers.New = func() any { return new([bulkBuffer]byte) }
	return b
}

// widen gives l a large reader until the returned function is called. What is in a buffer then stays with l.
func (b *bulk) widen(l *leg) (narrow func()) {
	small := l.br
	l.pre = l.unread()
	large := b.readers.Get().(*bufio.Reader)
	large.Reset(l)
	l.br = large
	return func() {
		l.pre = l.unread()
		l.br = small
		large.Reset(nil)
		b.readers.Put(large)
	}
}

// closeWrite ends one direction of c.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
