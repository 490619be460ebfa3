package smtp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"context"

	"mailweir/inspect/spool"
	"mailweir/proxy"
)

// sinkServer answers at once, and forgets.
func sinkServer(b testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReaderSize(c, 64<<10)
				io.WriteString(c, "220 mx\r\n")
				for {
					l, err := br.ReadSlice('\n')
					if err != nil {
						return
					}
					switch {
					case strings.HasPrefix(string(l), "DATA"):
						io.WriteString(c, "354 go\r\n")
						for string(l) != ".\r\n" && err == nil {
							l, err = br.ReadSlice('\n')
						}
						io.WriteString(c, "250 stored\r\n")
					case strings.HasPrefix(string(l), "EHLO"):
						io.WriteString(c, "250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
					case strings.HasPrefix(string(l), "QUIT"):
						io.WriteString(c, "221 bye\r\n")
						return
					default:
						io.WriteString(c, "250 ok\r\n")
					}
				}
			}()
		}
	}()
	return l
}

// benchGateway accepts and serves.
func benchGateway(b testing.TB, to string) (addr string, stop func()) {
	pool, err := spool.New(spool.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	h := New(Config{
		Spool: pool, Scanner: scanFunc(passAll),
		Dial: func(ctx context.Context, _ *proxy.Conn) (net.Conn, error) { return net.Dial("tcp", to) },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	draining := make(chan struct{})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.Serve(ctx, draining, &proxy.Conn{Conn: c, ID: proxy.NewConnID(), Server: netip.MustParseAddrPort("192.0.2.1:25")})
		}
	}()
	return l.Addr().String(), func() { l.Close(); cancel() }
}

// benchClient is a client that does not wait more than it must.
type benchClient struct {
	net.Conn
	br *bufio.Reader
}

func (c *benchClient) do(s string, replies int) {
	io.WriteString(c.Conn, s)
	for range replies {
		for {
			l, err := c.br.ReadSlice('\n')
			if err != nil {
				panic(err)
			}
			if l[3] == ' ' {
				break
			}
		}
	}
}

func benchConnect(b testing.TB, addr string) *benchClient {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return &benchClient{c, bufio.NewReader(c)}
}

// BenchmarkMessage sends messages on one connection: directly, and through the gateway.
func BenchmarkMessage(b *testing.B) {
	l := sinkServer(b)
	defer l.Close()
	addr, stop := benchGateway(b, l.Addr().String())
	defer stop()
	for _, size := range []int{1 << 10, 30 << 10, 1 << 20} {
		text := strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78) + ".\r\n"
		for _, to := range []struct{ name, addr string }{{"direct", l.Addr().String()}, {"gateway", addr}} {
			b.Run(fmt.Sprintf("%s/%dK", to.name, size>>10), func(b *testing.B) {
				c := benchConnect(b, to.addr)
				defer c.Close()
				c.do("EHLO c\r\n", 2)
				b.SetBytes(int64(len(text)))
				b.ReportAllocs()
				for b.Loop() {
					c.do("MAIL FROM:<a@x>\r\n", 1)
					c.do("RCPT TO:<b@y>\r\n", 1)
					c.do("DATA\r\n", 1)
					c.do(text, 1)
				}
			})
		}
	}
}

// BenchmarkConnection connects, sends 1 KB and takes its leave.
func BenchmarkConnection(b *testing.B) {
	l := sinkServer(b)
	defer l.Close()
	addr, stop := benchGateway(b, l.Addr().String())
	defer stop()
	text := strings.Repeat(strings.Repeat("x", 76)+"\r\n", 13) + ".\r\n"
	for _, to := range []struct{ name, addr string }{{"direct", l.Addr().String()}, {"gateway", addr}} {
		b.Run(to.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := benchConnect(b, to.addr)
				c.do("EHLO c\r\n", 2)
				c.do("MAIL FROM:<a@x>\r\n", 1)
				c.do("RCPT TO:<b@y>\r\n", 1)
				c.do("DATA\r\n", 1)
				c.do(text, 1)
				c.do("QUIT\r\n", 1)
				c.Close()
			}
		})
	}
}

// BenchmarkIdle measures what an idle session holds.
func BenchmarkIdle(b *testing.B) {
	l := sinkServer(b)
	defer l.Close()
	addr, stop := benchGateway(b, l.Addr().String())
	defer stop()
	const n = 400
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var list []net.Conn
		for range n {
			c := benchConnect(b, addr)
			c.do("EHLO c\r\n", 2)
			c.br = nil
			list = append(list, c.Conn)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/n, "heap-B/session")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stack-B/session")
		for _, c := range list {
			c.Close()
		}
	}
}
