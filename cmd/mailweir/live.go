package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/cmd/internal/control"
	"mailweir/cmd/internal/gateway"
	"mailweir/inspect"
)

type runCmd struct{}

// Run implements the command.
func (runCmd) Run(a *app) error {
	if _, err := a.load(); err != nil {
		return err
	}
	path, err := filepath.Abs(a.config)
	if err != nil {
		return fmt.Errorf("find configuration: %w", err)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	// The signals are the gateway's: a.ctx, which ends at the first one, would not let it drain.
	err = gateway.Run(context.WithoutCancel(a.ctx), gateway.Config{Path: path, Version: version(), Stderr: a.stderr, Signals: signals})
	switch {
	case errors.Is(err, os.ErrPermission):
		return hinted(err, "the gateway needs root, or the capabilities that scripts/mailweir.service lists")
	case errors.Is(err, control.ErrRunning):
		return hinted(err, "mailweir stat shows how it does; one gateway runs on a machine at a time")
	}
	return err
}

type statCmd struct {
	JSON   bool `name:"json" help:"As a JSON object."`
	Follow bool `help:"Again every two seconds, until interrupted."`
}

// Run implements the command.
func (c *statCmd) Run(a *app) error {
	client, _, err := a.gateway()
	if err != nil {
		return err
	}
	for {
		s, err := client.Stat(a.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			err = json.NewEncoder(a.stdout).Encode(s)
		} else {
			err = a.showStat(s)
		}
		if err != nil || !c.Follow {
			return err
		}
		select {
		case <-a.ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
		if !c.JSON {
			if err := a.print("\n"); err != nil {
				return err
			}
		}
	}
}

func (a *app) showStat(s control.Stat) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s "+format+"\n", append([]any{name}, args...)...)
	}
	line("version", "%s", s.Version.Version)
	line("process", "%d, since %s", s.PID, s.Started.Format(time.RFC3339))
	line("configuration", "%s, read %s", s.Config, s.Loaded.Format(time.RFC3339))
	if s.Reload != "" {
		line("reload", "refused: %s", plain(s.Reload))
	}
	active := "no rules are in force"
	switch {
	case len(s.Divert.Input)+len(s.Divert.Forward)+len(s.Divert.Output) == 0:
		active = "off in the settings"
	case s.Divert.Active:
		active = "rules are in force"
	}
	line("divert", "%s, fail mode %s", active, s.Divert.FailMode)
	for _, d := range []struct {
		name string
		list []string
	}{{"input", s.Divert.Input}, {"forward", s.Divert.Forward}, {"output", s.Divert.Output}} {
		for _, v := range d.list {
			line("  "+d.name, "%s", v)
		}
	}
	for _, k := range s.Divert.Skipped {
		line("  not diverted", "port %d: %s", k.Port, k.Reason)
	}
	line("connections", "%d open, %d since start, %d refused, %d panics", s.Connections.Open, s.Connections.Total, s.Connections.Refused, s.Connections.Panics)
	line("messages", "%s", counts(s.Messages))
	line("findings", "%s", counts(s.Findings))
	line("events", "%s", counts(s.Events))
	line("spool", "%d messages, %d octets", s.Spool.Files, s.Spool.Bytes)
	for _, e := range s.Engines {
		line("engine", "%s", strings.TrimSuffix(e.Name+" "+e.State+", "+plain(e.Detail), ", "))
	}
	line("event log", "%s, %d written, %d dropped", s.EventLog.Path, s.EventLog.Written, s.EventLog.Dropped)
	if s.EventLog.Error != "" {
		line("  error", "%s", s.EventLog.Error)
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// counts writes counters as "Pass 3, Reject 1".
func counts(m map[string]int64) string {
	if len(m) == 0 {
		return "none"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", plain(k), m[k]))
	}
	return strings.Join(out, ", ")
}

type eventsCmd struct {
	JSON   bool `name:"json" help:"One JSON object a line."`
	Follow bool `help:"And then the new ones, until interrupted."`
	Last   int  `default:"100" placeholder:"N" help:"How many past events (${default})."`
}

// Run implements the command.
func (c *eventsCmd) Run(a *app) error {
	if c.Last < 0 {
		return fmt.Errorf("--last: %d is below 0", c.Last)
	}
	client, l, err := a.gateway()
	if err != nil {
		return err
	}
	show := func(e inspect.Event) error {
		if c.JSON {
			return json.NewEncoder(a.stdout).Encode(e)
		}
		return a.print("%s\n", oneLine(e))
	}
	err = client.Events(a.ctx, control.Query{Last: c.Last, Follow: c.Follow}, show)
	if errors.Is(err, control.ErrNotRunning) && !c.Follow {
		return eventsOnDisk(&l.Settings.Root, c.Last, show)
	}
	return err
}

// eventsOnDisk reads the end of the event log of a gateway that does not run.
func eventsOnDisk(r *config.Root, last int, show func(inspect.Event) error) error {
	f, err := os.Open(r.Events())
	if err != nil {
		return hinted(fmt.Errorf("no gateway is running, and there is no event log: %w", err))
	}
	defer f.Close()
	ring := make([]inspect.Event, 0, min(last, 4096))
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() && last > 0 {
		var e inspect.Event
		if json.Unmarshal(scanner.Bytes(), &e) != nil {
			continue // a last line that a crash cut off
		}
		if len(ring) == last {
			ring = append(ring[:0], ring[1:]...)
		}
		ring = append(ring, e)
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("read event log: %w", err)
	}
	for _, e := range ring {
		if err := show(e); err != nil {
			return err
		}
	}
	return nil
}

// oneLine tells an event in one line for people.
func oneLine(e inspect.Event) string {
	var b strings.Builder
	b.WriteString(e.Time.Local().Format("2006-01-02 15:04:05") + " " + e.Event)
	add := func(name, value string) {
		if value != "" {
			b.WriteString(" " + name + plain(value))
		}
	}
	add("", e.Action)
	add("reason=", e.Reason)
	if e.Event == "message" || e.Event == "unscanned" { // the null sender is one too
		b.WriteString(" from=<" + plain(e.From) + ">")
	}
	for _, to := range e.To {
		b.WriteString(" to=<" + plain(to) + ">")
	}
	if e.Subject != "" {
		b.WriteString(` subject="` + plain(e.Subject) + `"`)
	}
	for _, f := range e.Findings {
		add(f.Kind+"=", strings.TrimPrefix(f.Category+":", ":")+f.Name)
	}
	add("client=", e.Client)
	add("server=", e.Server)
	add("user=", e.User)
	add("quarantine=", e.Item)
	add("msg=", e.Msg)
	add("conn=", e.Conn)
	if e.Detail != "" {
		b.WriteString(` detail="` + plain(e.Detail) + `"`)
	}
	return b.String()
}
