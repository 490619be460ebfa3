package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/divert"
	"mailweir/inspect"
	"mailweir/inspect/engine/builtin"
	"mailweir/inspect/engine/clamd"
	"mailweir/inspect/maild"
	"mailweir/inspect/repack"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/proxy/smtp"
	"mailweir/tlsunwrap"
)

// generation is everything that is made of one state of the settings.
type generation struct {
	settings config.Settings
	loaded   time.Time
	core     *Core
	smtp     proxy.Handler
}

// Core is the scanning core with its engines, as one state of the settings asks for it.
type Core struct {
	Scanner *maild.MailD
	Builtin *builtin.Engine
	Clamd   *clamd.Engine // nil unless ClamD.ClamdSocket is set
}

// NewCore makes the engines and the scanner. keeper is nil where nothing is to be kept, for mailweir scan.
func NewCore(s *config.Settings, pool *spool.Pool, keeper maild.Keeper, log *slog.Logger) (*Core, error) {
	c := &Core{}
	var err error
	if c.Builtin, err = builtin.Open(builtin.Config{Dir: s.Root.Signatures(), Log: log}); err != nil {
		return nil, err
	}
	engines := []inspect.Engine{c.Builtin}
	if s.ClamD.ClamdSocket != "" {
		if c.Clamd, err = clamd.New(clamd.Config{Settings: s.ClamD, Log: log}); err != nil {
			return nil, err
		}
		engines = append(engines, c.Clamd)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	c.Scanner, err = maild.New(maild.Config{
		Settings: s.LinuxFirewall.Scan,
		Engines:  engines,
		Keeper:   keeper,
		Repacker: repack.New(repack.Config{Settings: s.MailD, Spool: pool, Host: host}),
		Spool:    pool,
		Log:      log,
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// build makes a generation of settings. Nothing of the running one is touched, but for the TLS rules: the unwrapper
// stays, since it remembers what it has seen, and takes new rules as a whole or not at all.
func (g *Gateway) build(l *config.Loaded) (*generation, error) {
	s := l.Settings
	here := s
	here.Root.StateDir = g.first.Root.StateDir // takes effect at the next start
	core, err := NewCore(&here, g.spool, g.store, g.log)
	if err != nil {
		return nil, err
	}
	unwrapper, err := g.unwrap(s.LinuxFirewall.Tls)
	if err != nil {
		return nil, err
	}
	return &generation{
		settings: s,
		loaded:   time.Now(),
		core:     core,
		smtp: smtp.New(smtp.Config{
			Settings: s.Smtp,
			Dial:     g.server.Dialer(g.dial),
			Scanner:  core.Scanner,
			Spool:    g.spool,
			TLS:      unwrapper,
			Events:   g.events,
			Log:      g.log,
		}),
	}, nil
}

// unwrap returns the unwrapper with new rules, or nil if TLS is not to be opened.
func (g *Gateway) unwrap(s tlsunwrap.Settings) (*tlsunwrap.Unwrapper, error) {
	if !s.UnwrapSsl {
		return nil, nil
	}
	if g.unwrapper != nil {
		return g.unwrapper, g.unwrapper.Reload(s)
	}
	u, err := tlsunwrap.New(tlsunwrap.Config{
		Settings:    s,
		Minter:      g.authority,
		OwnCAs:      g.authority.Certificates(),
		Log:         g.log,
		Events:      g.events,
		HistoryPath: filepath.Join(g.first.Root.StateDir, "tls-history.json"),
	})
	if err != nil {
		return nil, err
	}
	g.unwrapper = u
	return u, nil
}

// dial opens the server's leg of a connection.
func (g *Gateway) dial(ctx context.Context, c *proxy.Conn) (net.Conn, error) {
	return g.divert.Dial(ctx, divert.Flow{Client: c.Client, Server: c.Server, Kind: c.Divert})
}

// handler gives each new connection to the generation that is in force when it arrives.
type handler struct{ g *Gateway }

// Serve implements proxy.Handler.
func (h handler) Serve(ctx context.Context, draining <-chan struct{}, c *proxy.Conn) {
	h.g.current.Load().smtp.Serve(ctx, draining, c)
}

// listener makes diverted connections the connections of a door.
type listener struct{ *divert.Listener }

// AcceptConn implements proxy.Listener.
func (l listener) AcceptConn() (*proxy.Conn, error) {
	c, err := l.Listener.AcceptConn()
	if err != nil {
		return nil, err
	}
	return &proxy.Conn{
		Conn: c.TCPConn, ID: proxy.NewConnID(), Client: c.Client, Server: c.Server,
		Divert: c.Kind, Proc: c.Proc, Implicit: implicitTLS(c.Server.Port()),
	}, nil
}

// refuse says politely that there are too many connections. RFC 5321 §3.8, RFC 3463 §3.5
func refuse(c *proxy.Conn) {
	if !c.Implicit {
		_, _ = c.Write([]byte("421 4.3.2 Too many connections, please try again later\r\n"))
	}
}
