// Package gateway puts the parts of mailweir together, runs them, takes over changed settings and stops them in order.
// It is the only package that knows every other one.
//
// [Run] starts from the bottom up, control socket first and divert last, so that no connection is diverted before
// everything that will judge it stands; it stops the other way round. What reads settings is built anew as a whole
// for a change, a generation; it is exchanged in one step, connections that are under way keep the generation they
// began with, and a generation that cannot be built leaves the old one in force.
//
// A first signal to stop drains: rules go, replies in progress and verdicts are finished, then the connections end,
// after Root.DrainTimeout at the latest. A second signal ends them at once.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mailweir/certs"
	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/divert"
	"mailweir/inspect"
	"mailweir/inspect/quarantine"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/tlsunwrap"
)

// Config is what Run needs.
type Config struct {
	Path    string // of the configuration file
	Version control.Version
	Stderr  io.Writer
	Signals <-chan os.Signal // SIGTERM and SIGINT stop, SIGHUP reloads
}

// Gateway is a running one.
type Gateway struct {
	cfg     Config
	started time.Time
	first   config.Settings // those of the start: what takes effect only then
	logs    *logs
	log     *slog.Logger
	sup     supervisor

	events    *events
	spool     *spool.Pool
	store     *quarantine.Store
	authority *certs.Authority
	server    *proxy.Server
	divert    *divert.Divert

	current atomic.Pointer[generation]

	change    sync.Mutex // one change at a time; guards unwrapper and stopping
	unwrapper *tlsunwrap.Unwrapper
	stopping  bool

	state     sync.Mutex // guards active and reloadErr
	active    bool
	reloadErr error
}

// Run runs a gateway until a signal or ctx ends it.
func Run(ctx context.Context, cfg Config) (err error) {
	loaded, err := config.Load(cfg.Path)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	g := &Gateway{cfg: cfg, started: time.Now(), first: loaded.Settings}
	root := &g.first.Root
	if g.logs, err = newLogs(root.Log, root.DefaultLogLevel, cfg.Stderr); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.logs.Close()) }()
	g.log = g.logs.logger()
	g.sup = supervisor{g.log}

	socket, err := control.Listen(root.ControlSocket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	return g.run(ctx, socket, loaded)
}

// run opens what needs closing, each in front of what uses it.
func (g *Gateway) run(ctx context.Context, socket *control.Listener, loaded *config.Loaded) (err error) {
	root := &g.first.Root
	if err := os.MkdirAll(root.StateDir, 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if g.events, err = newEvents(root.Events(), root.EventLogSize, root.EventLogFiles, g.log); err != nil {
		return err
	}
	defer g.events.Close()
	g.spool, err = spool.New(spool.Config{Settings: root.Spool, Dir: root.Spooling(), Log: g.log})
	if err != nil {
		return err
	}
	g.store, err = quarantine.Open(ctx, quarantine.Config{
		Settings: g.first.MailQuarantine, Dir: QuarantineDir(root), Log: g.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.store.Close()) }()
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read host name: %w", err)
	}
	if g.authority, err = certs.Open(AuthorityDir(root), host); err != nil {
		return err
	}
	g.server = proxy.NewServer(proxy.Config{
		Settings: g.first.LinuxFirewall.Proxy, Handler: handler{g}, Log: g.log, Events: g.events, Refuse: refuse})
	next, err := g.build(loaded)
	if err != nil {
		return err
	}
	g.current.Store(next)
	defer func() {
		if g.unwrapper != nil {
			err = errors.Join(err, g.unwrapper.Close())
		}
	}()
	g.divert, err = divert.Open(ctx, divert.Config{
		Settings: g.first.LinuxFirewall.Divert, Ports: g.hasDoor, Log: g.log, Events: func(event, detail string) {
			g.events.Record(inspect.Event{Event: event, Detail: detail})
		}})
	if err != nil {
		return err
	}
	return g.serve(ctx, socket)
}

// serve runs until it is told to stop. Every goroutine that it starts has ended when it returns.
func (g *Gateway) serve(ctx context.Context, socket *control.Listener) error {
	hard, cancel := context.WithCancel(ctx) // ends what does not end by itself
	defer cancel()
	soft, stop := context.WithCancel(hard)
	defer stop()

	var wg sync.WaitGroup
	defer wg.Wait()
	failed := make(chan error, 16)
	report := func(err error) {
		if err != nil {
			failed <- err
		}
	}
	for _, l := range g.divert.Listeners() {
		wg.Go(func() {
			if err := g.server.Serve(hard, listener{l}); err != nil {
				report(fmt.Errorf("serve %s divert: %w", l.Kind, err))
			}
		})
	}
	wg.Go(func() { report(control.Serve(soft, socket, ops{g}, g.log)) })
	wg.Go(func() { g.purge(soft) })
	wg.Go(func() { g.aliveness(soft) })

	err := g.apply(ctx)
	if err == nil {
		g.tellSkipped(&g.current.Load().settings.LinuxFirewall, &config.LinuxFirewall{})
		g.sup.ready("running")
		g.log.Log(ctx, LevelNotice, "mailweir runs", "version", g.cfg.Version.Version, "config", g.cfg.Path)
		err = g.wait(ctx, failed)
	}
	g.sup.stopping()
	g.change.Lock() // a change that is under way ends first, and none comes after it
	g.stopping = true
	g.change.Unlock()
	return errors.Join(err, g.stop(stop, cancel))
}

// apply puts the rules into the kernel, last of all.
func (g *Gateway) apply(ctx context.Context) error {
	if err := g.divert.Apply(ctx); err != nil {
		return err
	}
	g.state.Lock()
	g.active = true
	g.state.Unlock()
	return nil
}

// wait handles signals until one of them means to stop, or something breaks down.
func (g *Gateway) wait(ctx context.Context, failed <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case s := <-g.cfg.Signals:
			if s != syscall.SIGHUP {
				g.log.Log(ctx, LevelNotice, "mailweir stops", "signal", s.String())
				return nil
			}
			if _, err := g.reload(ctx); err != nil {
				g.log.Error("reload refused, the former settings stay in force", "err", err)
			}
		}
	}
}

// stop ends everything: the rules first, then the connections, by themselves if they have the time, then the rest.
func (g *Gateway) stop(stopSoft, cancelHard context.CancelFunc) error {
	drain, cancel := context.WithTimeout(context.Background(), g.current.Load().settings.Root.DrainTimeout)
	defer cancel()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // a second signal ends patience
		for {
			select {
			case <-done:
				return
			case s := <-g.cfg.Signals:
				if s != syscall.SIGHUP {
					cancel()
				}
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	rules := context.WithoutCancel(drain) // rules go, however impatient somebody is
	err := g.divert.Stop(rules)
	g.state.Lock()
	g.active = false
	g.state.Unlock()
	if e := g.server.Drain(drain); e != nil {
		g.log.Warn("connections were ended before they came to their end", "err", e)
	}
	err = errors.Join(err, g.divert.Close(rules))
	stopSoft()
	cancelHard()
	return err
}

// purge removes what is too old from the quarantine, now and every hour.
func (g *Gateway) purge(ctx context.Context) {
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		if _, err := g.store.Purge(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("old items cannot be removed from the quarantine", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-hour.C:
		}
	}
}

// aliveness gives systemd's watchdog its signs of life, if it wants any.
func (g *Gateway) aliveness(ctx context.Context) {
	every := g.sup.watchdog()
	if every <= 0 {
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			g.sup.alive()
		}
	}
}

// AuthorityDir is where the authority's keys and certificates are.
func AuthorityDir(r *config.Root) string { return filepath.Join(r.StateDir, "authority") }

// QuarantineDir is where the quarantine is.
func QuarantineDir(r *config.Root) string { return filepath.Join(r.StateDir, "quarantine") }
