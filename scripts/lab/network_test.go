package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestNetwork shows that the lab's three places reach each other as drawn, and that nothing is left of it.
func TestNetwork(t *testing.T) {
	l, _ := newLab(t)
	for _, c := range []struct {
		name   string
		at     *Namespace
		listen string
		from   *Namespace
		source string
	}{
		{"client to server, IPv4", l.Server, ServerIP4, l.Client, ClientIP4},
		{"client to server, IPv6", l.Server, ServerIP6, l.Client, ClientIP6},
		{"client to gateway, IPv4", l.Gateway, LanIP4, l.Client, ClientIP4},
		{"client to gateway, IPv6", l.Gateway, LanIP6, l.Client, ClientIP6},
		{"gateway to server, IPv4", l.Server, ServerIP4, l.Gateway, WanIP4},
		{"gateway to server, IPv6", l.Server, ServerIP6, l.Gateway, WanIP6},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Sink{}
			listen, err := c.at.Listen(net.JoinHostPort(c.listen, "25"))
			if err != nil {
				t.Fatal(err)
			}
			s.Serve(listen)
			defer s.Close()
			conn, err := c.from.Dial(net.JoinHostPort(c.listen, "25"))
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(conn)
			defer talk.Close()
			if err := talk.Greet(); err != nil {
				t.Fatal(err)
			}
			if err := talk.Envelope("a@b", "c@d"); err != nil {
				t.Fatal(err)
			}
			if r, err := talk.Data([]byte(simple)); err != nil || !r.Good() {
				t.Fatal(r, err)
			}
			got := s.Stored()
			if len(got) != 1 || string(got[0].Data) != simple || got[0].Peer.String() != c.source {
				t.Errorf("stored %d from %v", len(got), s.Peers())
			}
		})
	}
	names := []string{l.Client.Name, l.Gateway.Name, l.Server.Name}
	dir := l.Dir
	l.Close()
	left, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.Contains(string(left), n) {
			t.Errorf("namespace %s is left", n)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory %s is left", dir)
	}
}

// TestSweep shows that what a killed run left behind goes with the next.
func TestSweep(t *testing.T) {
	_, ctx := newLab(t)
	// A process that is certainly gone: its number was just given back.
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	name := prefix + "-" + strconv.Itoa(gone.Process.Pid) + "-abc-c"
	if err := ip(ctx, "", "netns", "add", name); err != nil {
		t.Fatal(err)
	}
	ns := &Namespace{Name: name}
	t.Cleanup(ns.remove)
	if err := Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/run/netns/" + name); !os.IsNotExist(err) {
		t.Error("a dead run's namespace was not swept")
	}
}

// TestSink shows that the sink keeps octets, by DATA and by BDAT, and ends data at CRLF.CRLF only.
func TestSink(t *testing.T) {
	for _, content := range []string{simple, "", ".\r\n", "..\r\n.\r\n", "a\n.\nb\r\n", "a\n.\r\nb\r\n", "a\r.\rb\r\n", "nul \x00\r\n", strings.Repeat("x", 200_000) + "\r\n.\r\n"} {
		for _, bdat := range []bool{false, true} {
			s := &Sink{}
			listen, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s.Serve(listen)
			conn, err := net.Dial("tcp", listen.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(conn)
			if err := talk.Greet(); err != nil {
				t.Fatal(err)
			}
			if err := talk.Envelope("", "c@d", "e@f"); err != nil {
				t.Fatal(err)
			}
			var r Reply
			if bdat {
				r, err = talk.Bdat([]byte(content), 7000)
			} else {
				r, err = talk.Data([]byte(content))
			}
			if err != nil || !r.Good() {
				t.Fatalf("%.20q: %v %v", content, r, err)
			}
			talk.Close()
			if got := s.Stored(); len(got) != 1 || string(got[0].Data) != content {
				t.Errorf("%.20q (bdat %v): stored %d, %.40q", content, bdat, len(got), got[0].Data)
			}
			s.Close()
		}
	}
}

// TestSinkForgets shows that the measuring sink finds the end of data wherever reads are cut.
func TestSinkForgets(t *testing.T) {
	wire := "\r\n.x\r\n..\r\n\n.\r\n.\r\n"
	for _, body := range []string{wire, ".\r\n", strings.Repeat("x", 70_000) + wire} {
		for cut := range min(len(body), 30) {
			s := &Sink{Forget: true}
			listen, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s.Serve(listen)
			conn, err := net.Dial("tcp", listen.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(conn)
			if err := errors.Join(talk.Greet(), talk.Envelope("a@b", "c@d"), talk.Must(354, "DATA")); err != nil {
				t.Fatal(err)
			}
			for _, piece := range []string{body[:len(body)-cut], body[len(body)-cut:]} {
				if _, err := talk.Write([]byte(piece)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond) // so that it comes in two reads
			}
			if r, err := talk.Reply(); err != nil || !r.Good() {
				t.Fatalf("cut %d before the end: %v %v", cut, r, err)
			}
			if err := talk.Must(250, "NOOP"); err != nil {
				t.Errorf("cut %d before the end: %v", cut, err)
			}
			talk.Close()
			s.Close()
		}
	}
}

// TestPeers shows that a server and a client in processes of their own speak, hold and can be killed.
func TestPeers(t *testing.T) {
	l, ctx := newLab(t)
	store := l.Path("store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	file := l.Path("message")
	if err := os.WriteFile(file, []byte(simple), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := l.Server.Peer(ctx, Script{Role: "server", Addr: ServerIP4 + ":25", Dir: store, HoldAt: AtReply})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Kill()
	if _, err := server.Await("listening"); err != nil {
		t.Fatal(err)
	}
	for _, bdat := range []bool{false, true} {
		client, err := l.Client.Peer(ctx, Script{Role: "client", Addr: ServerIP4 + ":25", To: "b@server.example", File: file, Bdat: bdat})
		if err != nil {
			t.Fatal(err)
		}
		if !bdat { // the server holds once
			if _, err := server.Await("at"); err != nil {
				t.Fatal(err)
			}
			if err := server.Go(); err != nil {
				t.Fatal(err)
			}
		}
		if code, err := client.Await("sent"); err != nil || code != "250" {
			t.Fatal(code, err)
		}
		client.Kill()
	}
	got, err := StoredIn(store)
	if err != nil || len(got) != 2 || string(got[0].Data) != simple || string(got[1].Data) != simple {
		t.Fatalf("stored %d, %v", len(got), err)
	}
	server.Kill()
	dial, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := l.Client.Reachable(dial, ServerIP4+":25"); err == nil {
		t.Error("the killed server still listens")
	}
}
