package tlstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
)

// RawClient is a client of TLS 1.3 with a hello of the test's own: X25519, TLS_AES_128_GCM_SHA256, and no check of the
// server's certificate. crypto/tls cannot be made to send what other clients do.
type RawClient struct {
	t          testing.TB
	conn       net.Conn
	transcript bytes.Buffer
	open, seal *Sealer
	Ciphers    []uint16          // before TLS_AES_128_GCM_SHA256
	Versions   []uint16          // before TLS 1.3
	Groups     []uint16          // before X25519; each of GREASE gets a share of one octet
	Extensions map[uint16][]byte // besides those that are needed
	Flight     []byte            // the server's handshake messages, decrypted
}

// Handshake begins TLS on conn, asking for name.
func (c *RawClient) Handshake(t testing.TB, conn net.Conn, name string) error {
	c.t, c.conn = t, conn
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	hello := c.hello(name, key.PublicKey().Bytes())
	c.transcript.Write(hello)
	if _, err := conn.Write(record(22, hello)); err != nil {
		return err
	}
	kind, sh, err := c.read()
	if err != nil || kind != 22 || sh[0] != 2 {
		return fmt.Errorf("no ServerHello: type %d, %x, %v", kind, sh, err)
	}
	c.transcript.Write(sh)
	peer, err := serverShare(sh)
	if err != nil {
		return err
	}
	shared, err := key.ECDH(peer)
	if err != nil {
		return err
	}
	// RFC 8446 §7.1.
	zero := make([]byte, sha256.Size)
	early := extract(t, zero, zero)
	hs := extract(t, shared, c.derive(early, "derived", nil))
	sum := sha256.Sum256(c.transcript.Bytes())
	c.open = &Sealer{t: t, secret: c.derive(hs, "s hs traffic", sum[:])}
	mine := c.derive(hs, "c hs traffic", sum[:])
	if err := c.flight(); err != nil {
		return err
	}
	sum = sha256.Sum256(c.transcript.Bytes())
	master := extract(t, zero, c.derive(hs, "derived", nil))
	mac := hmac.New(sha256.New, (&Sealer{t: t, secret: mine}).expand("finished", sha256.Size))
	mac.Write(sum[:])
	fin := append([]byte{20, 0, 0, sha256.Size}, mac.Sum(nil)...)
	if _, err := conn.Write((&Sealer{t: t, secret: mine}).Seal(22, fin)); err != nil {
		return err
	}
	c.open = &Sealer{t: t, secret: c.derive(master, "s ap traffic", sum[:])}
	c.seal = &Sealer{t: t, secret: c.derive(master, "c ap traffic", sum[:])}
	return nil
}

// flight reads the server's messages up to its Finished.
func (c *RawClient) flight() error {
	at := 0
	for {
		kind, p, err := c.read()
		if err != nil {
			return err
		}
		if kind != 22 {
			return fmt.Errorf("content of type %d amid the handshake: %x", kind, p)
		}
		c.Flight = append(c.Flight, p...)
		c.transcript.Write(p)
		for len(c.Flight) >= at+4 {
			n := 4 + int(c.Flight[at+1])<<16 + int(c.Flight[at+2])<<8 + int(c.Flight[at+3])
			if len(c.Flight) < at+n {
				break
			}
			if c.Flight[at] == 20 {
				return nil
			}
			at += n
		}
	}
}

// Write sends data.
func (c *RawClient) Write(p []byte) (int, error) { return c.conn.Write(c.seal.Seal(23, p)) }

// Read receives the next record of data.
func (c *RawClient) Read() ([]byte, error) {
	for {
		kind, p, err := c.read()
		if err != nil || kind == 23 {
			return p, err
		}
		if kind == 21 {
			return nil, fmt.Errorf("alert %d", p[1])
		}
	}
}

// read returns the next record, decrypted once there is a key.
func (c *RawClient) read() (byte, []byte, error) {
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(c.conn, head); err != nil {
			return 0, nil, err
		}
		p := make([]byte, binary.BigEndian.Uint16(head[3:]))
		if _, err := io.ReadFull(c.conn, p); err != nil {
			return 0, nil, err
		}
		switch {
		case head[0] == 20: // change_cipher_spec, for middleboxes
			continue
		case head[0] != 23 || c.open == nil:
			return head[0], p, nil
		}
		p, err := c.open.Open(head, p)
		if err != nil {
			return 0, nil, err
		}
		p = bytes.TrimRight(p, "\x00")
		return p[len(p)-1], p[:len(p)-1], nil
	}
}

// Open decrypts a record's payload; the last octet is its type.
func (s *Sealer) Open(head, p []byte) ([]byte, error) {
	block, err := aes.NewCipher(s.expand("key", 16))
	must(s.t, err)
	aead, err := cipher.NewGCM(block)
	must(s.t, err)
	nonce := s.expand("iv", 12)
	for i := range 8 {
		nonce[4+i] ^= byte(s.seq >> (56 - 8*i))
	}
	s.seq++
	return aead.Open(nil, nonce, p, head)
}

func extract(t testing.TB, secret, salt []byte) []byte {
	out, err := hkdf.Extract(sha256.New, secret, salt)
	must(t, err)
	return out
}

// derive is Derive-Secret of RFC 8446 §7.1; a nil sum is that of no message.
func (c *RawClient) derive(secret []byte, label string, sum []byte) []byte {
	if sum == nil {
		none := sha256.Sum256(nil)
		sum = none[:]
	}
	label = "tls13 " + label
	info := append([]byte{0, sha256.Size, byte(len(label))}, label...)
	info = append(append(info, byte(len(sum))), sum...)
	out, err := hkdf.Expand(sha256.New, secret, string(info), sha256.Size)
	must(c.t, err)
	return out
}

// hello builds the ClientHello: RFC 8446 §4.1.2.
func (c *RawClient) hello(name string, share []byte) []byte {
	random := make([]byte, 64)
	rand.Read(random)
	body := append([]byte{3, 3}, random[:32]...)
	body = append(body, vec(1, random[32:])...)
	body = append(body, vec(2, list16(append(c.Ciphers, 0x1301)))...)
	body = append(body, 1, 0)
	var shares []byte
	for _, g := range c.Groups {
		if g&0x0f0f == 0x0a0a {
			shares = append(append(shares, list16([]uint16{g})...), 0, 1, 0)
		}
	}
	shares = append(append(shares, 0, 29), vec(2, share)...)
	var ext []byte
	add := func(id uint16, p []byte) { ext = append(append(ext, list16([]uint16{id})...), vec(2, p)...) }
	for id, p := range c.Extensions {
		add(id, p)
	}
	add(0, vec(2, append([]byte{0}, vec(2, []byte(name))...)))
	add(10, vec(2, list16(append(c.Groups, 29))))
	add(13, vec(2, list16([]uint16{0x0403, 0x0804, 0x0401})))
	add(43, vec(1, list16(append(c.Versions, 0x0304))))
	add(51, vec(2, shares))
	body = append(body, vec(2, ext)...)
	return append([]byte{1}, vec(3, body)...)
}

// serverShare finds the X25519 share in a ServerHello.
func serverShare(sh []byte) (*ecdh.PublicKey, error) {
	at := 4 + 2 + 32
	if len(sh) < at+1 || len(sh) < at+1+int(sh[at])+5 {
		return nil, errors.New("short ServerHello")
	}
	at += 1 + int(sh[at]) + 2 + 1 + 2
	for at+4 <= len(sh) {
		id, n := binary.BigEndian.Uint16(sh[at:]), int(binary.BigEndian.Uint16(sh[at+2:]))
		if id == 51 && n == 36 {
			return ecdh.X25519().NewPublicKey(sh[at+8 : at+40])
		}
		at += 4 + n
	}
	return nil, errors.New("no share of X25519 in the ServerHello")
}

// vec puts the length, in n octets, before p.
func vec(n int, p []byte) []byte {
	var l [4]byte
	binary.BigEndian.PutUint32(l[:], uint32(len(p)))
	return append(bytes.Clone(l[4-n:]), p...)
}

func list16(v []uint16) (out []byte) {
	for _, x := range v {
		out = append(out, byte(x>>8), byte(x))
	}
	return out
}

func record(kind byte, p []byte) []byte { return append([]byte{kind, 3, 1}, vec(2, p)...) }
