package proxy

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// legs are the connections to servers that belong to a Conn.
type legs struct {
	mu     sync.Mutex
	list   []net.Conn
	closed bool
}

// add takes a leg; it returns false when the connection is over already.
func (l *legs) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.list = append(l.list, c)
	return true
}

// close closes all legs, and those to come.
func (l *legs) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, c := range l.list {
		c.Close()
	}
	l.list = nil
}

// deadline sets the deadline of all legs.
func (l *legs) deadline(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.list {
		c.SetDeadline(t)
	}
}

// Reset closes c so that its peer sees a RST rather than an orderly end, where c is TCP or stands on it.
func Reset(c net.Conn) {
	for b := c; b != nil; {
		if t, ok := b.(interface{ SetLinger(int) error }); ok {
			t.SetLinger(0)
			b.Close()
			break
		}
		n, ok := b.(interface{ NetConn() net.Conn })
		if !ok {
			if pc, ok := b.(*Conn); ok {
				b = pc.Conn
				continue
			}
			break
		}
		b = n.NetConn()
	}
	c.Close()
}

// NewConnID returns an id for a connection: 16 letters and digits, unique, and in the order of time.
func NewConnID() string {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:8], uint64(time.Now().UnixMilli()))
	rand.Read(b[8:]) // never fails (crypto/rand)
	// 48 bits of time are enough until the year 10889; 32 of chance keep two of one millisecond apart.
	return base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[2:12])
}
