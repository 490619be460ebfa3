package tlsunwrap

import (
	"errors"
	"io"
	"net"
)

// maxHello bounds what is read of a client before its hello is whole: the 64 KiB that crypto/tls takes, with room for
// the headers of small records.
const maxHello = 256 << 10

var errHelloTooLong = errors.New("the client's hello is too long")

// leg is a raw connection under TLS.
type leg struct {
	net.Conn
	early  []byte      // read before; comes first
	record bool        // keep what is read
	seen   []byte      // what was kept
	mute   bool        // throw away what is written: the alert has been sent, or the connection is let through
	plain  *plainAlert // while the handshake with a client is not complete
	ended  bool        // the peer closed the connection, with or without saying so in TLS
}

// Read implements net.Conn.
func (l *leg) Read(p []byte) (n int, err error) {
	if len(l.early) > 0 {
		n = copy(p, l.early)
		l.early = l.early[n:]
	} else if n, err = l.Conn.Read(p); n == 0 && errors.Is(err, io.EOF) {
		l.ended = true
	}
	if l.plain != nil {
		l.plain.see(p[:n])
	}
	if l.record && n > 0 {
		if len(l.seen)+n > maxHello {
			return 0, errHelloTooLong
		}
		l.seen = append(l.seen, p[:n]...)
	}
	return n, err
}

// Write implements net.Conn.
func (l *leg) Write(p []byte) (int, error) {
	if l.mute {
		return len(p), nil
	}
	return l.Conn.Write(p)
}

// alert tells the peer, which waits for a ServerHello, why it will not get one. crypto/tls would say internal_error
// whatever the reason; what it writes afterwards is thrown away.
func (l *leg) alert(code uint8) {
	if l.mute {
		return
	}
	// RFC 8446 §6: type 21, a fatal alert; §5.1: legacy_record_version.
	_, _ = l.Conn.Write([]byte{21, 3, 1, 0, 2, 2, code}) // the handshake has ended already; there is nobody to tell
	l.mute = true
}
