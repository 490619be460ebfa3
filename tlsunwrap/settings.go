package tlsunwrap

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Settings is what an administrator writes. The zero value is usable; it opens nothing, since UnwrapSsl is No.
type Settings struct {
	UnwrapSsl        bool     `key:"UnwrapSsl" default:"No" doc:"Open TLS connections (implicit TLS and STARTTLS) and scan what is inside. Clients must trust the gateway's authority (mailweir certificate). With No, TLS is relayed untouched and logged as not inspected."`
	TlsVerify        string   `key:"TlsVerify" enum:"Auto|Strict|MirrorInvalid|Opportunistic" default:"Auto" doc:"What happens if a server's certificate does not verify. Strict: the connection is refused. MirrorInvalid: the client gets a certificate with the same defects by an authority that nobody trusts, and decides itself. Opportunistic: like MirrorInvalid, but a destination whose certificate was once good is refused. Auto: Opportunistic on port 25, Strict elsewhere."`
	TlsBypass        []string `key:"TlsBypass" default:"" doc:"Connections that are let through without being opened, and logged: ADDRESS, NET/BITS or server name (also *.example.com), each with :PORT if wanted, or client:ADDRESS, client:NET/BITS. A name counts only once the server has shown a valid certificate for it."`
	TlsPin           []string `key:"TlsPin" default:"" doc:"Destinations with a known key: DESTINATION=sha256/HASH, where HASH is the SHA-256 of the public key (SubjectPublicKeyInfo), base64 or hexadecimal. Another key is refused; this key is accepted whatever its certificate says."`
	TlsLegacy        []string `key:"TlsLegacy" default:"" doc:"Destinations, or clients as client:ADDRESS, that may use TLS 1.0 and 1.1 and RSA key exchange."`
	TlsTrustedCa     []string `key:"TlsTrustedCa" default:"" doc:"PEM files with authorities to trust in addition to the system's."`
	TlsIntermediates []string `key:"TlsIntermediates" default:"" doc:"PEM files with intermediate certificates, for servers that forget to send theirs."`
	TlsCrlDir        string   `key:"TlsCrlDir" default:"" doc:"Directory with certificate revocation lists (*.crl, *.pem). It is read at start and on reload."`
	Revocation       string   `key:"TlsRevocation" enum:"Soft|Hard" default:"Soft" doc:"Whether a certificate whose revocation status is unknown (no stapled OCSP answer, no revocation list) is accepted. A revoked one never is."`
	MinRsaBits       int      `key:"TlsMinRsaBits" default:"2048" min:"1024" max:"8192" doc:"Shortest RSA key that is accepted in a server's chain."`
	ServeCert        []string `key:"ServeCert" default:"" doc:"Own mail servers behind the gateway whose real certificate is served in place of a minted one: SERVER=CERTIFICATE.pem:KEY.pem, where SERVER is an ADDRESS or NET/BITS, with :PORT if wanted."`

	HelloTimeout     time.Duration `key:"TlsHelloTimeout" default:"60s" min:"1s" max:"300s" doc:"How long a client may take to begin TLS after it was told to."`
	HandshakeTimeout time.Duration `key:"TlsHandshakeTimeout" default:"30s" min:"1s" max:"300s" doc:"How long a server, and then the client, may take for the handshake."`
}

// Values of Settings.TlsVerify.
const (
	verifyAuto          = "Auto"
	verifyStrict        = "Strict"
	verifyMirrorInvalid = "MirrorInvalid"
	verifyOpportunistic = "Opportunistic"
)

// Check reports what is wrong with the settings, without reading the files that they name.
func (s *Settings) Check() error {
	_, err := s.parse()
	return err
}

// parsed are the lists of Settings, understood.
type parsed struct {
	bypass, legacy []target
	pins           []pin
	serve          []serve
}

type pin struct {
	target
	key [sha256.Size]byte
}

type serve struct {
	target
	certPath, keyPath string
	cert              *tls.Certificate
}

func (s *Settings) parse() (p parsed, err error) {
	switch s.TlsVerify {
	case "", verifyAuto, verifyStrict, verifyMirrorInvalid, verifyOpportunistic:
	default:
		return p, fmt.Errorf("TlsVerify: %q: want Auto, Strict, MirrorInvalid or Opportunistic", s.TlsVerify)
	}
	switch s.Revocation {
	case "", "Soft", "Hard":
	default:
		return p, fmt.Errorf("TlsRevocation: %q: want Soft or Hard", s.Revocation)
	}
	if p.bypass, err = parseTargets(s.TlsBypass); err != nil {
		return p, fmt.Errorf("TlsBypass: %w", err)
	}
	if p.legacy, err = parseTargets(s.TlsLegacy); err != nil {
		return p, fmt.Errorf("TlsLegacy: %w", err)
	}
	for _, v := range s.TlsPin {
		x, err := parsePin(v)
		if err != nil {
			return p, fmt.Errorf("TlsPin: %q: %w", v, err)
		}
		p.pins = append(p.pins, x)
	}
	for _, v := range s.ServeCert {
		x, err := parseServe(v)
		if err != nil {
			return p, fmt.Errorf("ServeCert: %q: %w", v, err)
		}
		p.serve = append(p.serve, x)
	}
	return p, nil
}

func parsePin(v string) (p pin, err error) {
	where, hash, ok := strings.Cut(v, "=sha256/")
	if !ok {
		return p, fmt.Errorf("want DESTINATION=sha256/HASH")
	}
	if p.target, err = parseTarget(where); err != nil {
		return p, err
	}
	sum, err := base64.StdEncoding.DecodeString(hash)
	if err != nil || len(sum) != len(p.key) {
		if sum, err = hex.DecodeString(hash); err != nil || len(sum) != len(p.key) {
			return p, fmt.Errorf("want 32 octets of SHA-256, base64 or hexadecimal")
		}
	}
	copy(p.key[:], sum)
	return p, nil
}

func parseServe(v string) (s serve, err error) {
	where, files, ok := strings.Cut(v, "=")
	certPath, keyPath, ok2 := strings.Cut(files, ":")
	if !ok || !ok2 || certPath == "" || keyPath == "" {
		return s, fmt.Errorf("want SERVER=CERTIFICATE.pem:KEY.pem")
	}
	if s.target, err = parseTarget(where); err != nil {
		return s, err
	}
	// A name would be the client's word for it; whose certificate we serve must hang on where the server is.
	if s.name != "" || s.client {
		return s, fmt.Errorf("SERVER must be an address or a net")
	}
	s.certPath, s.keyPath = certPath, keyPath
	return s, nil
}

// target tells connections: by the server's address, the client's address, or the server's name.
type target struct {
	text   string
	client bool
	net    netip.Prefix // valid unless name is set
	name   string       // lower case; "*.example.com" also
	port   uint16       // 0: any
}

func parseTargets(list []string) ([]target, error) {
	var ts []target
	for _, v := range list {
		t, err := parseTarget(v)
		if err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func parseTarget(v string) (t target, err error) {
	t.text = v
	rest, isClient := strings.CutPrefix(strings.TrimSpace(v), "client:")
	t.client = isClient
	host := rest
	if ap, err := netip.ParseAddrPort(rest); err == nil {
		host, t.port = ap.Addr().String(), ap.Port()
	} else if h, p, ok := strings.Cut(rest, ":"); ok && !strings.Contains(p, ":") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return t, fmt.Errorf("%q: %q is no port", v, p)
		}
		host, t.port = h, uint16(n)
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		t.net = netip.PrefixFrom(a, a.BitLen())
		return t, nil
	}
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		if err != nil {
			return t, fmt.Errorf("%q: want a net like 192.0.2.0/24", v)
		}
		t.net = p.Masked()
		return t, nil
	}
	if t.client {
		return t, fmt.Errorf("%q: a client is named by its address or net", v)
	}
	t.name = strings.ToLower(host)
	if !validName(strings.TrimPrefix(t.name, "*.")) {
		return t, fmt.Errorf("%q: want an address, a net or a server name", v)
	}
	return t, nil
}

// matchAddr reports whether t, which names no server, covers the connection.
func (t target) matchAddr(r Request) bool {
	if t.name != "" || t.port != 0 && t.port != r.ServerAddr.Port() {
		return false
	}
	a := r.ServerAddr.Addr()
	if t.client {
		a = r.ClientAddr.Addr()
	}
	return t.net.Contains(a.Unmap())
}

// matchName reports whether t names the server sni.
func (t target) matchName(r Request, sni string) bool {
	if t.name == "" || sni == "" || t.port != 0 && t.port != r.ServerAddr.Port() {
		return false
	}
	sni = strings.ToLower(sni)
	if suffix, ok := strings.CutPrefix(t.name, "*"); ok {
		return strings.HasSuffix(sni, suffix) && len(sni) > len(suffix)
	}
	return sni == t.name
}

// policy is the way in which a server's certificate is judged.
func (r *rules) policy(port uint16) string {
	switch r.TlsVerify {
	case "", verifyAuto:
		if port == 25 {
			return verifyOpportunistic
		}
		return verifyStrict
	}
	return r.TlsVerify
}

// rules are Settings with everything read that they name. They do not change.
type rules struct {
	Settings
	parsed
	roots    *x509.CertPool
	rootInfo RootInfo
	helpers  []*x509.Certificate
	crls     revocations
	sessions tls.ClientSessionCache
	fresh    *memory // keys of sessions, for sessionLife
	verified *memory // server addresses and names, for nameBypassLife
}

// readRules reads what s names.
func (u *Unwrapper) readRules(s Settings) (*rules, error) {
	if s.HelloTimeout == 0 {
		s.HelloTimeout = 60 * time.Second
	}
	if s.HandshakeTimeout == 0 {
		s.HandshakeTimeout = 30 * time.Second
	}
	if s.MinRsaBits == 0 {
		s.MinRsaBits = 2048
	}
	r := &rules{Settings: s, roots: u.givenCAs, sessions: tls.NewLRUClientSessionCache(maxSessions), fresh: newMemory(maxSessions), verified: newMemory(maxVerified)}
	var err error
	if r.parsed, err = s.parse(); err != nil {
		return nil, err
	}
	for i := range r.serve {
		x := &r.serve[i]
		c, err := tls.LoadX509KeyPair(x.certPath, x.keyPath)
		if err != nil {
			return nil, fmt.Errorf("ServeCert: %q: %w", x.text, err)
		}
		x.cert = &c
	}
	if r.roots == nil {
		if r.roots, r.rootInfo, err = readRoots(s.TlsTrustedCa, u.own); err != nil {
			return nil, err
		}
		if r.rootInfo.Count == 0 {
			u.log.Warn("no root certificates: every server will be refused", "searched", strings.Join(rootFiles(), " "))
		}
	}
	for _, path := range s.TlsIntermediates {
		cs, err := readCertificates(path)
		if err != nil {
			return nil, fmt.Errorf("TlsIntermediates: %w", err)
		}
		r.helpers = append(r.helpers, cs...)
	}
	if r.crls, err = readCRLs(s.TlsCrlDir); err != nil {
		return nil, fmt.Errorf("TlsCrlDir: %w", err)
	}
	return r, nil
}
