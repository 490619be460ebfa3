package tlsunwrap

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
)

func TestPlainAlert(t *testing.T) {
	const hello, handshake = "\x16\x03\x01\x00\x03abc", "\x17\x03\x03\x00\x04\x15\x03\x03\x00"
	for _, c := range []struct {
		name, in string
		want     uint8
	}{
		{"unknown_ca", hello + "\x15\x03\x03\x00\x02\x02\x30", 48},
		{"behind change_cipher_spec", hello + "\x14\x03\x03\x00\x01\x01\x15\x03\x01\x00\x02\x02\x2a", 42},
		{"the first counts", "\x15\x03\x03\x00\x02\x02\x2e\x15\x03\x03\x00\x02\x02\x30", 46},
		{"a warning, then fatal", "\x15\x03\x03\x00\x02\x01\x5a\x15\x03\x03\x00\x02\x02\x2d", 45},
		{"a warning", hello + "\x15\x03\x03\x00\x02\x01\x30", 0},
		{"encrypted", hello + "\x15\x03\x03\x00\x1a\x02\x30aaaaaaaaaaaaaaaaaaaaaaaa", 0},
		{"within a record", "\x17\x03\x03\x00\x07\x15\x03\x03\x00\x02\x02\x30" + hello, 0},
		{"looks like a header within", handshake + "\x17\x03\x03\x00\x00", 0},
		{"cut", hello + "\x15\x03\x03\x00\x02\x02", 0},
		{"no TLS", "\x80\x2e\x01\x03\x01\x15\x03\x03\x00\x02\x02\x30", 0},
		{"no TLS behind a hello", hello + "\x15\x02\x03\x00\x02\x02\x30", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var whole, single plainAlert
			whole.see([]byte(c.in))
			for i := range len(c.in) {
				single.see([]byte{c.in[i]})
			}
			if whole.code != c.want || single.code != c.want {
				t.Errorf("got %d, and octet by octet %d, want %d", whole.code, single.code, c.want)
			}
		})
	}
	// It explains a record that could not be decrypted, and nothing else.
	p := plainAlert{code: alertUnknownCA}
	for _, c := range []struct {
		err  error
		want uint8
	}{
		{&net.OpError{Op: "local error", Err: tls.AlertError(alertBadRecordMAC)}, alertUnknownCA},
		{&net.OpError{Op: "local error", Err: tls.AlertError(alertDecodeError)}, 0},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(alertInternalError)}, alertInternalError},
		{errors.New("other"), 0},
	} {
		if code, _ := remoteAlert(p.explain(c.err)); code != c.want {
			t.Errorf("%v: got %d, want %d", c.err, code, c.want)
		}
		if !errors.Is(p.explain(c.err), c.err) {
			t.Errorf("%v is lost", c.err)
		}
	}
}
