// Command demo shows mailweir at work in a lab: a client, a gateway and a mail server in network namespaces, real
// programs, real rules. It prints what it does and what came of it, and ends with status 1 if anything was not as told.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"mailweir/scripts/lab"
	"mailweir/scripts/lab/corpus"
)

func main() {
	binary := flag.String("mailweir", "bin/mailweir", "the mailweir to show")
	flag.Parse()
	d := &demo{begin: time.Now()}
	if err := d.run(*binary); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
	if d.failed > 0 {
		fmt.Printf("\n%d of %d things were NOT as told.\n", d.failed, d.shown)
		os.Exit(1)
	}
	fmt.Printf("\nAll %d things were as told, in %.0f seconds. Nothing is left of the lab.\n", d.shown, time.Since(d.begin).Seconds())
}

// demo counts what was shown.
type demo struct {
	begin         time.Time
	shown, failed int

	lab    *lab.Lab
	sink   *lab.Sink
	g      *lab.Gateway
	direct *lab.PKI
}

func (d *demo) say(format string, a ...any) { fmt.Printf("\n"+format+"\n", a...) }

// show prints one claim with what came of it.
func (d *demo) show(ok bool, format string, a ...any) {
	d.shown++
	mark := "ok    "
	if !ok {
		mark = "FAILED"
		d.failed++
	}
	fmt.Printf("  %s  %s\n", mark, fmt.Sprintf(format, a...))
}

func (d *demo) run(binary string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	if d.lab, err = lab.New(ctx); err != nil {
		return err
	}
	defer d.lab.Close()
	fmt.Printf(`mailweir stands between mail programs and a mail server that know nothing of it:

    client  %s ───> gateway ───> mail server  %s
            %s                            %s

Three network namespaces stand for three machines; this host's own network is not touched. The client is told to
use the mail server; nobody tells it of the gateway.
`, lab.ClientIP4, lab.ServerIP4, lab.ClientIP6, lab.ServerIP6)
	if err := d.build(ctx, binary); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{d.clean, d.threats, d.certificates, d.addresses, d.accidents} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// build starts the server and the gateway.
func (d *demo) build(ctx context.Context, binary string) error {
	var err error
	if d.direct, err = lab.NewPKI(d.lab.Path("pki")); err != nil {
		return err
	}
	d.sink = &lab.Sink{TLS: d.direct.Server}
	wrapped := &lab.Sink{TLS: d.direct.Server, Implicit: true, Keep: func(m lab.Stored) error { return d.sink.Take(m) }}
	for _, ip := range []string{lab.ServerIP4, lab.ServerIP6} {
		for port, s := range map[int]*lab.Sink{25: d.sink, 587: d.sink, 465: wrapped} {
			l, err := d.lab.Server.Listen(lab.HostPort(ip, port))
			if err != nil {
				return err
			}
			s.Serve(l)
		}
	}
	d.lab.OnClose(d.sink.Close)
	d.lab.OnClose(wrapped.Close)
	d.g, err = d.lab.StartGateway(ctx, lab.GatewayConfig{Name: "demo", Binary: binary, NS: d.lab.Gateway, Settings: map[string]string{
		"LinuxFirewall.ForwardDivert": "Auto(interface:lan protected:25,587,465)",
		"LinuxFirewall.UnwrapSsl":     "Yes",
		"LinuxFirewall.TlsTrustedCa":  d.direct.CAFile,
		"LinuxFirewall.ThreatAction":  "Reject",
	}})
	if err != nil {
		return err
	}
	d.say("The gateway runs with these settings:\n\n    [LinuxFirewall]\n    ForwardDivert = Auto(interface:lan protected:25,587,465)\n    UnwrapSsl = Yes\n    ThreatAction = Reject")
	return nil
}

// ways are the protections and address families that mail travels by.
func ways() []struct {
	ip  string
	sec lab.Security
} {
	return []struct {
		ip  string
		sec lab.Security
	}{
		{lab.ServerIP4, lab.Plain}, {lab.ServerIP6, lab.Plain}, {lab.ServerIP4, lab.StartTLS},
		{lab.ServerIP6, lab.StartTLS}, {lab.ServerIP4, lab.Implicit}, {lab.ServerIP6, lab.Implicit},
	}
}

func describe(ip string, sec lab.Security) string {
	family := "IPv4"
	if strings.Contains(ip, ":") {
		family = "IPv6"
	}
	return fmt.Sprintf("%s, port %d %s", family, sec.Port(), map[lab.Security]string{lab.Plain: "in the clear", lab.StartTLS: "with STARTTLS", lab.Implicit: "in TLS"}[sec])
}

// send sends one message by swaks.
func (d *demo) send(ctx context.Context, ip string, sec lab.Security, content []byte) (string, error) {
	for _, s := range lab.Senders() {
		if s.Name == "swaks" {
			return s.Send(ctx, lab.Errand{NS: d.lab.Client, IP: ip, Security: sec, CAFile: d.g.CAFile, From: "alice@client.example", To: "bob@server.example", Content: content, Dir: d.lab.Dir})
		}
	}
	return "", fmt.Errorf("swaks is not among the senders")
}

// clean shows that clean mail is not touched.
func (d *demo) clean(ctx context.Context) error {
	d.say("1. Clean mail arrives octet for octet (signed, with attachments, 8-bit, dots, long lines):")
	all, err := corpus.Messages()
	if err != nil {
		return err
	}
	wanted := []string{"dkim-rsa-simple-text-plain", "attach-zip-in-zip", "text-utf8-8bit", "dots-every-line", "longlines-20000", "smime-detached-text"}
	for i, w := range ways() {
		for _, m := range all {
			if m.Name != wanted[i] {
				continue
			}
			d.sink.Clear()
			out, err := d.send(ctx, w.ip, w.sec, m.Data)
			got := d.sink.Stored()
			ok := err == nil && len(got) == 1 && sha256.Sum256(got[0].Data) == m.Sum
			d.show(ok, "%-32s %-27s %6d octets, SHA-256 %x… sent and received", describe(w.ip, w.sec), m.Name, len(m.Data), m.Sum[:4])
			if !ok {
				fmt.Println(err, out)
			}
		}
	}
	return nil
}

// threats shows that the test virus does not pass.
func (d *demo) threats(ctx context.Context) error {
	d.say("2. The EICAR test virus does not, whatever it is wrapped in:")
	all, err := corpus.Threats()
	if err != nil {
		return err
	}
	for i, m := range all {
		w := ways()[i%len(ways())]
		d.sink.Clear()
		out, err := d.send(ctx, w.ip, w.sec, m.Data)
		ok := err != nil && len(d.sink.Stored()) == 0
		reply := ""
		for _, line := range strings.Split(out, "\n") {
			if strings.HasPrefix(line, "<** ") || strings.HasPrefix(line, "<~* ") {
				reply = line[4:]
			}
		}
		ok = ok && strings.HasPrefix(reply, "550 ")
		d.show(ok, "%-32s %-20s the client is told: %s", describe(w.ip, w.sec), m.Name, reply)
		if !ok {
			fmt.Println(err, out)
		}
	}
	items, err := d.g.Output(ctx, "quarantine", "list")
	if err != nil {
		return err
	}
	n := strings.Count(items, "alice@client.example")
	d.show(n == len(all), "the quarantine keeps all %d of them for the administrator: mailweir quarantine list", n)
	return nil
}

// certificates shows who signed what the client saw.
func (d *demo) certificates(_ context.Context) error {
	d.say("3. TLS is opened with a certificate that our own authority signs, for the names of the server's:")
	trusting, err := lab.ClientTLS(d.g.CAFile)
	if err != nil {
		return err
	}
	stranger, err := lab.ClientTLS(d.direct.CAFile)
	if err != nil {
		return err
	}
	for _, sec := range []lab.Security{lab.StartTLS, lab.Implicit} {
		talk, err := d.secure(sec, trusting)
		if err != nil {
			d.show(false, "port %d: %v", sec.Port(), err)
			continue
		}
		leaf := talk.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		d.show(strings.Contains(strings.Join(leaf.DNSNames, " "), lab.ServerName), "port %d: %s, issued by %q", sec.Port(), leaf.DNSNames[0], leaf.Issuer.CommonName)
		talk.Close()
		_, err = d.secure(sec, stranger)
		d.show(err != nil, "port %d: a client that does not trust it refuses to go on", sec.Port())
	}
	return nil
}

// secure connects to the server from the client and opens TLS.
func (d *demo) secure(sec lab.Security, cfg *tls.Config) (*lab.Talk, error) {
	c, err := d.lab.Client.Dial(lab.HostPort(lab.ServerIP4, sec.Port()))
	if err != nil {
		return nil, err
	}
	t := lab.NewTalk(c)
	if sec == lab.Implicit {
		err = t.Handshake(cfg)
	} else if err = t.Greet(); err == nil {
		err = t.StartTLS(cfg)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// addresses shows that the server sees who is there.
func (d *demo) addresses(ctx context.Context) error {
	d.say("4. The server's log has the client's own address, not the gateway's:")
	for _, pair := range [][2]string{{lab.ServerIP4, lab.ClientIP4}, {lab.ServerIP6, lab.ClientIP6}} {
		ip, client := pair[0], pair[1]
		d.sink.Clear()
		content := corpus.Big(2000, 1)
		if out, err := d.send(ctx, ip, lab.Plain, content); err != nil {
			fmt.Println(out)
			return err
		}
		got := d.sink.Stored()
		ok := len(got) == 1 && got[0].Peer.String() == client
		d.show(ok, "the server was called by %v", got[0].Peer)
	}
	return nil
}

// accidents shows what happens when the gateway dies, comes back and is stopped.
func (d *demo) accidents(ctx context.Context) error {
	d.say("5. When the gateway dies, mail waits rather than passes uninspected (FailMode = Closed):")
	content := corpus.Big(2000, 2)
	try := func(want bool, text string) {
		d.sink.Clear()
		talk, err := d.secureless()
		if err == nil {
			_, err = talk.Deliver(content, "bob@server.example", false, nil)
			talk.Close()
		}
		d.show((err == nil) == want && (len(d.sink.Stored()) == 1) == want, "%s", text)
	}
	d.g.Kill()
	try(false, "kill -9: the client is refused at once, the server is not reached")
	if err := d.g.Start(ctx); err != nil {
		return err
	}
	try(true, "started again: mail passes, inspected")
	if err := d.g.Stop(ctx); err != nil {
		return err
	}
	try(true, "stopped on purpose: mail flows directly")
	out, err := d.lab.Gateway.Run(ctx, "", "nft", "list", "ruleset")
	d.show(err == nil && strings.TrimSpace(out) == "", "and no rule is left in the gateway's firewall")
	return nil
}

func (d *demo) secureless() (*lab.Talk, error) {
	c, err := d.lab.Client.Dial(lab.HostPort(lab.ServerIP4, 25))
	if err != nil {
		return nil, err
	}
	return lab.NewTalk(c), nil
}
