package divert

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
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

// Source ports that we choose ourselves lie below what clients use as their own (from 32768 by default on Linux, from
// 49152 elsewhere). Were one of them the next port of the same client, towards a server on this host or under
// conntrack, its connection could not be told from ours. IP_LOCAL_PORT_RANGE cannot choose them: it only narrows the
// range of the system.
const (
	lowPort, highPort = 10000, 32767
	ownTries          = 16 // in that range; then the kernel's range; then
	lastTries         = 64 // anywhere: there is no limit below what one client and one server can have (G20)
)

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
	for s := range source {
		var c net.Conn
		if c, err = d.dialFrom(ctx, f.Server, s); err == nil {
			return c, nil
		}
		// The port, or the four of addresses and ports, is taken: the next source has another port (C1-16).
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EACCES) {
			break
		}
		d.bindFailures.Add(1) // C1-18
	}
	return nil, fmt.Errorf("dial %v for %v: %w", f.Server, f.Client, err)
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
}

// chosen yields sources at ports other than the client's.
func chosen(address netip.Addr, first ...source) iter.Seq[source] {
	return func(yield func(source) bool) {
		for _, s := range first {
			if !yield(s) {
				return
			}
		}
		if !address.IsValid() {
			return
		}
		reserved := reservedPorts()
		some := func(tries, low, high int) bool {
			for range tries {
				if p := uint16(low + rand.IntN(high-low+1)); !reserved(p) && !yield(source{address, p, true}) {
					return false
				}
			}
			return true
		}
		_ = some(ownTries, lowPort, highPort) && yield(source{address, 0, true}) && some(lastTries, 1024, 65535)
	}
}

// reservedPorts reads ip_local_reserved_ports: ports of services that must not be taken by chance (C1-19).
func reservedPorts() func(uint16) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	text := strings.TrimSpace(string(b))
	if err != nil || text == "" {
		return func(uint16) bool { return false }
	}
	var ranges [][2]int
	for _, word := range strings.Split(text, ",") {
		low, high, ok := strings.Cut(word, "-")
		if !ok {
			high = low
		}
		a, err1 := strconv.Atoi(low)
		b, err2 := strconv.Atoi(high)
		if err1 == nil && err2 == nil {
			ranges = append(ranges, [2]int{a, b})
		}
	}
	return func(p uint16) bool {
		return slices.ContainsFunc(ranges, func(r [2]int) bool { return int(p) >= r[0] && int(p) <= r[1] })
	}
}

func (d *Divert) source(f Flow) (iter.Seq[source], error) {
	if !d.transparently(f.Kind) || !f.Client.IsValid() {
		return chosen(netip.Addr{}, source{}), nil
	}
	mine, err := isLocal(f.Client.Addr())
	if err != nil {
		return nil, err
	}
	if mine {
		// C1-17: the client's own socket holds the four already, so another port; and a socket that is not
		// transparent, since the address is our own.
		return chosen(netip.Addr{}, source{address: f.Client.Addr()}), nil
	}
	here, err := isLocal(f.Server.Addr())
	if err != nil {
		return nil, err
	}
	if here {
		// The client's own port is out of the question: the server's socket would have the very four addresses and
		// ports of the one that we accepted the client on.
		return chosen(f.Client.Addr()), nil
	}
	if tracked() {
		// Conntrack would take both legs for one connection if they had the same addresses and ports: it would not
		// translate the second by the NAT rules, and call its packets invalid.
		return chosen(f.Client.Addr()), nil
	}
	return chosen(f.Client.Addr(), source{f.Client.Addr(), f.Client.Port(), true}), nil
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
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: as4(s.address)}
	if v == 6 {
		sa = &unix.SockaddrInet6{Addr: s.address.As16(), ZoneId: zone(s.address)}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return nil
}

// zone is the interface of a link-local address.
func zone(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	i, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

func as4(a netip.Addr) [4]byte {
	if !a.Is4() {
		return [4]byte{}
	}
	return a.As4()
}
