package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
)

type cfsetCmd struct {
	Param  string   `arg:"" name:"section.parameter" help:"What to set, in upper or lower case."`
	Words  []string `arg:"" optional:"" name:"value" help:"The value; several words are joined by a blank."`
	Add    bool     `short:"a" xor:"op" help:"Add the value to a list."`
	Remove bool     `short:"e" xor:"op" help:"Remove the value from a list."`
	Reset  bool     `short:"r" xor:"op" help:"Go back to the default."`
}

// Help is shown by mailweir cfset --help.
func (c *cfsetCmd) Help() string {
	return `Nothing is written unless the whole configuration is good with the new value. A running gateway takes it over at
once; connections that are open go on as they began. Examples:

  mailweir cfset LinuxFirewall.InputDivert 'Auto(interface:eth0 protected:25,587)'
  mailweir cfset LinuxFirewall.UnwrapSsl Yes
  mailweir cfset LinuxFirewall.TlsBypass -a mail.example.com
  mailweir cfset Root.DefaultLogLevel -r`
}

// Run implements the command.
func (c *cfsetCmd) Run(a *app) error {
	edit := config.Edit{Param: c.Param, Op: config.Set, Value: config.Join(c.Words)}
	switch {
	case c.Add:
		edit.Op = config.Add
	case c.Remove:
		edit.Op = config.Remove
	case c.Reset:
		edit.Op = config.Reset
	}
	if c.Reset && len(c.Words) > 0 {
		return hinted(errors.New("-r takes no value"), "-r sets the default; without -r the value is set")
	}
	if !c.Reset && len(c.Words) == 0 {
		return hinted(fmt.Errorf("a value for %s is missing", c.Param),
			"an empty value is written '', and -r sets the default")
	}
	path, err := filepath.Abs(a.config)
	if err != nil {
		return fmt.Errorf("find configuration: %w", err)
	}
	// A gateway can only be asked if the file says where it listens; a new file or a broken one cannot be in use.
	if l, err := config.Load(path); err == nil {
		client := control.Client{Path: l.Settings.Root.ControlSocket}
		if client.Running(a.ctx) {
			applied, err := client.Set(a.ctx, control.Change{Path: path, Edit: edit})
			a.notes(applied)
			return err
		}
	}
	_, err = config.Change(a.ctx, path, edit, nil)
	if errors.Is(err, fs.ErrPermission) {
		return hinted(err, "only root may change the configuration")
	}
	if err != nil {
		return err
	}
	a.say("no gateway is running; the setting will be used when it starts")
	return nil
}

func (a *app) notes(applied control.Applied) {
	for _, n := range applied.Notes {
		a.say("%s", n)
	}
}

type cfshowCmd struct {
	What    string `arg:"" optional:"" name:"section[.parameter]" help:"What to show, in upper or lower case; everything if left out."`
	Changed bool   `help:"Only what differs from the default."`
	Value   bool   `help:"Only the value, without the name."`
	Uncut   bool   `help:"Show long values in full, which is always done."`
	Ini     bool   `help:"An annotated configuration file with every parameter."`
}

// Run implements the command.
func (c *cfshowCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	params, err := c.selected(l.Table)
	if err != nil {
		return err
	}
	if c.Ini {
		return l.Annotate(a.stdout, params)
	}
	for _, p := range params {
		value, changed := l.Value(p)
		switch {
		case c.Changed && !changed:
		case c.Value:
			err = a.print("%s\n", value)
		default:
			err = a.print("%s\n", strings.TrimRight(p.Name()+" = "+value, " "))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cfshowCmd) selected(t *config.Table) ([]*config.Param, error) {
	section := ""
	switch {
	case strings.Contains(c.What, "."):
		p, err := t.Find(c.What)
		return []*config.Param{p}, err
	case c.What != "":
		var err error
		if section, err = t.Section(c.What); err != nil {
			return nil, err
		}
	}
	var list []*config.Param
	for i := range t.Params {
		if p := &t.Params[i]; section == "" || p.Section == section {
			list = append(list, p)
		}
	}
	return list, nil
}

type reloadCmd struct{}

// Run implements the command.
func (reloadCmd) Run(a *app) error {
	client, _, err := a.gateway()
	if err != nil {
		return hintedReload(err)
	}
	applied, err := client.Reload(a.ctx)
	a.notes(applied)
	return err
}

// hintedReload says what a bad file means for a gateway that runs.
func hintedReload(err error) error {
	var problems config.Problems
	if errors.As(err, &problems) {
		return fmt.Errorf("%w\nnot reloaded: a running gateway keeps its former settings", err)
	}
	return err
}
