package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"mailweir/proxy"
)

// greeter is a door that knows one sentence.
type greeter struct{}

func (greeter) Serve(_ context.Context, _ <-chan struct{}, c *proxy.Conn) {
	io.WriteString(c, "220 hello\r\n")
}

// listener makes connections of a net.Listener what package divert makes of diverted ones.
type listener struct{ net.Listener }

func (l listener) AcceptConn() (*proxy.Conn, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return &proxy.Conn{
		Conn:   c,
		Client: c.RemoteAddr().(*net.TCPAddr).AddrPort(),
		Server: netip.MustParseAddrPort("192.0.2.25:25"),
		Divert: "forward",
	}, nil
}

func ExampleServer() {
	s := proxy.NewServer(proxy.Config{
		Settings: proxy.Settings{MaxConnections: 100},
		Handler:  greeter{},
		Refuse:   func(c *proxy.Conn) { io.WriteString(c, "421 4.3.2 Too many connections\r\n") },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- s.Serve(context.Background(), listener{l}) }()

	c, _ := net.Dial("tcp", l.Addr().String())
	greeting, _ := io.ReadAll(c)
	c.Close()
	fmt.Printf("%q\n", greeting)
	fmt.Println(s.Drain(context.Background()), <-done, s.Stats().Accepted)
	// Output:
	// "220 hello\r\n"
	// <nil> <nil> 1
}

func ExampleRelay() {
	client, a := net.Pipe()
	b, server := net.Pipe()
	done := make(chan int64)
	go func() {
		sent, _, _ := proxy.Relay(context.Background(), a, b)
		done <- sent
	}()
	go func() {
		io.WriteString(client, "EHLO x\r\n")
		client.Close()
	}()
	heard, _ := io.ReadAll(server)
	fmt.Printf("%q %d\n", heard, <-done)
	// Output: "EHLO x\r\n" 8
}

func ExampleDialer() {
	var dial proxy.Dialer = func(_ context.Context, c *proxy.Conn) (net.Conn, error) {
		return nil, fmt.Errorf("connect to %s: %w", c.Server, syscall.ECONNREFUSED)
	}
	s := proxy.NewServer(proxy.Config{Handler: greeter{}})
	client, _ := net.Pipe()
	_, err := s.Dialer(dial)(context.Background(), &proxy.Conn{Conn: client, Server: netip.MustParseAddrPort("192.0.2.25:25")})
	fmt.Println(err, s.Stats().DialErrors)
	// Output: connect to 192.0.2.25:25: connection refused 1
}
