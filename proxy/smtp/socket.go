package smtp

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"mailweir/proxy"
)

// control calls f with the descriptor of c's socket, if it has one.
func control(c net.Conn, f func(fd int)) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// gone reports whether the peer of c has reset the connection. A FIN is not enough: it may only mean that the peer has
// said all it had to say, and still listens (S-178).
func gone(c net.Conn) (dead bool) {
	control(c, func(fd int) {
		const closed = 7 // TCP_CLOSE; after a FIN alone it is CLOSE_WAIT
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		dead = err == nil && info.State == closed
	})
	return dead
}

// readable reports whether octets of the peer of c wait in the kernel.
func readable(c net.Conn) (waiting bool) {
	control(c, func(fd int) {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		waiting = err == nil && n > 0
	})
	return waiting
}

// resetNow closes c by a reset: the peer must not take what it has for complete.
func resetNow(c net.Conn) { proxy.Reset(c) }
