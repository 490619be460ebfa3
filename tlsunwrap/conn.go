package tlsunwrap

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// conn is an opened leg. CloseWrite says close_notify; Close does too, and whoever must not make an aborted transfer
// look complete resets NetConn instead.
type conn struct {
	*tls.Conn
	leg     *leg
	raw     net.Conn
	read    bool // something was read
	trouble func(err error, read bool) error
}

// Read implements net.Conn. The end of the connection is io.EOF only if the peer said so within TLS; crypto/tls takes
// a connection that was merely closed for the same, and so a message that was cut for a whole one.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read = c.read || n > 0
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) && c.leg.ended {
		return n, io.ErrUnexpectedEOF // RFC 8446 §6.1: truncation
	}
	return n, c.trouble(err, c.read)
}

// NetConn returns the connection that was given to Unwrap.
func (c *conn) NetConn() net.Conn { return c.raw }
