package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// source is what is known of one client address, or of one /64.
type source struct {
	active int
	tokens float64
	filled time.Time
	dials  chan struct{} // made by the first dial
	users  int           // goroutines that hold dials
}

// sourceOf returns the network that counts as one source: hosts choose their IPv6 address within a /64 as they like.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // cannot fail: bits fits; the zero address gives the zero prefix
	return p
}

// register admits c, or says why not.
func (s *Server) register(c *Conn, own *sync.WaitGroup) (why string, ok bool) {
	key, now := sourceOf(c.Client.Addr()), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Accepted++
	if s.stats.Draining {
		return "shutting down", false
	}
	if s.stats.Active >= s.conf.MaxConnections {
		s.stats.Refused++
		return "too many connections", false
	}
	src := s.sourceLocked(key, now)
	if src.active >= s.conf.MaxConnectionsPerSource {
		s.stats.RefusedSource++
		return "too many connections from this address", false
	}
	if rate := float64(s.conf.ConnectionRatePerSource); rate > 0 {
		src.tokens = min(10*rate, src.tokens+rate*now.Sub(src.filled).Seconds())
		src.filled = now
		if src.tokens < 1 {
			s.stats.RefusedSource++
			return "connections from this address come too fast", false
		}
		src.tokens--
	}
	src.active++
	s.conns[c] = own
	s.stats.Active++
	s.stats.Peak = max(s.stats.Peak, s.stats.Active)
	return "", true
}

// unregister forgets c.
func (s *Server) unregister(c *Conn) {
	key := sourceOf(c.Client.Addr())
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.stats.Active--
	src := s.sources[key]
	src.active--
	s.dropLocked(key, src)
}

// sourceLocked returns the entry of key and makes it if need be.
func (s *Server) sourceLocked(key netip.Prefix, now time.Time) *source {
	src := s.sources[key]
	if src == nil {
		s.sweepLocked(now)
		src = &source{tokens: 10 * float64(s.conf.ConnectionRatePerSource), filled: now}
		s.sources[key] = src
	}
	return src
}

// dropLocked forgets a source that holds nothing. With a rate it must be remembered until its bucket is full again.
func (s *Server) dropLocked(key netip.Prefix, src *source) {
	if src.active == 0 && src.users == 0 && s.conf.ConnectionRatePerSource == 0 {
		delete(s.sources, key)
	}
}

// sweepLocked forgets sources whose buckets have filled since: after ten seconds of quiet every bucket is full.
func (s *Server) sweepLocked(now time.Time) {
	if s.conf.ConnectionRatePerSource == 0 || now.Sub(s.swept) < 10*time.Second {
		return
	}
	s.swept = now
	for key, src := range s.sources {
		if src.active == 0 && src.users == 0 && now.Sub(src.filled) >= 10*time.Second {
			delete(s.sources, key)
		}
	}
}

// Dialer returns d with the bounds of the Server: a client that is gone makes no dial, dials for one source at once
// are limited, and the leg ends with its connection. A dial of a connection that is over returns net.ErrClosed.
func (s *Server) Dialer(d Dialer) Dialer {
	return func(ctx context.Context, c *Conn) (net.Conn, error) {
		release, err := s.dialSlot(ctx, c)
		if err != nil {
			return nil, err
		}
		defer release()
		if isReset(c.Conn) {
			s.count(func(st *Stats) { st.Gone++ })
			return nil, net.ErrClosed
		}
		s.count(func(st *Stats) { st.Dialing++ })
		leg, err := d(ctx, c)
		s.count(func(st *Stats) {
			st.Dialing--
			st.Dialed++
			if err != nil {
				st.DialErrors++
			}
		})
		if err != nil {
			return nil, err
		}
		if t, ok := leg.(*net.TCPConn); ok {
			t.SetNoDelay(true)
		}
		if !c.legs.add(leg) {
			leg.Close()
			return nil, net.ErrClosed
		}
		return leg, nil
	}
}

// dialSlot waits until the source of c may dial.
func (s *Server) dialSlot(ctx context.Context, c *Conn) (release func(), err error) {
	key := sourceOf(c.Client.Addr())
	s.mu.Lock()
	src := s.sourceLocked(key, time.Now())
	if src.dials == nil {
		src.dials = make(chan struct{}, s.conf.MaxDialsPerSource)
	}
	src.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		src.users--
		s.dropLocked(key, src)
	}
	select {
	case src.dials <- struct{}{}:
		return func() { <-src.dials; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// isReset reports whether the client has reset the connection already. Octets that wait are not consumed. A
// connection that is no socket is alive.
func isReset(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	reset := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		reset = err == syscall.ECONNRESET || err == syscall.EPIPE || err == syscall.ENOTCONN
	})
	return err != nil || reset
}

// A connection holds up to two sockets, a spool file and what an engine needs for it at the moment.
const (
	filesPerConnection = 4
	filesReserved      = 256
)

// connectionBudget returns how many connections a limit of open files allows.
func connectionBudget(files uint64) int {
	if files < filesReserved+filesPerConnection*16 {
		return 16
	}
	return int(min((files-filesReserved)/filesPerConnection, 1<<20))
}

// raiseOpenFiles raises the soft limit of open files to the hard one and returns it.
func raiseOpenFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	if l.Cur < l.Max {
		up := l
		up.Cur = l.Max
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &up) == nil {
			return up.Cur
		}
	}
	return l.Cur
}
