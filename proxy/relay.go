package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// relayBuffer is what one direction moves at once. It is borrowed while octets are there, and given back when the
// direction falls idle: ten thousand idle sessions must not hold ten thousand buffers.
const relayBuffer = 32 << 10

// buffers are those of all relays. A pool is no state anyone can observe.
var buffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// Relay moves octets between a and b in both directions until both have ended. The end of one direction is passed on
// as a half-close, a reset as a reset. When ctx ends, it returns soon with ctx's error. The caller closes a and b.
//
// The error is nil when both directions ended in order.
func Relay(ctx context.Context, a, b net.Conn) (aToB, bToA int64, err error) {
	for _, c := range []net.Conn{a, b} {
		if t, ok := c.(*net.TCPConn); ok {
			t.SetNoDelay(true)
		}
	}
	parent := ctx
	ctx, cancel := context.WithCancel(ctx) // ends both directions
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		past := time.Unix(1, 0)
		a.SetDeadline(past)
		b.SetDeadline(past)
	})
	defer stop()
	var back error
	done := make(chan struct{})
	go func() {
		defer close(done)
		bToA, back = oneWay(ctx, cancel, a, b)
	}()
	aToB, err = oneWay(ctx, cancel, b, a)
	<-done
	if err == nil || back != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)) {
		err = back // the cause is what ended the other direction
	}
	if parent.Err() != nil {
		err = parent.Err()
	}
	return aToB, bToA, err
}

// oneWay moves octets from src to dst and passes the end on.
func oneWay(ctx context.Context, cancel func(), dst, src net.Conn) (n int64, err error) {
	n, err = move(ctx, dst, src)
	if err == nil {
		if h, ok := dst.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
			return n, nil
		}
		dst.Close()
		return n, nil
	}
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		// G-11: the other side must not take a torn stream for a whole one.
		Reset(src)
		Reset(dst)
		return n, err
	}
	cancel() // the other direction cannot go on usefully
	return n, err
}

// move copies until src ends.
func move(ctx context.Context, dst, src net.Conn) (n int64, err error) {
	ts, srcTCP := src.(*net.TCPConn)
	td, dstTCP := dst.(*net.TCPConn)
	var own []byte // for a source that cannot be waited for without a buffer: TLS, mostly
	filled := 0    // reads in a row that filled their buffer
	for {
		if srcTCP {
			if err := waitReadable(ts); err != nil {
				return n, err
			}
		}
		if srcTCP && dstTCP && filled >= 8 {
			k, err := bulk(ctx, td, ts)
			n += k
			filled = 0
			if err != nil {
				return n, eof(err)
			}
			continue
		}
		var k int
		var full bool
		if srcTCP || filled > 0 {
			p := buffers.Get().(*[relayBuffer]byte)
			k, full, err = pass(dst, src, p[:])
			buffers.Put(p)
		} else {
			if own == nil {
				own = make([]byte, 4<<10)
			}
			k, full, err = pass(dst, src, own)
		}
		n += int64(k)
		if filled++; !full {
			filled = 0
		}
		if err != nil {
			return n, eof(err)
		}
	}
}

// pass moves what one Read gives, and reports whether it filled b.
func pass(dst, src net.Conn, b []byte) (n int, full bool, err error) {
	n, rerr := src.Read(b)
	full = n == len(b)
	if n > 0 {
		if w, err := dst.Write(b[:n]); err != nil {
			return w, full, err
		}
	}
	return n, full, rerr
}

// eof makes the end of the input no error.
func eof(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// waitReadable waits until src has octets, or has ended, without holding a buffer.
func waitReadable(src *net.TCPConn) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	var b [1]byte
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		_, _, peek = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return peek != syscall.EAGAIN
	})
	if err != nil {
		return err
	}
	if peek != nil && peek != syscall.EINTR {
		return os.NewSyscallError("recvfrom", peek) // the kernel reports a reset once only
	}
	return nil
}

// bulk moves up to 16 MiB within the kernel (splice). It holds a pipe while it runs, so it is left when the source
// falls silent. io.EOF says that the source has ended.
func bulk(ctx context.Context, dst, src *net.TCPConn) (int64, error) {
	const most = 16 << 20
	src.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := io.Copy(dst, io.LimitReader(src, most))
	src.SetReadDeadline(time.Time{})
	if ctx.Err() != nil {
		src.SetDeadline(time.Unix(1, 0)) // ours has overwritten that of Relay
		return n, ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, nil
	}
	if err == nil && n < most {
		err = io.EOF
	}
	return n, err
}
