package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/emersion/go-smtp"
)

type virusTestCmd struct {
	Address string `arg:"" help:"Who gets the message."`
	From    string `default:"postmaster@localhost" help:"Who sends it (${default})."`
	Server  string `placeholder:"HOST[:PORT]" help:"Send it to this server; the one of the address's domain (MX, port 25) if left out."`
}

// Help is shown by mailweir virus-test --help.
func (c *virusTestCmd) Help() string {
	return `The message has the EICAR test file attached: harmless, and taken for a virus by every scanner. It is sent as any mail
program of this machine would send it. It meets the gateway only if such mail does: run the command on a client behind
the gateway, or on the gateway itself with LinuxFirewall.OutputDivert on.

The exit status is 0 if the message was refused as it should be, 1 if the server took it. Then look at what has arrived:
with ThreatAction Repack it is a notice in place of the attachment.`
}

// Run implements the command.
func (c *virusTestCmd) Run(a *app) error {
	server, err := c.server(a.ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Minute)
	defer cancel()
	err = c.send(ctx, server)
	var refused errRefused
	switch {
	case errors.As(err, &refused):
		return a.print("refused: %d %s\n", refused.Code, plain(strings.ReplaceAll(refused.Message, "\n", " ")))
	case err != nil:
		return fmt.Errorf("send to %s: %w", server, err)
	}
	if err := a.print("sent: %s took the message\n", server); err != nil {
		return err
	}
	a.hint("look at what has arrived: the attachment must be gone; mailweir events shows what became of it")
	return status(1)
}

// server returns where to send: host and port.
func (c *virusTestCmd) server(ctx context.Context) (string, error) {
	_, domain, ok := strings.Cut(c.Address, "@")
	if !ok || domain == "" || strings.ContainsAny(c.Address, "\r\n <>") {
		return "", fmt.Errorf("%q is not a mail address", c.Address)
	}
	if c.Server != "" {
		if _, _, err := net.SplitHostPort(c.Server); err == nil {
			return c.Server, nil
		}
		return net.JoinHostPort(strings.Trim(c.Server, "[]"), "25"), nil
	}
	mx, err := net.DefaultResolver.LookupMX(ctx, domain)
	var none *net.DNSError
	if errors.As(err, &none) && none.IsNotFound {
		return net.JoinHostPort(domain, "25"), nil // RFC 5321 §5.1: the domain itself
	}
	if err != nil {
		return "", hinted(fmt.Errorf("find server: %w", err), "name it by --server")
	}
	return net.JoinHostPort(strings.TrimSuffix(mx[0].Host, "."), "25"), nil
}

// errRefused is the answer to the message itself: everything before it was accepted.
type errRefused struct{ *smtp.SMTPError }

// send sends the message as a mail server would: with TLS if it is offered, whatever the certificate.
func (c *virusTestCmd) send(ctx context.Context, server string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	name, _, err := net.SplitHostPort(server)
	if err != nil {
		return err
	}
	dial := func() (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", server)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		return conn, conn.SetDeadline(deadline)
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	client := smtp.NewClient(conn)
	defer func() { client.Close() }()
	if err := client.Hello(host); err != nil {
		return err
	}
	if ok, _ := client.Extension("STARTTLS"); ok {
		// The library begins TLS on a fresh connection only.
		if err := client.Quit(); err != nil {
			return err
		}
		if conn, err = dial(); err != nil {
			return err
		}
		if client, err = smtp.NewClientStartTLS(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}); err != nil {
			client = smtp.NewClient(conn)
			return err
		}
	}
	return c.message(client)
}

func (c *virusTestCmd) message(client *smtp.Client) error {
	if err := client.Mail(c.From, nil); err != nil {
		return err
	}
	if err := client.Rcpt(c.Address, nil); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, strings.ReplaceAll(fmt.Sprintf(`From: <%s>
To: <%s>
Subject: test of the mail gateway with a harmless test virus
Date: %s
Message-ID: <%d.virus-test@mailweir>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="=_virus_test"

--=_virus_test
Content-Type: text/plain

This message was sent by mailweir virus-test. It has the EICAR test file
attached, which is harmless. A gateway that works does not let it through.

--=_virus_test
Content-Type: application/octet-stream
Content-Disposition: attachment; filename=eicar.com

%s
--=_virus_test--
`, c.From, c.Address, time.Now().Format(time.RFC1123Z), time.Now().UnixNano(), eicar()), "\n", "\r\n"))
	if err != nil {
		return err
	}
	err = w.Close()
	var answer *smtp.SMTPError
	if errors.As(err, &answer) {
		return errRefused{answer}
	}
	return err
}

// eicar returns the test file, in pieces so that no scanner takes this program for one.
func eicar() string {
	return `X5O!P%@AP[4\PZX54(P^)7CC)7}` + "$EICAR-STANDARD" + "-ANTIVIRUS-TEST-FILE!$H+H*"
}
