package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/divert"
	"mailweir/inspect"
)

// ops is the gateway as an administrator sees it.
type ops struct{ g *Gateway }

var _ control.Ops = ops{}

// Version implements control.Ops.
func (o ops) Version(context.Context) (control.Version, error) { return o.g.cfg.Version, nil }

// Certificate implements control.Ops.
func (o ops) Certificate(context.Context) ([]byte, error) { return o.g.authority.PEM(), nil }

// Reload implements control.Ops.
func (o ops) Reload(ctx context.Context) (control.Applied, error) { return o.g.reload(ctx) }

// Events implements control.Ops.
func (o ops) Events(ctx context.Context, q control.Query, each func(inspect.Event) error) error {
	return o.g.events.each(ctx, q, each)
}

// Set implements control.Ops.
func (o ops) Set(ctx context.Context, c control.Change) (applied control.Applied, err error) {
	g := o.g
	if !sameFile(c.Path, g.cfg.Path) {
		return applied, fmt.Errorf("the running gateway uses %s, not %s", g.cfg.Path, c.Path)
	}
	// An administrator who hangs up does not leave a change half made.
	ctx = context.WithoutCancel(ctx)
	g.change.Lock()
	defer g.change.Unlock()
	_, err = config.Change(ctx, g.cfg.Path, c.Edit, func(l *config.Loaded) error {
		applied, err = g.takeOver(ctx, l)
		return err
	})
	return applied, err
}

// DivertOff implements control.Ops.
func (o ops) DivertOff(ctx context.Context) error {
	g := o.g
	ctx = context.WithoutCancel(ctx)
	g.change.Lock()
	defer g.change.Unlock()
	if g.stopping {
		return errStopping
	}
	s := g.current.Load().settings.LinuxFirewall.Divert
	s.InputDivert, s.ForwardDivert, s.OutputDivert = nil, nil, nil
	if err := g.divert.Set(ctx, s); err != nil {
		return err
	}
	g.state.Lock()
	g.active = false
	g.state.Unlock()
	g.log.Log(ctx, LevelNotice, "divert is off until the next reload")
	g.events.Record(inspect.Event{Event: "divert-off", Reason: "asked for by an administrator"})
	return nil
}

// Stat implements control.Ops.
func (o ops) Stat(context.Context) (control.Stat, error) {
	g := o.g
	gen := g.current.Load()
	p := g.server.Stats()
	s := control.Stat{
		Version: g.cfg.Version, PID: os.Getpid(), Config: g.cfg.Path, Started: g.started.UTC(), Loaded: gen.loaded.UTC(),
		Divert: divertState(&gen.settings.LinuxFirewall),
		Connections: control.Connections{
			Open: int64(p.Active), Total: int64(p.Accepted), Refused: int64(p.Refused + p.RefusedSource), Panics: int64(p.Panics)},
		Engines: engines(gen.core),
	}
	s.Spool.Files, s.Spool.Bytes = g.spool.Usage()
	kernel, err := g.divert.Stat()
	if err != nil {
		return s, err
	}
	s.Kernel = kernel
	g.events.stat(&s)
	g.state.Lock()
	defer g.state.Unlock()
	s.Divert.Active = g.active
	if g.reloadErr != nil {
		s.Reload = g.reloadErr.Error()
	}
	return s, nil
}

func divertState(s *config.LinuxFirewall) control.Divert {
	words := func(list []divert.Spec) []string {
		out := []string{}
		for _, d := range list {
			if d.On() {
				out = append(out, d.String())
			}
		}
		return out
	}
	return control.Divert{
		Input: words(s.Divert.InputDivert), Forward: words(s.Divert.ForwardDivert), Output: words(s.Divert.OutputDivert),
		FailMode: s.Divert.FailMode, Skipped: Skipped(s),
	}
}

func engines(c *Core) []control.Engine {
	b := c.Builtin.Status()
	list := []control.Engine{{Name: "builtin", State: "ready", Detail: fmt.Sprintf("%d signatures, %d bad lines", b.Signatures, b.Bad)}}
	if b.Error != "" {
		list[0].State, list[0].Detail = "warning", b.Error
	}
	if c.Clamd != nil {
		st := c.Clamd.Status()
		list = append(list, control.Engine{Name: "clamd", State: string(st.State), Detail: st.Error})
	}
	return list
}

// reload reads the file again and takes it over.
func (g *Gateway) reload(ctx context.Context) (applied control.Applied, err error) {
	ctx = context.WithoutCancel(ctx)
	g.change.Lock()
	defer g.change.Unlock()
	g.sup.reloading()
	defer g.sup.ready("running")
	l, err := config.Load(g.cfg.Path)
	if err == nil {
		applied, err = g.takeOver(ctx, l)
	}
	g.state.Lock()
	defer g.state.Unlock()
	g.reloadErr = err
	if err != nil {
		g.events.Record(inspect.Event{Event: "reload-refused", Reason: "bad configuration", Detail: err.Error()})
		return applied, err
	}
	g.events.Record(inspect.Event{Event: "reload"})
	return applied, nil
}

// errStopping refuses changes while the gateway stops: its rules must not come back.
var errStopping = errors.New("the gateway is stopping")

// takeOver puts new settings in force, all of them or none. g.change is held.
func (g *Gateway) takeOver(ctx context.Context, l *config.Loaded) (applied control.Applied, err error) {
	if g.stopping {
		return applied, errStopping
	}
	old := g.current.Load()
	back := func(err error) (control.Applied, error) {
		g.current.Store(old)
		if _, e := g.unwrap(old.settings.LinuxFirewall.Tls); e != nil {
			err = errors.Join(err, fmt.Errorf("return to the former tls settings: %w", e))
		}
		return control.Applied{}, err
	}
	next, err := g.build(l)
	if err != nil {
		return back(err)
	}
	root := &next.settings.Root
	if root.Log.Kind == "File" || root.Log != old.settings.Root.Log || root.DefaultLogLevel != old.settings.Root.DefaultLogLevel {
		if err := g.logs.set(root.Log, root.DefaultLogLevel, g.cfg.Stderr); err != nil {
			return back(err)
		}
	}
	g.current.Store(next)
	if err := g.divert.Set(ctx, next.settings.LinuxFirewall.Divert); err != nil {
		if e := g.logs.set(old.settings.Root.Log, old.settings.Root.DefaultLogLevel, g.cfg.Stderr); e != nil {
			err = errors.Join(err, e)
		}
		applied, err := back(err)
		if e := g.divert.Set(ctx, old.settings.LinuxFirewall.Divert); e != nil {
			err = errors.Join(err, fmt.Errorf("return to the former divert: %w", e))
		}
		return applied, err
	}
	g.state.Lock()
	g.active = true
	g.state.Unlock()
	g.events.rotate()
	g.log.Log(ctx, LevelNotice, "settings taken over", "config", g.cfg.Path)
	for _, name := range config.RestartNeeded(&g.first, &old.settings, &next.settings) {
		applied.Notes = append(applied.Notes, name+" takes effect at the next start")
	}
	applied.Notes = append(applied.Notes, g.tellSkipped(&next.settings.LinuxFirewall, &old.settings.LinuxFirewall)...)
	return applied, nil
}

func sameFile(a, b string) bool {
	clean := func(p string) string {
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		return p
	}
	return clean(a) == clean(b)
}
