package smtp

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mailweir/inspect/spool"
	"mailweir/proxy"
)

// nearServer plays a server that takes everything at once and counts the messages.
func nearServer(c net.Conn, stored *atomic.Int64) {
	defer c.Close()
	in := bufio.NewReader(c)
	text, content := "220 near.example ESMTP\r\n", false
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
		l, err := in.ReadString('\n')
		for content && err == nil && l != ".\r\n" {
			l, err = in.ReadString('\n')
		}
		if err != nil {
			return
		}
		if text = "250 ok\r\n"; content {
			stored.Add(1)
		} else if l == "DATA\r\n" {
			text = "354 go\r\n"
		}
		content = l == "DATA\r\n"
	}
}

// TestManySessions holds 5,000 sessions at once, one in a hundred of which trickles content, octet by octet, and has
// clean mail go through beside them. In a bubble: if one of them could hold up another, it would do so for ever, and
// the bubble would find everybody asleep.
func TestManySessions(t *testing.T) {
	t.Parallel()
	bubble(t, "X-006 5,000 sessions, 50 of them slow", func(t *testing.T) {
		sessions := 5000
		if raceEnabled {
			sessions = 1500 // the race detector knows 8,128 goroutines and no more
		}
		var stored atomic.Int64
		pool := testSpool(t, spool.Settings{})
		door := New(Config{Spool: pool, Scanner: scanFunc(passAll), Dial: func(context.Context, *proxy.Conn) (net.Conn, error) {
			server, back := net.Pipe()
			go nearServer(server, &stored)
			return back, nil
		}})
		draining := make(chan struct{})
		begin := func() *benchClient {
			client, front := net.Pipe()
			go door.Serve(t.Context(), draining, &proxy.Conn{Conn: front, ID: proxy.NewConnID(),
				Client: netip.MustParseAddrPort("192.0.2.1:40000"), Server: netip.MustParseAddrPort("198.51.100.1:25")})
			c := &benchClient{client, bufio.NewReader(client)}
			if _, err := c.br.ReadSlice('\n'); err != nil {
				t.Fatal(err)
			}
			c.do("EHLO c\r\n", 1)
			return c
		}
		var held []*benchClient
		for i := range sessions {
			c := begin()
			held = append(held, c)
			if i%100 == 0 {
				c.do("MAIL FROM:<slow@x>\r\n", 1)
				c.do("RCPT TO:<b@y>\r\n", 1)
				c.do("DATA\r\n", 1)
				go func() { // an octet a second, for ever
					for {
						if _, err := io.WriteString(c.Conn, "x"); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
			}
		}
		const mails = 200
		for i := range mails {
			began := time.Now()
			c := begin()
			c.do("MAIL FROM:<a@x>\r\n", 1)
			c.do("RCPT TO:<b@y>\r\n", 1)
			c.do("DATA\r\n", 1)
			c.do("Subject: x\r\n\r\nbody\r\n.\r\n", 1)
			c.Close()
			// Nothing waits for a clock: not a moment of the bubble's time passes.
			if took := time.Since(began); took != 0 {
				t.Fatalf("mail %d waited for %v", i, took)
			}
		}
		if n := stored.Load(); n != mails {
			t.Errorf("%d messages arrived, want %d", n, mails)
		}
		for i := 1; i < sessions; i += 97 {
			if i%100 != 0 {
				held[i].do("NOOP\r\n", 1) // the others are alive
			}
		}
		for _, c := range held {
			c.Close()
		}
		time.Sleep(time.Minute) // of the bubble: for those that trickle, and for goodbyes
		synctest.Wait()
		if files, octets := pool.Usage(); files != 0 || octets != 0 {
			t.Errorf("%d octets in %d files are left in the spool", octets, files)
		}
	})
}
