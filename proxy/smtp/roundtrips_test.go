package smtp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// farServer plays a server that is rtt away: what it says to a line arrives exactly so long after the line was sent,
// however many are under way. Within a bubble, time taken is then nothing but round trips.
func farServer(c net.Conn, rtt time.Duration) {
	type reply struct {
		at   time.Time
		text string
	}
	replies := make(chan reply, 1000)
	go func() {
		for r := range replies {
			time.Sleep(time.Until(r.at))
			io.WriteString(c, r.text)
		}
	}()
	defer close(replies)
	replies <- reply{time.Now().Add(rtt), "220 far.example ESMTP\r\n"}
	in := bufio.NewReader(pump(c))
	content := false
	for {
		l, err := in.ReadString('\n')
		if err != nil {
			return
		}
		text := "250 ok\r\n"
		switch verb, rest, _ := strings.Cut(strings.TrimSpace(l), " "); {
		case content && l != ".\r\n":
			continue
		case content:
			content = false
		case verb == "EHLO":
			text = "250-far.example\r\n250-PIPELINING\r\n250-AUTH PLAIN LOGIN\r\n250 CHUNKING\r\n"
		case verb == "DATA":
			content, text = true, "354 go\r\n"
		case verb == "BDAT":
			var n int64
			fmt.Sscan(rest, &n)
			io.CopyN(io.Discard, in, n)
		case verb == "AUTH" && !strings.Contains(rest, " "):
			text = "334 \r\n"
		case verb == "AUTH":
			text = "235 welcome\r\n"
		case verb == "QUIT":
			text = "221 bye\r\n"
		}
		replies <- reply{time.Now().Add(rtt), text}
	}
}

// TestRoundTrips counts how many round trips to the server each step of a conversation takes, once directly and once
// through the gateway.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	const rtt = time.Second
	const message = "Subject: x\r\n\r\nbody\r\n.\r\n"
	steps := []struct {
		say     string
		replies int
		direct  int // round trips without a gateway
		through int // and with it
	}{
		{"", 1, 1, 1}, // the banner
		{"EHLO c\r\n", 1, 1, 1},
		{"HELO c\r\n", 1, 1, 1},
		{"EHLO c\r\n", 1, 1, 1},
		{"NOOP\r\n", 1, 1, 1},
		{"VRFY x\r\n", 1, 1, 1},
		{"HELP\r\n", 1, 1, 1},
		{"AUTH PLAIN AAAA\r\n", 1, 1, 1},
		{"MAIL FROM:<a@x>\r\n", 1, 1, 1},
		{"RCPT TO:<b@y>\r\n", 1, 1, 1},
		{"RSET\r\n", 1, 1, 1},
		{"NOOP\r\nNOOP\r\nRSET\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nRSET\r\n", 7, 1, 1}, // a window stays one
		{"MAIL FROM:<a@x>\r\n", 1, 1, 1},
		{"RCPT TO:<b@y>\r\n", 1, 1, 1},
		// A message needs as many as without: the gateway answers DATA, and asks the server when it has a verdict.
		{"DATA\r\n", 1, 1, 0},
		{message, 1, 1, 2},
		{"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n", 2, 1, 1},
		{"BDAT 22 LAST\r\nSubject: x\r\n\r\nbody\r\nxx", 1, 1, 1},
		{"QUIT\r\n", 1, 1, 1},
	}
	for _, way := range []string{"direct", "through"} {
		bubble(t, "G-14 no round trip is added, "+way, func(t *testing.T) {
			client, front := net.Pipe()
			if way == "direct" {
				go farServer(front, rtt)
			} else {
				server, back := net.Pipe()
				go farServer(server, rtt)
				h := startHarness(t, nil, client, front, server, back)
				defer h.end()
			}
			defer client.Close()
			in := bufio.NewReader(pump(client))
			for _, s := range steps {
				began := time.Now()
				if _, err := io.WriteString(client, s.say); err != nil {
					t.Fatal(err)
				}
				for n := 0; n < s.replies; {
					l, err := in.ReadString('\n')
					if err != nil || l[0] != '2' && l[0] != '3' {
						t.Fatalf("%q: %q %v", s.say, l, err)
					}
					if l[3] == ' ' {
						n++
					}
				}
				want := s.direct
				if way == "through" {
					want = s.through
				}
				if took := time.Since(began); took != time.Duration(want)*rtt {
					t.Errorf("%q takes %v round trips, want %d", s.say, took.Seconds()/rtt.Seconds(), want)
				}
			}
		})
	}
}

// TestFullWindow has the server answer a full window at once, at the moment at which a reply of the gateway's own waits
// for room behind it.
func TestFullWindow(t *testing.T) {
	t.Parallel()
	bubble(t, "S-113 a reply of our own behind a window that empties at once", func(t *testing.T) {
		for range 30 {
			h := newPipeHarness(t, nil)
			h.greet()
			go io.WriteString(h.c.Conn, strings.Repeat("NOOP\r\n", maxOutstanding)+"TURN\r\nTURN\r\nNOOP\r\n")
			for range maxOutstanding {
				h.s.wantLine("NOOP")
			}
			h.s.send(strings.Repeat("250 ok\r\n", maxOutstanding))
			for range maxOutstanding {
				h.c.want("250")
			}
			h.c.want("502")
			h.c.want("502")
			h.s.wantLine("NOOP")
			h.s.say("250 ok")
			h.c.want("250")
			h.end()
		}
	})
}
