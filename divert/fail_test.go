package divert

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// situation is one divert with a client and a server for it.
type situation struct {
	kind     string
	settings Settings
	client   netns.NsHandle
	to       []string
	via      string
}

func (l *lab) situations() []situation {
	l.serve(l.server, ":25")
	l.serve(l.gateway, ":25")
	return []situation{
		{Forward, Settings{ForwardDivert: auto("gc", 25), ForwardDivertConnectTransparently: true}, l.client,
			[]string{net.JoinHostPort(server4, "25"), net.JoinHostPort(server6, "25")}, "forward"},
		{Input, Settings{InputDivert: auto("gc", 25), InputDivertConnectTransparently: true}, l.client,
			[]string{net.JoinHostPort(gateway4, "25"), net.JoinHostPort(gatewa6, "25")}, "input"},
		{Output, Settings{OutputDivert: auto("", 25)}, l.gateway,
			[]string{net.JoinHostPort(server4, "25"), net.JoinHostPort(server6, "25")}, "output " + me()},
	}
}

// kill -9 of the gateway: Closed refuses, Open lets mail flow, for every divert and both families; and a successor
// takes over.
func TestFailModeKill9(t *testing.T) {
	for _, mode := range []string{"Closed", "Open"} {
		for _, kind := range kinds {
			t.Run("C1-31 C1-32 C1-33 "+mode+" "+kind, func(t *testing.T) {
				l := newLab(t)
				s := l.situation(kind)
				s.settings.FailMode = mode
				g := l.start(l.gateway, s.settings)
				for _, to := range s.to {
					l.mustTalk(s.client, s.via, to)
				}
				g.kill()
				for _, to := range s.to {
					if mode == "Open" {
						start := time.Now()
						l.mustTalk(s.client, "", to)
						if d := time.Since(start); d > 900*time.Millisecond {
							t.Errorf("directly took %v", d)
						}
						continue
					}
					if _, _, err := l.talk(s.client, to); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("talk to %s: %v, want a refusal", to, err)
					}
				}
				g = l.start(l.gateway, s.settings)
				for _, to := range s.to {
					l.mustTalk(s.client, s.via, to)
				}
				g.kill()
				in(t, l.gateway, func() error { return errors.Join(Off(t.Context(), nil), Off(t.Context(), nil)) }) // C1-32
				l.clean()
				for _, to := range s.to {
					l.mustTalk(s.client, "", to)
				}
			})
		}
	}
}

func (l *lab) situation(kind string) situation {
	for _, s := range l.situations() {
		if s.kind == kind {
			return s
		}
	}
	panic(kind)
}

// clean insists that the gateway's namespace holds nothing of ours.
func (l *lab) clean() {
	l.t.Helper()
	if s := l.run(l.gateway, "", "nft", "list", "ruleset"); s != "" {
		l.t.Errorf("nft rules are left:\n%s", s)
	}
	for _, v := range []int{4, 6} {
		in(l.t, l.gateway, func() error {
			rules, err := ourRules(v)
			routes, err2 := ourRoutes(v)
			if len(rules)+len(routes) > 0 {
				l.t.Errorf("IPv%d: left: %v %v", v, rules, routes)
			}
			return errors.Join(err, err2)
		})
	}
}

// A deliberate stop removes everything; mail flows directly at once.
func TestStopFlowsDirectly(t *testing.T) {
	for _, kind := range kinds {
		for _, mode := range []string{"Closed", "Open"} {
			t.Run(kind+" "+mode, func(t *testing.T) {
				l := newLab(t)
				s := l.situation(kind)
				s.settings.FailMode = mode
				g := l.start(l.gateway, s.settings)
				for _, to := range s.to {
					l.mustTalk(s.client, s.via, to)
				}
				g.must(order{Op: "stop"})
				for _, to := range s.to {
					l.mustTalk(s.client, "", to)
				}
				g.must(order{Op: "close"})
				l.clean()
				for _, to := range s.to {
					l.mustTalk(s.client, "", to)
				}
			})
		}
	}
}

// Connections that live at Stop go on to their end, and so do those that live when settings change (TP-1).
func TestLiveConnectionsGoOn(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			l := newLab(t)
			s := l.situation(kind)
			g := l.start(l.gateway, s.settings)
			live := map[string]*conversation{}
			for _, to := range s.to {
				c, err := l.dial(s.client, to)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				live[to] = c
				if via, err := c.line(); via != "via "+s.via {
					t.Fatalf("%q, %v", via, err)
				}
				if _, err := c.line(); err != nil {
					t.Fatal(err)
				}
			}
			alive := func(when string) {
				t.Helper()
				for to, c := range live {
					if _, err := c.Write([]byte(when + "\n")); err != nil {
						t.Fatalf("%s: %s: %v", when, to, err)
					}
					if got, err := c.line(); got != when {
						t.Fatalf("%s: %s: %q, %v", when, to, got, err)
					}
				}
			}
			alive("at first")
			g.must(order{Op: "set", Settings: Settings{}})
			alive("divert switched off")
			for _, to := range s.to {
				l.mustTalk(s.client, "", to)
			}
			g.must(order{Op: "set", Settings: s.settings})
			alive("divert switched on again")
			for _, to := range s.to {
				l.mustTalk(s.client, s.via, to)
			}
			open := s.settings
			open.FailMode = "Open"
			g.must(order{Op: "set", Settings: open})
			alive("fail mode changed")
			g.must(order{Op: "stop"})
			alive("stopped")
			for _, to := range s.to {
				l.mustTalk(s.client, "", to)
			}
			alive("stopped for long")
			for _, c := range live {
				_ = c.Close()
			}
			deadline := time.Now().Add(5 * time.Second)
			for time.Now().Before(deadline) && l.run(l.gateway, "", "nft", "list", "ruleset") != "" {
				time.Sleep(20 * time.Millisecond)
			}
			l.clean() // without Close: with the last connection
		})
	}
}
