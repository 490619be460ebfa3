package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"mailweir/cmd/internal/gateway"
	"mailweir/inspect/quarantine"
)

type quarantineCmd struct {
	List    qListCmd    `cmd:"" help:"One item a line."`
	Show    qShowCmd    `cmd:"" help:"Everything that is known of an item."`
	Export  qExportCmd  `cmd:"" help:"The original message, octet for octet."`
	Delete  qDeleteCmd  `cmd:"" help:"Delete items for good."`
	Release qReleaseCmd `cmd:"" hidden:""`
}

// store opens the quarantine.
func (a *app) store() (*quarantine.Store, error) {
	l, err := a.load()
	if err != nil {
		return nil, err
	}
	dir := gateway.QuarantineDir(&l.Settings.Root)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, hinted(fmt.Errorf("there is no quarantine yet: %w", err), "it is made at the first start of the gateway")
	}
	s, err := quarantine.Open(a.ctx, quarantine.Config{Settings: l.Settings.MailQuarantine, Dir: dir})
	if errors.Is(err, os.ErrPermission) {
		return nil, hinted(err, "only root may look into the quarantine")
	}
	return s, err
}

// item says what an unknown id means.
func itemError(err error) error {
	if errors.Is(err, quarantine.ErrNotFound) {
		return hinted(err, "mailweir quarantine list shows what there is")
	}
	return err
}

type qListCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Run implements the command.
func (c *qListCmd) Run(a *app) error {
	s, err := a.store()
	if errors.Is(err, os.ErrNotExist) {
		a.say("%v", err)
		return nil // an empty list
	}
	if err != nil {
		return err
	}
	defer s.Close()
	items, err := s.List(a.ctx, quarantine.Filter{})
	if err != nil {
		return err
	}
	for _, it := range items {
		if c.JSON {
			err = json.NewEncoder(a.stdout).Encode(it)
		} else {
			err = a.print("%s %s %s %s from=<%s> to=<%s> subject=\"%s\"\n", it.ID, it.Time.Local().Format("2006-01-02 15:04:05"),
				it.Action, plain(it.Reason), plain(it.From), plain(strings.Join(it.To, ",")), plain(it.Subject))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type qShowCmd struct {
	ID string `arg:"" name:"id" help:"The item, as list shows it."`
}

// Run implements the command.
func (c *qShowCmd) Run(a *app) error {
	s, err := a.store()
	if err != nil {
		return err
	}
	defer s.Close()
	it, err := s.Show(a.ctx, c.ID)
	if err != nil {
		return itemError(err)
	}
	e := json.NewEncoder(a.stdout) // it escapes control characters
	e.SetIndent("", "  ")
	return e.Encode(it)
}

type qExportCmd struct {
	ID   string `arg:"" name:"id" help:"The item, as list shows it."`
	File string `arg:"" optional:"" name:"file" help:"A new file to write to; standard output if left out."`
}

// Run implements the command.
func (c *qExportCmd) Run(a *app) (err error) {
	s, err := a.store()
	if err != nil {
		return err
	}
	defer s.Close()
	if c.File == "" {
		return itemError(s.Export(a.ctx, c.ID, a.stdout))
	}
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			os.Remove(c.File)
		}
	}()
	return itemError(s.Export(a.ctx, c.ID, f))
}

type qDeleteCmd struct {
	IDs []string `arg:"" name:"id" help:"The items, as list shows them."`
}

// Run implements the command.
func (c *qDeleteCmd) Run(a *app) error {
	s, err := a.store()
	if err != nil {
		return err
	}
	defer s.Close()
	for _, id := range c.IDs {
		if err := s.Delete(a.ctx, id); err != nil {
			return itemError(err)
		}
	}
	return nil
}

type qReleaseCmd struct {
	IDs []string `arg:"" optional:"" name:"id"`
}

// Run says that there is no such command yet, rather than that it is unknown: its name is fixed.
func (c *qReleaseCmd) Run(*app) error {
	return hinted(errors.New("quarantine release is not in this version"),
		"mailweir quarantine export ID writes the message, to be sent by hand")
}
