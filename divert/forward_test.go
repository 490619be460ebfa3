package divert

import (
	"net/netip"
	"testing"
)

func TestForward(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	g := l.start(l.gateway, Settings{ForwardDivert: auto("gc", 25, 587), ForwardDivertConnectTransparently: true})
	for _, c := range []struct{ client, server string }{{client4, server4}, {client6, server6}} {
		from := netip.AddrPortFrom(netip.MustParseAddr(c.client), 40001)
		to := netip.AddrPortFrom(netip.MustParseAddr(c.server), 25)
		if sees := l.mustTalk(l.client, "forward", to.String(), from.String()); sees != from {
			t.Errorf("server sees %v, want %v", sees, from)
		}
	}
	stat := g.must(order{Op: "stat"}).Stat
	if stat.Diverted[Forward] != 2 || stat.Accepted[Forward] != 2 {
		t.Errorf("stat %+v, want two diverted and accepted", stat)
	}
}

func TestInputServerHere(t *testing.T) {
	l := newLab(t)
	l.serve(l.gateway, ":25")
	l.start(l.gateway, Settings{InputDivert: auto("gc", 25), InputDivertConnectTransparently: true})
	for _, c := range []struct{ client, server string }{{client4, gateway4}, {client6, gatewa6}} {
		to := netip.AddrPortFrom(netip.MustParseAddr(c.server), 25)
		sees := l.mustTalk(l.client, "input", to.String())
		if sees.Addr().String() != c.client {
			t.Errorf("server sees %v, want %v", sees, c.client)
		}
	}
}

func TestOutput(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	l.start(l.gateway, Settings{OutputDivert: auto("", 25)})
	for _, s := range []string{server4, server6} {
		to := netip.AddrPortFrom(netip.MustParseAddr(s), 25)
		l.mustTalk(l.gateway, "output "+me(), to.String())
	}
}
