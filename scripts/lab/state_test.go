package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

func writeFile(name string, data []byte) error { return os.WriteFile(name, data, 0o644) }

// spoolEmpty reports whether no file lies in the gateway's spool.
func spoolEmpty(t *testing.T, g *Gateway) bool {
	t.Helper()
	empty := true
	err := filepath.WalkDir(filepath.Join(g.Dir, "spool"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			empty = false
		}
		return nil
	})
	return err == nil && empty
}

// traces returns what a gateway leaves in the kernel: rules, policy rules, routes.
func traces(ctx context.Context, t *testing.T, n *Namespace) string {
	t.Helper()
	var all strings.Builder
	for _, args := range []string{"nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all type local", "ip -6 route show table all type local"} {
		f := strings.Fields(args)
		out, err := n.Run(ctx, "", f[0], f[1:]...)
		if err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
		all.WriteString("# " + args + "\n" + out)
	}
	return all.String()
}

// TestRules follows the rules through starts, a kill, a start with other settings, a stop and `divert off`.
func TestRules(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			l, ctx := newLab(t)
			pki := newPKI(t, l)
			before := traces(ctx, t, l.Gateway)
			g := startGateway(ctx, t, l, "main", settings(k, pki, nil))
			running := traces(ctx, t, l.Gateway)
			if running == before {
				t.Fatal("the gateway made no rules")
			}
			if tables := strings.Count(running, "table "); tables < 1 || !strings.Contains(running, "25") {
				t.Errorf("no table with port 25:\n%s", running)
			}
			g.Kill()
			if err := g.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if again := traces(ctx, t, l.Gateway); shape(again) != shape(running) {
				t.Errorf("after kill -9 and a start:\n%s\nbefore:\n%s", again, running)
			}
			// Killed again, and started with fewer ports: nothing of the old ones may be left.
			g.Kill()
			s := settings(k, pki, nil)
			for name, v := range s {
				s[name] = strings.ReplaceAll(v, "25,587,465", "2525")
			}
			if err := g.Write(s); err != nil {
				t.Fatal(err)
			}
			if err := g.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if now := traces(ctx, t, l.Gateway); strings.Contains(now, "587") || strings.Contains(now, "465") {
				t.Errorf("rules of the killed gateway are left:\n%s", now)
			}
			if err := g.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if after := traces(ctx, t, l.Gateway); after != before {
				t.Errorf("after a stop:\n%s\nbefore the first start:\n%s", after, before)
			}
			if err := g.Start(ctx); err != nil {
				t.Fatal(err)
			}
			g.Kill()
			if out, err := g.Command(ctx, "divert", "off"); err != nil {
				t.Fatal(err, out)
			}
			if after := traces(ctx, t, l.Gateway); after != before {
				t.Errorf("after kill -9 and divert off:\n%s\nbefore the first start:\n%s", after, before)
			}
		})
	}
}

// shape is traces without what differs from start to start: port numbers of listeners and handles.
func shape(s string) string {
	var out []string
	for _, line := range strings.Split(s, "\n") {
		if !strings.Contains(line, "tproxy") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// TestFailMode kills the gateway in each divert: Closed refuses at once, Open lets through; a deliberate stop always
// lets through.
func TestFailMode(t *testing.T) {
	for _, k := range kinds() {
		for _, mode := range []string{"Closed", "Open"} {
			t.Run(k.name+" "+mode, func(t *testing.T) {
				l, ctx := newLab(t)
				pki := newPKI(t, l)
				sink := &Sink{}
				for _, ip := range k.ips {
					listen, err := k.at(l).Listen(HostPort(ip, 25))
					if err != nil {
						t.Fatal(err)
					}
					sink.Serve(listen)
				}
				t.Cleanup(sink.Close)
				g := startGateway(ctx, t, l, "main", settings(k, pki, map[string]string{"LinuxFirewall.FailMode": mode}))
				try := func(what string, open, through bool) {
					t.Helper()
					for _, ip := range k.ips {
						n := len(sink.Peers())
						start := time.Now()
						c, err := k.from(l).Dial(HostPort(ip, 25))
						var reply Reply
						if err == nil {
							talk := NewTalk(c)
							reply, err = talk.Reply()
							talk.Close()
						}
						if took := time.Since(start); took > 2*time.Second {
							t.Errorf("%s, %s: took %v", what, family(ip), took)
						}
						if (err == nil) != open {
							t.Errorf("%s, %s: %v %v", what, family(ip), reply, err)
						}
						eventuallyOr(func() bool { return (len(sink.Peers()) > n) == through })
						if (len(sink.Peers()) > n) != through {
							t.Errorf("%s, %s: the server was reached: %v, want %v", what, family(ip), !through, through)
						}
					}
				}
				try("running", true, true)
				g.Kill()
				try("killed", mode == "Open", mode == "Open")
				if err := g.Start(ctx); err != nil {
					t.Fatal(err)
				}
				try("running again", true, true)
				if err := g.Stop(ctx); err != nil {
					t.Fatal(err)
				}
				try("stopped", true, true)
			})
		}
	}
}

// eventuallyOr waits a little for something; the caller looks again.
func eventuallyOr(f func() bool) {
	for limit := time.Now().Add(300 * time.Millisecond); time.Now().Before(limit) && !f(); {
		time.Sleep(5 * time.Millisecond)
	}
}

// TestStopWithoutStall sends mail through the gateway from every port of a small range, stops the gateway, and connects
// directly 1,000 times from the same ports: sockets that the gateway leaves behind must not hold up anybody.
func TestStopWithoutStall(t *testing.T) {
	r := newRig(t, nil)
	if err := r.lab.Client.Do(func() error {
		return errors.Join(writeFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 41100")),
			writeFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1")))
	}); err != nil {
		t.Fatal(err)
	}
	visit := func(quit bool) (time.Duration, error) {
		start := time.Now()
		talk, err := r.call()
		if err != nil {
			return time.Since(start), err
		}
		if err := talk.Greet(); err != nil {
			talk.Close()
			return time.Since(start), err
		}
		if !quit { // the client hangs up first, and so does the gateway on the other side: its socket stays in TIME_WAIT
			talk.Close()
			return time.Since(start), nil
		}
		defer talk.Reset() // so that the client's port is free again at once
		_, err = talk.Cmd("QUIT")
		return time.Since(start), err
	}
	for i := range 1000 {
		if _, err := visit(i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1200 * time.Millisecond) // a port in TIME_WAIT is taken again after a second
	// Some conversations are open while the gateway goes.
	for range 20 {
		talk, err := r.call()
		if err != nil {
			t.Fatal(err)
		}
		defer talk.Close()
		if err := talk.Greet(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.g.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	var longest time.Duration
	stalls := 0
	for range 1000 {
		took, err := visit(true)
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, took)
		if took > 900*time.Millisecond { // a lost SYN is sent again after a second
			stalls++
		}
	}
	t.Logf("longest of 1,000 direct connections: %v", longest)
	if stalls > 0 {
		t.Errorf("%d of 1,000 direct connections stalled, the longest for %v", stalls, longest)
	}
}

// TestX003Disk fills the disks under the gateway, takes their inodes, and makes them read-only.
func TestX003Disk(t *testing.T) {
	big, small := corpus.Big(3<<20, 6), []byte(simple)
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, map[string]string{"LinuxFirewall.ThreatAction": "Discard"})
	fs := func(t *testing.T, dir, options string) {
		t.Helper()
		r.g.Kill()
		path := filepath.Join(r.g.Dir, dir)
		if out, err := r.lab.Gateway.Run(r.ctx, "", "mount", "-t", "tmpfs", "-o", options, "tmpfs", path); err != nil {
			t.Fatal(err, out)
		}
		t.Cleanup(func() {
			r.g.Kill()
			if out, err := r.lab.Gateway.Run(context.Background(), "", "umount", path); err != nil {
				t.Error(err, out)
			}
			if err := r.g.Start(r.ctx); err != nil {
				t.Error(err)
			}
		})
	}
	deferred := func(t *testing.T, content []byte, to string) {
		t.Helper()
		for _, verb := range verbs() {
			to := verb + "-" + to
			a := r.deliver(content, to, verb == "BDAT", nil)
			if a.err == nil && (a.reply.Code < 400 || a.reply.Code > 499) {
				t.Errorf("%s: got %v, want a temporary no", verb, a.reply)
			}
			if n := r.copies(t, to, content); n != 0 {
				t.Errorf("%s: it was stored", verb)
			}
		}
	}
	passes := func(t *testing.T, to string) {
		t.Helper()
		if a := r.deliver(small, to, false, nil); a.err != nil || !a.reply.Good() {
			t.Errorf("a small message: %v %v", a.reply, a.err)
		}
	}
	t.Run("spool full", func(t *testing.T) {
		fs(t, "spool", "size=1m")
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		deferred(t, big, "full@x")
		passes(t, "full-small@x")
	})
	t.Run("spool without inodes", func(t *testing.T) {
		fs(t, "spool", "nr_inodes=20")
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		for i := 0; writeFile(filepath.Join(r.g.Dir, "spool", fmt.Sprint("file-", i)), nil) == nil; i++ {
			if i > 20 {
				t.Fatal("there is no end of inodes")
			}
		}
		deferred(t, big, "inodes@x")
		passes(t, "inodes-small@x")
	})
	t.Run("spool read-only", func(t *testing.T) {
		fs(t, "spool", "size=100m")
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(r.g.Dir, "spool")
		if out, err := r.lab.Gateway.Run(r.ctx, "", "mount", "-o", "remount,ro", path); err != nil {
			t.Fatal(err, out)
		}
		deferred(t, big, "ro@x")
		passes(t, "ro-small@x")
	})
	t.Run("quarantine full", func(t *testing.T) {
		dir := filepath.Join(r.g.Dir, "state/quarantine")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		fs(t, "state/quarantine", "size=1m,mode=700")
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		filler := filepath.Join(dir, "filler")
		if err := writeFile(filler, make([]byte, 1<<20)); err == nil {
			t.Log("the whole of it could be filled")
		}
		deferred(t, threats[1].Data, "quarantine-full@x")
		passes(t, "quarantine-small@x")
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if a := r.deliver(threats[1].Data, "room@x", false, nil); a.err != nil || !a.reply.Good() {
			t.Errorf("with room again: %v %v", a.reply, a.err)
		}
	})
	t.Run("quarantine without inodes", func(t *testing.T) {
		dir := filepath.Join(r.g.Dir, "state/quarantine")
		fs(t, "state/quarantine", "nr_inodes=40,mode=700")
		if err := r.g.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
		for i := 0; writeFile(filepath.Join(dir, fmt.Sprint("file-", i)), nil) == nil; i++ {
			if i > 40 {
				t.Fatal("there is no end of inodes")
			}
		}
		deferred(t, threats[1].Data, "quarantine-inodes@x")
		passes(t, "quarantine-inodes-small@x")
	})
	// A file system with a database open for writing cannot be made read-only; one that is read-only from the beginning is
	// told at the start, and nothing passes.
	t.Run("quarantine read-only", func(t *testing.T) {
		fs(t, "state/quarantine", "ro,mode=700")
		if err := r.g.Start(r.ctx); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("started: %v", err)
		}
		r.refused(t)
	})
}
