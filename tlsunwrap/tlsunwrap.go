// Package tlsunwrap stands between two TLS peers: it reads the client's hello, shakes hands with the server first,
// verifies the server's certificate, and only then finishes with the client, under a certificate minted in the likeness
// of the server's. What comes out are two connections that carry plain octets.
//
// The promise is that an unwrapped connection is never weaker than the one it stands in for. The server is asked for the
// name that the client asked for, or for none; versions and protocols are offered only as far as the client offered
// them; a certificate that does not verify is refused, or mirrored by an authority that nobody trusts, according to the
// policy of the destination; and no octet of the client's data reaches a server before its certificate was judged, on
// resumed sessions too. Nothing is ever tried again in a weaker way.
//
// The package works on any net.Conn and starts no goroutine of its own. It parses no TLS message: crypto/tls does. The
// certificates come from a [Minter]; what SMTP does before and after is the caller's business, who must hold no octet
// of either leg in a buffer when TLS begins.
package tlsunwrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"mailweir/inspect"
)

// Minter makes the certificates that clients see. like is the server's own; trusted tells whether it was verified; rsaKey
// asks for an RSA key. It is safe for concurrent use.
type Minter interface {
	Mint(like *x509.Certificate, trusted, rsaKey bool) (*tls.Certificate, error)
}

// Config is what a gateway wires in.
type Config struct {
	Settings
	Minter      Minter
	OwnCAs      []*x509.Certificate // our authorities: nothing that they signed is accepted from a server
	Roots       *x509.CertPool      // in place of the system's roots; TlsTrustedCa is then not read
	Log         *slog.Logger
	Events      inspect.Recorder
	Now         func() time.Time
	HistoryPath string // file that remembers destinations once verified; empty: only in memory
}

// Unwrapper opens TLS connections. It is safe for concurrent use.
type Unwrapper struct {
	minter   Minter
	own      []*x509.Certificate
	givenCAs *x509.CertPool
	log      *slog.Logger
	events   inspect.Recorder
	now      func() time.Time

	rules    atomic.Pointer[rules] // replaced by Reload
	tickets  tickets
	distrust *distrust // clients that refuse our certificates
	history  *history
	stats    counters
}

// Request is one connection on which TLS is about to begin.
type Request struct {
	ID             string
	Client, Server net.Conn
	ClientAddr     netip.AddrPort
	ServerAddr     netip.AddrPort
	Door           inspect.Door
	Divert         string

	// Early holds octets of the client's that were read already. They must be the beginning of its hello.
	Early []byte

	// Probe opens another connection to the same server and brings it to where TLS begins. It is used to verify a
	// server before a connection is let through by name; without it, the first such connection is unwrapped.
	Probe func(context.Context) (net.Conn, error)
}

// Session is the outcome of Unwrap. Both legs are the caller's to close, and have no deadlines set.
type Session struct {
	Client, Server net.Conn
	Info           Info
	Forwarded      int64 // octets of the client's that were passed on already, if Info.Tunnel

	u *Unwrapper
	r Request
}

// Info tells what came of a handshake.
type Info struct {
	SNI           string // name that the client asked for
	ALPN          string
	ClientVersion string   // "TLS 1.3"
	ServerVersion string   // never reported as the better of the two: both are
	Names         []string // names in the server's certificate
	Verified      bool     // the server's certificate was found good
	Reason        string   // why not, or why the connection is let through
	Tunnel        bool     // let through: both legs are raw and the client's hello has been passed on
	Resumed       bool     // the client resumed an earlier session
}

// New returns an Unwrapper. It reads the files that the settings name.
func New(c Config) (*Unwrapper, error) {
	if c.Minter == nil {
		return nil, errors.New("open tls unwrapper: no minter")
	}
	u := &Unwrapper{
		minter: c.Minter, own: c.OwnCAs, givenCAs: c.Roots, log: c.Log, events: c.Events, now: c.Now,
		distrust: newDistrust(),
	}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	if u.events == nil {
		u.events = inspect.Discarding
	}
	if u.now == nil {
		u.now = time.Now
	}
	var err error
	if u.history, err = openHistory(c.HistoryPath, u.now()); err != nil {
		return nil, err
	}
	if err := u.Reload(c.Settings); err != nil {
		return nil, err
	}
	return u, nil
}

// Reload replaces the settings, and reads root certificates, intermediates, revocation lists and served certificates
// anew. On error everything stays as it was.
func (u *Unwrapper) Reload(s Settings) error {
	r, err := u.readRules(s)
	if err != nil {
		return fmt.Errorf("read tls settings: %w", err)
	}
	u.rules.Store(r) // and with it empty memories: what was verified by the old rules is verified anew
	return nil
}

// Unwrap reads the client's hello, shakes hands with the server and then with the client. On error, which is always an
// [*Error], the client has got the fitting TLS alert; the caller records the error's event and closes both legs. No
// octet that the client sends after its hello has reached the server then.
func (u *Unwrapper) Unwrap(ctx context.Context, r Request) (*Session, error) {
	a := &attempt{u: u, rules: u.rules.Load(), r: r, client: &leg{Conn: r.Client, early: r.Early, record: true},
		server: &leg{Conn: r.Server}}
	s, err := a.run(ctx)
	if err != nil {
		return nil, err
	}
	// The caller's own deadlines begin now.
	if err := errors.Join(r.Client.SetDeadline(time.Time{}), r.Server.SetDeadline(time.Time{})); err != nil {
		return nil, &Error{Event: EventClientTLS, Detail: "connection ended after its handshake", Err: err}
	}
	return s, nil
}

// Stats are counters since the start.
type Stats struct {
	Unwrapped   int64 // connections opened
	Refused     int64 // connections refused
	Tunnelled   int64 // connections let through
	TunnelBytes int64 // octets in both directions that were let through without being looked at
}

type counters struct{ unwrapped, refused, tunnelled, tunnelBytes atomic.Int64 }

// Stats returns the counters.
func (u *Unwrapper) Stats() Stats {
	return Stats{u.stats.unwrapped.Load(), u.stats.refused.Load(), u.stats.tunnelled.Load(), u.stats.tunnelBytes.Load()}
}

// Account is called once for a session that was let through, when it has ended, with the octets relayed each way since
// Unwrap. It counts them and records the event that says what was not inspected, and why.
func (s *Session) Account(toServer, toClient int64) {
	n := s.Forwarded + toServer + toClient
	s.u.stats.tunnelBytes.Add(n)
	e := s.u.event("not-inspected", s.r)
	e.Size, e.Reason, e.Detail = n, s.Info.Reason, nameDetail(s.Info.SNI, s.Info.Names)
	s.u.events.Record(e)
}

// event begins an event about r.
func (u *Unwrapper) event(name string, r Request) inspect.Event {
	e := inspect.Event{Time: u.now().UTC(), Event: name, Conn: r.ID, Door: r.Door, Divert: r.Divert}
	if r.ClientAddr.IsValid() {
		e.Client = r.ClientAddr.String()
	}
	if r.ServerAddr.IsValid() {
		e.Server = r.ServerAddr.String()
	}
	return e
}

// Close writes down what is to be remembered.
func (u *Unwrapper) Close() error { return u.history.close() }
