package smtp

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

// TestT071Door: a name lets a connection through only if the server has shown, on a connection of its own, a valid
// certificate for it. The very first connection is let through.
func TestT071Door(t *testing.T) {
	t.Parallel()
	bypass := tlsunwrap.Settings{TlsBypass: []string{"*.example"}}
	for _, port := range []uint16{25, 465, 587} {
		t.Run(fmt.Sprintf("T-071 T-077 %d: the first connection is let through, and accounted for", port), func(t *testing.T) {
			t.Parallel()
			d := newTLSDoor(t, bypass, nil).at(port, false)
			direct := &tls.Config{ServerName: mxName, RootCAs: tlstest.Pool(d.trust.Root())} // knows the server, not us
			state, err := d.mail(direct)
			worked(d, err)
			if err != nil {
				return
			}
			if n := len(d.server.hellos); n != 2 {
				t.Errorf("the server saw %d hellos, want that of the probe and the client's", n)
			}
			if len(state.PeerCertificates) == 0 || !state.PeerCertificates[0].Equal(tlstest.Parse(t, d.server.cfg.Certificates[0].Certificate[0])) {
				t.Error("the client did not see the server's own certificate")
			}
			var size int64
			for _, e := range d.events.List() {
				if e.Event == "not-inspected" {
					size = e.Size
					if e.Reason != "TlsBypass *.example" || e.Server != d.address.String() || e.Conn == "" {
						t.Errorf("event %+v", e)
					}
				}
			}
			if s := d.unwrap.Stats(); size < 1000 || s.TunnelBytes != size || s.Tunnelled != 1 {
				t.Errorf("event says %d octets, stats %+v", size, s)
			}
			// The next one needs no probe.
			if _, err := d.mail(direct); err != nil || len(d.server.hellos) != 3 {
				t.Errorf("%v, %d hellos", err, len(d.server.hellos))
			}
		})
		t.Run(fmt.Sprintf("T-071 %d: the name is a lie", port), func(t *testing.T) {
			t.Parallel()
			d := newTLSDoor(t, bypass, nil).at(port, false)
			d.server.show(tlstest.NewCA(t, "evil").Leaf(t, []string{mxName}))
			_, err := d.mail(d.lenient())
			_, inside, conns := d.server.told()
			if conns != 2 {
				t.Errorf("%d connections, want the client's and the probe's", conns)
			}
			if s := d.unwrap.Stats(); s.Tunnelled != 0 || d.count("not-inspected") != 0 {
				t.Errorf("let through: %+v", s)
			}
			if port == 25 { // opportunistic: opened, scanned
				if err != nil || d.count("message") != 1 {
					t.Errorf("%v\n%s", err, d.events.JSON())
				}
			} else if !alerted(err) || len(inside) > 0 {
				t.Errorf("%v, the server was told %q", err, inside)
			}
		})
	}
	t.Run("T-077 1 MB let through", func(t *testing.T) {
		t.Parallel()
		d := newTLSDoor(t, bypass, nil).at(465, false)
		const octets = 1 << 20
		c := d.connect()
		s := tls.Client(c.Conn, &tls.Config{ServerName: mxName, RootCAs: tlstest.Pool(d.trust.Root())})
		in := &side{Conn: s, t: t, name: "client", br: bufio.NewReader(s)}
		line := make([]byte, 1022)
		for i := range line {
			line[i] = 'x'
		}
		if err := in.dialogue("", "220", "DATA", "354"); err != nil {
			t.Fatal(err)
		}
		for range octets / 1024 {
			if _, err := s.Write(append(line, '\r', '\n')); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.dialogue(".", "250", "QUIT", "221"); err != nil {
			t.Error(err)
		}
		c.Close()
		d.wg.Wait()
		if n := d.unwrap.Stats().TunnelBytes; n < octets || n > octets+octets/10 {
			t.Errorf("%d octets counted", n)
		}
		if d.count("not-inspected") != 1 {
			t.Error(d.events.JSON())
		}
	})
	// A server that behaves otherwise on the second connection: the client's own is opened and inspected, and in time.
	for name, odd := range map[string]func(c net.Conn, br *bufio.Reader){
		"does not answer":           func(c net.Conn, br *bufio.Reader) { br.ReadByte() },
		"greets with 421":           func(c net.Conn, br *bufio.Reader) { io.WriteString(c, "421 too many\r\n") },
		"does not offer STARTTLS":   func(c net.Conn, br *bufio.Reader) { script(c, br, "220 x", "250 x", "502 no") },
		"injects behind its 220":    func(c net.Conn, br *bufio.Reader) { script(c, br, "220 x", "250 x", "220 go\r\n250 evil") },
		"speaks no TLS":             func(c net.Conn, br *bufio.Reader) { script(c, br, "220 x", "250 x", "220 go", "500 what?") },
		"hangs amid the handshake":  func(c net.Conn, br *bufio.Reader) { script(c, br, "220 x", "250 x", "220 go"); br.Discard(1 << 16) },
		"sends replies without end": func(c net.Conn, br *bufio.Reader) { script(c, br, "220-"+string(make([]byte, 1<<20))) },
	} {
		t.Run("T-071 the server "+name+" to the probe", func(t *testing.T) {
			t.Parallel()
			set := bypass
			set.HandshakeTimeout = 3 * time.Second // of the probe, too
			d := newTLSDoor(t, set, nil)
			d.server.odd = odd
			_, err := d.mail(d.verifying(nil))
			worked(d, err)
			if d.count("message") != 1 || d.unwrap.Stats().Tunnelled != 0 {
				t.Error("not inspected")
			}
		})
	}
	t.Run("T-071 the probe says EHLO in the client's name, and no mail command", func(t *testing.T) {
		t.Parallel()
		d := newTLSDoor(t, bypass, nil)
		if _, err := d.mail(&tls.Config{ServerName: mxName, InsecureSkipVerify: true}); err != nil {
			t.Fatal(err)
		}
		clear, _, conns := d.server.told()
		slices.Sort(clear)
		if conns != 2 || !slices.Equal(clear, []string{"EHLO client.example", "EHLO client.example", "STARTTLS", "STARTTLS"}) {
			t.Errorf("%d connections, in clear %q", conns, clear)
		}
	})
}

// script says replies, each but the first upon a line.
func script(c net.Conn, br *bufio.Reader, replies ...string) {
	for i, r := range replies {
		if i > 0 {
			if _, err := br.ReadString('\n'); err != nil {
				return
			}
		}
		io.WriteString(c, r+"\r\n")
	}
	br.ReadByte()
}
