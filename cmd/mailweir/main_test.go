package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/cmd/internal/gateway"
	"mailweir/inspect"
	"mailweir/inspect/quarantine"
	"mailweir/proxy/proxytest"

	"github.com/alecthomas/kong"
	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write docs/reference/commands.md")

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"mailweir": main}) }

// TestScripts runs the stories of testdata. Each has m.ini, whose paths lie below $WORK.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TMPDIR", e.WorkDir)
			return os.WriteFile(filepath.Join(e.WorkDir, "m.ini"), fmt.Appendf(nil,
				"# a gateway of its own\n[Root]\nStateDir = %[1]s/state\nSpoolDir = %[1]s/spool\nControlSocket = %[1]s/c.sock\n", e.WorkDir), 0o644)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "netns": // a network of our own, so that a gateway touches nobody's rules
				return exec.Command("unshare", "-n", "ip", "link", "set", "lo", "up").Run() == nil, nil
			case "root":
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready": ready,
			"keep":  keep,
			"serve": func(ts *testscript.TestScript, _ bool, args []string) { serve(t, ts, args) },
		},
	})
}

// ready waits until the gateway of a configuration diverts.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	l, err := config.Load(ts.MkAbs(args[0]))
	ts.Check(err)
	c := control.Client{Path: l.Settings.Root.ControlSocket}
	for end := time.Now().Add(20 * time.Second); ; {
		s, err := c.Stat(context.Background())
		if err == nil && s.Divert.Active {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("the gateway is not ready: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// keep puts a file into the quarantine and writes its id to the file named second.
func keep(ts *testscript.TestScript, _ bool, args []string) {
	l, err := config.Load(ts.MkAbs("m.ini"))
	ts.Check(err)
	s, err := quarantine.Open(context.Background(), quarantine.Config{Dir: gateway.QuarantineDir(&l.Settings.Root)})
	ts.Check(err)
	m := &inspect.Message{ID: "m1", Door: inspect.DoorSMTP, Body: inspect.Bytes(ts.ReadFile(args[0])),
		Envelope: inspect.Envelope{From: "a@example.org", To: []string{"b@example.org"}}}
	id, err := s.Keep(context.Background(), m, &inspect.Verdict{Action: inspect.Reject, Reason: "threat",
		Findings: []inspect.Finding{{Kind: inspect.Threat, Name: "Test"}}})
	ts.Check(err)
	ts.Check(s.Close())
	ts.Setenv(args[1], id)
}

// serve starts a fake mail server that refuses test viruses (refuses) or takes everything (takes), with TLS (tls) or
// without, and puts its address into $SERVER.
func serve(t *testing.T, ts *testscript.TestScript, args []string) {
	s := &proxytest.Server{}
	for _, arg := range args {
		switch arg {
		case "refuses":
			s.Reply = func(event, _ string) string {
				if event == "dot" {
					return "550 5.7.1 a virus"
				}
				return ""
			}
		case "denies":
			s.Reply = func(event, _ string) string {
				if event == "RCPT" {
					return "550 5.1.1 nobody here"
				}
				return ""
			}
		case "tls":
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			ts.Check(err)
			like := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, like, like, &key.PublicKey, key)
			ts.Check(err)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
			s.Caps = []string{"STARTTLS"}
		}
	}
	ts.Setenv("SERVER", s.Start(t).Addr().String())
}

// TestReference compares docs/reference/commands.md with what the commands say of themselves.
func TestReference(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# Commands\n\n<!-- Made from the command line itself: go test ./cmd/mailweir -update -->\n\n")
	b.WriteString("Options may stand before or after arguments; what stands after -- is no option. The exit status is 0 for success, 1 where a\n" +
		"command has a no to report (`scan --fail`, `doctor`, `virus-test`), 2 for an error.\n")
	help := func(args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(append(args, "--help"), &out, &errs); code != 0 || errs.Len() > 0 {
			t.Fatalf("%q: exit status %d, %s", args, code, &errs)
		}
		fmt.Fprintf(&b, "\n## mailweir %s\n\n```\n%s```\n", strings.Join(args, " "), &out)
	}
	var c cli
	p, err := kong.New(&c, kong.Name("mailweir"))
	if err != nil {
		t.Fatal(err)
	}
	var walk func(n *kong.Node, path []string)
	walk = func(n *kong.Node, path []string) {
		for _, sub := range n.Children {
			if !sub.Hidden {
				help(append(path, sub.Name)...)
				walk(sub, append(path, sub.Name))
			}
		}
	}
	walk(p.Model.Node, nil)
	const path = "../../docs/reference/commands.md"
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b.Bytes()) {
		t.Errorf("%s is not what the commands say; go test -update writes it", path)
	}
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[2Jb\u202ec\nd\u00e9"); got != "a?[2Jb?c?d\u00e9" {
		t.Errorf("got %q", got)
	}
}

// The sender stands in the events that are about a message, the null sender as well, and in no others.
func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		e    inspect.Event
		want string
	}{
		{inspect.Event{Event: "message", Action: "Pass", Reason: "clean", From: "a@x", To: []string{"b@y"}}, "message Pass reason=clean from=<a@x> to=<b@y>"},
		{inspect.Event{Event: "unscanned", Action: "Pass", From: "a@x", To: []string{"b@y"}}, "unscanned Pass from=<a@x> to=<b@y>"},
		{inspect.Event{Event: "unscanned", To: []string{"b@y"}}, "unscanned from=<> to=<b@y>"},
		{inspect.Event{Event: "connection", Conn: "c1"}, "connection conn=c1"},
	} {
		if got := oneLine(c.e); !strings.HasSuffix(got, " "+c.want) {
			t.Errorf("got %q, want %q behind the time", got, c.want)
		}
	}
}
