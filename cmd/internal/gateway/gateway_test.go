package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/inspect"
	"mailweir/proxy/proxytest"
)

// greeted is a client that has said EHLO.
func greeted(t *testing.T, server *proxytest.Server) *proxytest.Client {
	t.Helper()
	c := proxytest.Connect(t, server.Addr())
	if err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	return c
}

// send sends one message and returns the reply.
func send(t *testing.T, c *proxytest.Client, content string) string {
	t.Helper()
	if err := c.Envelope("a@example.org", "b@example.org"); err != nil {
		t.Fatal(err)
	}
	reply, err := c.Data(content + "\r\n.\r\n")
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestMail(t *testing.T) {
	if !namespace(t) {
		return
	}
	server := (&proxytest.Server{}).Start(t)
	g := start(t, server, "ThreatAction = Reject")
	c := greeted(t, server)
	if reply := send(t, c, "Subject: clean\r\n\r\nhello\r\n..dot"); !strings.HasPrefix(reply, "250") {
		t.Errorf("clean: %q", reply)
	}
	if reply := send(t, c, "Subject: bad\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "55") {
		t.Errorf("threat: %q", reply)
	}
	if m := server.Messages(); len(m) != 1 || string(m[0].Content) != "Subject: clean\r\n\r\nhello\r\n.dot\r\n" {
		t.Errorf("the server has %d messages: %+v", len(m), m)
	}
	var s control.Stat
	if !g.eventually(func() bool {
		var err error
		if s, err = g.client.Stat(context.Background()); err != nil {
			t.Fatal(err)
		}
		return s.Messages["Reject"] == 1
	}) || s.Messages["Pass"] != 1 || s.Findings["threat"] == 0 || s.Connections.Open != 1 || !s.Divert.Active {
		t.Errorf("stat: %+v", s)
	}
	if s.Config != g.path || len(s.Engines) != 1 || s.Kernel.Accepted["input"] != 1 {
		t.Errorf("stat: %+v", s)
	}
	if e := g.lastMessage(); e.Event != "message" || e.Action != "Reject" || e.Divert != "input" || e.From != "a@example.org" ||
		e.Item == "" || e.Server != server.Addr().String() {
		t.Errorf("the event is %+v", e)
	}
	pem, err := g.client.Certificate(context.Background())
	if err != nil || !bytes.Contains(pem, []byte("BEGIN CERTIFICATE")) {
		t.Errorf("certificate: %q, %v", pem, err)
	}
}

// TestS236Stop is the row on the whole gateway: a signal while a verdict is made.
func TestS236Stop(t *testing.T) {
	if !namespace(t) {
		return
	}
	t.Run("once: the message completes once, then 421", func(t *testing.T) {
		began, verdict := make(chan bool, 1), make(chan bool)
		address := fakeClamd(t, func([]byte) string { began <- true; <-verdict; return "OK" })
		server := (&proxytest.Server{}).Start(t)
		g := start(t, server, "[ClamD]", "ClamdSocket = "+address.String())
		c := greeted(t, server)
		reply := make(chan string, 1)
		go func() {
			err := c.Envelope("a@example.org", "b@example.org")
			var r string
			if err == nil {
				r, err = c.Data("Subject: x\r\n\r\nbody\r\n.\r\n")
			}
			reply <- fmt.Sprint(r, err)
		}()
		select {
		case <-began:
		case r := <-reply:
			t.Fatalf("the message was not scanned: %s", r)
		}
		g.signals <- syscall.SIGTERM
		g.await("STOPPING=1")
		// New mail flows directly: the connection is the server's own, and the gateway knows nothing of it.
		direct := proxytest.Connect(t, server.Addr())
		if err := direct.Hello(); err != nil {
			t.Errorf("a connection after the rules were removed: %v", err)
		}
		if local, ok := direct.RemoteAddr().(*net.TCPAddr); !ok || local.AddrPort() != server.Addr() {
			t.Errorf("connected to %v", direct.RemoteAddr())
		}
		direct.Close()
		close(verdict)
		if r := <-reply; !strings.HasPrefix(r, "250") {
			t.Errorf("the message: %s", r)
		}
		end, err := c.End()
		if err != nil || !strings.HasPrefix(end, "421 ") {
			t.Errorf("the end: %q, %v", end, err)
		}
		if err := g.ended(); err != nil {
			t.Error(err)
		}
		if m := server.Messages(); len(m) != 1 {
			t.Errorf("the server has %d messages", len(m))
		}
		if _, err := g.client.Stat(context.Background()); !errors.Is(err, control.ErrNotRunning) {
			t.Errorf("the control socket is left: %v", err)
		}
	})
	t.Run("twice: at once, and nothing is said that is not so", func(t *testing.T) {
		began, verdict := make(chan bool, 1), make(chan bool)
		defer close(verdict)
		address := fakeClamd(t, func([]byte) string { began <- true; <-verdict; return "OK" })
		server := (&proxytest.Server{}).Start(t)
		g := start(t, server, "[ClamD]", "ClamdSocket = "+address.String())
		c := greeted(t, server)
		reply := make(chan string, 1)
		go func() {
			err := c.Envelope("a@example.org", "b@example.org")
			var r string
			if err == nil {
				r, err = c.Data("Subject: x\r\n\r\nbody\r\n.\r\n")
			}
			reply <- fmt.Sprint(r, err)
		}()
		select {
		case <-began:
		case r := <-reply:
			t.Fatalf("the message was not scanned: %s", r)
		}
		g.signals <- syscall.SIGTERM
		g.await("STOPPING=1")
		at := time.Now()
		g.signals <- syscall.SIGTERM
		if err := g.ended(); err != nil {
			t.Error(err)
		}
		if d := time.Since(at); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
		if r := <-reply; strings.HasPrefix(r, "2") {
			t.Errorf("the message: %s", r)
		}
		if m := server.Messages(); len(m) != 0 {
			t.Errorf("the server has %d messages", len(m))
		}
	})
}

// TestChangesMidSession changes settings while sessions are open: they go on as they began.
func TestChangesMidSession(t *testing.T) {
	if !namespace(t) {
		return
	}
	server := (&proxytest.Server{}).Start(t)
	g := start(t, server, "ThreatAction = Reject")
	old := greeted(t, server)
	if err := old.Envelope("a@example.org", "b@example.org"); err != nil {
		t.Fatal(err)
	}
	if err := g.set("LinuxFirewall.ThreatAction", "TempFail"); err != nil {
		t.Fatal(err)
	}
	g.signals <- syscall.SIGHUP
	g.await("RELOADING=1\nMONOTONIC_USEC=")
	g.await("READY=1")
	reply, err := old.Data("Subject: old\r\n\r\n" + eicar() + "\r\n.\r\n")
	if err != nil || !strings.HasPrefix(reply, "5") {
		t.Errorf("the session that was open: %q, %v", reply, err)
	}
	if reply := send(t, old, "Subject: clean\r\n\r\n"); !strings.HasPrefix(reply, "250") {
		t.Errorf("the session that was open: %q", reply)
	}
	if reply := send(t, greeted(t, server), "Subject: new\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "4") {
		t.Errorf("a new session: %q", reply)
	}

	// Switched off, the port is not diverted; the open session still is.
	if err := g.set("LinuxFirewall.InspectSmtp", "Off"); err != nil {
		t.Fatal(err)
	}
	if reply := send(t, greeted(t, server), "Subject: direct\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "250") {
		t.Errorf("with InspectSmtp Off: %q", reply)
	}
	if reply := send(t, old, "Subject: old\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "5") {
		t.Errorf("the session that was open: %q", reply)
	}
	s, err := g.client.Stat(context.Background())
	if err != nil || len(s.Divert.Skipped) != 1 || s.Divert.Skipped[0].Reason != "InspectSmtp is Off" || s.Events["not-diverted"] != 1 {
		t.Errorf("stat: %+v, %v", s, err)
	}
	if !strings.Contains(g.log.String(), `reason="InspectSmtp is Off"`) {
		t.Error("the log does not say that the port is not diverted")
	}
	if err := g.set("LinuxFirewall.InspectSmtp", "On"); err != nil {
		t.Fatal(err)
	}
	if reply := send(t, greeted(t, server), "Subject: again\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "4") {
		t.Errorf("with InspectSmtp On again: %q", reply)
	}
}

// TestRefusedChanges makes changes that cannot be applied: file and gateway stay as they were.
func TestRefusedChanges(t *testing.T) {
	if !namespace(t) {
		return
	}
	server := (&proxytest.Server{}).Start(t)
	g := start(t, server, "ThreatAction = Reject")
	before, err := os.ReadFile(g.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ param, value, want string }{
		{"LinuxFirewall.UnwrapSsl", "perhaps", "neither Yes nor No"},
		{"Root.Log", g.dir + "/none/log", "no such file or directory"},
		{"LinuxFirewall.ClientPacketsMark", "0x4000", "ark"}, // sockets that live carry the old one
	} {
		if err := g.set(c.param, c.value); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %s: got %v, want %q", c.param, c.value, err, c.want)
		}
		if now, err := os.ReadFile(g.path); err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s = %s: the file has changed: %q, %v", c.param, c.value, now, err)
		}
	}
	other := control.Change{Path: filepath.Join(g.dir, "other.ini"), Edit: config.Edit{Param: "Root.Log", Op: config.Reset}}
	if _, err := g.client.Set(context.Background(), other); err == nil || !strings.Contains(err.Error(), "the running gateway uses "+g.path) {
		t.Errorf("another file: %v", err)
	}

	if err := os.WriteFile(g.path, []byte("[LinuxFirewall]\nThreatAction = Maybe\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.Reload(context.Background()); err == nil || !strings.Contains(err.Error(), `m.ini:2: LinuxFirewall.ThreatAction: "Maybe" is not one of`) {
		t.Errorf("reload: %v", err)
	}
	s, err := g.client.Stat(context.Background())
	if err != nil || !strings.Contains(s.Reload, "Maybe") || s.Events["reload-refused"] != 1 {
		t.Errorf("stat: %q, %v", s.Reload, err)
	}
	if reply := send(t, greeted(t, server), "Subject: x\r\n\r\n"+eicar()); !strings.HasPrefix(reply, "5") {
		t.Errorf("after refused changes: %q", reply)
	}
	if err := os.WriteFile(g.path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.Reload(context.Background()); err != nil {
		t.Error(err)
	}
	if s, err := g.client.Stat(context.Background()); err != nil || s.Reload != "" {
		t.Errorf("stat: %q, %v", s.Reload, err)
	}
}

// TestG15 sends passwords in every way and looks for them in everything that the gateway writes.
func TestG15(t *testing.T) {
	if !namespace(t) {
		return
	}
	const user, secret = "somebody@example.org", "c4n4ry-Passw0rd"
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + secret))
	bare := base64.StdEncoding.EncodeToString([]byte(secret))
	server := (&proxytest.Server{Caps: []string{"AUTH PLAIN LOGIN XOAUTH2", "8BITMIME"}, Reply: func(event, line string) string {
		if event == "auth" && line == "" {
			return "334 "
		}
		return ""
	}}).Start(t)
	g := start(t, server)
	for _, lines := range [][]string{
		{"AUTH PLAIN " + plain},
		{"AUTH PLAIN", plain},
		{"AUTH LOGIN", base64.StdEncoding.EncodeToString([]byte(user)), bare},
		{"AUTH LOGIN " + base64.StdEncoding.EncodeToString([]byte(user)), bare},
		{"AUTH PLAIN " + plain + " trailing"},
		{"AUTH FOO " + bare},
		{"AUTHPLAIN " + plain},
		{"AUTH PLAIN", "*", bare}, // a password said after the exchange was given up
		{secret},                  // said in place of a command
		{"MAIL FROM:<a@example.org> AUTH=" + bare},
	} {
		c := greeted(t, server)
		for _, line := range lines {
			if _, err := c.Do(line); err != nil {
				break // the server or the gateway may end such a session
			}
		}
		_, _ = c.Do("MAIL FROM:<a@example.org>")
		c.Close()
	}
	if err := g.set("LinuxFirewall.ThreatAction", "Reject"); err != nil {
		t.Fatal(err)
	}
	stat, err := g.client.Stat(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{"stat": fmt.Sprintf("%+v", stat)}
	if err := g.client.Events(context.Background(), control.Query{Last: 1000}, func(e inspect.Event) error {
		outputs["events"] += fmt.Sprintf("%+v\n", e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	g.signals <- syscall.SIGTERM
	g.signals <- syscall.SIGTERM
	if err := g.ended(); err != nil {
		t.Error(err)
	}
	outputs["log"] = g.log.String()
	err = filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		outputs[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(outputs["events"], "connection") || len(outputs["log"]) == 0 {
		t.Fatalf("nothing was written that could hold a secret: %q", outputs)
	}
	for name, text := range outputs {
		for _, s := range []string{secret, plain, bare, strings.TrimRight(plain, "="), strings.TrimRight(bare, "=")} {
			if i := strings.Index(text, s); i >= 0 {
				t.Errorf("%s holds %q: …%s…", name, s, text[max(0, i-100):min(len(text), i+100)])
			}
		}
	}
}
