package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"hash"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair returns the two ends of a TCP connection.
func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l := listen(t)
	defer l.Close()
	a = dial(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b = c.(*net.TCPConn)
	b.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { b.Close() })
	return a, b
}

// relayed is the outcome of Relay.
type relayed struct {
	aToB, bToA int64
	err        error
}

// between starts a Relay between two TCP connections and returns their far ends.
func between(t testing.TB, ctx context.Context) (client, server *net.TCPConn, done chan relayed) {
	t.Helper()
	client, a := pair(t)
	b, server := pair(t)
	a.SetDeadline(time.Time{})
	b.SetDeadline(time.Time{})
	done = make(chan relayed, 1)
	go func() {
		var r relayed
		r.aToB, r.bToA, r.err = Relay(ctx, a, b)
		a.Close()
		b.Close()
		done <- r
	}()
	return client, server, done
}

// TestRelayHalfClose: the end of one direction is passed on, and the other goes on.
func TestRelayHalfClose(t *testing.T) {
	client, server, done := between(t, t.Context())
	io.WriteString(client, "question")
	client.CloseWrite()
	if b, err := io.ReadAll(server); string(b) != "question" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	io.WriteString(server, "answer")
	server.Close()
	if b, err := io.ReadAll(client); string(b) != "answer" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	if r := <-done; r != (relayed{8, 6, nil}) {
		t.Errorf("%+v", r)
	}
}

// TestRelayBulk moves much in both directions, in bursts with silence between, so that splice is entered and left.
func TestRelayBulk(t *testing.T) {
	client, server, done := between(t, t.Context())
	const burst, bursts = 12 << 20, 3
	text := make([]byte, burst)
	rand.Read(text)
	send := func(c *net.TCPConn) {
		for range bursts {
			c.Write(text)
			time.Sleep(250 * time.Millisecond) // longer than bulk waits
		}
		c.CloseWrite()
	}
	var wg sync.WaitGroup
	sums := [2]hash.Hash{sha256.New(), sha256.New()}
	for i, c := range []*net.TCPConn{client, server} {
		wg.Go(func() { send(c) })
		wg.Go(func() { io.Copy(sums[i], struct{ io.Reader }{c}) })
	}
	wg.Wait()
	want := sha256.New()
	for range bursts {
		want.Write(text)
	}
	for i := range sums {
		if !bytes.Equal(sums[i].Sum(nil), want.Sum(nil)) {
			t.Errorf("direction %d: octets differ", i)
		}
	}
	if r := <-done; r != (relayed{bursts * burst, bursts * burst, nil}) {
		t.Errorf("%+v", r)
	}
}

// TestRelayReset: a torn stream is never passed on as a whole one.
func TestRelayReset(t *testing.T) {
	for _, fromServer := range []bool{false, true} {
		client, server, done := between(t, t.Context())
		io.WriteString(client, "x")
		io.WriteString(server, "y")
		client.Read(make([]byte, 1))
		server.Read(make([]byte, 1))
		from, other := client, server
		if fromServer {
			from, other = server, client
		}
		Reset(from)
		if b, err := io.ReadAll(other); len(b) != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("from server %v: the other side sees %q, %v", fromServer, b, err)
		}
		if r := <-done; !errors.Is(r.err, syscall.ECONNRESET) {
			t.Errorf("%+v", r)
		}
	}
}

func TestRelayContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, server, done := between(t, ctx)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // a bulk in progress sets deadlines of its own
		text := make([]byte, 1<<20)
		for {
			select {
			case <-stop:
				return
			default:
				client.Write(text)
			}
		}
	})
	wg.Go(func() { io.Copy(io.Discard, server) })
	time.Sleep(20 * time.Millisecond)
	cancel()
	if r := <-done; !errors.Is(r.err, context.Canceled) || r.aToB == 0 {
		t.Errorf("%+v", r)
	}
	close(stop)
	wg.Wait()
}

// TestRelayOther relays between connections that are no sockets, and TLS.
func TestRelayOther(t *testing.T) {
	c1, a := net.Pipe()
	b, s1 := net.Pipe()
	done := make(chan error, 1)
	go func() {
		_, _, err := Relay(t.Context(), a, b)
		done <- err
	}()
	go io.WriteString(c1, "x")
	p := make([]byte, 1)
	if _, err := io.ReadFull(s1, p); err != nil || p[0] != 'x' {
		t.Fatal(p, err)
	}
	c1.Close()
	s1.Close()
	if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestResetThroughTLS(t *testing.T) {
	a, b := pair(t)
	Reset(tls.Client(&Conn{Conn: a}, &tls.Config{}))
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("peer sees %v", err)
	}
	c, d := net.Pipe()
	Reset(c)
	if _, err := d.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("peer of a pipe sees %v", err)
	}
	d.Close()
}

// TestIdleRelayHoldsNoBuffer: G-09 in small. What a session once moved costs nothing once it is idle.
func TestIdleRelayHoldsNoBuffer(t *testing.T) {
	const sessions = 200
	memory := func() uint64 {
		for range 3 { // a pool forgets in two rounds
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	text, got := make([]byte, 100<<10), make([]byte, 100<<10)
	before := memory()
	for range sessions {
		client, server, _ := between(t, t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { client.Write(text) })
		if _, err := io.ReadFull(server, got); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	// Four sockets a session, two of them the gateway's.
	if each := (int64(memory()) - int64(before)) / sessions; each > 12<<10 {
		t.Errorf("%d octets of heap for each idle session", each)
	} else {
		t.Logf("%d octets of heap for each idle session", each)
	}
}

func BenchmarkRelayBulk(b *testing.B) {
	client, server, _ := between(b, b.Context())
	text := make([]byte, 1<<20)
	b.SetBytes(int64(len(text)))
	var wg sync.WaitGroup
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	wg.Go(func() { io.Copy(io.Discard, struct{ io.Reader }{server}) })
	for b.Loop() {
		if _, err := client.Write(text); err != nil {
			b.Fatal(err)
		}
	}
	client.CloseWrite()
	wg.Wait()
	client.Close()
	server.Close()
}

func BenchmarkRelayPingPong(b *testing.B) {
	client, server, _ := between(b, b.Context())
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		client.Write(p)
		io.ReadFull(server, p)
		server.Write(p)
		io.ReadFull(client, p)
	}
	client.Close()
	server.Close()
}
