package tlsunwrap

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"mailweir/inspect"
)

// offer is what the gateway speaks with the server on behalf of a client.
type offer struct {
	clientMin, clientMax uint16   // what the client offered, of what we know
	clientFloor          uint16   // lowest version allowed with the client
	serverMin            uint16   // lowest version offered to the server
	alpn                 []string // protocols that the client offered and that we speak
	resume               bool     // an earlier session with the server may be resumed
	resume12             bool     // even one of TLS 1.2
	sessions             *sessions
}

// suites are the cipher suites of TLS 1.2 that we speak: forward secrecy always, AEAD first. crypto/tls orders them.
func suites(legacy bool) []uint16 {
	s := []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		// Exchange on Windows Server 2012 has no GCM with RSA certificates.
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	}
	if legacy { // never RC4, 3DES, export, anonymous or static DH
		s = append(s, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA)
	}
	return s
}

// protocols are the ALPN ids that a door speaks. http/1.1 to a mail port must not be accepted: RFC 7301, ALPACA.
func protocols(d inspect.Door) []string {
	switch d {
	case "smtp", "pop3", "imap":
		return []string{string(d)}
	}
	return nil
}

// offer derives what is said to the server from what the client said.
func (r *rules) offer(q Request, chi *tls.ClientHelloInfo) (offer, *Error) {
	o := offer{clientFloor: tls.VersionTLS12, serverMin: tls.VersionTLS12}
	for _, t := range r.legacy {
		if t.matchAddr(q) || t.matchName(q, chi.ServerName) {
			o.clientFloor = tls.VersionTLS10
			if !t.client {
				o.serverMin = tls.VersionTLS10
			}
		}
	}
	for _, v := range chi.SupportedVersions {
		if v < tls.VersionTLS10 || v > tls.VersionTLS13 { // SSL, GREASE, the future
			continue
		}
		if o.clientMin == 0 || v < o.clientMin {
			o.clientMin = v
		}
		o.clientMax = max(o.clientMax, v)
	}
	if o.clientMax < o.clientFloor {
		return o, &Error{Event: EventNoVersion, Detail: "the client offers nothing above " + tls.VersionName(o.clientMax) +
			"; TlsLegacy = client:" + q.ClientAddr.Addr().String() + " allows it"}
	}
	// A client that insists on a newer version than the floor must not get less than that from the server either.
	if o.serverMin == tls.VersionTLS12 && o.clientMin > o.serverMin {
		o.serverMin = o.clientMin
	}
	for _, p := range chi.SupportedProtos {
		if slices.Contains(protocols(q.Door), p) {
			o.alpn = append(o.alpn, p)
		}
	}
	// A client that resumes a session has not seen the server's certificate this time. So the server must show it to
	// us: no resuming on that leg. RFC 8446 §4.2: 41 is pre_shared_key; RFC 5077 §3.2: 35 is session_ticket, which
	// older clients send, empty or not.
	o.resume = !slices.Contains(chi.Extensions, 41) && (o.clientMax >= tls.VersionTLS13 || !slices.Contains(chi.Extensions, 35))
	o.resume12 = o.resume && !slices.Contains(chi.Extensions, 35)
	return o, nil
}

// clientVersions returns the versions for the client's leg: never one that would make the connection look better than
// the server's leg is.
func (o offer) clientVersions(server uint16) (lo, hi uint16) {
	return o.clientFloor, max(server, o.clientMin)
}

// upstreamConfig is how we appear to the server.
func (a *attempt) upstreamConfig(o *offer) *tls.Config {
	key := strings.Join([]string{a.destination(), strings.Join(o.alpn, ","), tls.VersionName(o.serverMin)}, "|")
	o.sessions = &sessions{cache: a.rules.sessions, fresh: a.rules.fresh, now: a.u.now(), key: key, use: o.resume, use12: o.resume12}
	return &tls.Config{
		ServerName:         a.sni, // as the client wrote it; crypto/tls sends none for an IP address
		NextProtos:         o.alpn,
		MinVersion:         o.serverMin,
		CipherSuites:       suites(o.serverMin < tls.VersionTLS12),
		ClientSessionCache: o.sessions,
		Time:               a.u.now,
		InsecureSkipVerify: true, // VerifyConnection judges, on resumed sessions too
		VerifyConnection: func(cs tls.ConnectionState) error {
			a.verdict = a.judge(cs)
			if a.verdict.refusal != nil {
				return a.verdict.refusal
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.certAsked = true
			return &tls.Certificate{}, nil // we have none; whether it must be is the server's decision
		},
	}
}

// clientConfig is how we appear to the client.
func (a *attempt) clientConfig(o offer, server tls.ConnectionState) *tls.Config {
	lo, hi := o.clientVersions(server.Version)
	c := &tls.Config{
		Certificates: []tls.Certificate{*a.cert},
		MinVersion:   lo,
		MaxVersion:   hi,
		CipherSuites: suites(lo < tls.VersionTLS12),
		Time:         a.u.now,
	}
	if server.NegotiatedProtocol != "" {
		c.NextProtos = []string{server.NegotiatedProtocol}
	}
	binding, tickets := a.binding(), a.u.tickets.at(a.u.now())
	c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		ss.Extra = append(ss.Extra, binding)
		return tickets.EncryptTicket(cs, ss)
	}
	c.UnwrapSession = func(id []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := tickets.DecryptTicket(id, cs)
		if err != nil || ss == nil {
			return nil, err
		}
		// The offer sees to it that not both legs resume; should it ever not, the client gets a whole handshake.
		if server.DidResume || !slices.ContainsFunc(ss.Extra, func(b []byte) bool { return string(b) == string(binding) }) {
			return nil, nil // a whole handshake
		}
		return ss, nil
	}
	return c
}

// canECDSA reports whether a client that gets version can use a P-256 certificate.
func canECDSA(chi *tls.ClientHelloInfo, version uint16) bool {
	if version >= tls.VersionTLS13 && slices.Contains(chi.SupportedVersions, tls.VersionTLS13) {
		return slices.Contains(chi.SignatureSchemes, tls.ECDSAWithP256AndSHA256)
	}
	if len(chi.SupportedCurves) > 0 && !slices.Contains(chi.SupportedCurves, tls.CurveP256) {
		return false
	}
	if len(chi.SignatureSchemes) > 0 && !slices.ContainsFunc(chi.SignatureSchemes, func(s tls.SignatureScheme) bool {
		return s == tls.ECDSAWithP256AndSHA256 || s == tls.ECDSAWithP384AndSHA384 || s == tls.ECDSAWithP521AndSHA512 || s == tls.ECDSAWithSHA1
	}) {
		return false
	}
	return slices.ContainsFunc(chi.CipherSuites, func(id uint16) bool {
		return strings.HasPrefix(tls.CipherSuiteName(id), "TLS_ECDHE_ECDSA_")
	})
}

// sessionLife is how long after a whole handshake the server's leg may be resumed. A client that comes for the first time
// would see the certificate that the server has now; it must not be stood in for by one that was seen long ago.
const sessionLife = time.Hour

// sessions is the part of the cache of upstream sessions that one handshake may use.
type sessions struct {
	cache      tls.ClientSessionCache
	fresh      *memory // keys whose last whole handshake is not too long ago
	now        time.Time
	key        string
	use, use12 bool
	done       bool // the handshake is over: tickets that come now are of TLS 1.3
	resumed    bool // it resumed a session: what comes of that is as old as the session
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(string) (*tls.ClientSessionState, bool) {
	if !s.use || !s.fresh.has(s.key, s.now) {
		return nil, false
	}
	if cs, ok := s.cache.Get(s.key + "|13"); ok && cs != nil || !s.use12 {
		return cs, ok
	}
	return s.cache.Get(s.key + "|12")
}

// Put implements tls.ClientSessionCache. A nil state removes.
func (s *sessions) Put(_ string, cs *tls.ClientSessionState) {
	if cs == nil {
		s.cache.Put(s.key+"|13", nil)
		s.cache.Put(s.key+"|12", nil)
		return
	}
	if s.resumed {
		return
	}
	s.fresh.add(s.key, s.now, sessionLife)
	if s.done {
		s.cache.Put(s.key+"|13", cs)
		return
	}
	s.cache.Put(s.key+"|12", cs)
}

// certNames returns a few names of c, for people.
func certNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 && c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	if len(names) > 10 {
		names = append(names[:10], "...")
	}
	return names
}
