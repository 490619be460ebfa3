package lab

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mailweir/scripts/lab/corpus"
)

// TestG01 sends the corpus, and what no program would send, by DATA and by BDAT through each divert, in the clear and in
// TLS, and compares octets. That signatures verify after a real server is shown by TestMail.
func TestG01(t *testing.T) {
	odd := []string{"", "no end of line", "bare\nLF\n", "bare\rCR\r", "nul \x00 octets \x00", "blanks  \r\n\t\r\n \r\n", ".\r\n..\r\n", "\r\n", "\xff\xfe8-bit",
		strings.Repeat("x", 70_000), "\r\n.", "..", ".\n.\r"}
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			l, ctx := newLab(t)
			pki := newPKI(t, l)
			sink := &Sink{TLS: pki.Server}
			for _, ip := range k.ips {
				listen, err := k.at(l).Listen(HostPort(ip, 587))
				if err != nil {
					t.Fatal(err)
				}
				sink.Serve(listen)
			}
			t.Cleanup(sink.Close)
			g := startGateway(ctx, t, l, "main", settings(k, pki, nil))
			trust, err := ClientTLS(g.CAFile)
			if err != nil {
				t.Fatal(err)
			}
			for i, ip := range k.ips {
				for _, secure := range []bool{false, true} {
					sink.Clear()
					c, err := k.from(l).Dial(HostPort(ip, 587))
					if err != nil {
						t.Fatal(err)
					}
					talk := NewTalk(c)
					defer talk.Close()
					if err := talk.Greet(); err != nil {
						t.Fatal(err)
					}
					if secure {
						if err := errors.Join(talk.StartTLS(trust), talk.Must(250, "EHLO client.lab.example")); err != nil {
							t.Fatal(err)
						}
					}
					var sent [][]byte
					send := func(content []byte, bdat bool, params string) {
						t.Helper()
						sent = append(sent, content)
						if err := errors.Join(talk.Must(250, "MAIL FROM:<a@client.example>%s", params), talk.Must(250, "RCPT TO:<b@server.example>")); err != nil {
							t.Fatal(err)
						}
						var r Reply
						if bdat {
							r, err = talk.Bdat(content, 1000+100*len(sent))
						} else {
							r, err = talk.Data(content)
						}
						if err != nil || !r.Good() {
							t.Fatalf("message %d: %v %v", len(sent), r, err)
						}
					}
					for n, m := range messages(t) {
						send(m.Data, (n+i)%2 == 1, "")
					}
					for _, o := range odd {
						send([]byte(o), true, " BODY=BINARYMIME")
					}
					got := sink.Stored()
					if len(got) != len(sent) {
						t.Fatalf("sent %d, stored %d", len(sent), len(got))
					}
					for n := range sent {
						if !bytes.Equal(got[n].Data, sent[n]) {
							t.Errorf("message %d: %s", n, firstDifference(got[n].Data, sent[n]))
						}
						if got[n].TLS != secure {
							t.Errorf("message %d: TLS on the server's side: %v, on the client's: %v", n, got[n].TLS, secure)
						}
					}
				}
			}
		})
	}
}

// TestG04 watches the server's side while the engine thinks: it sees commands up to RCPT, and nothing of the message
// before the verdict; after a bad one, never.
func TestG04(t *testing.T) {
	r := newRig(t, nil)
	content := corpus.Big(2<<20, 9)
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.seen[AtData] + r.seen[AtContent]
	}
	for _, verb := range verbs() {
		for _, mood := range []Mood{Fine, Finding} {
			t.Run(fmt.Sprintf("%s %v", verb, map[Mood]string{Fine: "clean", Finding: "threat"}[mood]), func(t *testing.T) {
				to := fmt.Sprintf("g4-%s-%d@x", verb, mood)
				before := count()
				r.engine.Gate()
				r.engine.Feel(mood)
				got := make(chan answer, 1)
				go func() { got <- r.deliver(content, to, verb == "BDAT", nil) }()
				if err := r.engine.Entered(); err != nil {
					t.Error(err)
				}
				time.Sleep(200 * time.Millisecond) // time in which something could leak
				if n := count(); n != before {
					t.Error("the server was given the message before the verdict")
				}
				r.engine.Open()
				a := <-got
				if mood == Fine && (a.err != nil || !a.reply.Good() || r.copies(t, to, content) != 1) {
					t.Errorf("clean: %v %v", a.reply, a.err)
				}
				if mood == Finding {
					// The default is to take the threat out: what arrives then holds none of it.
					for _, s := range r.sink.Stored() {
						if s.To[0] == to && bytes.Contains(s.Data, content[600:900]) {
							t.Error("octets of the threat reached the server")
						}
					}
				}
			})
		}
	}
}

// TestG10 kills the gateway the moment it has said what becomes of a threat: the original is in the quarantine.
func TestG10(t *testing.T) {
	r := newRig(t, nil)
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		action string
		code   int
	}{{"Reject", 550}, {"Discard", 250}, {"Repack", 250}} {
		for _, verb := range verbs() {
			t.Run(c.action+" "+verb, func(t *testing.T) {
				if out, err := r.g.Command(r.ctx, "cfset", "LinuxFirewall.ThreatAction", c.action); err != nil {
					t.Fatal(err, out)
				}
				to := c.action + "-" + verb + "@server.example"
				a := r.deliver(threats[1].Data, to, verb == "BDAT", nil)
				r.g.Kill()
				if a.err != nil || a.reply.Code != c.code {
					t.Fatalf("%v %v, want %d", a.reply, a.err, c.code)
				}
				if err := r.g.Start(r.ctx); err != nil {
					t.Fatal(err)
				}
				items, err := r.g.Output(r.ctx, "quarantine", "list", "--json")
				if err != nil || !strings.Contains(items, to) {
					t.Errorf("%v; the quarantine does not have it:\n%s", err, items)
				}
			})
		}
	}
}

// TestG15 logs in with passwords that occur nowhere else and looks for them in everything that the gateway wrote.
func TestG15(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	k := kinds()[0]
	sink := &Sink{TLS: pki.Server}
	listen, err := l.Server.Listen(HostPort(ServerIP4, 587))
	if err != nil {
		t.Fatal(err)
	}
	sink.Serve(listen)
	t.Cleanup(sink.Close)
	g := startGateway(ctx, t, l, "main", settings(k, pki, map[string]string{"Root.DefaultLogLevel": "Debug"}))
	trust, err := ClientTLS(g.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	const user, password = "walter-the-user", "zugzwang-7731-password"
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, secure := range []bool{false, true} {
		for _, lines := range [][]string{
			{"AUTH PLAIN " + plain}, {"AUTH PLAIN", plain}, {"AUTH LOGIN", b64(user), b64(password)}, {"AUTH LOGIN " + b64(user), b64(password)},
			{"AUTH PLAIN " + plain + "!bad"}, {"AUTH NOSUCH " + plain}, {"AUTH LOGIN", b64(password)}, // broken off, refused, abandoned
		} {
			c, err := l.Client.Dial(HostPort(ServerIP4, 587))
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(c)
			if err := talk.Greet(); err != nil {
				t.Fatal(err)
			}
			if secure {
				if err := errors.Join(talk.StartTLS(trust), talk.Must(250, "EHLO client.lab.example")); err != nil {
					t.Fatal(err)
				}
			}
			var r Reply
			for _, line := range lines {
				if r, err = talk.Cmd("%s", line); err != nil {
					break
				}
			}
			if err == nil && r.Code == 235 {
				if r, err := talk.Next([]byte(simple)); err != nil || !r.Good() {
					t.Errorf("after %s: %v %v", lines[0], r, err)
				}
			}
			talk.Close()
		}
	}
	if n := sink.Count(); n < 8 {
		t.Errorf("only %d messages were sent by somebody who had logged in", n)
	}
	if _, err := g.Command(ctx, "stat", "--json"); err != nil {
		t.Error(err)
	}
	secrets := []string{password, plain, b64(password)}
	for shift := range 3 { // base64 of the password wherever it begins in a group of three
		enc := b64(strings.Repeat("x", shift) + password)
		secrets = append(secrets, enc[4*((shift+2)/3)+4:len(enc)-8])
	}
	files := 0
	err = filepath.WalkDir(g.Dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files++
		for _, s := range secrets {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%s holds %q", name, s)
			}
		}
		return nil
	})
	if err != nil || files < 4 {
		t.Errorf("%d files, %v", files, err)
	}
	limits, err := os.ReadFile(procPath(g.Pid(), "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(limits), "\n") {
		if strings.HasPrefix(line, "Max core file size") && strings.Fields(line)[4] != "0" {
			t.Errorf("a crash would leave a core: %s", line)
		}
	}
	if !strings.Contains(g.Log(), user) {
		t.Log("the user's name is not in the log either")
	}
}

// TestG16 connects through the gateway to the gateway itself, by every address it has: refused, and no chain of
// connections comes of it.
func TestG16(t *testing.T) {
	l, ctx := newLab(t)
	const ports = "protected:25,587,465)"
	g := startGateway(ctx, t, l, "main", map[string]string{
		"LinuxFirewall.InputDivert":   "Auto(interface:lan " + ports,
		"LinuxFirewall.ForwardDivert": "Auto(interface:lan " + ports,
		"LinuxFirewall.OutputDivert":  "Auto(" + ports,
	})
	base, err := Files(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []*Namespace{l.Client, l.Gateway} {
		for _, ip := range []string{LanIP4, WanIP4, LanIP6, WanIP6} {
			for _, port := range []int{25, 587} {
				start := time.Now()
				c, err := from.Dial(HostPort(ip, port))
				if err == nil {
					_, err = NewTalk(c).Reply()
					c.Close()
				}
				if err == nil {
					t.Errorf("%s port %d answered", ip, port)
				}
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("%s port %d: refused after %v", ip, port, took)
				}
				if n, err := Files(g.Pid()); err != nil || n > base+10 {
					t.Errorf("%s port %d: %d descriptors, %d before", ip, port, n, base)
				}
			}
		}
	}
	eventually(t, "descriptors are given back", func() bool { n, err := Files(g.Pid()); return err == nil && n <= base+2 })
}

// TestG17 has the server be down in each way there is.
func TestG17(t *testing.T) {
	l, ctx := newLab(t)
	startGateway(ctx, t, l, "main", map[string]string{"LinuxFirewall.ForwardDivert": "Auto(interface:lan protected:25,587,465)"})
	try := func(t *testing.T, ip string, wait time.Duration) (said string, err error) {
		t.Helper()
		c, err := l.Client.Dial(HostPort(ip, 25))
		if err != nil {
			return "", err
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	rules := func(t *testing.T, verdict string) {
		t.Helper()
		text := "table inet lab {\nchain input {\ntype filter hook input priority 0;\ntcp dport 25 " + verdict + "\n}\n}\n"
		if out, err := l.Server.Run(ctx, text, "nft", "-f", "-"); err != nil {
			t.Fatal(err, out)
		}
		t.Cleanup(func() { _, _ = l.Server.Run(context.Background(), "", "nft", "delete", "table", "inet", "lab") })
	}
	for _, ip := range []string{ServerIP4, ServerIP6} {
		t.Run("port closed "+family(ip), func(t *testing.T) {
			start := time.Now()
			said, err := try(t, ip, 5*time.Second)
			if err == nil || said != "" || time.Since(start) > time.Second {
				t.Errorf("said %q, %v, after %v", said, err, time.Since(start))
			}
			if !strings.Contains(fmt.Sprint(err), "reset") && !strings.Contains(fmt.Sprint(err), "refused") {
				t.Errorf("want a reset, got %v", err)
			}
		})
		t.Run("unreachable "+family(ip), func(t *testing.T) {
			rules(t, "reject with icmpx type host-unreachable")
			start := time.Now()
			said, err := try(t, ip, 10*time.Second)
			var ne net.Error
			if said != "" || err == nil || errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("said %q, %v, after %v", said, err, time.Since(start))
			}
		})
		t.Run("silent "+family(ip), func(t *testing.T) {
			rules(t, "drop")
			said, err := try(t, ip, 2*time.Second)
			var ne net.Error
			if said != "" || !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("said %q, %v: the gateway must wait as long as the client does", said, err)
			}
		})
	}
	t.Run("a mail server keeps its mail and delivers it later", func(t *testing.T) {
		p, err := l.StartPostfix(ctx, PostfixConfig{Name: "sender", NS: l.Client, Listen: "127.0.0.1:2525", Relay: "[" + ServerIP4 + "]:25",
			Main: "smtp_tls_security_level = none"})
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Client.Dial("127.0.0.1:2525")
		if err != nil {
			t.Fatal(err)
		}
		talk := NewTalk(c)
		defer talk.Close()
		if r, err := talk.Deliver([]byte(simple), "b@server.example", false, nil); err != nil || !r.Good() {
			t.Fatal(r, err)
		}
		eventually(t, "Postfix defers", func() bool { return strings.Contains(p.Log(), "status=deferred") })
		if strings.Contains(p.Log(), "status=bounced") {
			t.Fatal("Postfix gave up")
		}
		sink := &Sink{}
		listen, err := l.Server.Listen(HostPort(ServerIP4, 25))
		if err != nil {
			t.Fatal(err)
		}
		sink.Serve(listen)
		defer sink.Close()
		eventually(t, "Postfix delivers what it has kept", func() bool {
			if err := p.Flush(l.Client); err != nil {
				t.Fatal(err)
			}
			wait, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return sink.Wait(wait, 1) == nil
		})
	})
}

// TestX006 holds 5,000 sessions, or as many as this machine's limit of descriptors allows the gateway (four each), one in
// a hundred of them trickling content, and sends ordinary mail beside them.
func TestX006(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	sessions := min(5000, int(files.Max-1000)/4)
	if sessions < 1000 {
		t.Fatalf("%d descriptors are too few to show anything", files.Max)
	}
	r := newRig(t, map[string]string{"LinuxFirewall.MaxConnections": "9000", "LinuxFirewall.MaxConnectionsPerSource": "9000"})
	var held []*Talk
	t.Cleanup(func() {
		for _, talk := range held {
			talk.Reset()
		}
	})
	for i := range sessions {
		ip := []string{ServerIP4, ServerIP6}[i%2]
		c, err := r.lab.Client.Dial(HostPort(ip, 25))
		if err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		talk := NewTalk(c)
		held = append(held, talk)
		if err := talk.Greet(); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		if i%100 == 0 {
			if err := errors.Join(talk.Envelope("a@slow.example", "b@server.example"), talk.Must(354, "DATA")); err != nil {
				t.Fatalf("session %d: %v", i, err)
			}
		}
	}
	stop := make(chan struct{})
	var trickle sync.WaitGroup
	trickle.Go(func() {
		for {
			for i := 0; i < sessions; i += 100 {
				select {
				case <-stop:
					return
				default:
					_, _ = held[i].Write([]byte("x"))
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	var longest time.Duration
	for i := range 200 {
		start := time.Now()
		to := fmt.Sprintf("x6-%d@server.example", i)
		if a := r.deliver([]byte(simple), to, i%2 == 1, nil); a.err != nil || !a.reply.Good() {
			t.Fatalf("mail %d: %v %v", i, a.reply, a.err)
		}
		if n := r.copies(t, to, []byte(simple)); n != 1 {
			t.Errorf("mail %d: stored %d", i, n)
		}
		longest = max(longest, time.Since(start))
	}
	close(stop)
	trickle.Wait()
	rss, err := Resident(r.g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions; the slowest of 200 messages took %v; the gateway has %d MiB, %d KiB a session", sessions, longest, rss>>20, rss>>10/int64(sessions))
	if longest > 5*time.Second {
		t.Errorf("a small clean message took %v", longest)
	}
	for i := 1; i < sessions; i += 997 { // the others are alive
		if err := held[i].Must(250, "NOOP"); err != nil {
			t.Errorf("session %d: %v", i, err)
		}
	}
}

// TestX007 sends over links with an MTU of 1280 that lose every twentieth packet, octet by octet and with Nagle's
// algorithm on, by IPv6 and IPv4: the same octets arrive.
func TestX007(t *testing.T) {
	r := newRig(t, nil)
	for _, link := range []struct {
		ns  *Namespace
		dev string
	}{{r.lab.Client, "eth0"}, {r.lab.Gateway, "lan"}, {r.lab.Gateway, "wan"}, {r.lab.Server, "eth0"}} {
		if err := ip(r.ctx, "", "-n", link.ns.Name, "link", "set", link.dev, "mtu", "1280"); err != nil {
			t.Fatal(err)
		}
	}
	loss := "table inet loss {\nchain input {\ntype filter hook input priority 0;\ntcp dport 25 numgen random mod 100 < 5 drop\ntcp sport 25 numgen random mod 100 < 5 drop\n}\n}\n"
	for _, ns := range []*Namespace{r.lab.Client, r.lab.Server} {
		if out, err := ns.Run(r.ctx, loss, "nft", "-f", "-"); err != nil {
			t.Fatal(err, out)
		}
	}
	var running sync.WaitGroup
	for _, ip := range []string{ServerIP6, ServerIP4} {
		for _, verb := range verbs() {
			for _, style := range []string{"octet by octet", "nagle", "corked"} {
				running.Go(func() {
					name := family(ip) + " " + verb + " " + style
					to := strings.ReplaceAll(name, " ", "-") + "@server.example"
					content := corpus.Big(60_000, 11)
					if style == "octet by octet" {
						content = content[:1500]
						content = append(content, "\r\n"...)
					}
					c, err := r.lab.Client.Dial(HostPort(ip, 25))
					if err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					if err := c.(*net.TCPConn).SetNoDelay(style == "octet by octet"); err != nil {
						t.Error(err)
					}
					talk := NewTalk(&pieces{Conn: c, style: style})
					defer talk.Close()
					if reply, err := talk.Deliver(content, to, verb == "BDAT", nil); err != nil || !reply.Good() {
						t.Errorf("%s: %v %v", name, reply, err)
						return
					}
					if n := r.copies(t, to, content); n != 1 {
						t.Errorf("%s: stored %d", name, n)
					}
				})
			}
		}
	}
	running.Wait()
}

// pieces writes in the ways of odd clients.
type pieces struct {
	net.Conn
	style string
}

// Write writes octet by octet, or in lumps whose ends fall anywhere.
func (p *pieces) Write(b []byte) (n int, err error) {
	size := map[string]int{"octet by octet": 1, "nagle": 77, "corked": 4001}[p.style]
	for n < len(b) && err == nil {
		var k int
		k, err = p.Conn.Write(b[n:min(len(b), n+size)])
		n += k
	}
	return n, err
}

// TestX009 puts two gateways in a row, the inner one on the server's own machine: the outer trusts the inner's
// authority only if it is told to.
func TestX009(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	sink := &Sink{TLS: pki.Server}
	listen, err := l.Server.Listen(HostPort(ServerIP4, 587))
	if err != nil {
		t.Fatal(err)
	}
	sink.Serve(listen)
	t.Cleanup(sink.Close)
	inner, err := l.StartGateway(ctx, GatewayConfig{Name: "inner", Binary: mailweir(t), NS: l.Server, Settings: map[string]string{
		"LinuxFirewall.InputDivert": "Auto(interface:eth0 protected:587)", "LinuxFirewall.UnwrapSsl": "Yes", "LinuxFirewall.TlsTrustedCa": pki.CAFile,
	}})
	if err != nil {
		t.Fatal(err)
	}
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	through := func(ca string, content []byte) (Reply, error) {
		trust, err := ClientTLS(ca)
		if err != nil {
			return Reply{}, err
		}
		c, err := l.Client.Dial(HostPort(ServerIP4, 587))
		if err != nil {
			return Reply{}, err
		}
		talk := NewTalk(c)
		defer talk.Close()
		if err := talk.Greet(); err != nil {
			return Reply{}, err
		}
		if err := talk.StartTLS(trust); err != nil {
			return Reply{}, err
		}
		if err := talk.Must(250, "EHLO client.lab.example"); err != nil {
			return Reply{}, err
		}
		return talk.Next(content)
	}
	settings := func(trusted string) map[string]string {
		return map[string]string{"LinuxFirewall.ForwardDivert": "Auto(interface:lan protected:587)", "LinuxFirewall.UnwrapSsl": "Yes",
			"LinuxFirewall.TlsTrustedCa": trusted, "LinuxFirewall.ThreatAction": "Reject"}
	}
	t.Run("different authorities, told to trust", func(t *testing.T) {
		outer := startGateway(ctx, t, l, "outer", settings(inner.CAFile))
		defer outer.Kill()
		sink.Clear()
		if r, err := through(outer.CAFile, []byte(simple)); err != nil || !r.Good() {
			t.Fatal(r, err)
		}
		got := sink.Stored()
		if len(got) != 1 || string(got[0].Data) != simple || got[0].Peer.String() != ClientIP4 || !got[0].TLS {
			t.Errorf("the server has %+v", got)
		}
		if r, err := through(outer.CAFile, threats[0].Data); err != nil || r.Code != 550 {
			t.Errorf("a threat: %v %v", r, err)
		}
		if err := outer.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("different authorities, not told", func(t *testing.T) {
		outer := startGateway(ctx, t, l, "stranger", settings(pki.CAFile))
		sink.Clear()
		if r, err := through(outer.CAFile, []byte(simple)); err == nil {
			t.Errorf("went through: %v", r)
		}
		if n := sink.Count(); n != 0 {
			t.Errorf("the server has %d messages", n)
		}
		if err := outer.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("the same authority, never trusted upstream", func(t *testing.T) {
		// The outer one has the inner one's authority as its own: what it signed itself must not count as proof (T-028).
		same := l.Path("mailweir-same", "state")
		if err := os.MkdirAll(same, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := l.Gateway.Run(ctx, "", "cp", "-a", filepath.Join(inner.Dir, "state", authorityDir(t, inner)), same); err != nil {
			t.Fatal(err, out)
		}
		outer := startGateway(ctx, t, l, "same", settings(pki.CAFile))
		a, err := os.ReadFile(outer.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(inner.CAFile)
		if err != nil || !bytes.Equal(a, b) {
			t.Fatalf("the authorities differ: %v", err)
		}
		sink.Clear()
		if r, err := through(outer.CAFile, []byte(simple)); err == nil {
			t.Errorf("went through: %v", r)
		}
		if err := outer.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

// authorityDir finds the directory of the authority below the state directory.
func authorityDir(t *testing.T, g *Gateway) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(g.Dir, "state/*/ca.pem"))
	if err != nil || len(found) != 1 {
		t.Fatalf("authorities: %v %v", found, err)
	}
	return filepath.Base(filepath.Dir(found[0]))
}
