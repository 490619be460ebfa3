package divert

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive finds dead peers, and keeps the flow sets of the kernel (localTime) knowing the connection.
const keepAlive = time.Minute

// Conn is a connection that was diverted to us. It is a *net.TCPConn with what is known of it.
type Conn struct {
	*net.TCPConn
	Client netip.AddrPort
	Server netip.AddrPort // where the client meant to go, after any port forward of this host
	Kind   string         // Input, Forward, Output
	Proc   string         // path of the local program, for Output, when it could be found
}

// Listener takes the connections of one kind of divert and one address family.
type Listener struct {
	Kind     string
	addr     netip.AddrPort
	tcp      *net.TCPListener
	accepted *atomic.Int64
	proc     func(local, remote netip.AddrPort) (string, error)
}

func keepAliveConfig() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive / 4, Count: 6}
}

// listen opens a transparent listener on a loopback address, at a port that the kernel picks.
func listen(ctx context.Context, kind string, v int, mark Mark) (*Listener, error) {
	network, address := "tcp4", "127.0.0.1:0"
	if v == 6 {
		network, address = "tcp6", "[::1]:0"
	}
	config := net.ListenConfig{
		KeepAliveConfig: keepAliveConfig(),
		Control: func(_, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) error {
				if err := setTransparent(fd, v); err != nil {
					return err
				}
				// Accepted sockets inherit the mark. By it our nft rules know them.
				return setSocketMark(fd, mark)
			})
		},
	}
	config.SetMultipathTCP(false) // field.md C1-25: Go's default listener is MPTCP
	l, err := config.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s divert, IPv%d: %w", kind, v, err)
	}
	t := l.(*net.TCPListener)
	addr := t.Addr().(*net.TCPAddr).AddrPort()
	return &Listener{Kind: kind, addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), tcp: t}, nil
}

func control(raw syscall.RawConn, do func(fd int) error) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	return err
}

func setTransparent(fd, v int) error {
	level, option, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
	if v == 6 {
		level, option, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("set %s (CAP_NET_ADMIN is needed): %w", name, err)
	}
	return nil
}

func setSocketMark(fd int, m Mark) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(m.Value)); err != nil {
		return fmt.Errorf("set SO_MARK (CAP_NET_ADMIN is needed): %w", err)
	}
	return nil
}

// Addr returns the address of the listening socket itself.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Close ends AcceptConn. Package divert closes its listeners itself in Stop.
func (l *Listener) Close() error { return l.tcp.Close() }

// AcceptConn waits for the next diverted connection. Whoever connects to the listener's own address is no diverted
// client, and is turned away (G-16).
func (l *Listener) AcceptConn() (*Conn, error) {
	for {
		c, err := l.tcp.AcceptTCP()
		if err != nil {
			return nil, err
		}
		// The local address is where the client meant to go: no SO_ORIGINAL_DST under TPROXY (C1-22).
		server, client := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
		if server == l.addr {
			_ = c.SetLinger(0)
			_ = c.Close()
			continue
		}
		l.accepted.Add(1)
		conn := &Conn{TCPConn: c, Client: client, Server: server, Kind: l.Kind}
		if l.Kind == Output && l.proc != nil {
			conn.Proc, _ = l.proc(client, server) // not knowing it is an answer too
		}
		return conn, nil
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// haveIPv6 says whether the kernel speaks IPv6 here at all.
func haveIPv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return !errors.Is(err, os.ErrNotExist)
}
