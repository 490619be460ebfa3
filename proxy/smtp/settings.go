package smtp

import (
	"fmt"
	"net/netip"
	"time"
)

// Settings is what an administrator writes. Zero values mean the defaults.
type Settings struct {
	ScanBudgetMua time.Duration `key:"ScanBudgetMua" default:"50s" min:"1s" max:"10m" doc:"On submission ports, how long the verdict on a message may take before the client is told to try again. Mail programs give up after 60 seconds."`
	ScanBudgetMta time.Duration `key:"ScanBudgetMta" default:"5m" min:"1s" max:"10m" doc:"The same on port 25, where mail servers wait up to ten minutes for the answer to a message."`

	DataMode    string `key:"DataMode" enum:"SpoolFirst|AskFirst" default:"SpoolFirst" doc:"SpoolFirst gives the server DATA only once a message may pass, so that a refused one leaves the session usable. AskFirst gives it at once, so that a server that refuses DATA does so before the content is sent; a refused message then ends the session."`
	EodPolicy   string `key:"EodPolicy" enum:"Reject|Normalize" default:"Reject" doc:"A message that holds something which careless servers take for the end of data (SMTP smuggling) is refused, or its line ends are made proper, which breaks signatures."`
	BareLf      string `key:"BareLineFeedInCommands" enum:"Accept|Reject" default:"Accept" doc:"Whether a command line may end in LF alone. It is passed on with CRLF. Message content is not concerned."`
	EarlyTalker string `key:"EarlyTalker" enum:"Faithful|Hold" default:"Faithful" doc:"What a client sends before the server's greeting is passed on at once, so that the server can notice it, or held until the greeting is complete."`

	NotSmtpTunnel []string `key:"NotSmtpTunnel" default:"" doc:"Servers (address, address:port or network) whose connections are passed through uninspected when they turn out not to speak SMTP. Everywhere else such connections are closed."`
	RequireTls    []string `key:"RequireTls" default:"" doc:"Servers (address, address:port or network) to which no mail and no password may be sent without TLS."`
	XclientFrom   []string `key:"XclientFrom" default:"" doc:"Clients (address or network) that may use XCLIENT and XFORWARD."`
	AuthNeedsTls  bool     `key:"AuthNeedsTls" default:"No" doc:"Refuse AUTH on connections without TLS even where the server allows it."`
	ScramPolicy   string   `key:"ScramPolicy" enum:"Auto|Keep" default:"Auto" doc:"When a server offers SCRAM with channel binding, which cannot work through a gateway: Auto hides all of SCRAM if another password mechanism is left, Keep hides only the binding variants."`
	SizeLimit     int64    `key:"SizeLimit" type:"size" default:"None" none:"yes" doc:"Announce at most this SIZE to clients. None leaves the server's own value."`
	Lmtp          bool     `key:"Lmtp" default:"No" doc:"Allow LHLO, that is LMTP on a diverted port."`

	DialTimeout      time.Duration `key:"DialTimeout" default:"2m" min:"1s" max:"10m" doc:"How long to wait for the mail server to accept a connection."`
	ReplyTimeout     time.Duration `key:"ReplyTimeout" default:"10m" min:"5m" max:"1h" doc:"How long to wait for the server's greeting and for each of its replies."`
	IdleTimeout      time.Duration `key:"IdleTimeout" default:"10m" min:"5m" max:"24h" doc:"How long a client may be silent between commands. Usually the server gives up earlier."`
	DataTimeout      time.Duration `key:"DataTimeout" default:"5m" min:"3m" max:"1h" doc:"How long a client may be silent within a message."`
	DataTotal        time.Duration `key:"DataTotal" default:"2h" min:"10m" max:"24h" doc:"How long a message may take to arrive."`
	HandshakeTimeout time.Duration `key:"HandshakeTimeout" default:"3m" min:"10s" max:"10m" doc:"How long everything from the server's 220 to STARTTLS to the end of both TLS handshakes may take. TlsHelloTimeout and TlsHandshakeTimeout bound its steps; this should be more than the former and three times the latter, so that clients get the fitting alert."`
	FirstBytes       time.Duration `key:"FirstBytesTimeout" default:"1m" min:"5s" max:"10m" doc:"On ports where TLS starts at once: how long to wait until either side says something."`
	KeepAlive        time.Duration `key:"KeepAlive" default:"150s" min:"10s" max:"4m" doc:"While a message arrives and is inspected, send NOOP to the silent server this often."`

	MaxRecipients int `key:"MaxRecipients" default:"10000" min:"100" doc:"Recipients of one message."`
	MaxBadVerbs   int `key:"MaxUnknownCommands" default:"20" min:"1" doc:"Unknown commands after which a connection is closed."`
}

// withDefaults returns s with its zero values replaced.
func (s Settings) withDefaults() Settings {
	duration := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	word := func(w *string, def string) {
		if *w == "" {
			*w = def
		}
	}
	duration(&s.ScanBudgetMua, 50*time.Second)
	duration(&s.ScanBudgetMta, 5*time.Minute)
	word(&s.DataMode, "SpoolFirst")
	word(&s.EodPolicy, "Reject")
	word(&s.BareLf, "Accept")
	word(&s.EarlyTalker, "Faithful")
	word(&s.ScramPolicy, "Auto")
	duration(&s.DialTimeout, 2*time.Minute)
	duration(&s.ReplyTimeout, 10*time.Minute)
	duration(&s.IdleTimeout, 10*time.Minute)
	duration(&s.DataTimeout, 5*time.Minute)
	duration(&s.DataTotal, 2*time.Hour)
	duration(&s.HandshakeTimeout, 3*time.Minute)
	duration(&s.FirstBytes, time.Minute)
	duration(&s.KeepAlive, 150*time.Second)
	if s.MaxRecipients <= 0 {
		s.MaxRecipients = 10000
	}
	if s.MaxBadVerbs <= 0 {
		s.MaxBadVerbs = 20
	}
	return s
}

// Check reports lists that cannot be read.
func (s *Settings) Check() error {
	for name, list := range map[string][]string{"NotSmtpTunnel": s.NotSmtpTunnel, "RequireTls": s.RequireTls, "XclientFrom": s.XclientFrom} {
		if _, err := parsePeers(list); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// peers is a list of addresses and networks, each for one port or for all.
type peers []peer

type peer struct {
	net  netip.Prefix
	port uint16 // 0: any
}

// parsePeers reads a list of "192.0.2.1", "192.0.2.1:25", "[2001:db8::1]:25" and "192.0.2.0/24".
func parsePeers(list []string) (peers, error) {
	var out peers
	for _, word := range list {
		if p, err := netip.ParsePrefix(word); err == nil {
			out = append(out, peer{net: p.Masked()})
		} else if a, err := netip.ParseAddr(word); err == nil {
			out = append(out, peer{net: netip.PrefixFrom(a, a.BitLen())})
		} else if ap, err := netip.ParseAddrPort(word); err == nil {
			out = append(out, peer{net: netip.PrefixFrom(ap.Addr(), ap.Addr().BitLen()), port: ap.Port()})
		} else {
			return nil, fmt.Errorf("%q is not an address, an address:port or a network; write for example 192.0.2.1, [2001:db8::1]:25 or 192.0.2.0/24", word)
		}
	}
	return out, nil
}

// has reports whether a is on the list.
func (l peers) has(a netip.AddrPort) bool {
	addr := a.Addr().Unmap()
	for _, p := range l {
		if p.net.Contains(addr) && (p.port == 0 || p.port == a.Port()) {
			return true
		}
	}
	return false
}
