package proxytest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mailweir/inspect"
	"mailweir/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// relayed is a handler that knows no protocol.
type relayed struct{ env *Env }

func (h relayed) Serve(ctx context.Context, draining <-chan struct{}, c *proxy.Conn) {
	s, err := h.env.Dial(ctx, c)
	if err != nil {
		proxy.Reset(c)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-draining:
			h.env.Events.Record(inspect.Event{Event: "drained"})
			cancel()
		case <-stop:
		}
	}()
	proxy.Relay(ctx, c.Conn, s)
}

func TestDialogues(t *testing.T) {
	RunDialogues(t, "testdata/*.dlg", func(e *Env) proxy.Handler { return relayed{e} })
}

// recorder is a testing.TB that keeps the errors.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }

// TestDialoguesFail shows that each kind of step can fail, and what it says.
func TestDialoguesFail(t *testing.T) {
	for _, c := range []struct{ steps, want string }{
		{"S> 250 ok\nC< 250 no", `- want "250 no\r\n"`},
		{"S>> 250 ok\\n\nC< 250 ok", `+ got  "250 ok\n"`},
		{"S> 250 ok\nC<~ 5.*", `+ got  "250 ok\r\n"`},
		{"C>> abc\nS<< abd", `- want "abd"`},
		{"S> 250-a\nS> 550 b\nC<* 250", `+ got  "550 b\r\n"`},
		{"C>> a\\r\\n.\\r\\n\nS<. b\\r\\n", `+ got  "a\r\n"`},
		{"C> x\nS silent", `S is sent "x\r\n"`},
		{"C> x\nS eof", "want the end of the connection"},
		{"S rst\nC eof", "want eof"},
		{"S close\nC reset", "want reset"},
		{"S undialed", "has connected"},
		{"S dialed\ntimeout 30ms\nC< x", "i/o timeout"},
		{"timeout 30ms\nevent x", "no event x"},
		{"timeout 30ms\nscanned x", "no scanned message"},
		{"S> x\nC> y\nC< x", "sent more than the dialogue shows"},
		{"tls", "no ClientTLS"},
	} {
		d, err := parseDialogue("test", "# t\n"+c.steps, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &recorder{TB: t}
		run(r, d, func(e *Env) proxy.Handler { return relayed{e} })
		if got := strings.Join(r.errors, "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%q: want %q in\n%s", c.steps, c.want, got)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"C> x", "begins with its title"},
		{"# t\nX> y", "test:2: X> y: unknown step"},
		{"# t\nC jump", "unknown word"},
		{"# t\nC> \\q", `unknown escape \q`},
		{"# t\nC> \\x1", "needs two digits"},
		{"# t\nC> \\{3:a", "without }"},
		{"# t\nC<~ (", "missing closing"},
		{"# t\nrepeat x C> a", "invalid syntax"},
		{"# t\nverdict maybe", "unknown verdict"},
		{"# t\nvary A", "vary NAME VALUE"},
		{"# t\nvary A 1 x\nC split $A", "invalid syntax"},
		{"# t\ninclude no-such-file", "no such file"},
	} {
		if _, err := parseDialogue("test", c.text, 1, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: want %q, got %v", c.text, c.want, err)
		}
	}
}

func TestInclude(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "x.inc"), []byte("C> included\n"), 0o600)
	os.WriteFile(filepath.Join(dir, "x.dlg"), []byte("# t\ninclude x.inc\nS< included\n"), 0o600)
	RunDialogues(t, filepath.Join(dir, "*.dlg"), func(e *Env) proxy.Handler { return relayed{e} })
}

func TestScanner(t *testing.T) {
	s := &Scanner{}
	m := &inspect.Message{Body: inspect.Bytes("abc"), Views: []inspect.Body{inspect.Bytes("def")}}
	if v := s.Scan(t.Context(), m); v.Action != inspect.Pass {
		t.Errorf("the zero Scanner answers %v", v.Action)
	}
	s.Answer(inspect.Verdict{Action: inspect.Reject})
	if v := s.Scan(t.Context(), m); v.Action != inspect.Reject {
		t.Errorf("told to reject, it answers %v", v.Action)
	}
	if l := s.Scanned(); len(l) != 2 || string(l[1].Content) != "abc" || string(l[1].Views[0]) != "def" {
		t.Errorf("scanned %+v", l)
	}
	s.Hang()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if v := s.Scan(ctx, m); v.Action != inspect.Defer || v.Err == nil {
		t.Errorf("hanging, it answers %+v", v)
	}
}
