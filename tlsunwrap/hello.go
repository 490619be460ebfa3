package tlsunwrap

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
)

// IsClientHello reports whether first, which may be as little as one octet, begins a TLS connection. No command of a
// mail protocol does.
func IsClientHello(first []byte) bool {
	// RFC 8446 §5.1: handshake, a version that is to be ignored, length; §4: client_hello. As lenient as crypto/tls is.
	for i, b := range first[:min(len(first), 6)] {
		switch {
		case i == 0 && b != 22, i == 1 && b >= 0x10, i == 5 && b != 1:
			return false
		}
	}
	return len(first) > 0
}

// SniffHello returns the server name in a client's hello, for the line that says what was not inspected. ok is false if
// first does not hold a whole hello; nothing must be concluded from that.
func SniffHello(first []byte) (sni string, ok bool) {
	c := tls.Server(&quoted{r: bytes.NewReader(first)}, &tls.Config{
		GetConfigForClient: func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
			sni, ok = chi.ServerName, true
			return nil, errDone
		}})
	_ = c.Handshake() // always ends in an error
	return sni, ok
}

// quoted is a connection that was recorded: it ends after its octets, and what is answered is thrown away.
type quoted struct {
	net.Conn // nil: crypto/tls asks for nothing else during a handshake
	r        io.Reader
}

func (q *quoted) Read(p []byte) (int, error)  { return q.r.Read(p) }
func (q *quoted) Write(p []byte) (int, error) { return len(p), nil }

// validSNI accepts what can be a host name in a certificate or on the wire: RFC 6066 §3, with the underscore that is in
// use, and UTF-8 names, which are against the RFC but clear. crypto/tls has refused a trailing dot and duplicates.
func validSNI(s string) bool {
	if len(s) > 253 { // RFC 1035 §2.3.4
		return false
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b == 0x7f {
			return false
		}
	}
	return true
}

// validName accepts a host name as an administrator may write it.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, b := range []byte(s) {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '-' || b == '_') {
			return false
		}
	}
	return true
}
