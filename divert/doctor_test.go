package divert

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func (l *lab) doctor(s Settings) (list []Check) {
	in(l.t, l.gateway, func() error {
		list = Doctor(l.t.Context(), s)
		return nil
	})
	return list
}

// found insists on a check of that name and state whose text holds the words.
func found(t *testing.T, list []Check, name, state string, words ...string) {
	t.Helper()
	for _, c := range list {
		text := c.Detail + " | " + c.Fix
		if c.Name != name || c.State != state {
			continue
		}
		ok := true
		for _, w := range words {
			ok = ok && strings.Contains(text, w)
		}
		if ok {
			return
		}
	}
	t.Errorf("no %s %q with %q in:\n%s", state, name, words, report(list))
}

func report(list []Check) string {
	var b strings.Builder
	for _, c := range list {
		b.WriteString(c.State + " " + c.Name + ": " + c.Detail + " | " + c.Fix + "\n")
	}
	return b.String()
}

func TestDoctorOnAGoodGateway(t *testing.T) {
	l := newLab(t)
	s := forwarding
	s.InputDivert, s.OutputDivert, s.ExcludedProc = auto("gc", 25), auto("", 25), []string{"/usr/sbin/exim4"}
	for _, c := range l.doctor(s) {
		if c.State != OK && c.Name != "clock" && c.Name != "martians" {
			t.Errorf("%+v", c)
		}
	}
	if rules := l.run(l.gateway, "", "nft", "list", "ruleset"); rules != "" {
		t.Errorf("the doctor left:\n%s", rules)
	}
	g := l.start(l.gateway, forwarding)
	found(t, l.doctor(s), "gateway", OK, "running")
	g.kill()
	found(t, l.doctor(s), "gateway", Warn, "FailMode = Closed", "mailweir divert off")
}

func TestDoctor(t *testing.T) {
	l := newLab(t)
	s := forwarding
	s.ForwardDivert = auto("gc,br0,nothere0", 25)
	t.Run("C1-5 C1-6 rp_filter and src_valid_mark", func(t *testing.T) {
		l.t = t
		l.sysctl(l.gateway, "net.ipv4.conf.all.rp_filter", "1")
		l.sysctl(l.gateway, "net.ipv4.conf.gc.src_valid_mark", "1")
		found(t, l.doctor(s), "rp_filter gc", Warn, "strict", "net.ipv4.conf.gc.rp_filter=2")
		found(t, l.doctor(s), "src_valid_mark gc", OK, "Tailscale", "wg-quick")
		l.sysctl(l.gateway, "net.ipv4.conf.gc.rp_filter", "2") // the larger of all and the interface holds
		found(t, l.doctor(s), "rp_filter gc", OK)
	})
	t.Run("C1-7 reverse path check in nft", func(t *testing.T) {
		l.t = t
		l.run(l.gateway, "table inet nixos { chain rpfilter { type filter hook prerouting priority mangle + 10; fib saddr . mark . iif oif missing drop\n } \n chain late { type filter hook prerouting priority 0; fib saddr . mark . iif oif missing drop\n}\n}", "nft", "-f", "-")
		list := l.doctor(s)
		found(t, list, "nft nixos rpfilter", OK, "before we mark")
		found(t, list, "nft nixos late", Bad, "fib saddr . mark", "-90")
	})
	t.Run("C1-8 C1-9 C1-10 C1-11 ufw, firewalld, docker and an input chain that drops", func(t *testing.T) {
		l.t = t
		l.run(l.gateway, "table ip filter { chain INPUT { type filter hook input priority 0; policy drop; }\n chain ufw-not-local { }\n chain DOCKER-USER { }\n }\n table inet firewalld { chain x {}\n}", "nft", "-f", "-")
		list := l.doctor(s)
		found(t, list, "ufw", Warn, "/etc/ufw/before.rules", "--mark 0x10000000/0x10000000")
		found(t, list, "firewalld", Warn, "firewall-cmd --permanent --direct")
		found(t, list, "docker", OK, "leave them alone")
		found(t, list, "nft filter INPUT", Warn, "drops", "accept")
	})
	t.Run("C1-12 C1-13 bridges", func(t *testing.T) {
		l.t = t
		l.run(l.gateway, "", "ip", "link", "add", "br0", "type", "bridge")
		l.run(l.gateway, "", "ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
		l.run(l.gateway, "", "ip", "link", "set", "p0", "master", "br0")
		port := s
		port.ForwardDivert = auto("p0", 25)
		found(t, l.doctor(port), "bridge p0", Bad, "port of the bridge br0")
		l.sysctl(l.gateway, "net.bridge.bridge-nf-call-iptables", "1")
		found(t, l.doctor(s), "br_netfilter br0", Bad, "bridge-nf-call-iptables=0", "Docker")
		l.sysctl(l.gateway, "net.bridge.bridge-nf-call-iptables", "0")
		l.sysctl(l.gateway, "net.bridge.bridge-nf-call-ip6tables", "0")
		for _, c := range l.doctor(s) {
			if c.Name == "br_netfilter br0" {
				t.Errorf("%+v", c)
			}
		}
	})
	t.Run("C1-14 mark collisions in ip rule, nft and iptables-nft", func(t *testing.T) {
		l.t = t
		l.run(l.gateway, "", "ip", "rule", "add", "pref", "500", "fwmark", "0x10000/0xffff0000", "lookup", "77")
		l.run(l.gateway, "", "ip", "rule", "add", "pref", "10", "lookup", "main")
		l.run(l.gateway, "table inet other { chain a { meta mark set 0x1\n }\n chain b { meta mark & 0xff == 0x1 accept\n }\n chain c { meta mark set meta mark & 0xefffffff | 0x10000000\n}\n}", "nft", "-f", "-")
		l.run(l.gateway, "", "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0x2000000/0x2000000")
		list := l.doctor(s)
		found(t, list, "mark collision", Warn, "rule 500", "Calico")
		found(t, list, "policy rules", Warn, "rule 10 comes before")
		found(t, list, "mark collision", Warn, "nft other a", "0xffffffff")
		found(t, list, "mark collision", Warn, "nft other c", "0x10000000")
		found(t, list, "mark collision", Warn, "nft mangle PREROUTING", "0x2000000")
		for _, c := range list {
			if strings.Contains(c.Detail, "nft other b") {
				t.Errorf("%+v", c)
			}
		}
		free := s
		free.LocalDeliveryMark, free.ClientPacketsMark, free.ServerPacketsMark = Mark{0x100, 0x100}, Mark{0x200, 0x200}, Mark{0x400, 0x400}
		for _, c := range l.doctor(free) {
			if c.Name == "mark collision" && !strings.Contains(c.Detail, "nft other a") {
				t.Errorf("%+v", c)
			}
		}
	})
	t.Run("C1-30 flowtables", func(t *testing.T) {
		// The kernels of small machines have none: what is found is judged here, not how it is listed.
		d := &doctor{settings: s}
		d.flowtable(&nftables.Table{Name: "fast"}, []*nftables.Flowtable{{Name: "ft"}})
		found(t, d.list, "flowtable fast ft", Warn, "past the hooks")
	})
	t.Run("C1-20 servers whose answers do not come back", func(t *testing.T) {
		l.t = t
		in(t, l.server, func() error { // the server has another way to the client
			return up("lo")
		})
		l.run(l.server, "table ip x { chain out { type filter hook input priority 0; tcp dport 26 drop\n}\n}", "nft", "-f", "-")
		d := l.open(forwarding)
		done := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		go func() {
			defer close(done)
			_ = inErr(l.gateway, func() error {
				_, err := d.Dial(ctx, Flow{netip.MustParseAddrPort(client4 + ":40000"), netip.MustParseAddrPort(server4 + ":26"), Forward})
				return err
			})
		}()
		for ctx.Err() == nil {
			if list := l.doctor(s); strings.Contains(report(list), "wait for an answer") {
				found(t, list, "answers", Warn, "ConnectTransparently")
				break
			}
		}
		if ctx.Err() != nil {
			t.Errorf("the doctor saw nothing:\n%s", report(l.doctor(s)))
		}
		cancel()
		<-done
	})
	t.Run("forwarding off, interface missing, few ports", func(t *testing.T) {
		l.t = t
		l.sysctl(l.gateway, "net.ipv4.ip_forward", "0")
		l.sysctl(l.gateway, "net.ipv6.conf.all.forwarding", "0")
		l.sysctl(l.gateway, "net.ipv4.ip_local_port_range", "40000 40100")
		list := l.doctor(s)
		found(t, list, "net.ipv4.ip_forward", Bad, "sysctl -w net.ipv4.ip_forward=1")
		found(t, list, "net.ipv6.conf.all.forwarding", Bad)
		found(t, list, "interface nothere0", Warn, "does not exist")
		found(t, list, "ip_local_port_range", Warn, "101 ports") // C1-18
	})
	t.Run("C1-28 C1-40 an expression that this kernel lacks is named", func(t *testing.T) {
		l.t = t
		in(t, l.gateway, func() error {
			native := tryRule([]term{isTCP{}, queueTo{autoQueue, false}})
			compat, err := queueSupport()
			if (native != nil) != compat && err == nil {
				t.Errorf("native queue: %v, compat %v", native, compat)
			}
			return nil
		})
		d := &doctor{settings: s, marks: s.marks()}
		in(t, l.gateway, func() error { d.kernel(); return nil })
		found(t, d.list, "kernel", OK)
	})
	t.Run("settings", func(t *testing.T) {
		l.t = t
		found(t, l.doctor(Settings{FailMode: "Maybe"}), "settings", Bad, "Maybe")
	})
}

// Without rights the doctor says so and does not fall over (C1-38).
func TestDoctorWithoutRights(t *testing.T) {
	l := newLab(t)
	in(t, l.gateway, func() error {
		// The thread ends with this goroutine: its capabilities are its own.
		data := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
			return err
		}
		list := Doctor(t.Context(), forwarding)
		found(t, list, "rights", Bad, "CAP_NET_ADMIN", "AmbientCapabilities")
		_, err := Open(t.Context(), Config{Settings: forwarding})
		if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("Open without rights: %v", err)
		}
		return nil
	})
}
