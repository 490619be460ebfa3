package divert

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program runs a copy of this test binary that opens one connection, and returns the first line it was told.
func (l *lab) program(path, to string) string {
	l.t.Helper()
	var out []byte
	in(l.t, l.gateway, func() (err error) {
		cmd := exec.Command(path, to)
		cmd.Env = append(os.Environ(), gatewayEnv+"=talk")
		cmd.Stderr = os.Stderr
		out, err = cmd.Output()
		return err
	})
	return strings.TrimSpace(string(out))
}

func TestExcludedProc(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mta, other, link := filepath.Join(dir, "mta"), filepath.Join(dir, "other"), filepath.Join(dir, "link")
	for _, p := range []string{mta, other} {
		if err := os.WriteFile(p, self, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(mta, link); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]string{{mta}, {"/no/such", link}} {
		s := Settings{OutputDivert: auto("", 25), ExcludedProc: list}
		g := l.start(l.gateway, s)
		for _, to := range []string{at(server4), at(server6)} {
			if got := l.program(mta, to); !strings.HasPrefix(got, "220 ") {
				t.Errorf("excluded program to %s: %q, want the server directly", to, got)
			}
			if got := l.program(other, to); got != "via output other" {
				t.Errorf("other program to %s: %q, want it diverted, and known by name", to, got)
			}
		}
		g.must(order{Op: "set", Settings: Settings{OutputDivert: auto("", 25)}})
		if got := l.program(mta, at(server4)); got != "via output mta" {
			t.Errorf("no longer excluded: %q", got)
		}
		g.must(order{Op: "set", Settings: s})
		if got := l.program(mta, at(server4)); !strings.HasPrefix(got, "220 ") {
			t.Errorf("excluded again: %q", got)
		}
		g.must(order{Op: "close"})
		g.kill()
		l.clean()
	}
}

// The queue that nobody listens to any more does not make a hole: what it would have decided on is refused.
func TestExcludedProcKill9(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	for _, mode := range []string{"Closed", "Open"} {
		g := l.start(l.gateway, Settings{OutputDivert: auto("", 25), ExcludedProc: []string{"/no/such"}, FailMode: mode})
		l.mustTalk(l.gateway, "output "+me(), at(server4))
		g.kill()
		if mode == "Closed" {
			l.refused(l.gateway, at(server4))
		} else {
			l.mustTalk(l.gateway, "", at(server4))
		}
	}
}

// A Decide answers for connections that ExcludedProc does not know.
func TestDecide(t *testing.T) {
	l := newLab(t)
	l.serve(l.server, ":25")
	for _, c := range []struct {
		decide string
		via    string
		err    string
	}{{"check", "output " + me(), ""}, {"pass", "", ""}, {"refuse", "", "refused"}, {"drop", "", "timeout"}} {
		t.Run(c.decide, func(t *testing.T) {
			l.t = t
			t.Setenv("MAILWEIR_DIVERT_TEST_DECIDE", c.decide)
			g := l.start(l.gateway, Settings{OutputDivert: auto("", 25)})
			defer g.kill()
			targets := []string{at(server4), at(server6)}
			if c.decide == "drop" {
				targets = targets[:1] // it takes the whole patience of the client
			}
			for _, to := range targets {
				if c.err == "" {
					l.mustTalk(l.gateway, c.via, to)
				} else if _, _, err := l.talk(l.gateway, to); err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %s", err, c.err)
				}
			}
		})
	}
}

func TestParseSYN(t *testing.T) {
	four := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 25}
	s, ok := parseSYN(four)
	if !ok || s.Client != netip.MustParseAddrPort("10.0.0.1:40000") || s.Server != netip.MustParseAddrPort("10.0.0.2:25") {
		t.Errorf("%+v %v", s, ok)
	}
	for i := range four {
		if _, ok := parseSYN(four[:i]); ok {
			t.Errorf("%d octets are a SYN", i)
		}
	}
	options := append([]byte{0x46}, four[1:20]...)
	options = append(append(options, 1, 1, 1, 1), four[20:]...)
	if s, ok := parseSYN(options); !ok || s.Server.Port() != 25 {
		t.Errorf("with IP options: %+v %v", s, ok)
	}
	udp := append([]byte(nil), four...)
	udp[9] = 17
	if _, ok := parseSYN(udp); ok {
		t.Error("UDP is a SYN")
	}
}

func FuzzParseSYN(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 25})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64}, make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		if s, ok := parseSYN(p); ok && (!s.Client.IsValid() || !s.Server.IsValid()) {
			t.Errorf("%+v", s)
		}
	})
}
