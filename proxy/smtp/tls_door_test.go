package smtp

// A door that opens TLS, with real sockets, a server and clients of the test's own:
//
//	d := newTLSDoor(t, tlsunwrap.Settings{})
//	d.server.show(cert)                  // the server's certificate; more in tlsServer
//	err := d.mail(d.verifying(nil))      // a client that verifies: TLS as the port has it, AUTH, one message, QUIT
//
// What reached the server is in d.server.clear and d.server.inside, line by line.

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"mailweir/certs"
	"mailweir/proxy"
	"mailweir/proxy/proxytest"
	"mailweir/tlsunwrap"
	"mailweir/tlsunwrap/tlstest"
)

const (
	mxName   = "mx.example"
	password = "AHRlc3QAc2VjcmV0" // NUL test NUL secret, as AUTH PLAIN has it
)

type tlsDoor struct {
	t        *testing.T
	trust    *tlstest.Trust // whom the gateway trusts
	clientCA *x509.CertPool // the gateway's own authority
	events   *proxytest.Events
	server   *tlsServer
	handler  *Handler
	unwrap   *tlsunwrap.Unwrapper
	address  netip.AddrPort // of the server, as the client means it
	implicit bool
	wg       sync.WaitGroup
}

// doorAuthority is one for all tests: making it writes to the disk, durably.
var doorAuthority = sync.OnceValues(func() (*certs.Authority, error) {
	dir, err := os.MkdirTemp("", "mailweir-certs-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return certs.Open(dir, "gw.test")
})

// newTLSDoor makes a door whose gateway trusts trust, or a new root. The server shows a good certificate on 587.
func newTLSDoor(t *testing.T, set tlsunwrap.Settings, trust *tlstest.Trust, change ...func(*Config)) *tlsDoor {
	t.Helper()
	a, err := doorAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if trust == nil {
		trust = &tlstest.Trust{Roots: []*tlstest.CA{tlstest.NewCA(t, "test root")}}
	}
	d := &tlsDoor{t: t, trust: trust, events: &proxytest.Events{}, clientCA: x509.NewCertPool()}
	d.clientCA.AppendCertsFromPEM(a.PEM())
	d.unwrap, err = tlsunwrap.New(tlsunwrap.Config{Settings: set, Minter: a, OwnCAs: a.Certificates(), Roots: tlstest.Pool(trust.Roots...), Events: d.events})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.wg.Wait(); d.unwrap.Close() })
	d.server = &tlsServer{}
	d.server.show(trust.Root().Leaf(t, []string{mxName}))
	cfg := Config{Scanner: &proxytest.Scanner{}, Events: d.events, TLS: d.unwrap, Spool: testSpool(t, spoolSettings), Dial: d.dial}
	for _, c := range change {
		c(&cfg)
	}
	d.handler = New(cfg)
	d.at(587, false)
	return d
}

// at says which port and kind of address the client means from now on.
func (d *tlsDoor) at(port uint16, v6 bool) *tlsDoor {
	ip := netip.MustParseAddr("198.51.100.1")
	if v6 {
		ip = netip.MustParseAddr("2001:db8::1")
	}
	d.address, d.implicit = netip.AddrPortFrom(ip, port), port == 465
	d.server.implicit = d.implicit
	return d
}

func (d *tlsDoor) dial(context.Context, *proxy.Conn) (net.Conn, error) {
	near, far := d.pair()
	d.wg.Go(func() { d.server.serve(far) })
	return near, nil
}

// pair is tcpPair, over IPv6 if the client means such an address and the machine has it.
func (d *tlsDoor) pair() (dialed, accepted net.Conn) {
	if d.address.Addr().Is6() {
		if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			defer l.Close()
			c, err := net.Dial("tcp6", l.Addr().String())
			if err != nil {
				d.t.Fatal(err)
			}
			a, err := l.Accept()
			if err != nil {
				d.t.Fatal(err)
			}
			return c, a
		}
	}
	return tcpPair(d.t)
}

// connect opens a client's connection to the door.
func (d *tlsDoor) connect() *side {
	client, front := d.pair()
	from := netip.MustParseAddrPort("192.0.2.1:40000")
	if d.address.Addr().Is6() {
		from = netip.MustParseAddrPort("[2001:db8:1::1]:40000")
	}
	c := &proxy.Conn{Conn: front, ID: proxy.NewConnID(), Divert: "forward", Client: from, Server: d.address, Implicit: d.implicit}
	d.wg.Go(func() { d.handler.Serve(context.Background(), nil, c) })
	d.t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(time.Minute))
	return &side{Conn: client, t: d.t, name: "client", br: bufio.NewReader(client)}
}

// verifying is a client that trusts the gateway's authority and nobody else.
func (d *tlsDoor) verifying(change func(*tls.Config)) *tls.Config {
	c := &tls.Config{ServerName: mxName, RootCAs: d.clientCA}
	if change != nil {
		change(c)
	}
	return c
}

// lenient is a client that takes any certificate.
func (d *tlsDoor) lenient() *tls.Config {
	return d.verifying(func(c *tls.Config) { c.InsecureSkipVerify = true })
}

// mail is a whole session: TLS as the port has it, AUTH, a message, QUIT. The error of the handshake is returned as it
// is. The door has done with the connection when mail returns.
func (d *tlsDoor) mail(cfg *tls.Config) (state tls.ConnectionState, err error) {
	d.t.Helper()
	c := d.connect()
	defer d.wg.Wait()
	defer c.Close()
	if !d.implicit {
		if err := c.dialogue("", "220", "EHLO client.example", "250", "STARTTLS", "220"); err != nil {
			return state, err
		}
	}
	t := tls.Client(c.Conn, cfg)
	if err := t.Handshake(); err != nil {
		return state, err
	}
	in := &side{Conn: t, t: d.t, name: "client", br: bufio.NewReader(t)}
	if d.implicit {
		if err := in.dialogue("", "220"); err != nil {
			return state, err
		}
	}
	err = in.dialogue("EHLO client.example", "250", "AUTH PLAIN "+password, "235", "MAIL FROM:<a@x.example>", "250",
		"RCPT TO:<b@y.example>", "250", "DATA", "354", "Subject: x\r\n\r\ny\r\n.", "250", "QUIT", "221")
	return t.ConnectionState(), err
}

// dialogue says and expects in turn; "" says nothing.
func (p *side) dialogue(steps ...string) error {
	for i := 0; i < len(steps); i += 2 {
		if steps[i] != "" {
			if _, err := io.WriteString(p.Conn, steps[i]+"\r\n"); err != nil {
				return err
			}
		}
		for {
			l, err := p.br.ReadString('\n')
			if err != nil {
				return err
			}
			if !strings.HasPrefix(l, steps[i+1]) {
				return fmt.Errorf("%q is answered by %q", steps[i], l)
			}
			if len(l) < 4 || l[3] != '-' {
				break
			}
		}
	}
	return nil
}

// tlsServer is a mail server that notes what it is told, and how.
type tlsServer struct {
	implicit   bool
	mechanisms string                        // of AUTH, if other than PLAIN
	plain      bool                          // does not offer STARTTLS
	odd        func(net.Conn, *bufio.Reader) // serves the second connection

	mu     sync.Mutex
	cfg    *tls.Config
	clear  []string // lines in clear
	inside []string // lines within TLS
	names  []string // that were asked for in hellos
	conns  int
	stored []string // contents
	hellos []*tls.ClientHelloInfo
}

// show makes cert the server's certificate from now on; keys of session tickets stay.
func (s *tlsServer) show(cert tls.Certificate, change ...func(*tls.Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	cfg.SetSessionTicketKeys([][32]byte{{1}})
	for _, c := range change {
		c(cfg)
	}
	s.cfg = cfg
}

// told returns what the server was told so far, and forgets it.
func (s *tlsServer) told() (clear, inside []string, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear, inside, conns = s.clear, s.inside, s.conns
	s.clear, s.inside, s.conns, s.names = nil, nil, 0, nil
	return clear, inside, conns
}

func (s *tlsServer) serve(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	s.mu.Lock()
	s.conns++
	second := s.conns == 2
	s.mu.Unlock()
	secure := false
	br := bufio.NewReader(c)
	if second && s.odd != nil {
		s.odd(c, br)
		return
	}
	begin := func() error {
		s.mu.Lock()
		cfg := s.cfg.Clone()
		s.mu.Unlock()
		cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.names, s.hellos = append(s.names, h.ServerName), append(s.hellos, h)
			return nil, nil
		}
		t := tls.Server(c, cfg)
		if err := t.Handshake(); err != nil {
			return err
		}
		c, br, secure = t, bufio.NewReader(t), true
		return nil
	}
	if s.implicit && begin() != nil {
		return
	}
	io.WriteString(c, "220 mx.example ESMTP\r\n")
	for {
		l, err := br.ReadString('\n')
		if l != "" {
			s.mu.Lock()
			if secure {
				s.inside = append(s.inside, strings.TrimRight(l, "\r\n"))
			} else {
				s.clear = append(s.clear, strings.TrimRight(l, "\r\n"))
			}
			s.mu.Unlock()
		}
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(l)), " ")
		switch verb {
		case "EHLO":
			lines := []string{"mx.example", "AUTH " + cmp.Or(s.mechanisms, "PLAIN")}
			if !secure && !s.plain {
				lines = append(lines, "STARTTLS")
			}
			io.WriteString(c, "250-"+strings.Join(lines[:len(lines)-1], "\r\n250-")+"\r\n250 "+lines[len(lines)-1]+"\r\n")
		case "STARTTLS":
			io.WriteString(c, "220 go ahead\r\n")
			if begin() != nil {
				return
			}
		case "AUTH":
			io.WriteString(c, "235 welcome\r\n")
		case "DATA":
			io.WriteString(c, "354 go\r\n")
			content := ""
			for l != ".\r\n" {
				if l, err = br.ReadString('\n'); err != nil {
					return
				}
				content += l
			}
			s.mu.Lock()
			s.stored = append(s.stored, content)
			s.mu.Unlock()
			io.WriteString(c, "250 stored\r\n")
		case "QUIT":
			io.WriteString(c, "221 bye\r\n")
			return
		default:
			io.WriteString(c, "250 ok\r\n")
		}
	}
}

// alerted reports whether err is an alert of the peer.
func alerted(err error) bool {
	var oe *net.OpError
	return errors.As(err, &oe) && oe.Op == "remote error"
}

// count returns how many events of that name were recorded.
func (d *tlsDoor) count(name string) (n int) {
	for _, e := range d.events.List() {
		if e.Event == name {
			n++
		}
	}
	return n
}

// teed keeps a copy of what is read.
type teed struct {
	net.Conn
	copy io.Writer
}

func (c *teed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.copy.Write(p[:n])
	return n, err
}
