package proxytest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"mailweir/proxy"
)

// DialTo returns a proxy.Dialer that connects to one address whatever the client wanted.
func DialTo(a netip.AddrPort) proxy.Dialer {
	return func(ctx context.Context, _ *proxy.Conn) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", a.String())
	}
}

// Gateway runs a handler behind a proxy.Server on the loopback until the test ends.
type Gateway struct {
	*proxy.Server
	Addr netip.AddrPort
}

// StartGateway starts a Gateway whose connections are bound for target. mk gets a Dialer that knows the Server.
func StartGateway(t testing.TB, conf proxy.Config, target netip.AddrPort, mk func(dial proxy.Dialer) proxy.Handler) *Gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Addr: addrPort(l.Addr())}
	to := DialTo(target)
	conf.Handler = mk(func(ctx context.Context, c *proxy.Conn) (net.Conn, error) { return g.Dialer(to)(ctx, c) })
	g.Server = proxy.NewServer(conf)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := make(chan struct{})
	close(ready)
	go func() { done <- g.Serve(ctx, &one{l, target, ready}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return g
}

// Client is a fake SMTP client that says what it is told.
type Client struct {
	net.Conn
	br *bufio.Reader
}

// Connect connects a Client. Everything it does must be over within a minute.
func Connect(t testing.TB, a netip.AddrPort) *Client {
	t.Helper()
	c, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { c.Close() })
	return &Client{c, bufio.NewReader(c)}
}

// Reply reads one reply, its lines with CRLF.
func (c *Client) Reply() (string, error) {
	var all strings.Builder
	for {
		l, err := c.br.ReadString('\n')
		all.WriteString(l)
		if err != nil {
			return all.String(), err
		}
		if len(l) < 5 || !strings.HasSuffix(l, "\r\n") {
			return all.String(), fmt.Errorf("malformed reply line %q", l)
		}
		if l[3] != '-' {
			return all.String(), nil
		}
	}
}

// Do sends lines in one write, CRLF added to each, and reads as many replies.
func (c *Client) Do(lines ...string) ([]string, error) {
	if _, err := io.WriteString(c.Conn, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		return nil, err
	}
	var list []string
	for range lines {
		r, err := c.Reply()
		if err != nil {
			return append(list, r), err
		}
		list = append(list, r)
	}
	return list, nil
}

// Expect is Do for one line whose reply must begin with code.
func (c *Client) Expect(line, code string) error {
	r, err := c.Do(line)
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	if !strings.HasPrefix(r[0], code) {
		return fmt.Errorf("%s: %q, want %s", line, r[0], code)
	}
	return nil
}

// Hello reads the banner and says EHLO.
func (c *Client) Hello() error {
	if r, err := c.Reply(); err != nil || !strings.HasPrefix(r, "220") {
		return fmt.Errorf("banner %q: %v", r, err)
	}
	return c.Expect("EHLO client.example", "250")
}

// Envelope sends MAIL and RCPT, which must be accepted.
func (c *Client) Envelope(from string, to ...string) error {
	if err := c.Expect("MAIL FROM:<"+from+">", "250"); err != nil {
		return err
	}
	for _, a := range to {
		if err := c.Expect("RCPT TO:<"+a+">", "250"); err != nil {
			return err
		}
	}
	return nil
}

// Data sends DATA and wire, the octets of the content as they go over the wire, with the end of data, and returns the
// reply to it.
func (c *Client) Data(wire string) (string, error) {
	if err := c.Expect("DATA", "354"); err != nil {
		return "", err
	}
	// The gateway may end the connection while we write: what it said before is the answer.
	if _, err := io.WriteString(c.Conn, wire); err != nil {
		r, rerr := c.Reply()
		return r, errors.Join(err, rerr)
	}
	return c.Reply()
}

// StartTLS asks for TLS and shakes hands.
func (c *Client) StartTLS(conf *tls.Config) error {
	if err := c.Expect("STARTTLS", "220"); err != nil {
		return err
	}
	return c.Handshake(conf)
}

// Handshake begins TLS at once.
func (c *Client) Handshake(conf *tls.Config) error {
	if c.br.Buffered() > 0 {
		return errors.New("octets before the handshake")
	}
	t := tls.Client(c.Conn, conf)
	if err := t.Handshake(); err != nil {
		return err
	}
	c.Conn, c.br = t, bufio.NewReader(t)
	return nil
}

// End reads until the connection ends and returns what came.
func (c *Client) End() (string, error) {
	b, err := io.ReadAll(c.br)
	return string(b), err
}
