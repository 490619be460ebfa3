package smtp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"mailweir/inspect"
	"mailweir/proxy/proxytest"
	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

// TestT061: what the client says in clear is said to the server in clear. The gateway begins no TLS of its own.
func TestT061(t *testing.T) {
	t.Parallel()
	for _, port := range []uint16{25, 587} {
		t.Run(fmt.Sprint("T-061 S-066 ", port), func(t *testing.T) {
			t.Parallel()
			d := newTLSDoor(t, tlsunwrap.Settings{}, nil).at(port, false)
			c := d.connect()
			if err := c.dialogue("", "220", "EHLO client.example", "250", "AUTH PLAIN "+password, "235", "MAIL FROM:<a@x.example>", "250",
				"RCPT TO:<b@y.example>", "250", "DATA", "354", "y\r\n.", "250", "QUIT", "221"); err != nil {
				t.Fatal(err)
			}
			d.wg.Wait()
			clear, inside, _ := d.server.told()
			want := []string{"EHLO client.example", "AUTH PLAIN " + password, "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA", "QUIT"}
			if !slices.Equal(clear, want) || len(inside) > 0 {
				t.Errorf("in clear %q, within TLS %q", clear, inside)
			}
		})
	}
}

// TestT062: what hangs on the server's channel is hidden and refused where the gateway stands between, and left alone
// where it does not.
func TestT062(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, offer, want string }{
		{"T-062 S-086 PLUS and its siblings go", "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1-PLUS PLAIN", "PLAIN"},
		{"T-062 S-086 nothing else is left", "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "SCRAM-SHA-256"},
		{"T-062 S-089 EXTERNAL", "EXTERNAL PLAIN", "PLAIN"},
	} {
		for _, port := range []uint16{587, 465} {
			for _, bypass := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d, let through %t", c.name, port, bypass), func(t *testing.T) {
					t.Parallel()
					set, want := tlsunwrap.Settings{}, c.want
					if bypass {
						set.TlsBypass, want = []string{"198.51.100.1"}, c.offer
					}
					d := newTLSDoor(t, set, nil).at(port, false)
					d.server.mechanisms = c.offer
					s := d.connect()
					if !d.implicit {
						if err := s.dialogue("", "220", "EHLO c", "250", "STARTTLS", "220"); err != nil {
							t.Fatal(err)
						}
					}
					conn := tls.Client(s.Conn, d.lenient())
					in := &side{Conn: conn, t: t, name: "client", br: bufio.NewReader(conn)}
					if d.implicit {
						in.want("220")
					}
					in.say("EHLO c")
					got := ""
					for _, l := range in.reply("250") {
						if m, ok := strings.CutPrefix(l[4:], "AUTH "); ok {
							got = m
						}
					}
					if got != want {
						t.Errorf("the client is offered %q, want %q", got, want)
					}
					if !bypass {
						mech, _, _ := strings.Cut(c.offer, " ")
						d.server.told()
						in.say("AUTH " + mech + " " + password)
						in.want("504")
						if _, inside, _ := d.server.told(); len(inside) > 0 {
							t.Errorf("the server was told %q", inside)
						}
					}
					in.say("QUIT")
					in.want("221")
				})
			}
		}
	}
}

// TestT086: the client gets what the server said, protocol replies and TLS alerts, and nothing else; messages that pass
// have nothing put into them.
func TestT086(t *testing.T) {
	t.Parallel()
	const replies = "220 mx.example ESMTP\r\n250-mx.example\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n220 go ahead\r\n"
	for _, port := range []uint16{587, 465} {
		for _, c := range tlstest.BadChains(mxName) {
			if !strings.HasPrefix(c.Name, "T-01") {
				continue
			}
			t.Run(fmt.Sprintf("T-086 %d, %s: an alert and nothing else", port, c.Name), func(t *testing.T) {
				t.Parallel()
				root := tlstest.NewCA(t, "test root")
				trust := &tlstest.Trust{Roots: []*tlstest.CA{root}}
				bad := c.Make(t, trust)
				d := newTLSDoor(t, tlsunwrap.Settings{}, trust).at(port, false)
				d.server.show(bad)
				s := d.connect()
				var wire bytes.Buffer
				raw := &side{Conn: s.Conn, t: t, name: "client", br: bufio.NewReader(io.TeeReader(s.Conn, &wire))}
				want := ""
				if !d.implicit {
					want = replies
					if err := raw.dialogue("", "220", "EHLO client.example", "250", "STARTTLS", "220"); err != nil {
						t.Fatal(err)
					}
				}
				if err := tls.Client(&teed{s.Conn, &wire}, d.verifying(nil)).Handshake(); !alerted(err) {
					t.Fatalf("the client got %v", err)
				}
				io.Copy(&wire, s.Conn)
				tail, ok := strings.CutPrefix(wire.String(), want)
				// RFC 8446 §5.1, §6: one record of type alert, fatal.
				if !ok || len(tail) != 7 || tail[:6] != "\x15\x03\x01\x00\x02\x02" {
					t.Errorf("the client got %q", wire.String())
				}
			})
		}
	}
	t.Run("T-086 a message that passes has nothing put into it", func(t *testing.T) {
		t.Parallel()
		d := newTLSDoor(t, tlsunwrap.Settings{}, nil)
		if _, err := d.mail(d.verifying(nil)); err != nil {
			t.Fatal(err)
		}
		if got := d.server.stored; len(got) != 1 || got[0] != "Subject: x\r\n\r\ny\r\n.\r\n" {
			t.Errorf("the server got %q", got)
		}
	})
	t.Run("T-086 a message that does not pass is answered, and nothing is sent in its place", func(t *testing.T) {
		t.Parallel()
		scanner := &proxytest.Scanner{}
		scanner.Answer(inspect.Verdict{Action: inspect.Reject})
		d := newTLSDoor(t, tlsunwrap.Settings{}, nil, func(c *Config) { c.Scanner = scanner })
		_, err := d.mail(d.verifying(nil))
		if err == nil || !strings.Contains(err.Error(), `is answered by "55`) || strings.ContainsAny(fmt.Sprint(err), "<>") {
			t.Errorf("the client got %v", err)
		}
		if len(d.server.stored) > 0 {
			t.Errorf("the server got %q", d.server.stored)
		}
	})
}

// TestT034Door: the server's default certificate is bad, the one for its name good; the name that the client asks for is
// the one that the server hears, octet for octet.
func TestT034Door(t *testing.T) {
	t.Parallel()
	for _, port := range []uint16{25, 587, 465} {
		for _, name := range []string{mxName, "MX.Example"} {
			t.Run(fmt.Sprintf("T-034 %d %s", port, name), func(t *testing.T) {
				t.Parallel()
				d := newTLSDoor(t, tlsunwrap.Settings{TlsVerify: "Strict"}, nil).at(port, true)
				k := tlstest.Key(t)
				self := tlstest.NewCAKey(t, "default", k)
				d.server.show(tls.Certificate{Certificate: [][]byte{self.Cert.Raw}, PrivateKey: k}, func(c *tls.Config) {
					good := d.trust.Root().Leaf(t, []string{mxName})
					c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
						if strings.EqualFold(h.ServerName, mxName) {
							return &good, nil
						}
						return nil, nil
					}
				})
				_, err := d.mail(d.verifying(func(c *tls.Config) { c.ServerName = name }))
				if names := d.server.names; !slices.Equal(names, []string{name}) {
					t.Errorf("the server was asked for %q", names)
				}
				worked(d, err)
				_, err = d.mail(d.verifying(func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "", true }))
				refused(d, err, "upstream-cert")
			})
		}
	}
}
