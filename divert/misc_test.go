package divert

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPlanRules(t *testing.T) {
	w := testPlans()["full"]
	p := w.plan()
	is := func(want string) func(term) bool {
		return func(t term) bool { return strings.HasPrefix(t.text(), want) }
	}
	index := func(r Rule, f func(term) bool) int {
		for i, t := range r.Terms {
			if f(t) {
				return i
			}
		}
		return -1
	}
	t.Run("C1-1 output is turned round by a route chain and diverted in its second pass through lo", func(t *testing.T) {
		if c := p.chain("output"); c == nil || c.Type != "route" || c.Hook != "output" {
			t.Errorf("%+v", c)
		}
		n := 0
		for _, r := range p.chain("prerouting").Rules {
			if r.Comment == Output && index(r, is(`iifname "lo"`)) >= 0 && index(r, is("tproxy")) > 0 {
				n++
			}
		}
		if n != 2 {
			t.Errorf("%d rules for the second pass, want one a family", n)
		}
	})
	t.Run("C1-2 the mark is set by the rule that has tproxy; the family comes first", func(t *testing.T) {
		for _, r := range p.chain("prerouting").Rules {
			at := index(r, is("tproxy"))
			if at < 0 {
				continue
			}
			if index(r, is("meta nfproto")) != 0 {
				t.Errorf("no family before %v", r)
			}
			if index(r, is(`iifname "lo"`)) < 0 && index(r, is("meta mark set")) != at+1 {
				t.Errorf("no mark after %v", r)
			}
		}
	})
	t.Run("C1-4 refusal and divert have the same match", func(t *testing.T) {
		rules := p.chain("prerouting").Rules
		n := 0
		for i, r := range rules {
			at := index(r, is("tproxy"))
			if at < 0 || index(r, is(`iifname "lo"`)) >= 0 {
				continue
			}
			n++
			next := rules[i+1]
			if next.Comment != "closed" || ruleText(r.Terms[:at]) != ruleText(next.Terms[:at]) {
				t.Errorf("%v\nis followed by\n%v", r, next)
			}
		}
		if n == 0 {
			t.Error("no rule")
		}
	})
	t.Run("C1-14 marks are masked everywhere", func(t *testing.T) {
		for _, line := range strings.Split(p.String(), "\n") {
			if strings.Contains(line, "mark set") && !strings.Contains(line, "mark set meta mark & ") || strings.Contains(line, "fwmark") && !strings.Contains(line, "/0x") {
				t.Error(line)
			}
		}
	})
	t.Run("C1-26 no rule for a family without a listener", func(t *testing.T) {
		four := testPlans()["only4"].plan()
		if s := four.String(); strings.Contains(s, "ipv6") || strings.Contains(s, "ip6") || strings.Contains(s, "-6") {
			t.Errorf("IPv6 in\n%s", s)
		}
		nobody := testPlans()["nobody"].plan().String()
		if s := nobody; strings.Contains(s, "tproxy") || strings.Contains(s, "reject") {
			t.Errorf("rules without listeners:\n%s", s)
		}
	})
	t.Run("C1-6 no policy rule of an ingress mark applies to lookups of this host", func(t *testing.T) {
		first := p.Policy[0]
		if first.Iif != "lo" || first.Goto != p.Policy[3].Priority || p.Policy[1].Priority >= first.Goto || p.Policy[2].Priority >= first.Goto {
			t.Errorf("%v", p.Policy)
		}
	})
}

func TestListeners(t *testing.T) {
	l := newLab(t)
	d := l.open(forwarding)
	t.Run("C1-25 C1-36 plain TCP, one family each, at ports the kernel chose before any rule", func(t *testing.T) {
		seen := map[string]bool{}
		for _, ln := range d.Listeners() {
			raw, err := ln.tcp.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			err = control(raw, func(fd int) error {
				protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
				if err == nil && protocol != unix.IPPROTO_TCP {
					err = fmt.Errorf("protocol %d, want TCP", protocol)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			a := addrPort(ln.Addr())
			if !a.Addr().IsLoopback() || a.Port() == 0 {
				t.Errorf("listens on %v", a)
			}
			seen[fmt.Sprint(ln.Kind, a.Addr().Is4())] = true
		}
		if len(seen) != 6 {
			t.Errorf("%v", seen)
		}
	})
}

func TestDialPorts(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	d := l.open(forwarding)
	dial := func(client string, to string) (c net.Conn, err error) {
		_ = inErr(l.gateway, func() error {
			c, err = d.Dial(t.Context(), Flow{netip.MustParseAddrPort(client), netip.MustParseAddrPort(at(to)), Forward})
			return nil
		})
		return c, err
	}
	t.Run("C1-16 C1-18 C1-27 the client's port is taken here: another one", func(t *testing.T) {
		for _, v := range [][2]string{{client4, server4}, {client6, server6}} {
			from := net.JoinHostPort(v[0], "40500")
			var wild net.Listener
			in(t, l.gateway, func() (err error) {
				wild, err = net.Listen("tcp", ":40500")
				return err
			})
			c, err := dial(from, v[1])
			_ = wild.Close()
			if err != nil {
				t.Fatal(err)
			}
			got := addrPort(c.LocalAddr())
			_ = c.Close()
			if got.Addr().String() != v[0] || got.Port() == 40500 {
				t.Errorf("from %v for %s", got, from)
			}
		}
		if n := d.bindFailures.Load(); n == 0 {
			t.Error("bind failures are not counted")
		}
	})
	t.Run("C1-18 more connections from one client address than the range has ports", func(t *testing.T) {
		l.sysctl(l.gateway, "net.ipv4.ip_local_port_range", "50000 50009")
		var all []net.Conn
		defer func() {
			for _, c := range all {
				_ = c.Close()
			}
		}()
		for range 40 { // the same client port again and again: each but the first needs another one
			c, err := dial(client4+":40700", server4)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
	})
	t.Run("C1-19 reserved ports are left alone", func(t *testing.T) {
		l.sysctl(l.gateway, "net.ipv4.ip_local_reserved_ports", "10000-32700,32710")
		in(t, l.gateway, func() error {
			reserved := reservedPorts()
			for p, want := range map[uint16]bool{9999: false, 10000: true, 32700: true, 32701: false, 32710: true, 32711: false} {
				if reserved(p) != want {
					t.Errorf("port %d: reserved %v", p, !want)
				}
			}
			for s := range chosen(netip.MustParseAddr(client4)) {
				if s.port != 0 && reserved(s.port) {
					t.Errorf("port %d is chosen", s.port)
				}
			}
			return nil
		})
	})
}

// InputDivert on lo: local programs to a server on the same host.
func TestInputOnLoopback(t *testing.T) {
	l := newLab(t)
	l.serve(l.gateway, ":25")
	s := Settings{InputDivert: auto("lo", 25), InputDivertConnectTransparently: true}
	l.start(l.gateway, s)
	t.Run("C1-39 C1-17 client, gateway and server on one host, through lo", func(t *testing.T) {
		for _, to := range []string{"127.0.0.1", "::1", gateway4, gatewa6} {
			sees := l.mustTalk(l.gateway, "input", at(to))
			if local := sees.Addr(); !local.IsLoopback() && local.String() != to {
				t.Errorf("server sees %v", sees)
			}
		}
	})
}

// The whole in a user namespace, without root: unshare -Urn is all that is needed.
func TestUserNamespace(t *testing.T) {
	needRoot(t)
	if os.Getenv("MAILWEIR_DIVERT_TEST_NESTED") != "" {
		t.Skip("this is the nested run")
	}
	t.Run("C1-38 in a user namespace", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "-Urn", exe, "-test.v", "-test.run",
			"^(TestForward|TestInputServerHere|TestOutput|TestFailModeKill9|TestStopFlowsDirectly)$")
		cmd.Env = append(os.Environ(), "MAILWEIR_DIVERT_TEST_NESTED=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestFailModeKill9") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestParseConntrack(t *testing.T) {
	line := "ipv4     2 tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=10.2.0.2 sport=40000 dport=25 src=10.2.0.2 dst=10.1.0.2 sport=25 dport=40000 [ASSURED] mark=0 zone=0 use=2"
	src, dst, port, ok := parseConntrack(line)
	if !ok || src.String() != "10.1.0.2" || dst.String() != "10.2.0.2" || port != 25 {
		t.Error(src, dst, port, ok)
	}
	for _, bad := range []string{"", "x", strings.Replace(line, "ESTABLISHED", "TIME_WAIT", 1), strings.Replace(line, "dport=25", "dport=x", 1), strings.Replace(line, " tcp ", " udp ", 1)} {
		if _, _, _, ok := parseConntrack(bad); ok {
			t.Errorf("%q", bad)
		}
	}
}

// The counters show connections that are lost between nft and listener.
func TestCounters(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	g := l.start(l.gateway, forwarding)
	t.Run("C1-37 diverted and accepted are counted, across changes of the rules", func(t *testing.T) {
		for i := range 3 {
			l.mustTalk(l.client, "forward", at(server4))
			g.must(order{Op: "set", Settings: forwarding})
			s := g.must(order{Op: "stat"}).Stat
			if s.Diverted[Forward] != uint64(i+1) || s.Accepted[Forward] != uint64(i+1) || s.Refused != 0 {
				t.Errorf("after %d: %+v", i+1, s)
			}
		}
	})
}

// A server that is down is refused as itself, through the whole gateway.
func TestServerDown(t *testing.T) {
	l := newLab(t)
	l.start(l.gateway, forwarding)
	for _, to := range []string{server4, server6} {
		t.Run("G-17 server down: the client's first read fails at once "+to, func(t *testing.T) {
			_, _, err := l.talk(l.client, at(to))
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v, want a reset", err)
			}
		})
	}
}

func ruleText(terms []term) string { return Rule{Terms: terms}.String() }
