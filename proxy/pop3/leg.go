package pop3

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lineBuffer = 4 << 10  // for commands and replies; held as long as the session lives
	bulkBuffer = 64 << 10 // for messages; borrowed while they flow
)

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)

// leg is one side of a session: a connection, read through a buffer and written in whole pieces. It is for one
// goroutine at a time; deadlines of raw may be set by others.
type leg struct {
	conn net.Conn // possibly TLS
	raw  net.Conn // the socket itself; deadlines are set here
	br   *bufio.Reader
	pre  []byte // octets taken from the connection earlier, to be read before it
	out  []byte // to be written in one piece with what comes next

	// before is called before the reader waits for the peer, and tick when the deadline has passed; since is when the
	// waiting began. An error ends the waiting. Nil: deadlines are the caller's business.
	before, tick func(since time.Time) error

	ctx            context.Context
	patience       time.Duration // how long one write may take
	received, sent atomic.Int64
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
		l.pre = l.pre[n:]
		return n, nil
	}
	since := time.Now()
	for {
		if l.before != nil {
			if err := l.before(since); err != nil {
				return 0, err
			}
		}
		n, err := l.conn.Read(p)
		l.received.Add(int64(n))
		switch {
		case n > 0:
			return n, nil // an error comes again
		case err == nil:
		case !isTimeout(err) || l.tick == nil:
			return 0, err
		default:
			if err := l.tick(since); err != nil {
				return 0, err
			}
		}
	}
}

// flush sends what waits in l.out.
func (l *leg) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	_, err := l.Write(nil)
	return err
}

// Write sends p, in one piece with what waits in l.out.
func (l *leg) Write(p []byte) (int, error) {
	all := p
	if len(l.out) > 0 {
		all = append(l.out, p...)
		l.out = nil
	}
	l.raw.SetWriteDeadline(time.Now().Add(l.patience))
	if l.ctx.Err() != nil {
		l.raw.SetWriteDeadline(past)
	}
	n, err := l.conn.Write(all)
	l.sent.Add(int64(n))
	if cap(all) <= lineBuffer && len(p) == 0 {
		l.out = all[:0]
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// become makes c, which talks through the same socket, the leg's connection. Nothing may be buffered.
func (l *leg) become(c net.Conn) {
	l.conn, l.pre = c, nil
	l.br.Reset(l)
}

// unread takes back everything that was read from the connection and not used, so that somebody else may read it.
func (l *leg) unread() []byte {
	b, _ := l.br.Peek(l.br.Buffered())
	all := append(append(make([]byte, 0, len(b)+len(l.pre)), b...), l.pre...)
	l.pre = nil
	l.br.Reset(l)
	return all
}

// pending returns how many octets were read from the connection and not used.
func (l *leg) pending() int { return l.br.Buffered() + len(l.pre) }

// lineWaits waits until the next line can be read without waiting. It consumes nothing, whatever happens.
func (l *leg) lineWaits() error {
	for have := 0; ; {
		b, _ := l.br.Peek(l.br.Buffered())
		for _, c := range b[have:] {
			if c == '\n' {
				return nil
			}
		}
		have = len(b)
		if _, err := l.br.Peek(have + 1); err != nil {
			return err
		}
	}
}

// bulk is a set of buffers for messages.
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

// gone reports whether the peer of c has reset the connection. A FIN is not enough: it may only mean that the peer has
// said all it had to say, and still listens.
func gone(c net.Conn) (dead bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		const closed = 7 // TCP_CLOSE; after a FIN alone it is CLOSE_WAIT
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		dead = err == nil && info.State == closed
	})
	return dead || err != nil
}

// isTimeout reports whether err is a deadline that has passed.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
