package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"mailweir/certs"
	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/cmd/internal/gateway"
	"mailweir/divert"
	"mailweir/inspect/engine/clamd"
)

type certificateCmd struct {
	Print     certPrintCmd     `cmd:"" default:"1" hidden:""`
	Install   certInstallCmd   `cmd:"" help:"Put it into this machine's trust stores."`
	Uninstall certUninstallCmd `cmd:"" help:"Take it out of them again."`
}

type certPrintCmd struct{}

// Run implements the command.
func (certPrintCmd) Run(a *app) error {
	client, l, err := a.gateway()
	if errors.Is(err, fs.ErrPermission) { // the file is root's: ask the gateway at the usual place
		client, err = control.Client{Path: config.Default().Root.ControlSocket}, nil
		return a.askCertificate(client)
	}
	if err != nil {
		return err
	}
	dir := gateway.AuthorityDir(&l.Settings.Root)
	pem, err := certs.ReadCertificate(dir)
	switch {
	case err == nil:
		return a.print("%s", pem)
	case client.Running(a.ctx):
		return a.askCertificate(client)
	case errors.Is(err, fs.ErrNotExist):
		authority, err := openAuthority(dir)
		if err != nil {
			return hinted(err, "the authority is made at the first start of the gateway, or by this command as root")
		}
		return a.print("%s", authority.PEM())
	}
	return err
}

func (a *app) askCertificate(c control.Client) error {
	pem, err := c.Certificate(a.ctx)
	if err != nil {
		return err
	}
	return a.print("%s", pem)
}

// openAuthority makes the authority when there is none yet.
func openAuthority(dir string) (*certs.Authority, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	return certs.Open(dir, host)
}

type divertCmd struct {
	Show divertShowCmd `cmd:"" help:"The rules that the settings mean, as text for nft -f."`
	Off  divertOffCmd  `cmd:"" help:"Divert nothing: a running gateway until its next reload or start; what one that is gone left behind is removed."`
}

type divertShowCmd struct{}

// Run implements the command.
func (divertShowCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	for _, k := range gateway.Skipped(&l.Settings.LinuxFirewall) {
		if err := a.print("# port %d is not diverted: %s\n", k.Port, k.Reason); err != nil {
			return err
		}
	}
	text, err := divert.Show(gateway.Diverted(&l.Settings.LinuxFirewall))
	if err != nil {
		return err
	}
	return a.print("%s", text)
}

type divertOffCmd struct{}

// Run implements the command.
func (divertOffCmd) Run(a *app) error {
	// A broken configuration must not keep anybody from removing the rules.
	if client, _, err := a.gateway(); err == nil && client.Running(a.ctx) {
		if err := client.DivertOff(a.ctx); err != nil {
			return err
		}
		a.say("the running gateway diverts nothing until its next reload or start")
		return nil
	}
	err := divert.Off(a.ctx, slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if errors.Is(err, fs.ErrPermission) {
		return hinted(err, "only root may change the rules")
	}
	return err
}

type doctorCmd struct{}

// Run implements the command.
func (doctorCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	checks := append(ownChecks(a.ctx, l), divert.Doctor(a.ctx, gateway.Diverted(&l.Settings.LinuxFirewall))...)
	bad := false
	for _, c := range checks {
		if err := a.print("%-4s %s: %s\n", c.State, c.Name, plain(c.Detail)); err != nil {
			return err
		}
		if c.Fix != "" && c.State != divert.OK {
			if err := a.print("     %s\n", c.Fix); err != nil {
				return err
			}
		}
		bad = bad || c.State == divert.Bad
	}
	if bad {
		return status(1)
	}
	return nil
}

// ownChecks are those that are not about diverting.
func ownChecks(ctx context.Context, l *config.Loaded) []divert.Check {
	root := &l.Settings.Root
	list := []divert.Check{{Name: "configuration", State: divert.OK, Detail: l.File.Path + " is good"}}
	for _, d := range []struct{ name, dir string }{{"StateDir", root.StateDir}, {"SpoolDir", root.Spooling()}} {
		list = append(list, checkDir(d.name, d.dir))
	}
	gw := divert.Check{Name: "gateway", State: divert.OK, Detail: "running"}
	if !(control.Client{Path: root.ControlSocket}).Running(ctx) {
		gw = divert.Check{Name: "gateway", State: divert.Warn, Detail: "not running", Fix: "systemctl start mailweir, or mailweir run"}
	}
	list = append(list, gw)
	if l.Settings.ClamD.ClamdSocket != "" {
		list = append(list, checkClamd(ctx, l.Settings.ClamD))
	}
	for _, k := range gateway.Skipped(&l.Settings.LinuxFirewall) {
		list = append(list, divert.Check{Name: fmt.Sprintf("port %d", k.Port), State: divert.Warn, Detail: "not diverted: " + k.Reason})
	}
	return list
}

// checkDir says whether a directory can be written, or made.
func checkDir(name, dir string) divert.Check {
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return divert.Check{Name: name, State: divert.Bad, Detail: at + " is not a directory", Fix: "set Root." + name + " to another path"}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			return divert.Check{Name: name, State: divert.Bad, Detail: err.Error()}
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".doctor-")
	if err != nil {
		return divert.Check{Name: name, State: divert.Bad, Detail: "cannot be written: " + err.Error(), Fix: "run as root, or give the gateway's user the right to write"}
	}
	f.Close()
	os.Remove(f.Name())
	return divert.Check{Name: name, State: divert.OK, Detail: dir + " can be written"}
}

func checkClamd(ctx context.Context, s clamd.Settings) divert.Check {
	c := divert.Check{Name: "clamd", State: divert.OK, Detail: s.ClamdSocket + " answers"}
	e, err := clamd.New(clamd.Config{Settings: s})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = e.Ping(ctx)
	}
	if err != nil {
		c.State, c.Detail, c.Fix = divert.Bad, err.Error(), "start clamd, or correct ClamD.ClamdSocket"
	}
	return c
}
