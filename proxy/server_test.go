package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mailweir/inspect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handlerFunc makes a function a Handler.
type handlerFunc func(ctx context.Context, draining <-chan struct{}, c *Conn)

func (f handlerFunc) Serve(ctx context.Context, draining <-chan struct{}, c *Conn) {
	f(ctx, draining, c)
}

// tcpListener is a Listener on the loopback.
type tcpListener struct {
	net.Listener
	client netip.Addr // said to be the client, when valid
}

func (l *tcpListener) AcceptConn() (*Conn, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	if l.client.IsValid() {
		from = netip.AddrPortFrom(l.client, from.Port())
	}
	return &Conn{Conn: c, Client: from}, nil
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve runs a Server until the test ends and returns its address.
func serve(t testing.TB, conf Config) (*Server, string) {
	t.Helper()
	return serveWith(t, conf, func(*Server) Handler { return conf.Handler })
}

// serveWith is serve for a handler that uses the Server's Dialer.
func serveWith(t testing.TB, conf Config, h func(*Server) Handler) (*Server, string) {
	t.Helper()
	s := NewServer(conf)
	s.conf.Handler = h(s)
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, &tcpListener{Listener: l}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := s.Stats().Active; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return s, l.Addr().String()
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// until waits for something that happens in another goroutine.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}

func readLine(c net.Conn) (string, error) { return bufio.NewReader(c).ReadString('\n') }

// echo answers lines until its input ends.
var echo = handlerFunc(func(_ context.Context, _ <-chan struct{}, c *Conn) { io.Copy(c, c) })

func TestServes(t *testing.T) {
	var released atomic.Int32
	s, addr := serve(t, Config{Handler: handlerFunc(func(ctx context.Context, d <-chan struct{}, c *Conn) {
		c.Release = func() { released.Add(1) }
		if c.ID == "" {
			t.Error("connection without id")
		}
		echo(ctx, d, c)
	})})
	c := dial(t, addr)
	io.WriteString(c, "x\n")
	if l, err := readLine(c); l != "x\n" || err != nil {
		t.Fatal(l, err)
	}
	if st := s.Stats(); st.Active != 1 || st.Accepted != 1 || st.Peak != 1 || st.Limit < 16 {
		t.Errorf("%+v", st)
	}
	c.Close()
	until(t, "release", func() bool { return released.Load() == 1 && s.Stats().Active == 0 })
}

func TestLimits(t *testing.T) {
	refuse := func(c *Conn) { io.WriteString(c, "421 too many\r\n") }
	for _, c := range []struct {
		name   string
		set    Settings
		good   int
		reason string
		count  func(Stats) uint64
	}{
		{"MaxConnections", Settings{MaxConnections: 3, MaxConnectionsPerSource: 10}, 3, "too many connections", func(s Stats) uint64 { return s.Refused }},
		{"MaxConnectionsPerSource", Settings{MaxConnections: 10, MaxConnectionsPerSource: 2}, 2, "too many connections from this address", func(s Stats) uint64 { return s.RefusedSource }},
		{"half of MaxConnections for one source", Settings{MaxConnections: 6}, 3, "too many connections from this address", func(s Stats) uint64 { return s.RefusedSource }},
		{"ConnectionRatePerSource", Settings{MaxConnections: 100, ConnectionRatePerSource: 1}, 10, "connections from this address come too fast", func(s Stats) uint64 { return s.RefusedSource }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var reason string
			s, addr := serve(t, Config{Settings: c.set, Handler: echo, Refuse: refuse, Events: inspect.RecorderFunc(func(e inspect.Event) {
				mu.Lock()
				defer mu.Unlock()
				reason = e.Reason
			})})
			for i := range c.good {
				x := dial(t, addr)
				io.WriteString(x, "x\n")
				if l, err := readLine(x); l != "x\n" {
					t.Fatalf("connection %d: %q, %v", i, l, err)
				}
			}
			x := dial(t, addr)
			if l, err := readLine(x); l != "421 too many\r\n" {
				t.Fatalf("refusal: %q, %v", l, err)
			}
			if _, err := readLine(x); err == nil {
				t.Error("a refused connection goes on")
			}
			mu.Lock()
			defer mu.Unlock()
			if c.count(s.Stats()) != 1 || reason != c.reason {
				t.Errorf("%+v, reason %q", s.Stats(), reason)
			}
		})
	}
}

// TestSourcesAreNetworks: IPv6 hosts have as many addresses as they like.
func TestSourcesAreNetworks(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true}, {"192.0.2.1", "192.0.2.2", false}, {"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8::ffff:1", true}, {"2001:db8::1", "2001:db8:0:1::1", false}, {"fe80::1%eth0", "fe80::2", true},
	} {
		if got := sourceOf(netip.MustParseAddr(c.a)) == sourceOf(netip.MustParseAddr(c.b)); got != c.same {
			t.Errorf("%s and %s: same = %v", c.a, c.b, got)
		}
	}
	sourceOf(netip.Addr{}) // a connection from nowhere, as in tests
}

func TestSourcesAreForgotten(t *testing.T) {
	s := NewServer(Config{Handler: echo, Settings: Settings{ConnectionRatePerSource: 5}})
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range 1000 {
		s.sourceLocked(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), now)
	}
	s.sourceLocked(netip.MustParsePrefix("192.0.2.1/32"), now.Add(11*time.Second))
	if len(s.sources) != 1 {
		t.Errorf("%d sources are remembered", len(s.sources))
	}
}

func TestPanicClosesBothLegs(t *testing.T) {
	upstream := listen(t)
	defer upstream.Close()
	var events atomic.Int32
	s, addr := serveWith(t, Config{Events: inspect.RecorderFunc(func(e inspect.Event) {
		if e.Event == "panic" {
			events.Add(1)
		}
	})}, func(s *Server) Handler {
		return handlerFunc(func(ctx context.Context, _ <-chan struct{}, c *Conn) {
			if _, err := s.Dialer(to(upstream))(ctx, c); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			c.Read(make([]byte, 1))
			panic("bug")
		})
	})
	c := dial(t, addr)
	io.WriteString(c, "x")
	leg, err := upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer leg.Close()
	leg.SetDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(leg); len(b) != 0 || err != nil {
		t.Errorf("server's leg: %q, %v", b, err)
	}
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client's leg: %q, %v", b, err)
	}
	until(t, "count", func() bool { return s.Stats().Panics == 1 && s.Stats().Active == 0 && events.Load() == 1 })
	if c2 := dial(t, addr); c2 == nil {
		t.Error("the server does not go on")
	}
}

// to dials one listener.
func to(l net.Listener) Dialer {
	return func(ctx context.Context, _ *Conn) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
}

func TestDrain(t *testing.T) {
	t.Run("connections that end in time", func(t *testing.T) {
		s, addr := serve(t, Config{Handler: handlerFunc(func(_ context.Context, draining <-chan struct{}, c *Conn) {
			<-draining
			io.WriteString(c, "421 going down\r\n")
		})})
		c := dial(t, addr)
		until(t, "connection", func() bool { return s.Stats().Active == 1 })
		if err := s.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l, err := readLine(c); l != "421 going down\r\n" {
			t.Errorf("%q, %v", l, err)
		}
		if x, err := net.Dial("tcp", addr); err == nil {
			x.Close()
			t.Error("the listener is open still")
		}
		if err := s.Drain(t.Context()); err != nil || !s.Stats().Draining {
			t.Errorf("once more: %v", err)
		}
	})
	t.Run("connections that do not", func(t *testing.T) {
		ended := make(chan error, 1)
		s, addr := serve(t, Config{Handler: handlerFunc(func(ctx context.Context, _ <-chan struct{}, c *Conn) {
			var err error
			for range 2 { // sets its deadline anew, as doors may just when they are cut off
				c.SetDeadline(time.Now().Add(time.Minute))
				_, err = c.Read(make([]byte, 1))
			}
			ended <- err
		})})
		dial(t, addr)
		until(t, "connection", func() bool { return s.Stats().Active == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the handler saw %v", err)
		}
	})
	t.Run("a server that is drained serves no more", func(t *testing.T) {
		s := NewServer(Config{Handler: echo})
		if err := s.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(t.Context(), &tcpListener{Listener: listen(t)}); err != nil {
			t.Error(err)
		}
	})
}

// TestServeEndsOwnConnectionsOnly: two listeners, one of which ends.
func TestServeEndsOwnConnectionsOnly(t *testing.T) {
	s, addr := serve(t, Config{Handler: echo})
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, &tcpListener{Listener: l}) }()
	a, b := dial(t, addr), dial(t, l.Addr().String())
	until(t, "connections", func() bool { return s.Stats().Active == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := readLine(b); err == nil {
		t.Error("the connection goes on")
	}
	io.WriteString(a, "x\n")
	if l, err := readLine(a); l != "x\n" {
		t.Errorf("the other one: %q, %v", l, err)
	}
}

// badListener fails as told, then blocks until it is closed.
type badListener struct {
	net.Listener
	errs chan error
}

func (b *badListener) AcceptConn() (*Conn, error) {
	select {
	case err := <-b.errs:
		return nil, err
	default:
		return (&tcpListener{Listener: b.Listener}).AcceptConn()
	}
}

func TestAcceptErrors(t *testing.T) {
	l := &badListener{listen(t), make(chan error, 10)}
	for _, e := range []error{syscall.EMFILE, syscall.ECONNABORTED, fmt.Errorf("accept: %w", os.NewSyscallError("accept4", syscall.ENFILE))} {
		l.errs <- e
	}
	s := NewServer(Config{Handler: echo})
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), l) }()
	c := dial(t, l.Addr().String())
	io.WriteString(c, "x\n")
	if x, err := readLine(c); x != "x\n" {
		t.Errorf("after errors: %q, %v", x, err)
	}
	if n := s.Stats().AcceptErrors; n != 2 {
		t.Errorf("%d errors counted", n)
	}
	c.Close()
	s.Drain(t.Context())
	if err := <-done; err != nil {
		t.Error(err)
	}

	l = &badListener{listen(t), make(chan error, 10)}
	l.errs <- io.ErrClosedPipe
	if err := NewServer(Config{Handler: echo}).Serve(t.Context(), l); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("an error that stays: %v", err)
	}
}

// files returns how many files the process has open.
func files(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	return len(d)
}

// upstream is a server that says nothing and ends with its peers; it counts them.
func upstream(t *testing.T) (l net.Listener, dials, open *atomic.Int32) {
	l = listen(t)
	dials, open = new(atomic.Int32), new(atomic.Int32)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			open.Add(1)
			wg.Go(func() {
				io.Copy(io.Discard, c)
				c.Close()
				open.Add(-1)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l, dials, open
}

// relaying is a handler that dials and relays.
func relaying(s *Server, l net.Listener) Handler {
	return handlerFunc(func(ctx context.Context, _ <-chan struct{}, c *Conn) {
		leg, err := s.Dialer(to(l))(ctx, c)
		if err != nil {
			return
		}
		Relay(ctx, c.Conn, leg)
	})
}

func TestS246ConnectionsThatSayNothing(t *testing.T) {
	l, _, open := upstream(t)
	s, addr := serveWith(t, Config{}, func(s *Server) Handler { return relaying(s, l) })
	before := files(t)
	for range 1000 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	until(t, "all over", func() bool {
		st := s.Stats()
		return st.Accepted == 1000 && st.Active == 0 && open.Load() == 0
	})
	until(t, "files given back", func() bool { return files(t) <= before })
	if st := s.Stats(); st.Panics+st.AcceptErrors+st.DialErrors+st.Refused+st.RefusedSource != 0 {
		t.Errorf("%+v", st)
	}
}

func TestS247ResetStorm(t *testing.T) {
	const storm, atOnce = 10000, 8
	l, dials, open := upstream(t)
	var most atomic.Int32
	s, addr := serveWith(t, Config{Settings: Settings{MaxConnections: 64, MaxConnectionsPerSource: 16, MaxDialsPerSource: 2}}, func(s *Server) Handler {
		return handlerFunc(func(ctx context.Context, d <-chan struct{}, c *Conn) {
			most.Store(max(most.Load(), int32(s.Stats().Dialing)))
			relaying(s, l).Serve(ctx, d, c)
		})
	})
	before := files(t)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for range storm / atOnce {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					continue // reset by the gateway before we knew that we were connected
				}
				Reset(c)
			}
		})
	}
	wg.Wait()
	until(t, "all over", func() bool { return s.Stats().Active == 0 && open.Load() == 0 })
	until(t, "files given back", func() bool { return files(t) <= before })
	st := s.Stats()
	if st.Peak > 16 || most.Load() > 2 || st.Panics != 0 {
		t.Errorf("bounds do not hold: %+v, %d dials at once", st, most.Load())
	}
	if int(dials.Load()) > int(st.Accepted) || st.Gone == 0 {
		t.Errorf("the server saw %d dials, %+v", dials.Load(), st)
	}
	t.Logf("%d dials for %d resets; %+v", dials.Load(), storm, st)
}

// TestDialBound: more dials of one source wait for their turn, and give up with their connection.
func TestDialBound(t *testing.T) {
	s := NewServer(Config{Handler: echo, Settings: Settings{MaxDialsPerSource: 2}})
	hold := make(chan struct{})
	var now, most atomic.Int32
	d := s.Dialer(func(ctx context.Context, c *Conn) (net.Conn, error) {
		most.Store(max(most.Load(), now.Add(1)))
		<-hold
		now.Add(-1)
		return nil, syscall.ECONNREFUSED
	})
	var wg sync.WaitGroup
	pipe, other := net.Pipe()
	defer pipe.Close()
	defer other.Close()
	for range 6 {
		wg.Go(func() {
			if _, err := d(t.Context(), &Conn{Conn: pipe}); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("err = %v", err)
			}
		})
	}
	until(t, "two dials", func() bool { return now.Load() == 2 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d(ctx, &Conn{Conn: pipe}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while waiting: %v", err)
	}
	close(hold)
	wg.Wait()
	st := s.Stats()
	if most.Load() != 2 || st.Dialed != 6 || st.DialErrors != 6 || st.Dialing != 0 || len(s.sources) != 0 {
		t.Errorf("%d at once, %+v, %d sources", most.Load(), st, len(s.sources))
	}
}

func TestConnectionBudget(t *testing.T) {
	for files, want := range map[uint64]int{0: 16, 256: 16, 1024: 192, 1 << 20: 262080, 1 << 62: 1 << 20} {
		if got := connectionBudget(files); got != want {
			t.Errorf("%d files: %d connections, want %d", files, got, want)
		}
	}
	if raiseOpenFiles() < 64 {
		t.Error("limit of open files is not known")
	}
}

func TestNewConnID(t *testing.T) {
	seen := map[string]bool{}
	last := ""
	for range 10000 {
		id := NewConnID()
		if len(id) != 16 || seen[id] || strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUV") != "" {
			t.Fatalf("id %q", id)
		}
		if id[:8] < last {
			t.Fatalf("%q after %q", id, last)
		}
		seen[id], last = true, id[:8]
	}
}
