package divert

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a diverted connection whose server's leg is wanted.
type Flow struct {
	Client netip.AddrPort
	Server netip.AddrPort
	Kind   string
}

// Source ports towards a server on this host. They lie below what clients use as their own ports (from 32768 by
// default on Linux, from 49152 elsewhere): were one of them the client's next port, its connection could not be told
// from ours.
const localPorts = 10000 | 32767<<16

// anyPorts is what the kernel may choose from elsewhere, so that one client can have as many connections to one
// server as there are ports, not only ip_local_port_range. ip_local_reserved_ports is still honoured (C1-19).
const anyPorts = 1024 | 65535<<16

const ipLocalPortRange = 51 // IP_LOCAL_PORT_RANGE, Linux 6.3

// Dial opens the server's leg: from the client's own address where so configured, and from the client's own port
// where that is possible. It carries the server mark and is never diverted again. The error of a server that refuses
// wraps syscall.ECONNREFUSED, as it came from the network.
func (d *Divert) Dial(ctx context.Context, f Flow) (net.Conn, error) {
	f.Client, f.Server = unmap(f.Client), unmap(f.Server)
	if d.isListener(f.Server) { // G-16
		return nil, fmt.Errorf("dial %v: that is the gateway itself: %w", f.Server, syscall.ECONNREFUSED)
	}
	source, err := d.source(f)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, s := range source {
		c, err := d.dialFrom(ctx, f.Server, s)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		// The port, or the four of addresses and ports, is taken: the next source has another port (C1-16).
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EACCES) {
			break
		}
		d.bindFailures.Add(1) // C1-18
	}
	return nil, fmt.Errorf("dial %v for %v: %w", f.Server, f.Client, errs[len(errs)-1])
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (d *Divert) isListener(a netip.AddrPort) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.listeners {
		if l.addr == a {
			return true
		}
	}
	return false
}

// source is where a connection of ours comes from.
type source struct {
	address netip.Addr // not valid: the kernel chooses
	port    uint16     // 0: the kernel chooses
	spoof   bool
	ports   int // IP_LOCAL_PORT_RANGE, when port is 0
}

func (d *Divert) source(f Flow) ([]source, error) {
	if !d.transparently(f.Kind) || !f.Client.IsValid() {
		return []source{{}}, nil
	}
	mine, err := isLocal(f.Client.Addr())
	if err != nil {
		return nil, err
	}
	if mine {
		// C1-17: the client's own socket holds the four already, so another port; and a socket that is not
		// transparent, since the address is our own.
		return []source{{address: f.Client.Addr()}}, nil
	}
	here, err := isLocal(f.Server.Addr())
	if err != nil {
		return nil, err
	}
	if here {
		// The client's own port is out of the question: the server's socket would have the very four addresses and
		// ports of the one that we accepted the client on.
		return []source{{address: f.Client.Addr(), spoof: true, ports: localPorts}}, nil
	}
	free := source{address: f.Client.Addr(), spoof: true, ports: anyPorts}
	if tracked() {
		// Conntrack would take both legs for one connection if they had the same addresses and ports: it would not
		// translate the second by the NAT rules, and call its packets invalid.
		return []source{free}, nil
	}
	return []source{{address: f.Client.Addr(), port: f.Client.Port(), spoof: true}, free}, nil
}

func (d *Divert) transparently(kind string) bool {
	s := d.current()
	switch kind {
	case Input:
		return s.InputDivertConnectTransparently
	case Forward:
		return s.ForwardDivertConnectTransparently
	}
	return s.OutputDivertConnectTransparently
}

// tracked says whether conntrack follows connections in this network namespace.
func tracked() bool {
	n, known := conntrackCount()
	return known && n > 0
}

func conntrackCount() (n int, known bool) {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, false
	}
	n, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

// isLocal says whether the address is one of this host.
func isLocal(a netip.Addr) (bool, error) {
	routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) {
		return false, nil // no route is no address of ours
	}
	if err != nil {
		return false, fmt.Errorf("look up route to %v: %w", a, err)
	}
	return len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, nil
}

func (d *Divert) dialFrom(ctx context.Context, server netip.AddrPort, s source) (net.Conn, error) {
	network, v := "tcp4", 4
	if server.Addr().Is6() {
		network, v = "tcp6", 6
	}
	dialer := net.Dialer{KeepAliveConfig: keepAliveConfig()}
	dialer.SetMultipathTCP(false)
	if s.address.IsValid() && s.port != 0 {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.address, s.port))
	}
	dialer.Control = func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return d.prepare(fd, v, s) })
	}
	c, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	return c, nil
}

// prepare is done to a socket before it is bound and connected.
func (d *Divert) prepare(fd, v int, s source) error {
	if err := setSocketMark(fd, d.marks.server); err != nil {
		return err
	}
	if !s.address.IsValid() {
		return nil
	}
	if s.spoof {
		if err := setTransparent(fd, v); err != nil {
			return err
		}
	}
	// A client may use one port for several servers: so may we. Connecting sockets only (C1-16).
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if s.port != 0 {
		return nil // net.Dialer binds
	}
	// The port is chosen when the server is known: by what is free towards this server, not by what is free at all.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	if s.ports != 0 {
		// Kernels before 6.3 do not know it: ip_local_port_range serves then.
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, ipLocalPortRange, s.ports)
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: as4(s.address)}
	if v == 6 {
		sa = &unix.SockaddrInet6{Addr: s.address.As16()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return nil
}

func as4(a netip.Addr) [4]byte {
	if !a.Is4() {
		return [4]byte{}
	}
	return a.As4()
}
