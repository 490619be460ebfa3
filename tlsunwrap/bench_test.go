package tlsunwrap

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"mailweir/tlsunwrap/tlstest"
)

// BenchmarkUnwrapHandshake opens a connection, says a line and closes: directly, through the plainest relay that
// crypto/tls allows (one fixed certificate, upstream sessions kept, the chain verified), and through Unwrap. Rules of
// thumb: docs/performance.md. "new server" verifies and mints each time.
func BenchmarkUnwrapHandshake(b *testing.B) {
	w := newBench(b, Settings{})
	cert := w.root.Intermediate(b, "x").Leaf(b, []string{mx})
	server := serveTLS(b, serverConfig(cert))
	roots := tlstest.Pool(w.root)
	b.Run("direct", func(b *testing.B) {
		for b.Loop() {
			talkOnce(b, server, &tls.Config{ServerName: mx, RootCAs: roots})
		}
	})
	b.Run("plain relay", func(b *testing.B) {
		fixed, err := w.authority.Mint(tlstest.Parse(b, cert.Certificate[0]), true, false)
		if err != nil {
			b.Fatal(err)
		}
		cache := tls.NewLRUClientSessionCache(64)
		addr := relayAt(b, func(c net.Conn) (net.Conn, net.Conn, error) {
			s, err := net.Dial("tcp", server)
			if err != nil {
				return nil, nil, err
			}
			up := tls.Client(s, &tls.Config{ServerName: mx, RootCAs: roots, ClientSessionCache: cache})
			if err := up.Handshake(); err != nil {
				return nil, nil, err
			}
			down := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*fixed}})
			return down, up, down.Handshake()
		})
		for b.Loop() {
			talkOnce(b, addr, &tls.Config{ServerName: mx, RootCAs: w.clientRoots()})
		}
	})
	unwrap := func(u *Unwrapper, to func() string) string {
		return relayAt(b, func(c net.Conn) (net.Conn, net.Conn, error) {
			addr := to()
			s, err := net.Dial("tcp", addr)
			if err != nil {
				return nil, nil, err
			}
			ses, err := u.Unwrap(context.Background(), Request{Client: c, Server: s, ServerAddr: netip.MustParseAddrPort(addr), Door: "smtp"})
			if err != nil {
				return nil, nil, err
			}
			return ses.Client, ses.Server, nil
		})
	}
	b.Run("unwrap", func(b *testing.B) {
		addr := unwrap(w.u, func() string { return server })
		for b.Loop() {
			talkOnce(b, addr, &tls.Config{ServerName: mx, RootCAs: w.clientRoots()})
		}
	})
	b.Run("unwrap, new server", func(b *testing.B) {
		ca, n := w.root.Intermediate(b, "y"), 0
		fresh := serveTLS(b, &tls.Config{SessionTicketsDisabled: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			n++
			c := ca.Leaf(b, []string{mx, fmt.Sprintf("%d.example", n)})
			return &c, nil
		}})
		addr := unwrap(w.u, func() string { return fresh })
		for b.Loop() {
			talkOnce(b, addr, &tls.Config{ServerName: mx, RootCAs: w.clientRoots()})
		}
	})
}

func talkOnce(b *testing.B, addr string, cfg *tls.Config) {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := exchange(c); err != nil {
		b.Fatal(err)
	}
}

// relayAt accepts connections, opens them with open, and relays.
func relayAt(b *testing.B, open func(net.Conn) (net.Conn, net.Conn, error)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				down, up, err := open(c)
				if err != nil {
					c.Close()
					return
				}
				go func() { io.Copy(up, down); up.Close() }()
				io.Copy(down, up)
				down.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkUnwrapBulk is octets through one opened connection, against the plain relay of the same kind.
func BenchmarkUnwrapBulk(b *testing.B) {
	w := newBench(b, Settings{})
	cert := w.root.Leaf(b, []string{mx})
	sink := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(io.Discard, tls.Server(c, serverConfig(cert))); c.Close() }()
			}
		}()
		return l.Addr().String()
	}()
	send := func(b *testing.B, addr string, cfg *tls.Config) {
		c, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 1<<20)
		b.SetBytes(1 << 20)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("direct", func(b *testing.B) { send(b, sink, &tls.Config{ServerName: mx, RootCAs: tlstest.Pool(w.root)}) })
	b.Run("unwrap", func(b *testing.B) {
		addr := relayAt(b, func(c net.Conn) (net.Conn, net.Conn, error) {
			s, err := net.Dial("tcp", sink)
			if err != nil {
				return nil, nil, err
			}
			ses, err := w.u.Unwrap(context.Background(), Request{Client: c, Server: s, ServerAddr: netip.MustParseAddrPort(sink), Door: "smtp"})
			if err != nil {
				return nil, nil, err
			}
			return ses.Client, ses.Server, nil
		})
		send(b, addr, &tls.Config{ServerName: mx, RootCAs: w.clientRoots()})
	})
}
