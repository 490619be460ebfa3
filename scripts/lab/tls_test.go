package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mailweir/tlsunwrap/tlstest"
)

// tlsServer is a Sink with one certificate on all three ports, which counts what it is told within TLS.
type tlsServer struct {
	*Sink
	mu     sync.Mutex
	stages map[Stage]int
}

// serveTLS starts one. plain: it does not offer STARTTLS.
func serveTLS(t *testing.T, l *Lab, cert tls.Certificate, plain bool) *tlsServer {
	t.Helper()
	s := &tlsServer{Sink: &Sink{}, stages: map[Stage]int{}}
	s.At = func(st Stage, _ net.Conn) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stages[st]++
		return nil
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	if !plain {
		s.TLS = conf
	}
	implicit := &Sink{TLS: conf, Implicit: true, At: s.At, Keep: s.Take}
	for _, ip := range []string{ServerIP4, ServerIP6} {
		for port, sink := range map[int]*Sink{25: s.Sink, 587: s.Sink, 465: implicit} {
			listen, err := l.Server.Listen(HostPort(ip, port))
			if err != nil {
				t.Fatal(err)
			}
			sink.Serve(listen)
		}
	}
	t.Cleanup(s.Close)
	t.Cleanup(implicit.Close)
	return s
}

// told returns how often each stage was reached, and begins anew.
func (s *tlsServer) told() map[Stage]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.stages
	s.stages = map[Stage]int{}
	s.Clear()
	return was
}

// selfSigned makes a certificate that nobody vouches for.
func selfSigned(t *testing.T, names ...string) tls.Certificate {
	k := tlstest.Key(t)
	c := tlstest.NewCAKey(t, names[0], k, func(c *x509.Certificate) { *c = *tlstest.LeafTemplate(t, names...) })
	return tls.Certificate{Certificate: [][]byte{c.Cert.Raw}, PrivateKey: k}
}

// authenticated are programs that log in and send a message, verifying the server against the file ca.
func authenticated(ip string, sec Security, ca, dir string) map[string][]string {
	port := fmt.Sprint(sec.Port())
	scheme, swaksTLS, starttls := "smtp", "--tls", "on"
	if sec == Implicit {
		scheme, swaksTLS, starttls = "smtps", "--tls-on-connect", "off"
	}
	return map[string][]string{
		"curl": {"curl", "-sS", "--max-time", "20", "--ssl-reqd", "--user", "lab:secret", "--mail-from", "a@client.example", "--mail-rcpt", "b@server.example",
			"--upload-file", filepath.Join(dir, "simple.eml"), "--cacert", ca, "--resolve", ServerName + ":" + port + ":" + bracketed(ip),
			scheme + "://" + ServerName + ":" + port + "/client.lab.example"},
		"swaks": {"swaks", "--server", ip, "--port", port, "--helo", "client.lab.example", "--from", "a@client.example", "--to", "b@server.example", "--auth", "PLAIN",
			"--auth-user", "lab", "--auth-password", "secret", "--timeout", "20s", swaksTLS, "--tls-verify", "--tls-ca-path", ca, "--tls-sni", ServerName},
		"msmtp": {"msmtp", "--file=/dev/null", "--host=" + ip, "--port=" + port, "--tls=on", "--tls-starttls=" + starttls, "--tls-trust-file=" + ca,
			"--tls-host-override=" + ServerName, "--auth=plain", "--user=lab", "--passwordeval=echo secret", "--timeout=20", "--from=a@client.example", "b@server.example"},
	}
}

// TestTLSPrograms has real programs meet good and bad servers through the gateway. They trust only what
// `mailweir certificate` prints, and log in before they send.
func TestTLSPrograms(t *testing.T) {
	l, ctx := newLab(t)
	ca := tlstest.NewCA(t, "lab root")
	caFile := l.Path("root.pem")
	if err := writeFile(caFile, tlstest.PEM(ca.Cert.Raw)); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(l.Path("simple.eml"), []byte(simple)); err != nil {
		t.Fatal(err)
	}
	g := startGateway(ctx, t, l, "main", settings(kinds()[0], &PKI{CAFile: caFile}, nil))
	send := func(t *testing.T, name string, args []string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return l.Client.Run(ctx, strings.ReplaceAll(simple, "\r\n", "\n"), args[0], args[1:]...)
	}
	for _, c := range []struct {
		name string
		cert tls.Certificate
		good bool
	}{
		{"a good server", ca.Intermediate(t, "between").Leaf(t, []string{ServerName}), true},
		{"T-010 self-signed", selfSigned(t, ServerName), false},
		{"T-013 another name", ca.Leaf(t, []string{"other.lab.example"}), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serveTLS(t, l, c.cert, false)
			for _, sec := range []Security{StartTLS, Implicit} {
				for i, ip := range []string{ServerIP4, ServerIP6} {
					for name, args := range authenticated(ip, sec, g.CAFile, l.Dir) {
						if !c.good && i == 1 && name != "curl" {
							continue // one program shows it as well as three
						}
						out, err := send(t, name, args)
						at := s.told()
						what := fmt.Sprintf("%s, %s, %s", name, sec, family(ip))
						switch {
						case c.good && (err != nil || at[AtDone] != 1):
							t.Errorf("%s: %v, %v\n%s", what, err, at, out)
						case !c.good && (err == nil || at[AtMail] > 0 || at[AtEhlo] > map[Security]int{StartTLS: 1}[sec]):
							t.Errorf("%s: %v, and the server was told %v\n%s", what, err, at, out) // T-087: no EHLO within TLS, so no AUTH
						}
					}
				}
			}
			s.Close()
		})
	}
	t.Run("openssl verifies our certificate, with and without a server name", func(t *testing.T) {
		s := serveTLS(t, l, ca.Leaf(t, []string{ServerName}), false)
		defer s.Close()
		for _, name := range [][]string{{"-servername", ServerName}, {"-noservername"}} {
			for _, port := range [][]string{{"-connect", HostPort(ServerIP4, 465)}, {"-starttls", "smtp", "-connect", HostPort(ServerIP6, 587)}} {
				args := append(append([]string{"s_client", "-CAfile", g.CAFile, "-verify_return_error", "-verify_hostname", ServerName, "-ign_eof"}, port...), name...)
				ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
				out, err := l.Client.Run(ctx, "QUIT\r\n", "openssl", args...)
				cancel()
				if err != nil || !strings.Contains(out, "Verify return code: 0 (ok)") || !strings.Contains(out, "mailweir CA") {
					t.Errorf("%v: %v\n%s", args, err, out)
				}
			}
		}
	})
	t.Run("T-071 a name lets its first connection through", func(t *testing.T) {
		s := serveTLS(t, l, ca.Leaf(t, []string{ServerName}), false)
		defer s.Close()
		if out, err := g.Command(ctx, "cfset", "LinuxFirewall.TlsBypass", ServerName); err != nil {
			t.Fatal(err, out)
		}
		for _, sec := range []Security{StartTLS, Implicit} {
			out, err := send(t, "curl", authenticated(ServerIP4, sec, caFile, l.Dir)["curl"]) // trusts the server's own authority
			if at := s.told(); err != nil || at[AtDone] != 1 || at[AtConnect] != 2 {
				t.Errorf("%s: %v, the server saw %v\n%s", sec, err, at, out)
			}
		}
		if out, err := g.Command(ctx, "cfset", "LinuxFirewall.TlsBypass", ServerName, "-e"); err != nil {
			t.Fatal(err, out)
		}
	})
	t.Run("S-073 RequireTls: a server that has lost STARTTLS gets neither mail nor password", func(t *testing.T) {
		s := serveTLS(t, l, ca.Leaf(t, []string{ServerName}), true)
		defer s.Close()
		for _, ip := range []string{ServerIP4, ServerIP6} {
			if out, err := g.Command(ctx, "cfset", "Smtp.RequireTls", "-a", ip); err != nil {
				t.Fatal(err, out)
			}
		}
		for _, ip := range []string{ServerIP4, ServerIP6} {
			out, err := send(t, "swaks", []string{"swaks", "--server", ip, "--port", "587", "--from", "a@b.example", "--to", "b@server.example", "--timeout", "20s"})
			if at := s.told(); err == nil || !strings.Contains(out, "530 5.7.0") || at[AtMail] > 0 {
				t.Errorf("%v, the server was told %v\n%s", err, at, out)
			}
		}
	})
}

// TestTLSPostfix has a Postfix hand mail to another on port 25 with TLS of every strictness, through the gateway, and to
// one whose certificate is self-signed: Postfix, not the gateway, decides about that one.
func TestTLSPostfix(t *testing.T) {
	l, ctx := newLab(t)
	ca := tlstest.NewCA(t, "lab root")
	caFile := l.Path("root.pem")
	if err := writeFile(caFile, tlstest.PEM(ca.Cert.Raw)); err != nil {
		t.Fatal(err)
	}
	g := startGateway(ctx, t, l, "main", settings(kinds()[0], &PKI{CAFile: caFile}, nil))
	good := ca.Leaf(t, []string{ServerName})
	for i, c := range []struct {
		name, main string
		cert       tls.Certificate
		arrives    bool
		log        string
	}{
		{"encrypt", "smtp_tls_security_level = encrypt", good, true, "TLS connection established"},
		{"verify", "smtp_tls_security_level = verify\nsmtp_tls_verify_cert_match = " + ServerName, good, true, "Verified TLS connection established"},
		{"S-069 T-010 may, self-signed", "smtp_tls_security_level = may", selfSigned(t, ServerName), true, "Untrusted TLS connection established"},
		{"S-069 T-010 verify, self-signed", "smtp_tls_security_level = verify\nsmtp_tls_verify_cert_match = " + ServerName, selfSigned(t, ServerName), false, "Server certificate not verified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.name, "self-signed") { // the gateway remembers that this destination was good
				if err := g.Stop(ctx); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(filepath.Join(g.Dir, "state", "tls-history.json")); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				if err := g.Start(ctx); err != nil {
					t.Fatal(err)
				}
			}
			pki := filesOf(t, l, fmt.Sprint("pki", i), c.cert)
			server, err := l.StartPostfix(ctx, PostfixConfig{Name: fmt.Sprint("server", i), NS: l.Server, PKI: pki})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Kill()
			const listen = "127.0.0.1:2525"
			client, err := l.StartPostfix(ctx, PostfixConfig{Name: fmt.Sprint("client", i), NS: l.Client, Listen: listen, Relay: "[" + ServerIP4 + "]:25",
				Main: c.main + "\nsmtp_tls_CAfile = " + g.CAFile + "\nsmtp_tls_loglevel = 1\nsmtp_tls_session_cache_database ="})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Kill()
			conn, err := l.Client.Dial(listen)
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(conn)
			defer talk.Close()
			if err := talk.Greet(); err != nil {
				t.Fatal(err)
			}
			if r, err := talk.Next([]byte(simple)); err != nil || !r.Good() {
				t.Fatal(r, err)
			}
			wait, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			if c.arrives {
				if err := server.Sink.Wait(wait, 1); err != nil {
					t.Fatalf("%v\n%s", err, client.Log())
				}
			}
			for !strings.Contains(client.Log(), c.log) {
				select {
				case <-wait.Done():
					t.Fatalf("no %q in:\n%s", c.log, client.Log())
				case <-time.After(20 * time.Millisecond):
				}
			}
			if !c.arrives && server.Sink.Count() > 0 {
				t.Error("the message arrived")
			}
		})
	}
}

// filesOf writes a certificate where Postfix finds it.
func filesOf(t *testing.T, l *Lab, name string, c tls.Certificate) *PKI {
	t.Helper()
	cert, key := tlstest.Files(t, c)
	return &PKI{CertFile: cert, KeyFile: key}
}

var privateKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}`)

// TestT046T081Binary: two installs have different keys, which nobody else may read, and the program holds none.
func TestT046T081Binary(t *testing.T) {
	l, ctx := newLab(t)
	var keys [][]byte
	for _, ns := range []*Namespace{l.Gateway, l.Client} {
		g, err := l.StartGateway(ctx, GatewayConfig{Name: ns.Name, Binary: mailweir(t), NS: ns, Settings: map[string]string{"LinuxFirewall.UnwrapSsl": "Yes"}})
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(g.Dir, "state", "authority")
		for _, name := range []string{"ca.key", "untrusted.key"} {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if st.Mode().Perm() != 0o600 {
				t.Errorf("T-046 T-081: %s has mode %v", name, st.Mode())
			}
			key, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if !privateKey.Match(key) {
				t.Fatalf("%s holds no key as this test knows them", name)
			}
			keys = append(keys, key)
			cat := exec.CommandContext(ctx, "cat", filepath.Join(dir, name))
			cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			if out, err := cat.CombinedOutput(); err == nil || bytes.Contains(out, []byte("PRIVATE")) {
				t.Errorf("T-081: another user reads %s", name)
			}
		}
		pem, err := g.Output(ctx, "certificate")
		if err != nil || strings.Contains(pem, "PRIVATE") || !strings.Contains(pem, "BEGIN CERTIFICATE") {
			t.Errorf("certificate prints %q, %v", pem, err)
		}
		log := g.Log()
		for _, command := range []string{"stat", "events", "cfshow"} {
			out, err := g.Command(ctx, command)
			if err != nil {
				t.Errorf("%s: %v", command, err)
			}
			log += out
		}
		if privateKey.MatchString(log) {
			t.Error("T-081: a key is in what the program says")
		}
	}
	for i, a := range keys {
		for _, b := range keys[i+1:] {
			if bytes.Equal(a, b) {
				t.Error("T-046: one key twice")
			}
		}
	}
	program, err := os.ReadFile(mailweir(t))
	if err != nil {
		t.Fatal(err)
	}
	if m := privateKey.Find(program); m != nil {
		t.Errorf("T-046 T-081: the program holds %q", m)
	}
}

// TestIdleTLS measures what an idle session with TLS on both legs costs, and that nothing is left of it. About half of
// what is measured is garbage of the handshakes that the next collections take; the limit is for gross mistakes.
func TestIdleTLS(t *testing.T) {
	const sessions, limit = 400, 96 << 10
	l, ctx := newLab(t)
	pki := newPKI(t, l)
	sink := &Sink{TLS: pki.Server}
	listen, err := l.Server.Listen(HostPort(ServerIP4, 587))
	if err != nil {
		t.Fatal(err)
	}
	sink.Serve(listen)
	t.Cleanup(sink.Close)
	g := startGateway(ctx, t, l, "main", settings(kinds()[0], pki, nil))
	trust, err := ClientTLS(g.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	open := func(n int) (talks []*Talk) {
		for range n {
			c, err := l.Client.Dial(HostPort(ServerIP4, 587))
			if err != nil {
				t.Fatal(err)
			}
			talk := NewTalk(c)
			t.Cleanup(talk.Close)
			if err := talk.Greet(); err != nil {
				t.Fatal(err)
			}
			if err := talk.StartTLS(trust); err != nil {
				t.Fatal(err)
			}
			if err := talk.Must(250, "EHLO client.lab.example"); err != nil {
				t.Fatal(err)
			}
			talks = append(talks, talk)
		}
		return talks
	}
	for _, talk := range open(50) { // what is made once is made now
		talk.Close()
	}
	before, err := Resident(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	files, err := Files(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	talks := open(sessions)
	after, err := Resident(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("an idle session with TLS on both legs: %d octets resident, garbage of the handshakes included", (after-before)/sessions)
	if each := (after - before) / sessions; each > limit {
		t.Errorf("%d octets a session, want at most %d", each, limit)
	}
	for _, talk := range talks {
		talk.Close()
	}
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		n, err := Files(g.Pid())
		if err != nil {
			t.Fatal(err)
		}
		if n <= files {
			return
		}
		select {
		case <-wait.Done():
			t.Fatalf("%d files are open, %d were before", n, files)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
