package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"mailweir/scripts/lab"
)

// relay is the least that a transparent proxy does: accept, connect from the client's own address, copy both ways by
// 32 KiB. between, when set, puts something between the two connections, which may be TLS.
func relay(between func(client, server net.Conn) (net.Conn, net.Conn, error)) error {
	transparent := func(_, _ string, c syscall.RawConn) error {
		var bad error
		err := c.Control(func(fd uintptr) { bad = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1) })
		if err == nil {
			err = bad
		}
		return err
	}
	lc := net.ListenConfig{Control: transparent, KeepAlive: -1}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			d := net.Dialer{Control: transparent, LocalAddr: client.RemoteAddr(), KeepAlive: -1}
			d.SetMultipathTCP(false)
			server, err := d.Dial("tcp4", client.LocalAddr().String())
			if err != nil {
				return
			}
			defer server.Close()
			a, b := client, server
			if between != nil {
				if a, b, err = between(client, server); err != nil {
					return
				}
			}
			var both sync.WaitGroup
			both.Go(func() { pump(b, a) })
			both.Go(func() { pump(a, b) })
			both.Wait()
		}()
	}
}

// pump copies one direction and passes its end on. The types hide splice, which is another trade.
func pump(to, from net.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 32<<10))
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// tlsRelay opens TLS on both sides with one certificate for everybody, resumes upstream, and inspects nothing.
func tlsRelay(certFile, keyFile, caFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	front := &tls.Config{Certificates: []tls.Certificate{cert}}
	back := &tls.Config{RootCAs: roots, ServerName: lab.ServerName, ClientSessionCache: tls.NewLRUClientSessionCache(100)}
	return relay(func(client, server net.Conn) (net.Conn, net.Conn, error) {
		b := tls.Client(server, back)
		if err := b.Handshake(); err != nil {
			return nil, nil, err
		}
		a := tls.Server(client, front)
		if err := a.Handshake(); err != nil {
			return nil, nil, err
		}
		return a, b, nil
	})
}
