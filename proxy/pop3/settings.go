package pop3

import (
	"fmt"
	"time"

	"mailweir/proxy"
)

// Settings is what an administrator writes. Zero values mean the defaults.
type Settings struct {
	ReadBy string `key:"ReadBy" enum:"Top|Retr" default:"Top" doc:"How a message that a client retrieves is read to be judged. Top reads it by TOP, which leaves no mark, and gives the server the client's RETR only once the message may be handed out: servers that delete or hide what was retrieved do not take a message that is held back for one that was delivered. Retr judges what the client's RETR brings, which transfers every message once instead of twice."`

	ScanBudget      time.Duration `key:"ScanBudget" default:"5m" min:"1s" max:"1h" doc:"How long the verdict on a message may take before the client is told to try again."`
	TrickleAfter    time.Duration `key:"TrickleAfter" default:"20s" min:"1s" max:"10m" doc:"When a message takes longer than this to be read and judged, the client is kept waiting by lines of its header."`
	TrickleInterval time.Duration `key:"TrickleInterval" default:"15s" min:"1s" max:"10m" doc:"How often it then gets one more line."`

	KeepSizes     bool     `key:"KeepSizes" default:"No" doc:"Whether LIST and STAT go on to tell the sizes of originals when messages were replaced. No tells the sizes of the replacements."`
	NotPop3Tunnel []string `key:"NotPop3Tunnel" default:"" doc:"Servers (address, address:port or network) whose connections are passed through uninspected when they turn out not to speak POP3. Everywhere else such connections are closed."`
	RequireTls    []string `key:"RequireTls" default:"" doc:"Servers (address, address:port or network) to which no password may be sent without TLS."`
	ScramPolicy   string   `key:"ScramPolicy" enum:"Auto|Keep" default:"Auto" doc:"When a server offers SCRAM with channel binding, which cannot work through a gateway: Auto hides all of SCRAM if another password mechanism is left, Keep hides only the binding variants."`

	DialTimeout      time.Duration `key:"DialTimeout" default:"2m" min:"1s" max:"10m" doc:"How long to wait for the mail server to accept a connection."`
	ReplyTimeout     time.Duration `key:"ReplyTimeout" default:"10m" min:"1m" max:"1h" doc:"How long to wait for the server's greeting and for each of its replies."`
	IdleTimeout      time.Duration `key:"IdleTimeout" default:"35m" min:"10m" max:"24h" doc:"How long a client may be silent between commands. Usually the server gives up earlier."`
	DataTimeout      time.Duration `key:"DataTimeout" default:"5m" min:"1m" max:"1h" doc:"How long either side may stand still within a message."`
	LoneDotTimeout   time.Duration `key:"LoneDotTimeout" default:"1m" min:"5s" max:"10m" doc:"How long to wait for more when a server has sent a lone dot without the line ends that make it the end of a message."`
	HandshakeTimeout time.Duration `key:"HandshakeTimeout" default:"3m" min:"10s" max:"10m" doc:"How long everything from the server's answer to STLS to the end of both TLS handshakes may take."`
	FirstBytes       time.Duration `key:"FirstBytesTimeout" default:"1m" min:"5s" max:"10m" doc:"On ports where TLS starts at once: how long to wait until either side says something."`
	KeepAlive        time.Duration `key:"KeepAlive" default:"2m" min:"10s" max:"8m" doc:"While a message is judged, and while a client reads one, send NOOP to the silent server this often. Servers end a session after ten minutes of silence, and forget what was deleted."`

	MaxBadVerbs int `key:"MaxUnknownCommands" default:"20" min:"1" doc:"Unknown commands after which a connection is closed."`
}

// withDefaults returns s with its zero values replaced.
func (s Settings) withDefaults() Settings {
	for _, d := range []struct {
		is  *time.Duration
		def time.Duration
	}{
		{&s.ScanBudget, 5 * time.Minute}, {&s.TrickleAfter, 20 * time.Second}, {&s.TrickleInterval, 15 * time.Second},
		{&s.DialTimeout, 2 * time.Minute}, {&s.ReplyTimeout, 10 * time.Minute}, {&s.IdleTimeout, 35 * time.Minute},
		{&s.DataTimeout, 5 * time.Minute}, {&s.LoneDotTimeout, time.Minute}, {&s.HandshakeTimeout, 3 * time.Minute},
		{&s.FirstBytes, time.Minute}, {&s.KeepAlive, 2 * time.Minute},
	} {
		if *d.is <= 0 {
			*d.is = d.def
		}
	}
	if s.ReadBy == "" {
		s.ReadBy = "Top"
	}
	if s.ScramPolicy == "" {
		s.ScramPolicy = "Auto"
	}
	if s.MaxBadVerbs <= 0 {
		s.MaxBadVerbs = 20
	}
	return s
}

// Check reports lists that cannot be read.
func (s *Settings) Check() error {
	for name, list := range map[string][]string{"NotPop3Tunnel": s.NotPop3Tunnel, "RequireTls": s.RequireTls} {
		if _, err := proxy.ParsePeers(list); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
