package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

// vitals is what a process holds.
type vitals struct {
	files, threads int
	peak           int64 // resident memory at its highest since the last look
}

// look returns what the gateway holds, and has the kernel count the highest memory anew.
func look(t *testing.T, g *Gateway) vitals {
	t.Helper()
	files, err := Files(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(procPath(g.Pid(), "task"))
	if err != nil {
		t.Fatal(err)
	}
	peak, err := PeakResident(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(procPath(g.Pid(), "clear_refs"), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return vitals{files, len(threads), peak}
}

// returned waits until the gateway holds what it held before, but for a few files and threads that its engines and its
// runtime keep for the next time.
func returned(t *testing.T, g *Gateway, base vitals) {
	t.Helper()
	eventually(t, "descriptors are given back", func() bool { n, err := Files(g.Pid()); return err == nil && n <= base.files+8 })
	eventually(t, "nothing is left in the spool", func() bool { return spoolEmpty(t, g) })
	if now := look(t, g); now.threads > base.threads+16 {
		t.Errorf("%d threads, %d before", now.threads, base.threads)
	}
}

// sessions returns how many sessions the gateway holds.
func sessions(ctx context.Context, t *testing.T, g *Gateway) int {
	t.Helper()
	out, err := g.Output(ctx, "stat", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Connections struct{ Open int }
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s.Connections.Open
}

// quickSink answers commands in as few writes as can be, as a server does that wants to be flooded.
func quickSink(t *testing.T, l net.Listener) {
	t.Helper()
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				in, out := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
				_, _ = out.WriteString("220 quick.lab.example ESMTP\r\n")
				for {
					// The rest of a line that is here in part may wait for these replies.
					if part, _ := in.Peek(in.Buffered()); !bytes.Contains(part, []byte("\n")) && out.Flush() != nil {
						return
					}
					line, err := in.ReadSlice('\n')
					if err != nil {
						return
					}
					if bytes.HasPrefix(line, []byte("EHLO")) {
						_, _ = out.WriteString("250-quick.lab.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n")
					} else {
						_, _ = out.WriteString("250 2.0.0 ok\r\n")
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
}

// TestG09 sends a gateway more than it may hold of everything: its memory stays where it was, what does not fit is
// refused for now, and afterwards nothing is left of it.
func TestG09(t *testing.T) {
	const (
		gigabyte = 1 << 30
		flood    = 1_000_000
		growth   = 64 << 20 // more than the runtime takes for itself, far less than any of the floods
	)
	l, ctx := newLab(t)
	listen, err := l.Server.Listen(HostPort(ServerIP4, 25))
	if err != nil {
		t.Fatal(err)
	}
	quickSink(t, listen)
	g := startGateway(ctx, t, l, "main", map[string]string{"LinuxFirewall.ForwardDivert": "Auto(interface:lan protected:25)", "Root.SpoolQuota": "64mb"})
	begin := func(t *testing.T) *Talk {
		t.Helper()
		c, err := l.Client.Dial(HostPort(ServerIP4, 25))
		if err != nil {
			t.Fatal(err)
		}
		talk := NewTalk(c)
		t.Cleanup(talk.Close)
		if err := talk.Greet(); err != nil {
			t.Fatal(err)
		}
		return talk
	}
	begin(t).Close() // what the first connection costs once and for all is not counted
	base := look(t, g)
	flat := func(t *testing.T) {
		t.Helper()
		if now := look(t, g); now.peak > base.peak+growth {
			t.Errorf("%d MiB at the highest, %d before", now.peak>>20, base.peak>>20)
		} else {
			t.Logf("%d MiB at the highest, %d before", now.peak>>20, base.peak>>20)
		}
	}
	lines := bytes.Repeat([]byte(strings.Repeat("0123456789", 7)+"\r\n"), 1000)
	for _, c := range []struct {
		name  string
		block []byte
	}{{"1 GB of DATA", lines}, {"a line of 1 GB", bytes.Repeat([]byte("x"), len(lines))}} {
		t.Run(c.name, func(t *testing.T) {
			talk := begin(t)
			if err := errors.Join(talk.Envelope("a@client.example", "b@server.example"), talk.Must(354, "DATA")); err != nil {
				t.Fatal(err)
			}
			said := make(chan answer, 1)
			go func() {
				r, err := talk.Reply()
				said <- answer{r, err}
			}()
			sent := 0
			for sent < gigabyte {
				n, err := talk.Write(c.block)
				sent += n
				if err != nil {
					t.Fatalf("after %d octets: %v", sent, err)
				}
				_ = talk.Conn.SetReadDeadline(time.Now().Add(talkTimeout))
			}
			if _, err := talk.Write([]byte("\r\n.\r\n")); err != nil {
				t.Fatal(err)
			}
			if a := <-said; a.err != nil || a.reply.Code/100 != 4 {
				t.Errorf("got %v %v, want a temporary no: the quota is full", a.reply, a.err)
			}
			if err := talk.Must(250, "NOOP"); err != nil {
				t.Errorf("the session afterwards: %v", err)
			}
			flat(t)
		})
	}
	t.Run("a command of 1 GB", func(t *testing.T) {
		talk := begin(t)
		sent := 0
		for sent < gigabyte {
			n, err := talk.Write(bytes.Repeat([]byte("x"), 64<<10))
			sent += n
			if err != nil {
				break
			}
		}
		if sent >= gigabyte {
			t.Error("the whole of it was taken")
		}
		flat(t)
	})
	for _, c := range []struct {
		name, first, line string
	}{{"a million RCPT", "MAIL FROM:<a@client.example>", "RCPT TO:<somebody-with-a-name@server.example>"}, {"a million NOOP", "RSET", "NOOP"}} {
		t.Run(c.name, func(t *testing.T) {
			talk := begin(t)
			if err := talk.Must(250, "%s", c.first); err != nil {
				t.Fatal(err)
			}
			var codes [6]int
			got := make(chan error, 1)
			go func() {
				for range flood {
					r, err := talk.Reply()
					if err != nil {
						got <- err
						return
					}
					codes[r.Code/100]++
				}
				got <- nil
			}()
			block := bytes.Repeat([]byte(c.line+"\r\n"), 1000)
			var sending error
			for range flood / 1000 {
				if _, sending = talk.Write(block); sending != nil {
					break
				}
			}
			if err := errors.Join(sending, <-got); err != nil {
				t.Fatalf("after %v replies: %v", codes, err)
			}
			if c.line == "NOOP" && codes[2] != flood || c.line != "NOOP" && (codes[2] == 0 || codes[4] == 0 || codes[2]+codes[4] != flood) {
				t.Errorf("replies by their first digit: %v", codes)
			}
			flat(t)
		})
	}
	returned(t, g, base)
}

// TestLeaks has 2,000 sessions of every kind come and go: good and refused, in the clear and in TLS, cut by FIN and by
// RST at every step. Nothing of them is left.
func TestLeaks(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	sink := &Sink{TLS: pki.Server, Forget: true}
	for _, ip := range []string{ServerIP4, ServerIP6} {
		listen, err := l.Server.Listen(HostPort(ip, 587))
		if err != nil {
			t.Fatal(err)
		}
		sink.Serve(listen)
	}
	t.Cleanup(sink.Close)
	g := startGateway(ctx, t, l, "main", settings(kinds()[0], pki, map[string]string{"LinuxFirewall.ThreatAction": "Reject"}))
	trust, err := ClientTLS(g.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	big := corpus.Big(300<<10, 4) // does not fit into the spool's memory
	steps := []Stage{"", "", AtConnect, AtTLS, AtMail, AtRcpt, AtData, AtContent, AtDot}
	session := func(i int) error {
		content, leave := []byte(simple), steps[i%len(steps)]
		switch i % 5 {
		case 1:
			content = threats[i%len(threats)].Data
		case 2:
			content = big
		}
		c, err := l.Client.Dial(HostPort([]string{ServerIP4, ServerIP6}[i%2], 587))
		if err != nil {
			return err
		}
		talk := NewTalk(c)
		if i%7 < 3 {
			defer talk.Reset()
		} else {
			defer talk.Close()
		}
		if i%3 == 0 && leave != AtConnect {
			if err := errors.Join(talk.Greet(), talk.Must(220, "STARTTLS")); err != nil || leave == AtTLS {
				return err
			}
			if err := talk.Handshake(trust); err != nil {
				return err
			}
			// Deliver begins with the banner, which is long gone.
			if err := talk.Must(250, "EHLO client.lab.example"); err != nil {
				return err
			}
			r, err := talk.Next(content)
			if err == nil && r.Good() != (i%5 != 1) {
				err = fmt.Errorf("got %s", r)
			}
			return err
		}
		r, err := talk.Deliver(content, "b@server.example", i%4 == 1, func(s Stage) error {
			if s == leave {
				return errHere
			}
			return nil
		})
		switch {
		case errors.Is(err, errHere), leave == AtTLS && err == nil:
			return nil
		case err == nil && r.Good() != (i%5 != 1):
			return fmt.Errorf("got %s", r)
		}
		return err
	}
	round := func(from, to int) {
		t.Helper()
		next := make(chan int)
		var running sync.WaitGroup
		for range 8 {
			running.Go(func() {
				for i := range next {
					if err := session(i); err != nil {
						t.Errorf("session %d: %v", i, err)
					}
				}
			})
		}
		for i := from; i < to; i++ {
			next <- i
		}
		close(next)
		running.Wait()
	}
	round(0, 200)
	eventually(t, "the first sessions end", func() bool { return sessions(ctx, t, g) == 0 })
	base := look(t, g)
	round(200, 1100)
	middle := look(t, g)
	round(1100, 2200)
	eventually(t, "the sessions end", func() bool { return sessions(ctx, t, g) == 0 })
	end := look(t, g)
	t.Logf("after 200, 1,100 and 2,200 sessions: %+v, %+v, %+v", base, middle, end)
	if end.peak > middle.peak+32<<20 {
		t.Errorf("the same again took %d MiB, %d before", end.peak>>20, middle.peak>>20)
	}
	returned(t, g, base)
}
