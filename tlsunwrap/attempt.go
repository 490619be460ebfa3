package tlsunwrap

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

// nameBypassLife is how long a verified server may be let through by its name without being verified again.
const nameBypassLife = time.Hour

// errDone ends the handshake with the client from within; what there is to say has been said.
var errDone = errors.New("handshake ended")

// attempt is one call of Unwrap.
type attempt struct {
	u              *Unwrapper
	rules          *rules
	r              Request
	client, server *leg

	sni       string    // as the client wrote it
	up        *tls.Conn // the server's leg
	verdict   verdict
	certAsked bool // the server asked for a certificate of the client
	cert      *tls.Certificate
	tunnel    string // why the connection is let through
	fail      *Error // why there is no connection
}

func (a *attempt) run(ctx context.Context) (*Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := a.r.Client.SetDeadline(time.Now().Add(a.rules.HelloTimeout)); err != nil {
		return nil, &Error{EventBadHello, "the client is gone", err}
	}
	down := tls.Server(a.client, &tls.Config{GetConfigForClient: a.hello, SessionTicketsDisabled: true, MinVersion: tls.VersionTLS10})
	plain := &plainAlert{}
	a.client.plain = plain
	err := down.HandshakeContext(ctx)
	a.client.plain = nil
	switch {
	case a.tunnel != "":
		return a.letThrough()
	case err == nil:
		return a.session(down), nil
	case a.fail != nil:
		a.u.stats.refused.Add(1)
		return nil, a.fail
	case a.up == nil:
		a.u.stats.refused.Add(1)
		return nil, helloError(err)
	}
	a.u.stats.refused.Add(1)
	e := clientError(plain.explain(err))
	if e.Event == EventUnknownCA {
		a.u.distrusted(a.r, a.sni)
	}
	return nil, e
}

// refuse ends the attempt: the client gets the alert.
func (a *attempt) refuse(e *Error, alert uint8) (*tls.Config, error) {
	a.fail = e
	a.client.alert(alert)
	return nil, errDone
}

// hello is called by crypto/tls with the client's hello, before anything is answered.
func (a *attempt) hello(chi *tls.ClientHelloInfo) (*tls.Config, error) {
	a.sni = chi.ServerName
	if a.sni != "" && !validSNI(a.sni) {
		return a.refuse(&Error{Event: EventBadHello, Detail: fmt.Sprintf("server name %.80q is none", a.sni)}, alertIllegalParameter)
	}
	if a.tunnel = a.bypass(chi); a.tunnel != "" {
		a.client.mute = true
		return nil, errDone
	}
	a.client.record, a.client.seen = false, nil
	offer, e := a.rules.offer(a.r, chi)
	if e != nil {
		return a.refuse(e, alertProtocolVersion)
	}
	// From here on the client waits for us.
	until := time.Now().Add(a.rules.HandshakeTimeout)
	if err := errors.Join(a.r.Server.SetDeadline(until), a.r.Client.SetDeadline(until.Add(a.rules.HandshakeTimeout))); err != nil {
		return a.refuse(&Error{EventUpstreamTLS, "a leg is gone", err}, alertInternalError)
	}
	a.up = tls.Client(a.server, a.upstreamConfig(&offer))
	if err := a.up.HandshakeContext(chi.Context()); err != nil {
		e, alert := upstreamError(err, a.certAsked, &a.verdict)
		return a.refuse(e, alert)
	}
	state := a.up.ConnectionState()
	offer.sessions.done, offer.sessions.resumed = true, state.DidResume
	if err := a.mint(chi, offer, state); err != nil {
		return a.refuse(&Error{EventMint, "no certificate could be made", err}, alertInternalError)
	}
	return a.clientConfig(offer, state), nil
}

// bypass says why the connection is to be let through, or nothing.
func (a *attempt) bypass(chi *tls.ClientHelloInfo) string {
	for _, t := range a.rules.bypass {
		if t.matchAddr(a.r) {
			return "TlsBypass " + t.text
		}
		// The name is the client's word. It counts only for a server that holds a valid certificate of that name.
		if t.matchName(a.r, a.sni) && (a.rules.verified.has(a.destination(), a.u.now()) || a.probe(chi)) {
			return "TlsBypass " + t.text
		}
	}
	return ""
}

// probe verifies the server by a handshake on a connection of its own. Without Request.Probe it cannot, and the
// connection is unwrapped; that verifies the server for the next one.
func (a *attempt) probe(chi *tls.ClientHelloInfo) bool {
	if a.r.Probe == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(chi.Context(), a.rules.HandshakeTimeout) // the client waits
	defer cancel()
	c, err := a.r.Probe(ctx)
	if err != nil {
		a.u.log.Info("server could not be verified before letting a connection through by name", "conn", a.r.ID, "err", err)
		return false
	}
	defer c.Close()
	b := &attempt{u: a.u, rules: a.rules, r: a.r, sni: a.sni, server: &leg{Conn: c}}
	good := false
	t := tls.Client(b.server, &tls.Config{ServerName: a.sni, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12,
		VerifyConnection: func(cs tls.ConnectionState) error {
			good = a.rules.check(cs, b.checkName(), a.u.own, a.u.now()) == nil
			return nil
		}})
	if t.HandshakeContext(ctx) != nil || !good {
		return false
	}
	a.rules.verified.add(a.destination(), a.u.now(), nameBypassLife)
	return true
}

// letThrough passes the client's hello on and leaves both legs raw.
func (a *attempt) letThrough() (*Session, error) {
	a.u.stats.tunnelled.Add(1)
	if err := a.r.Server.SetDeadline(time.Now().Add(a.rules.HandshakeTimeout)); err != nil {
		return nil, &Error{EventUpstreamTLS, "the server is gone", err}
	}
	if _, err := a.r.Server.Write(a.client.seen); err != nil {
		return nil, &Error{EventUpstreamTLS, "the server is gone", err}
	}
	return &Session{Client: a.r.Client, Server: a.r.Server, Forwarded: int64(len(a.client.seen)), u: a.u, r: a.r,
		Info: Info{SNI: a.sni, Tunnel: true, Reason: a.tunnel}}, nil
}

// session makes the connections that carry plain octets.
func (a *attempt) session(down *tls.Conn) *Session {
	a.u.stats.unwrapped.Add(1)
	c, s := down.ConnectionState(), a.up.ConnectionState()
	info := Info{SNI: a.sni, ALPN: c.NegotiatedProtocol, ClientVersion: tls.VersionName(c.Version), ServerVersion: tls.VersionName(s.Version),
		Names: certNames(a.verdict.leaf), Verified: a.verdict.trusted, Reason: a.verdict.reason, Resumed: c.DidResume}
	if c.Version < tls.VersionTLS12 || s.Version < tls.VersionTLS12 {
		e := a.u.event("tls-legacy", a.r)
		e.Detail = fmt.Sprintf("client leg %s, server leg %s, allowed by TlsLegacy", info.ClientVersion, info.ServerVersion)
		a.u.events.Record(e)
	}
	return &Session{Info: info, u: a.u, r: a.r,
		Client: &conn{Conn: down, leg: a.client, raw: a.r.Client, trouble: a.clientTrouble},
		Server: &conn{Conn: a.up, leg: a.server, raw: a.r.Server, trouble: a.serverTrouble}}
}

// mint makes the certificate that the client will see.
func (a *attempt) mint(chi *tls.ClientHelloInfo, o offer, state tls.ConnectionState) error {
	for _, s := range a.rules.serve {
		if s.matchAddr(a.r) {
			a.cert = s.cert
			return nil
		}
	}
	_, max := o.clientVersions(state.Version)
	var err error
	a.cert, err = a.u.minter.Mint(a.verdict.leaf, a.verdict.trusted, !canECDSA(chi, max))
	return err
}

// destination tells servers apart: by address, and by the name asked for.
func (a *attempt) destination() string {
	return a.r.ServerAddr.String() + "|" + strings.ToLower(a.sni)
}

// checkName is the name that the server's certificate must be valid for.
func (a *attempt) checkName() string { return a.sni }

// binding ties a client's ticket to what the session was opened under: resuming must not carry trust from a good
// certificate over to a bad one.
func (a *attempt) binding() []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%v|%s|", a.verdict.trusted, a.destination())
	h.Write(a.verdict.leaf.Raw) // and not the minted leaf: that one is made anew now and then, and says the same
	return h.Sum(nil)
}

// clientTrouble looks at what ended the client's leg: some clients judge a certificate only after the handshake.
func (a *attempt) clientTrouble(err error, read bool) error {
	if code, ok := remoteAlert(err); ok && distrustAlert(code) && !read {
		a.u.distrusted(a.r, a.sni)
		return &Error{EventUnknownCA, "the client does not trust our certificate", err}
	}
	return err
}

// serverTrouble looks at what ended the server's leg: with TLS 1.3 a server refuses a client without certificate only
// after the handshake.
func (a *attempt) serverTrouble(err error, read bool) error {
	code, remote := remoteAlert(err)
	local, isLocal := alertOf(err, "local error")
	var e *Error
	switch {
	case remote && code == alertCertRequired, remote && a.certAsked && !read && certificateAlert(code):
		e = &Error{EventMTLS, "the server requires a certificate of the client; TlsBypass can let this destination through", err}
	case isLocal && (local == alertNoRenegotiation || local == alertUnexpected || local == alertDecodeError):
		// crypto/tls does not know post-handshake authentication and takes the request for a broken message.
		e = &Error{EventRenegotiation, "the server asked for a new handshake or a certificate amid the session, or sent what " +
			"has no place there", err}
	default:
		return err
	}
	ev := a.u.event(e.Event, a.r)
	ev.Detail = e.Detail
	a.u.events.Record(ev)
	return e
}
