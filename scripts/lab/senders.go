package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
)

// Security is how a client protects a conversation.
type Security int

// The three ways there are.
const (
	Plain Security = iota
	StartTLS
	Implicit
)

// String returns the word used in the names of tests.
func (s Security) String() string { return [...]string{"plain", "starttls", "implicit"}[s] }

// Port returns the port on which the lab's servers speak this way.
func (s Security) Port() int { return [...]int{25, 587, 465}[s] }

// Errand is one message that a real program is to send.
type Errand struct {
	NS       *Namespace
	IP       string // of the server
	Security Security
	CAFile   string // whom the client trusts; it always verifies
	From, To string
	Content  []byte // canonical: CRLF line ends
	Dir      string // for files
}

// Sender sends one errand by a real program. An error means that the program said that it did not send.
type Sender struct {
	Name string
	Send func(ctx context.Context, e Errand) (output string, err error)
}

// Senders are the programs that can be told what to send on a command line.
func Senders() []Sender {
	return []Sender{{"swaks", sendSwaks}, {"msmtp", sendMsmtp}, {"curl", sendCurl}, {"smtplib", sendSmtplib}}
}

// file writes content for a program to read.
func (e Errand) file(pattern string, content []byte) (string, error) {
	f, err := os.CreateTemp(e.Dir, pattern)
	if err != nil {
		return "", fmt.Errorf("make file: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return "", fmt.Errorf("write file: %w", err)
	}
	return f.Name(), nil
}

func bracketed(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// sendSwaks gives swaks the very octets of the wire: it changes nothing when told so.
func sendSwaks(ctx context.Context, e Errand) (string, error) {
	data, err := e.file("swaks-*", bytes.TrimSuffix(Stuff(e.Content), []byte("\r\n"))) // it adds the last line end
	if err != nil {
		return "", err
	}
	defer os.Remove(data)
	args := []string{"--server", e.IP, "--port", fmt.Sprint(e.Security.Port()), "--helo", "client.lab.example", "--from", e.From,
		"--to", e.To, "--no-data-fixup", "--data", "@" + data, "--timeout", "30s"}
	switch e.Security {
	case StartTLS:
		args = append(args, "--tls", "--tls-verify", "--tls-ca-path", e.CAFile, "--tls-sni", ServerName)
	case Implicit:
		args = append(args, "--tls-on-connect", "--tls-verify", "--tls-ca-path", e.CAFile, "--tls-sni", ServerName)
	}
	return e.NS.Run(ctx, "", "swaks", args...)
}

// sendMsmtp feeds msmtp lines that end in LF, as a mail program does; msmtp makes CRLF of them.
func sendMsmtp(ctx context.Context, e Errand) (string, error) {
	conf := fmt.Sprintf("account default\nhost %s\nport %d\ndomain client.lab.example\nauth off\nset_date_header off\nset_msgid_header off\nremove_bcc_headers off\nset_from_header off\n", e.IP, e.Security.Port())
	switch e.Security {
	case Plain:
		conf += "tls off\n"
	case StartTLS, Implicit:
		starttls := "on"
		if e.Security == Implicit {
			starttls = "off"
		}
		conf += fmt.Sprintf("tls on\ntls_starttls %s\ntls_trust_file %s\ntls_host_override %s\n", starttls, e.CAFile, ServerName)
	}
	rc, err := e.file("msmtprc-*", []byte(conf))
	if err != nil {
		return "", err
	}
	defer os.Remove(rc)
	lines := bytes.ReplaceAll(e.Content, []byte("\r\n"), []byte("\n"))
	return e.NS.Run(ctx, string(lines), "msmtp", "-C", rc, "-f", e.From, "--timeout=30", "--", e.To)
}

func sendCurl(ctx context.Context, e Errand) (string, error) {
	data, err := e.file("curl-*", e.Content)
	if err != nil {
		return "", err
	}
	defer os.Remove(data)
	scheme := "smtp"
	if e.Security == Implicit {
		scheme = "smtps"
	}
	port := e.Security.Port()
	args := []string{"-sS", "--max-time", "30", "--mail-from", e.From, "--mail-rcpt", e.To, "--upload-file", data, "--cacert", e.CAFile,
		"--resolve", fmt.Sprintf("%s:%d:%s", ServerName, port, bracketed(e.IP)),
		fmt.Sprintf("%s://%s:%d/client.lab.example", scheme, ServerName, port)}
	if e.Security == StartTLS {
		args = append(args, "--ssl-reqd")
	}
	return e.NS.Run(ctx, "", "curl", args...)
}

const smtplibProgram = `
import smtplib, ssl, sys
ip, port, security, ca, name, sender, to, path = sys.argv[1:]
ctx = ssl.create_default_context(cafile=ca) if ca else None
content = open(path, 'rb').read()
class Client(smtplib.SMTP):
    def _get_socket(self, host, port, timeout):
        s = super()._get_socket(host, port, timeout)
        return ctx.wrap_socket(s, server_hostname=name) if security == 'implicit' else s
c = Client(ip, int(port), local_hostname='client.lab.example', timeout=30)
if security == 'starttls':
    c._host = name
    c.starttls(context=ctx)
c.ehlo_or_helo_if_needed()
options = ['BODY=8BITMIME'] if any(b > 127 for b in content) and c.has_extn('8bitmime') else []
c.sendmail(sender, [to], content, options)
c.quit()
`

func sendSmtplib(ctx context.Context, e Errand) (string, error) {
	data, err := e.file("smtplib-*", e.Content)
	if err != nil {
		return "", err
	}
	defer os.Remove(data)
	return e.NS.Run(ctx, "", "/usr/bin/python3", "-c", smtplibProgram, e.IP, fmt.Sprint(e.Security.Port()), e.Security.String(),
		e.CAFile, ServerName, e.From, e.To, data)
}

// Body returns content without the header fields that servers prepended to want: Received and Return-Path. It fails
// when anything else was put there or anything behind was changed.
func Body(content, want []byte) error {
	if !bytes.HasSuffix(content, want) {
		return fmt.Errorf("the content was changed: %s", firstDifference(content, want))
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(content[:len(content)-len(want)]), "\r\n"), "\r\n") {
		switch {
		case line == "", line[0] == ' ', line[0] == '\t', strings.HasPrefix(line, "Received:"), strings.HasPrefix(line, "Return-Path:"):
		default:
			return fmt.Errorf("%q was put before the content", line)
		}
	}
	return nil
}

// firstDifference looks for where two contents part, counted from their ends, since servers prepend.
func firstDifference(got, want []byte) string {
	n := 0
	for n < len(got) && n < len(want) && got[len(got)-1-n] == want[len(want)-1-n] {
		n++
	}
	show := func(b []byte) string {
		at := len(b) - n
		return fmt.Sprintf("%q", b[max(0, at-40):min(len(b), at+20)])
	}
	return fmt.Sprintf("%d octets came, %d were sent; from the end they agree for %d; came %s, sent %s", len(got), len(want), n, show(got), show(want))
}
