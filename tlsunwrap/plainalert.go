package tlsunwrap

import (
	"crypto/tls"
	"fmt"
	"net"
)

// plainAlert watches the headers of a client's records for a fatal alert that is not encrypted. A client of TLS 1.3 that
// refuses our certificate before it has installed its keys says so in the clear (OpenSSL does; RFC 8446 §6.2 lets a
// peer expect it encrypted), and crypto/tls takes that for a broken record.
//
// It keeps no octet but a header and an alert, changes nothing about what is read, and is asked only for the reason of a
// handshake that has failed already: anybody on the way can make such a record, and win no more than that word.
type plainAlert struct {
	head [7]byte // the record's header, and an alert's two octets
	n    int     // of head that are there
	skip int     // octets of the record's content that are of no interest
	lost bool    // what came is no TLS; nothing is looked at any more
	code uint8   // of the first such alert; 0 (close_notify, never fatal): none
}

// see takes the next octets of the connection.
func (p *plainAlert) see(b []byte) {
	for len(b) > 0 && !p.lost && p.code == 0 {
		if p.skip > 0 {
			n := min(p.skip, len(b))
			p.skip, b = p.skip-n, b[n:]
			continue
		}
		p.head[p.n] = b[0]
		p.n, b = p.n+1, b[1:]
		size := int(p.head[3])<<8 | int(p.head[4])
		switch alert := p.head[0] == 21 && size == 2; { // RFC 8446 §5.1; one that is encrypted is longer
		case p.n == 7:
			if p.n = 0; p.head[5] == 2 { // fatal
				p.code = p.head[6]
			}
		case p.n != 5:
		case p.head[1] != 3:
			p.lost = true
		case !alert:
			p.n, p.skip = 0, size
		}
	}
}

// explain puts the alert before err, the error that crypto/tls made of it.
func (p *plainAlert) explain(err error) error {
	if _, told := remoteAlert(err); told || p.code == 0 {
		return err
	}
	if code, local := alertOf(err, "local error"); !local || code != alertBadRecordMAC {
		return err
	}
	return fmt.Errorf("%w (sent unencrypted; %w)", &net.OpError{Op: "remote error", Err: tls.AlertError(p.code)}, err)
}
