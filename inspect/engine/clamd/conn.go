package clamd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mailweir/inspect"
)

// chunkSize is how much of a stream is sent at a time.
const chunkSize = 64 << 10

// maxAnswer bounds an answer; real ones are a file name and a virus name long.
const maxAnswer = 4 << 10

// conn is a connection that carries one command and ends with ctx.
type conn struct {
	net.Conn
	stop func() bool
}

func (e *Engine) dial(ctx context.Context) (*conn, error) {
	d := net.Dialer{Timeout: e.cfg.ClamdConnectTimeout}
	c, err := d.DialContext(ctx, e.network, e.address)
	if err != nil {
		return nil, err
	}
	if at, ok := ctx.Deadline(); ok {
		c.SetDeadline(at)
	}
	// A context that is cancelled, not only one that expires, must end the waiting.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	return &conn{c, stop}, nil
}

func (c *conn) close() {
	c.stop()
	c.Close()
}

func (c *conn) write(b []byte) error {
	_, err := c.Write(b)
	return err
}

// line reads an answer to its NUL. Anything else, even all of it but the NUL, is not an answer.
func (c *conn) line() (string, error) {
	var b []byte
	buf := make([]byte, 512)
	for len(b) <= maxAnswer {
		n, err := c.Read(buf)
		b = append(b, buf[:n]...)
		if i := strings.IndexByte(string(b), 0); i >= 0 {
			if i != len(b)-1 {
				return "", fmt.Errorf("answer goes on after its end: %q", b)
			}
			return string(b[:i]), nil
		}
		if err == io.EOF && len(b) > 0 {
			return "", fmt.Errorf("half an answer %q: %w", b, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return "", fmt.Errorf("no answer: %w", err)
		}
	}
	return "", fmt.Errorf("answer is longer than %d octets", maxAnswer)
}

// ask sends the body and returns the answer.
func (e *Engine) ask(ctx context.Context, body inspect.Body) (string, error) {
	c, err := e.dial(ctx)
	if err != nil {
		// Not even connected: that the context ended meanwhile does not make it the object's fault.
		return "", failure(inspect.Unavailable, err)
	}
	defer c.close()
	if u, ok := c.Conn.(*net.UnixConn); ok {
		if f := fileOf(body); f != nil {
			defer f.Close()
			if err := sendFile(u, f); err != nil {
				return "", fmt.Errorf("send descriptor: %w", err)
			}
			return c.line()
		}
	}
	if err := c.stream(body); err != nil {
		var ours *bodyError
		if errors.As(err, &ours) {
			return "", failure(inspect.Unavailable, err)
		}
		// The daemon may have said why it hung up: that it takes no streams of this size, above all.
		if line, e := c.line(); e == nil {
			return line, nil
		}
		return "", fmt.Errorf("send stream: %w", err)
	}
	return c.line()
}

// fileOf returns body as a file of its own, open for reading only and with its own offset, if it lies in a file as a
// whole. A body says so by a method OSFile, which returns nil while it is in memory.
func fileOf(body inspect.Body) *os.File {
	b, ok := body.(interface{ OSFile() *os.File })
	if !ok {
		return nil
	}
	f := b.OSFile()
	if f == nil {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	var own *os.File
	// Within Control the number stands for f, whoever closes it meanwhile.
	cerr := raw.Control(func(fd uintptr) { own, err = os.Open("/proc/self/fd/" + strconv.Itoa(int(fd))) })
	if cerr != nil || err != nil {
		return nil
	}
	if info, err := own.Stat(); err != nil || info.Size() != body.Size() || !info.Mode().IsRegular() {
		own.Close()
		return nil
	}
	return own
}

// sendFile asks for FILDES. The descriptor travels with an octet of its own after the command (clamd(8)).
func sendFile(u *net.UnixConn, f *os.File) error {
	if _, err := u.Write([]byte("zFILDES\x00")); err != nil {
		return err
	}
	_, _, err := u.WriteMsgUnix([]byte{0}, syscall.UnixRights(int(f.Fd())), nil)
	return err
}

// bodyError is an error of the body, not of the connection.
type bodyError struct{ err error }

func (b *bodyError) Error() string { return "read object: " + b.err.Error() }
func (b *bodyError) Unwrap() error { return b.err }

// stream sends INSTREAM: chunks with their length before them, ended by one of no length. It stops when an answer is
// there already, which can only be a refusal.
func (c *conn) stream(body inspect.Body) error {
	buf := make([]byte, 4+min(chunkSize, body.Size())+4)
	command := append(buf[:0:0], "zINSTREAM\x00"...)
	size := body.Size()
	for off := int64(0); off < size; {
		n := int(min(chunkSize, size-off))
		binary.BigEndian.PutUint32(buf, uint32(n))
		if got, err := body.ReadAt(buf[4:4+n], off); got < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &bodyError{err}
		}
		out := buf[:4+n]
		if off += int64(n); off == size { // the end goes along with the last chunk
			out = append(out, 0, 0, 0, 0)
		}
		// One write for a small object: the command, its only chunk and the end.
		v := net.Buffers{command, out}
		if len(command) == 0 {
			v = v[1:]
		}
		if _, err := v.WriteTo(c.Conn); err != nil {
			return err
		}
		command = command[:0]
		if off < size && c.answered() {
			return errAnswered
		}
	}
	if size == 0 {
		return c.write(append(command, 0, 0, 0, 0))
	}
	return nil
}

var errAnswered = errors.New("answered before the end of the object")

// answered tells, without waiting, whether something can be read.
func (c *conn) answered() bool {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	there := false
	raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		there = n > 0 || n == 0 && err == nil
	})
	return there
}
