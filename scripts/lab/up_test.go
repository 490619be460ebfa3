package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mailweir/scripts/lab/corpus"
)

// TestUp runs the README's command on the lab's gateway as on a fresh machine, sends mail, runs it again, and stops it.
func TestUp(t *testing.T) {
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	sink := &Sink{TLS: pki.Server}
	for _, port := range []int{25, 587} {
		listen, err := l.Server.Listen(HostPort(ServerIP4, port))
		if err != nil {
			t.Fatal(err)
		}
		sink.Serve(listen)
	}
	t.Cleanup(sink.Close)
	up, err := filepath.Abs("../up")
	if err != nil {
		t.Fatal(err)
	}
	before := traces(ctx, t, l.Gateway)
	root := l.Path("root")
	config := filepath.Join(root, "etc/mailweir/mailweir.ini")
	program := filepath.Join(root, "usr/local/sbin/mailweir")
	// What an administrator had set before stays.
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(config, []byte("[LinuxFirewall]\n# ours\nTlsTrustedCa = "+pki.CAFile+"\nThreatAction = Reject\n")); err != nil {
		t.Fatal(err)
	}
	cmd := l.Gateway.Command(ctx, up, "lan")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "MAILWEIR_ROOT="+root)
	if err := l.Gateway.Start(cmd); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := l.Gateway.Run(ctx, "", program, "stat", "--config", config); err == nil {
			break
		}
		select {
		case err := <-exited:
			t.Fatalf("up ended: %v\n%s", err, out.String())
		default:
		}
		if time.Now().After(limit) {
			t.Fatal("up did not bring up a gateway")
		}
	}
	pem, err := l.Gateway.Run(ctx, "", program, "certificate", "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	ca := l.Path("cert.pem")
	if err := writeFile(ca, []byte(pem)); err != nil {
		t.Fatal(err)
	}
	cfg, err := ClientTLS(ca)
	if err != nil {
		t.Fatal(err)
	}
	threats, err := corpus.Threats()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		content []byte
		code    int
	}{{[]byte(simple), 250}, {threats[2].Data, 550}} {
		conn, err := l.Client.Dial(HostPort(ServerIP4, 587))
		if err != nil {
			t.Fatal(err)
		}
		talk := NewTalk(conn)
		defer talk.Close()
		if err := talk.Greet(); err != nil {
			t.Fatal(err)
		}
		if err := talk.StartTLS(cfg); err != nil {
			t.Fatal(err)
		}
		if err := talk.Must(250, "EHLO client.lab.example"); err != nil {
			t.Fatal(err)
		}
		if err := talk.Envelope("a@client.example", "b@server.example"); err != nil {
			t.Fatal(err)
		}
		if r, err := talk.Data(c.content); err != nil || r.Code != c.code {
			t.Errorf("got %v %v, want %d", r, err, c.code)
		}
	}
	if got := sink.Stored(); len(got) != 1 || string(got[0].Data) != simple || got[0].Peer.String() != ClientIP4 {
		t.Errorf("the server has %d messages", len(got))
	}
	again := l.Gateway.Command(ctx, up, "lan")
	again.Env = cmd.Env
	var said bytes.Buffer
	again.Stdout, again.Stderr = &said, &said
	if err := l.Gateway.Start(again); err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err != nil || !strings.Contains(said.String(), "runs already") {
		t.Errorf("a second run: %v\n%s", err, said.String())
	}
	text, err := os.ReadFile(config)
	if err != nil || !strings.Contains(string(text), "# ours\nTlsTrustedCa") || strings.Count(string(text), "ForwardDivert") != 1 {
		t.Errorf("the settings: %v\n%s", err, text)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("Ctrl-C: %v\n%s", err, out.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Ctrl-C did not stop it")
	}
	if after := traces(ctx, t, l.Gateway); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}
