package tlstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"sync"
	"testing"
)

// KeyLog is a tls.Config.KeyLogWriter that remembers the secrets of one TLS 1.3 connection, so that a test can go on
// where crypto/tls lets nobody: write records of its own.
type KeyLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (k *KeyLog) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text.Write(p)
}

// Sealer makes records. It is for TLS_AES_128_GCM_SHA256.
type Sealer struct {
	t      testing.TB
	secret []byte
	seq    uint64
}

// Sealer returns one that continues after the handshake, for side CLIENT or SERVER. seq is how many records the side
// has sent under its traffic key already.
func (k *KeyLog) Sealer(t testing.TB, side string, seq uint64) *Sealer {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for line := range strings.Lines(k.text.String()) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == side+"_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			must(t, err)
			if len(secret) != sha256.Size {
				t.Fatal("the connection does not use TLS_AES_128_GCM_SHA256")
			}
			return &Sealer{t: t, secret: secret, seq: seq}
		}
	}
	t.Fatal("no secret of TLS 1.3 was logged")
	return nil
}

// Seal makes a record of the given content type (22 handshake, 21 alert, 23 data).
func (s *Sealer) Seal(kind byte, payload []byte) []byte {
	block, err := aes.NewCipher(s.expand("key", 16))
	must(s.t, err)
	aead, err := cipher.NewGCM(block)
	must(s.t, err)
	nonce := s.expand("iv", 12)
	for i := range 8 {
		nonce[4+i] ^= byte(s.seq >> (56 - 8*i))
	}
	s.seq++
	inner := append(bytes.Clone(payload), kind)
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+aead.Overhead()))
	return aead.Seal(head, nonce, inner, head)
}

// KeyUpdate makes the message that changes the key (RFC 8446 §4.6.3), and changes it.
func (s *Sealer) KeyUpdate(answer byte) []byte {
	r := s.Seal(22, []byte{24, 0, 0, 1, answer})
	s.secret, s.seq = s.expand("traffic upd", sha256.Size), 0
	return r
}

// expand is HKDF-Expand-Label of RFC 8446 §7.1 without context.
func (s *Sealer) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, s.secret, string(append(info, 0)), n)
	must(s.t, err)
	return out
}
