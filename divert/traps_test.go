package divert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

var forwarding = Settings{ForwardDivert: auto("gc", 25), ForwardDivertConnectTransparently: true}

func at(address string) string { return net.JoinHostPort(address, "25") }

// Every combination of the source checks, for every divert: the policy rules keep our marks out of them.
func TestSourceChecks(t *testing.T) {
	l := newLab(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			l := l
			if kind != Forward {
				l = newLab(t)
			}
			l.t = t
			s := l.situation(kind)
			l.start(l.gateway, s.settings)
			for _, valid := range []string{"0", "1"} {
				for _, filter := range []string{"0", "1", "2"} {
					t.Run(fmt.Sprintf("C1-5 C1-6 src_valid_mark=%s rp_filter=%s", valid, filter), func(t *testing.T) {
						for _, dev := range []string{"all", "default", "gc", "gs", "lo"} {
							l.sysctl(l.gateway, "net.ipv4.conf."+dev+".src_valid_mark", valid)
							l.sysctl(l.gateway, "net.ipv4.conf."+dev+".rp_filter", filter)
						}
						for _, to := range s.to {
							l.mustTalk(s.client, s.via, to)
						}
					})
				}
			}
		})
	}
}

// An administrator's firewall with conntrack, invalid drop and masquerading, as nearly every gateway has.
const masquerade = `table inet admin {
	chain forward { type filter hook forward priority 0; policy drop; ct state invalid drop; ct state established,related accept; iifname "gc" accept; }
	chain input { type filter hook input priority 0; policy drop; ct state invalid drop; iifname "lo" accept; ct state established,related accept; meta l4proto icmpv6 accept; tcp dport 25 accept; }
	chain output { type filter hook output priority 0; policy accept; ct state invalid drop; }
	chain post { type nat hook postrouting priority 100; oifname "gs" masquerade; }
	chain rpfilter { type filter hook prerouting priority mangle + 10; fib saddr . mark . iif oif missing drop; }
}`

func TestConntrackAndMasquerade(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	l.run(l.gateway, masquerade, "nft", "-f", "-")
	l.start(l.gateway, forwarding)
	t.Run("C1-7 C1-9 C1-24 with conntrack, ct state invalid drop, masquerade and an nft reverse path check", func(t *testing.T) {
		for i := range 3 {
			if sees := l.mustTalk(l.client, "forward", at(server4), fmt.Sprintf("%s:%d", client4, 41000+i)); sees.Addr().String() != "10.2.0.1" {
				t.Errorf("server sees %v, want the masquerading gateway", sees)
			}
			l.mustTalk(l.client, "forward", at(server6))
		}
	})
}

// A port forward of the gateway: the server behind it counts, not the gateway's own address.
func TestPortForward(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	l.run(l.gateway, `table inet admin {
		chain pre { type nat hook prerouting priority dstnat; iifname "gc" tcp dport 25 dnat ip to 10.2.0.2; iifname "gc" tcp dport 25 dnat ip6 to fd02::2; }
		chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; }
	}`, "nft", "-f", "-")
	l.start(l.gateway, forwarding)
	for _, to := range []string{gateway4, gatewa6} {
		t.Run("C1-22 C1-23 DNAT before TPROXY "+to, func(t *testing.T) {
			sees := l.mustTalk(l.client, "forward", at(to))
			if a := sees.Addr().String(); a != client4 && a != client6 {
				t.Errorf("server sees %v, want the client", sees)
			}
		})
	}
}

func TestOwnAddressesAndLoops(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	s := forwarding
	s.InputDivert, s.InputDivertConnectTransparently = auto("gc,lo", 25), true
	s.OutputDivert = auto("", 25)
	g := l.start(l.gateway, s)
	sockets := func() (n int) {
		in(t, l.gateway, func() error {
			list, err := marked(stLive, s.marks().client, s.marks().server)
			n = len(list)
			return err
		})
		return n
	}
	t.Run("G-16 through the gateway to its own address, no server there", func(t *testing.T) {
		for _, to := range []string{gateway4, gatewa6} {
			before := g.must(order{Op: "stat"}).Stat.Accepted
			l.refused(l.client, at(to))
			after := g.must(order{Op: "stat"}).Stat.Accepted
			if n := after[Input] + after[Forward] + after[Output] - before[Input] - before[Forward] - before[Output]; n != 1 {
				t.Errorf("%d connections were diverted, want the one", n)
			}
		}
		// likewise from a local program through lo
		for _, to := range []string{"127.0.0.1", "::1", gateway4} {
			l.refused(l.gateway, at(to))
		}
		if n := sockets(); n > 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	t.Run("G-16 the listener's own address", func(t *testing.T) {
		in(t, l.gateway, func() error {
			list, err := marked(stListen, s.marks().client)
			if len(list) != 6 {
				t.Errorf("%d listeners, want 6", len(list))
			}
			for _, s := range list {
				c, err := net.Dial("tcp", s.local.String())
				if errors.Is(err, syscall.ECONNRESET) {
					continue
				}
				if err != nil {
					return err
				}
				_ = c.SetDeadline(time.Now().Add(3 * time.Second))
				if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) && err != io.EOF {
					t.Errorf("%v: %d, %v; want a reset", s.local, n, err)
				}
				_ = c.Close()
			}
			return err
		})
	})
	t.Run("C1-21 the gateway's own connections are not diverted", func(t *testing.T) {
		before := g.must(order{Op: "stat"}).Stat.Accepted
		l.mustTalk(l.client, "forward", at(server4))
		after := g.must(order{Op: "stat"}).Stat.Accepted
		if after[Forward]-before[Forward] != 1 || after[Output] != before[Output] {
			t.Errorf("accepted before %v, after %v", before, after)
		}
	})
}

func TestRefusingServer(t *testing.T) {
	l := newLab(t)
	d := l.open(forwarding)
	for _, c := range [][2]string{{client4, server4}, {client6, server6}} {
		t.Run("G-17 a server that refuses: Dial says ECONNREFUSED "+c[1], func(t *testing.T) {
			in(t, l.gateway, func() error {
				_, err := d.Dial(t.Context(), Flow{Client: netip.MustParseAddrPort(at(c[0])), Server: netip.MustParseAddrPort(at(c[1])), Kind: Forward})
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%v, want ECONNREFUSED", err)
				}
				return nil
			})
		})
	}
	t.Run("G-16 Dial to the listener", func(t *testing.T) {
		in(t, l.gateway, func() error {
			_, err := d.Dial(t.Context(), Flow{Server: addrPort(d.Listeners()[0].Addr()), Kind: Forward})
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v, want ECONNREFUSED", err)
			}
			return nil
		})
	})
}

// open makes a divert of this process in the gateway's namespace, with rules.
func (l *lab) open(s Settings) *Divert {
	l.t.Helper()
	var d *Divert
	in(l.t, l.gateway, func() (err error) {
		if d, err = Open(l.t.Context(), Config{Settings: s}); err != nil {
			return err
		}
		// A goroutine of ours that works in the kernel would be in the wrong namespace: the watcher is not started.
		p := d.want(s).plan()
		_, err = route(p)
		return errors.Join(err, d.kernel.apply(p, true, nil))
	})
	l.t.Cleanup(func() {
		in(l.t, l.gateway, func() error { return errors.Join(d.Close(context.Background()), Off(context.Background(), nil)) })
	})
	return d
}

func TestOwnAddressTowardsServer(t *testing.T) {
	for _, kind := range []string{Forward, Input} {
		t.Run(kind, func(t *testing.T) {
			l := newLab(t)
			s := l.situation(kind)
			s.settings.ForwardDivertConnectTransparently, s.settings.InputDivertConnectTransparently = false, false
			l.start(l.gateway, s.settings)
			for _, to := range s.to {
				sees := l.mustTalk(s.client, s.via, to)
				if a := sees.Addr().String(); a == client4 || a == client6 {
					t.Errorf("server sees the client %v", sees)
				}
			}
		})
	}
	t.Run("C1-17 client on this host, transparently, src_valid_mark=1", func(t *testing.T) {
		l := newLab(t)
		s := l.situation(Output)
		s.settings.OutputDivertConnectTransparently = true
		l.start(l.gateway, s.settings)
		for _, valid := range []string{"0", "1"} {
			l.sysctl(l.gateway, "net.ipv4.conf.all.src_valid_mark", valid)
			for _, to := range s.to {
				sees := l.mustTalk(s.client, s.via, to)
				if a := sees.Addr().String(); a != "10.2.0.1" && a != "fd02::1" {
					t.Errorf("server sees %v", sees)
				}
			}
		}
	})
}

// A foreign transparent socket (haproxy, squid …) keeps its packets as they are.
func TestForeignTransparentSocket(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	l.start(l.gateway, forwarding)
	// A foreign program takes connections to 10.9.9.9:8080 with rules of its own; ours must not mark them.
	l.run(l.gateway, `table inet foreign { chain pre { type filter hook prerouting priority mangle;
		ip daddr 10.9.9.9 tcp dport 8080 tproxy ip to 127.0.0.1:8080 meta mark set 1 accept; }
		chain after { type filter hook prerouting priority 10; meta mark & 0x12000000 != 0 counter comment "ours"
		}
	}`, "nft", "-f", "-")
	l.run(l.gateway, "", "ip", "rule", "add", "pref", "100", "fwmark", "1", "lookup", "100")
	l.run(l.gateway, "", "ip", "route", "add", "local", "default", "dev", "lo", "table", "100")
	var ln net.Listener
	in(t, l.gateway, func() error {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			return control(raw, func(fd int) error { return setTransparent(fd, 4) })
		}}
		config.SetMultipathTCP(false)
		var err error
		ln, err = config.Listen(t.Context(), "tcp4", "127.0.0.1:8080")
		return err
	})
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	c, err := l.dial(l.client, "10.9.9.9:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 3 {
		_, _ = io.WriteString(c, "x\n")
		if s, err := c.line(); s != "x" {
			t.Fatal(s, err)
		}
	}
	if out := l.run(l.gateway, "", "nft", "list", "table", "inet", "foreign"); !strings.Contains(out, `counter packets 0 bytes 0 comment "ours"`) {
		t.Errorf("packets of a foreign socket got our marks:\n%s", out)
	}
}

// Broadcast, multicast and the gateway's own addresses are no forward divert.
func TestNotForwarded(t *testing.T) {
	l := newLab(t)
	l.serve(l.gateway, ":25")
	g := l.start(l.gateway, forwarding)
	t.Run("C1-3 own addresses are exempt from forward divert", func(t *testing.T) {
		for _, to := range []string{gateway4, "10.2.0.1", gatewa6, "fd02::1"} {
			l.mustTalk(l.client, "", at(to))
		}
	})
	t.Run("C1-3 broadcast and multicast are exempt", func(t *testing.T) {
		for _, to := range []string{"10.1.0.255:25", "224.0.0.1:25"} {
			_, _ = l.dial(l.client, to)
		}
		if n := g.must(order{Op: "stat"}).Stat.Diverted[Forward]; n != 0 {
			t.Errorf("%d diverted", n)
		}
	})
}

func TestSomebodyFlushes(t *testing.T) {
	l := newLab(t)
	s := l.situation(Forward)
	g := l.start(l.gateway, s.settings)
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	repaired := func() uint64 { return g.must(order{Op: "stat"}).Stat.Repaired }
	t.Run("C1-34 flush ruleset, flush chain, policy rules and routes: put back", func(t *testing.T) {
		for i, command := range []string{"nft flush ruleset", "nft flush chain inet mailweir prerouting", "ip -4 rule del pref 26",
			"ip -6 rule flush", "ip -4 route flush table 2525", "nft delete table inet mailweir"} {
			l.run(l.gateway, "", strings.Fields(command)...)
			wait(command+": not repaired", func() bool { return repaired() > uint64(i) })
			if strings.Contains(command, "-6 rule flush") { // takes the system's own rules along
				l.run(l.gateway, "", "ip", "-6", "rule", "add", "pref", "32766", "lookup", "main")
			}
			for _, to := range s.to {
				l.mustTalk(s.client, s.via, to)
			}
		}
	})
	t.Run("C1-34 flapping is told", func(t *testing.T) {
		wait("no event", func() bool { return strings.Contains(g.must(order{Op: "events"}).Text, "divert-flapping") })
	})
	t.Run("C1-11 foreign tables are left alone", func(t *testing.T) {
		n := repaired()
		l.run(l.gateway, masquerade, "nft", "-f", "-")
		l.run(l.gateway, "", "nft", "delete", "table", "inet", "admin")
		g.must(order{Op: "set", Settings: s.settings})
		if repaired() != n {
			t.Error("repaired what was not broken")
		}
	})
}

// An interface that does not exist yet is no error, and is diverted once it does.
func TestInterfaceComesLater(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	s := forwarding
	s.ForwardDivert = auto("gc,later0", 25)
	l.start(l.gateway, s)
	later := newNS(t)
	in(t, later, func() error { return up("lo") })
	l.veth("later0", "d0", later, "10.3.0.1/24", "fd03::1/64", "10.3.0.2/24", "fd03::2/64")
	in(t, later, func() error { return defaultRoute("d0", "10.3.0.1", "fd03::1") })
	for _, to := range []string{server4, server6} {
		l.mustTalk(later, "forward", at(to))
	}
}

// Connections from before stay as they are and are counted.
func TestEstablishedBefore(t *testing.T) {
	for _, kind := range kinds {
		t.Run("C1-24 "+kind, func(t *testing.T) {
			l := newLab(t)
			s := l.situation(kind)
			if kind == Forward {
				l.run(l.gateway, masquerade, "nft", "-f", "-")
			}
			var old []*conversation
			for _, to := range s.to {
				c, err := l.dial(s.client, to)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				if _, err := c.line(); err != nil {
					t.Fatal(err)
				}
				old = append(old, c)
			}
			g := l.start(l.gateway, s.settings)
			e := g.must(order{Op: "stat"}).Stat.Established
			switch kind {
			case Forward:
				if e.Routed != 2 || !e.Known {
					t.Errorf("%+v, want two routed", e)
				}
			case Input:
				if e.Local != 2 || e.Known || e.Reason == "" {
					t.Errorf("%+v, want two local, and routed unknown for want of conntrack", e)
				}
			default:
				if e.Local != 2 {
					t.Errorf("%+v, want two local", e)
				}
			}
			for i, c := range old {
				for range 2 {
					_, _ = io.WriteString(c, "still here\n")
					if s, err := c.line(); s != "still here" {
						t.Errorf("connection %d from before: %q, %v", i, s, err)
					}
				}
			}
			for _, to := range s.to {
				l.mustTalk(s.client, s.via, to)
			}
		})
	}
}

func TestSecondGateway(t *testing.T) {
	l := newLab(t)
	g := l.start(l.gateway, forwarding)
	in(t, l.gateway, func() error {
		if _, err := Open(t.Context(), Config{}); err == nil || !strings.Contains(err.Error(), "another gateway") {
			t.Errorf("second gateway: %v", err)
		}
		if err := Off(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "a gateway is running") {
			t.Errorf("Off beside a gateway: %v", err)
		}
		return nil
	})
	g.must(order{Op: "close"})
	l.clean()
}

func TestBadSettingsLeaveTheOld(t *testing.T) {
	l := newLab(t)
	s := l.situation(Forward)
	g := l.start(l.gateway, s.settings)
	bad := s.settings
	bad.ForwardDivert = []Spec{{Ports: []uint16{25}}}
	if a := g.ask(order{Op: "set", Settings: bad}); !strings.Contains(a.Err, "interface: is missing") {
		t.Errorf("%q", a.Err)
	}
	marks := s.settings
	marks.ClientPacketsMark = Mark{1, 1}
	t.Run("C1-15 marks are not changed under live sockets", func(t *testing.T) {
		if a := g.ask(order{Op: "set", Settings: marks}); !strings.Contains(a.Err, "marks cannot be changed") {
			t.Errorf("%q", a.Err)
		}
	})
	l.mustTalk(s.client, s.via, s.to[0])
}
