package tlsunwrap

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"testing"

	"mailweir/tlsunwrap/tlstest"
)

// greased is a client like today's browsers and mail programs that have their TLS stack.
func greased(t testing.TB, ech []byte) func(net.Conn) error {
	return func(conn net.Conn) error {
		c := &tlstest.RawClient{ // RFC 8701
			Ciphers: []uint16{0x0a0a}, Versions: []uint16{0x1a1a}, Groups: []uint16{0x2a2a},
			Extensions: map[uint16][]byte{0x3a3a: nil, 0x4a4a: {0}},
		}
		if ech != nil {
			c.Extensions[0xfe0d] = ech
		}
		if err := c.Handshake(t, conn, mx); err != nil {
			return err
		}
		if _, err := c.Write([]byte(secret)); err != nil {
			return err
		}
		got, err := c.Read()
		if string(got) != secret {
			return fmt.Errorf("got %q, %v", got, err)
		}
		return nil
	}
}

func TestGrease(t *testing.T) {
	b := newBench(t, Settings{})
	run := func(client func(net.Conn) error) error {
		out := b.run(flow{server: echo(serverConfig(b.root.Leaf(t, []string{mx}))), client: client})
		if out.err != nil {
			return out.err
		}
		return out.client
	}
	t.Run("T-009 GREASE in suites, versions, groups, shares and extensions", func(t *testing.T) {
		if err := run(greased(t, nil)); err != nil {
			t.Error(err)
		}
	})
	t.Run("T-055 GREASE ECH", func(t *testing.T) {
		// outer, HKDF-SHA256 with AES-128-GCM, config 7, a key, and noise in place of the inner hello.
		ech := append([]byte{0, 0, 1, 0, 1, 7, 0, 32}, make([]byte, 32+2+144)...)
		rand.Read(ech[8:])
		copy(ech[40:], []byte{0, 144})
		if err := run(greased(t, ech)); err != nil {
			t.Error(err)
		}
	})
}

// TestT055 has a client that really wants ECH: the gateway has no key for it, and is seen as a server without.
func TestT055(t *testing.T) {
	b := newBench(t, Settings{})
	// RFC 9849: one ECHConfig with an X25519 key, for the public name.
	pub := make([]byte, 32)
	rand.Read(pub)
	contents := bytes.Join([][]byte{{9, 0, 32, 0, 32}, pub, {0, 4, 0, 1, 0, 1, 0, byte(len(mx))}, []byte(mx), {0, 0}}, nil)
	config := append([]byte{0xfe, 0x0d, 0, byte(len(contents))}, contents...)
	list := append([]byte{0, byte(len(config))}, config...)
	asked := "?"
	cfg := serverConfig(b.root.Leaf(t, []string{mx}))
	cfg.GetConfigForClient = func(chi *tls.ClientHelloInfo) (*tls.Config, error) { asked = chi.ServerName; return nil, nil }
	out := b.run(flow{server: echo(cfg), client: b.talk(func(c *tls.Config) {
		c.ServerName, c.EncryptedClientHelloConfigList, c.MinVersion = "hidden.example", list, tls.VersionTLS13
	})})
	var rejected *tls.ECHRejectionError
	if !errors.As(out.client, &rejected) || len(rejected.RetryConfigList) > 0 {
		t.Errorf("T-055: the client got %v", out.client)
	}
	if asked != mx {
		t.Errorf("T-055: the server was asked for %q, not for the outer name", asked)
	}
}
