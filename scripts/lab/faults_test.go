package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

// rig is a lab for accidents: a strict sink as the server, an engine that misbehaves when told to, the gateway between
// them with ForwardDivert, and a place to hold at.
type rig struct {
	lab    *Lab
	ctx    context.Context
	g      *Gateway
	engine *Engine
	sink   *Sink

	mu      sync.Mutex
	seen    map[Stage]int // how often conversations came to a stage
	holdAt  Stage
	reached chan struct{}
	release chan struct{}
}

func newRig(t *testing.T, more map[string]string) *rig {
	t.Helper()
	l, ctx := newLab(t)
	r := &rig{lab: l, ctx: ctx, seen: map[Stage]int{}}
	r.sink = &Sink{At: func(s Stage, _ net.Conn) error { return r.hold(s) }}
	for _, ip := range []string{ServerIP4, ServerIP6} {
		listen, err := l.Server.Listen(HostPort(ip, 25))
		if err != nil {
			t.Fatal(err)
		}
		r.sink.Serve(listen)
	}
	t.Cleanup(r.sink.Close)
	t.Cleanup(r.letGo)
	var err error
	if r.engine, err = NewEngine(l.Path("engine.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.engine.Crash)
	s := map[string]string{"LinuxFirewall.ForwardDivert": "Auto(interface:lan protected:25)", "ClamD.ClamdSocket": r.engine.Path}
	for k, v := range more {
		s[k] = v
	}
	r.g = startGateway(ctx, t, l, "main", s)
	return r
}

// holdNext has the next conversation that comes to the stage at the server wait there.
func (r *rig) holdNext(s Stage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdAt, r.reached, r.release = s, make(chan struct{}), make(chan struct{})
}

func (r *rig) hold(s Stage) error {
	r.mu.Lock()
	r.seen[s]++
	if s != r.holdAt || r.release == nil {
		r.mu.Unlock()
		return nil
	}
	reached, release := r.reached, r.release
	r.holdAt = ""
	r.mu.Unlock()
	close(reached)
	<-release
	return nil
}

// letGo lets whoever is held go on.
func (r *rig) letGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdAt = ""
	if r.release != nil {
		close(r.release)
		r.release = nil
	}
}

// awaitHeld waits until somebody is held.
func (r *rig) awaitHeld(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	reached := r.reached
	r.mu.Unlock()
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		t.Fatal("the server was never where it was to be held")
	}
}

// call connects a client to the server's port 25.
func (r *rig) call() (*Talk, error) {
	c, err := r.lab.Client.Dial(HostPort(ServerIP4, 25))
	if err != nil {
		return nil, err
	}
	return NewTalk(c), nil
}

// answer is what a client believes of its message.
type answer struct {
	reply Reply
	err   error
}

// deliver sends content in a conversation of its own.
func (r *rig) deliver(content []byte, to string, bdat bool, at func(Stage) error) answer {
	talk, err := r.call()
	if err != nil {
		return answer{err: err}
	}
	defer talk.Close()
	reply, err := talk.Deliver(content, to, bdat, at)
	return answer{reply, err}
}

// copies returns how often a message was stored, and complains about any that is not whole.
func (r *rig) copies(t *testing.T, to string, content []byte) (n int) {
	t.Helper()
	for _, s := range r.sink.Stored() {
		if s.To[0] != to {
			continue
		}
		n++
		if !bytes.Equal(s.Data, content) {
			t.Errorf("%s was stored changed or cut: %d octets of %d", to, len(s.Data), len(content))
		}
	}
	return n
}

// quiet waits until the server holds no conversation.
func (r *rig) quiet(t *testing.T) {
	t.Helper()
	eventually(t, "the server's conversations end", func() bool {
		r.sink.mu.Lock()
		defer r.sink.mu.Unlock()
		return len(r.sink.conns) == 0
	})
}

// eventually waits for something that must come true by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// verbs are the two ways in which content travels.
func verbs() []string { return []string{"DATA", "BDAT"} }

// instants are the moments of an accident. window marks those in which the server may have the message although nobody
// told the client: RFC 1047, the same as without a gateway.
func instants() []struct {
	name   string
	client Stage // the client is before this step …
	server Stage // … or the server here …
	scan   bool  // … or the engine has the message
	window bool
} {
	return []struct {
		name   string
		client Stage
		server Stage
		scan   bool
		window bool
	}{
		{name: "before the banner", client: AtConnect},
		{name: "before MAIL", client: AtMail},
		{name: "before RCPT", client: AtRcpt},
		{name: "before content", client: AtData},
		{name: "before the first half", client: AtContent},
		{name: "mid spool", client: AtDot},
		{name: "in scan", scan: true},
		{name: "server before 354", server: AtData},
		{name: "server has the first octets", server: AtContent},
		{name: "server has all", server: AtDot, window: true},
		{name: "server stored", server: AtReply, window: true},
		{name: "server replied", server: AtDone, window: true},
	}
}

// accident sends a message, has break called at the instant, lets everybody go on, and returns what the client
// believes. content is large enough not to fit into the sockets' buffers, so that the instants are apart.
func (r *rig) accident(t *testing.T, content []byte, to string, bdat bool, client, server Stage, scan bool, happen func()) answer {
	t.Helper()
	if server != "" {
		r.holdNext(server)
	}
	if scan {
		r.engine.Feel(Hanging)
	}
	got := make(chan answer, 1)
	go func() {
		got <- r.deliver(content, to, bdat, func(s Stage) error {
			if s == client {
				happen()
			}
			return nil
		})
	}()
	switch {
	case server != "":
		r.awaitHeld(t)
		happen()
	case scan:
		if err := r.engine.Entered(); err != nil {
			t.Error(err)
		}
		happen()
	}
	// BDAT of the gateway may be one chunk: the server that waits for content sees the end of its connection.
	r.letGo()
	if scan {
		r.engine.Feel(Fine)
	}
	select {
	case a := <-got:
		return a
	case <-time.After(60 * time.Second):
		t.Fatal("the client heard nothing for a minute")
		return answer{}
	}
}

// account compares what the client believes with what the server has.
func (r *rig) account(t *testing.T, a answer, to string, content []byte, window bool) {
	t.Helper()
	r.quiet(t)
	n := r.copies(t, to, content)
	switch {
	case a.err == nil && a.reply.Good() && n != 1:
		t.Errorf("the client was told %s and the server has %d", a.reply, n)
	case (a.err != nil || !a.reply.Good()) && n > 0 && !window:
		t.Errorf("the client was told %v %v and the server has %d", a.reply, a.err, n)
	case n > 1:
		t.Errorf("the server has %d", n)
	}
}

// again sends the message as a client whose first try failed does, and it must arrive.
func (r *rig) again(t *testing.T, a answer, to string, content []byte, bdat bool) {
	t.Helper()
	if a.err == nil && a.reply.Good() {
		return
	}
	before := r.copies(t, to, content)
	b := r.deliver(content, to, bdat, nil)
	if b.err != nil || !b.reply.Good() {
		t.Fatalf("second try: %v %v", b.reply, b.err)
	}
	if n := r.copies(t, to, content); n != before+1 {
		t.Errorf("the second try made %d of %d", n, before)
	}
}

// TestX001KillGateway kills the gateway at every step of DATA and of BDAT.
func TestX001KillGateway(t *testing.T) {
	r := newRig(t, nil)
	content := corpus.Big(3<<20, 1)
	for _, verb := range verbs() {
		for i, x := range instants() {
			t.Run(verb+" "+x.name, func(t *testing.T) {
				to := fmt.Sprintf("x1-%s-%d@server.example", verb, i)
				a := r.accident(t, content, to, verb == "BDAT", x.client, x.server, x.scan, r.g.Kill)
				r.account(t, a, to, content, x.window)
				r.refused(t)
				if err := r.g.Start(r.ctx); err != nil {
					t.Fatal(err)
				}
				r.again(t, a, to, content, verb == "BDAT")
			})
		}
	}
	t.Run("after the reply", func(t *testing.T) {
		const to = "x1-after@server.example"
		a := r.deliver(content, to, false, nil)
		r.g.Kill()
		r.account(t, a, to, content, false)
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("after the quarantine was written", func(t *testing.T) { r.killAfterQuarantine(t) })
	t.Run("any instant, under load", func(t *testing.T) { r.killUnderLoad(t) })
}

// refused shows that with FailMode Closed nothing passes while the gateway is dead.
func (r *rig) refused(t *testing.T) {
	t.Helper()
	n := len(r.sink.Peers())
	if talk, err := r.call(); err == nil {
		if reply, err := talk.Reply(); err == nil {
			t.Errorf("a dead gateway let somebody through: %s", reply)
		}
		talk.Close()
	}
	if m := len(r.sink.Peers()); m != n {
		t.Error("a dead gateway let a connection through")
	}
}

// killAfterQuarantine has the gateway take threats with "250" (Discard) and kills it at once, and at other moments
// nearby: whoever heard 250 finds the message in the quarantine.
func (r *rig) killAfterQuarantine(t *testing.T) {
	if out, err := r.g.Command(r.ctx, "cfset", "LinuxFirewall.ThreatAction", "Discard"); err != nil {
		t.Fatal(err, out)
	}
	defer func() {
		if _, err := r.g.Command(r.ctx, "cfset", "LinuxFirewall.ThreatAction", "-r"); err != nil {
			t.Error(err)
		}
	}()
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for i := range 12 {
		to := fmt.Sprintf("quarantine-%d@server.example", i)
		var once sync.Once
		a := r.deliver(threats[0].Data, to, i%2 == 1, func(s Stage) error {
			if s == AtReply && i > 2 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, func() { once.Do(r.g.Kill) })
			}
			return nil
		})
		once.Do(r.g.Kill)
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		items, err := r.g.Output(r.ctx, "quarantine", "list", "--json")
		if err != nil {
			t.Fatal(err)
		}
		if a.err == nil && a.reply.Good() {
			told++
			if !strings.Contains(items, to) {
				t.Errorf("the client was told %s and the quarantine has nothing for %s:\n%s", a.reply, to, items)
			}
		}
		if n := r.copies(t, to, nil); n > 0 {
			t.Errorf("%s reached the server", to)
		}
	}
	if told < 3 {
		t.Errorf("only %d clients were told anything", told)
	}
}

// killUnderLoad kills the gateway at arbitrary moments while clients send one message after the other.
func (r *rig) killUnderLoad(t *testing.T) {
	const rounds, clients = 6, 4
	small := corpus.Big(20<<10, 2)
	var mu sync.Mutex
	believed := map[string]bool{} // what clients were told
	for round := range rounds {
		var running sync.WaitGroup
		stop := make(chan struct{})
		for c := range clients {
			running.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					to := fmt.Sprintf("load-%d-%d-%d@server.example", round, c, i)
					a := r.deliver(small, to, i%2 == 1, nil)
					mu.Lock()
					believed[to] = a.err == nil && a.reply.Good()
					mu.Unlock()
					if a.err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(100+37*round) * time.Millisecond)
		r.g.Kill()
		close(stop)
		running.Wait()
		r.quiet(t)
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
	}
	count := map[string]int{}
	for _, s := range r.sink.Stored() {
		count[s.To[0]]++
		if strings.HasPrefix(s.To[0], "load-") && !bytes.Equal(s.Data, small) {
			t.Errorf("%s was cut: %d octets of %d", s.To[0], len(s.Data), len(small))
		}
	}
	good := 0
	for to, told := range believed {
		if told {
			good++
		}
		if told && count[to] != 1 || count[to] > 1 {
			t.Errorf("%s: told %v, stored %d", to, told, count[to])
		}
	}
	t.Logf("%d messages, %d of them confirmed", len(believed), good)
	if good < rounds*clients {
		t.Errorf("only %d messages were confirmed: nothing was tried", good)
	}
}

// TestKillServer kills the server, a process of its own, at every step.
func TestKillServer(t *testing.T) {
	r := newRig(t, nil)
	r.sink.Close()
	content := corpus.Big(3<<20, 3)
	for _, verb := range verbs() {
		for i, x := range []Stage{AtConnect, AtEhlo, AtMail, AtRcpt, AtData, AtContent, AtDot, AtReply, AtDone} {
			name := fmt.Sprintf("%s at %s", verb, x)
			if x == AtReply { // the server has it, and its reply is never read
				name += " G-03"
			}
			t.Run(name, func(t *testing.T) {
				store := t.TempDir()
				server, err := r.lab.Server.Peer(r.ctx, Script{Role: "server", Addr: HostPort(ServerIP4, 25), Dir: store, HoldAt: x})
				if err != nil {
					t.Fatal(err)
				}
				defer server.Kill()
				if _, err := server.Await("listening"); err != nil {
					t.Fatal(err)
				}
				to := fmt.Sprintf("server-%s-%d@server.example", verb, i)
				got := make(chan answer, 1)
				go func() { got <- r.deliver(content, to, verb == "BDAT", nil) }()
				if _, err := server.Await("at"); err != nil {
					t.Fatal(err)
				}
				server.Kill()
				var a answer
				select {
				case a = <-got:
				case <-time.After(30 * time.Second):
					t.Fatal("the client heard nothing")
				}
				stored, err := StoredIn(store)
				if err != nil {
					t.Fatal(err)
				}
				told := a.err == nil && a.reply.Good()
				if told != (x == AtDone) && !(x == AtDone && !told) {
					t.Errorf("killed at %s, the client was told %v %v", x, a.reply, a.err)
				}
				if a.err == nil && a.reply.Code >= 500 {
					t.Errorf("killed at %s, the client was told not to try again: %s", x, a.reply)
				}
				if told && len(stored) != 1 || len(stored) > 1 || len(stored) == 1 && x != AtReply && x != AtDone {
					t.Errorf("killed at %s: told %v, stored %d", x, told, len(stored))
				}
				for _, s := range stored {
					if !bytes.Equal(s.Data, content) {
						t.Errorf("stored %d octets of %d", len(s.Data), len(content))
					}
				}
			})
		}
	}
}

// TestKillClient kills the client, a process of its own, at every step: before its last octet is out nothing may be
// stored, and never a part of it.
func TestKillClient(t *testing.T) {
	r := newRig(t, nil)
	content := corpus.Big(1<<20, 4)
	file := r.lab.Path("content")
	if err := writeFile(file, content); err != nil {
		t.Fatal(err)
	}
	for _, verb := range verbs() {
		for i, x := range []Stage{AtConnect, AtMail, AtRcpt, AtData, AtContent, AtDot} {
			t.Run(fmt.Sprintf("%s at %s", verb, x), func(t *testing.T) {
				to := fmt.Sprintf("client-%s-%d@server.example", verb, i)
				client, err := r.lab.Client.Peer(r.ctx, Script{Role: "client", Addr: HostPort(ServerIP4, 25), To: to, File: file, Bdat: verb == "BDAT", HoldAt: x})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Await("at"); err != nil {
					client.Kill()
					t.Fatal(err)
				}
				client.Kill()
				r.quiet(t)
				if n := r.copies(t, to, content); n != 0 {
					t.Errorf("stored %d", n)
				}
			})
		}
	}
	if a := r.deliver(content, "after@server.example", false, nil); a.err != nil || !a.reply.Good() {
		t.Errorf("afterwards: %v %v", a.reply, a.err)
	}
	eventually(t, "nothing is left in the spool", func() bool { return spoolEmpty(t, r.g) })
}

// TestX004Engine has the engine crash, hang, dawdle, talk nonsense and find things: the configured policy each time, and
// never an unscanned pass.
func TestX004Engine(t *testing.T) {
	r := newRig(t, map[string]string{"ClamD.ClamdTimeout": "2s", "LinuxFirewall.ScanTimeout": "4s"})
	content := []byte(simple)
	try := func(t *testing.T, to string, code int) {
		t.Helper()
		for _, verb := range verbs() {
			to := verb + "-" + to
			a := r.deliver(content, to, verb == "BDAT", nil)
			if a.err != nil || a.reply.Code != code {
				t.Fatalf("%s: %v %v, want %d", verb, a.reply, a.err, code)
			}
			want := 0
			if code == 250 {
				want = 1
			}
			if n := r.copies(t, to, content); n != want {
				t.Errorf("%s: stored %d, want %d", verb, n, want)
			}
		}
	}
	t.Run("fine", func(t *testing.T) {
		n := r.engine.Objects()
		try(t, "fine@x", 250)
		if r.engine.Objects() == n {
			t.Error("the engine was not asked")
		}
	})
	// After a failure the gateway asks the engine whether it is there before it gives it anything, and not all the time.
	recovers := func(t *testing.T, to string) {
		t.Helper()
		n := 0
		eventually(t, "mail passes again", func() bool {
			n++
			a := r.deliver(content, fmt.Sprintf("%d-%s", n, to), false, nil)
			return a.err == nil && a.reply.Good()
		})
		try(t, to, 250)
	}
	for _, c := range []struct {
		name string
		mood Mood
		code int
	}{{"hangs", Hanging, 451}, {"slow", Slow, 250}, {"garbage", Garbage, 451}} {
		t.Run(c.name, func(t *testing.T) {
			r.engine.Feel(c.mood)
			try(t, c.name+"@x", c.code)
			r.engine.Feel(Fine)
			recovers(t, "after-"+c.name+"@x")
		})
	}
	t.Run("dead", func(t *testing.T) {
		r.engine.Crash()
		try(t, "dead@x", 451)
		if err := r.engine.Start(); err != nil {
			t.Fatal(err)
		}
		recovers(t, "alive@x")
	})
	t.Run("dies in scan", func(t *testing.T) {
		for _, verb := range verbs() {
			to := verb + "-dies@x"
			a := r.accident(t, content, to, verb == "BDAT", "", "", true, r.engine.Crash)
			if a.err != nil || a.reply.Code != 451 {
				t.Errorf("%v %v, want 451", a.reply, a.err)
			}
			r.account(t, a, to, content, false)
			if err := r.engine.Start(); err != nil {
				t.Fatal(err)
			}
			recovers(t, verb+"-alive-again@x")
		}
	})
	t.Run("fail open is a setting", func(t *testing.T) {
		if _, err := r.g.Command(r.ctx, "cfset", "LinuxFirewall.EngineFailure", "Pass"); err != nil {
			t.Fatal(err)
		}
		r.engine.Crash()
		try(t, "open@x", 250)
		events, err := r.g.Events()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range events {
			found = found || e.Action == "Pass" && strings.Contains(e.Reason, "unavailable") && strings.Contains(strings.Join(e.To, " "), "open@x")
		}
		if !found {
			t.Errorf("no event says that a message passed unscanned: %+v", events[max(0, len(events)-3):])
		}
		if err := r.engine.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.g.Command(r.ctx, "cfset", "LinuxFirewall.EngineFailure", "-r"); err != nil {
			t.Fatal(err)
		}
		r.engine.Crash()
		try(t, "closed-again@x", 451)
	})
}

// TestClientAddress shows, octet for octet of the address, that the server sees who is there: address and port.
func TestClientAddress(t *testing.T) {
	r := newRig(t, nil)
	for _, ip := range []string{ClientIP4, ClientIP6} {
		server := ServerIP4
		if ip == ClientIP6 {
			server = ServerIP6
		}
		r.sink.Clear()
		c, err := r.lab.Client.DialFrom(net.JoinHostPort(ip, "33333"), HostPort(server, 25))
		if err != nil {
			t.Fatal(err)
		}
		talk := NewTalk(c)
		if reply, err := talk.Deliver([]byte(simple), "b@server.example", false, nil); err != nil || !reply.Good() {
			t.Fatal(reply, err)
		}
		talk.Close()
		got := r.sink.Stored()
		if len(got) != 1 || got[0].Peer != netip.MustParseAddr(ip) || got[0].Port != 33333 {
			t.Errorf("%s: the server saw %v", ip, got[0].Peer)
		}
	}
}

var errHere = errors.New("here")

// TestAborts ends the client's side by FIN and by RST, and the server's by both, at every step: no false completion,
// nothing stored in part, nothing left open.
func TestAborts(t *testing.T) {
	r := newRig(t, nil)
	content := corpus.Big(1<<20, 5)
	base, err := Files(r.g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range verbs() {
		for _, how := range []string{"FIN", "RST"} {
			for i, x := range []Stage{AtConnect, AtMail, AtRcpt, AtData, AtContent, AtDot} {
				t.Run(fmt.Sprintf("client's %s, %s, at %s", how, verb, x), func(t *testing.T) {
					to := fmt.Sprintf("abort-%s-%s-%d@server.example", how, verb, i)
					talk, err := r.call()
					if err != nil {
						t.Fatal(err)
					}
					if _, err := talk.Deliver(content, to, verb == "BDAT", func(s Stage) error {
						if s == x {
							return errHere
						}
						return nil
					}); !errors.Is(err, errHere) {
						t.Fatal(err)
					}
					if how == "RST" {
						talk.Reset()
					} else {
						talk.Close()
					}
					r.quiet(t)
					if n := r.copies(t, to, content); n != 0 {
						t.Errorf("stored %d", n)
					}
				})
			}
		}
	}
	eventually(t, "descriptors are given back", func() bool {
		n, err := Files(r.g.Pid())
		return err == nil && n <= base+2
	})
	eventually(t, "nothing is left in the spool", func() bool { return spoolEmpty(t, r.g) })
}
