package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"mailweir/cmd/internal/gateway"
	"mailweir/inspect"
	"mailweir/inspect/spool"
)

type scanCmd struct {
	Files []string `arg:"" name:"file" help:"Files, each taken for one message as mail programs store them, or for anything else."`
	JSON  bool     `name:"json" help:"One JSON object a file."`
	Fail  bool     `help:"Exit with 1 if the action for any file is not Pass."`
}

// scanned is what scan --json prints for one file. Its names are stable.
type scanned struct {
	File     string            `json:"file"`
	Action   string            `json:"action"`
	Findings []inspect.Finding `json:"findings"`
}

// Run implements the command.
func (c *scanCmd) Run(a *app) error {
	l, err := a.load()
	if err != nil {
		return err
	}
	// Not the gateway's SpoolDir: that one belongs to one process.
	dir, err := os.MkdirTemp("", "mailweir-scan-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	pool, err := spool.New(spool.Config{Settings: l.Settings.Root.Spool, Dir: dir, Log: log})
	if err != nil {
		return err
	}
	core, err := gateway.NewCore(&l.Settings, pool, nil, log)
	if err != nil {
		return err
	}
	t := tally{began: time.Now()}
	for _, file := range c.Files {
		v, size, err := judge(a.ctx, core, file)
		if err != nil {
			t.errors++
			a.say("error: %v", err)
			continue
		}
		t.objects, t.octets = t.objects+1, t.octets+size
		t.other = t.other || v.Action != inspect.Pass
		if c.JSON {
			err = json.NewEncoder(a.stdout).Encode(scanned{file, v.Action.String(), append([]inspect.Finding{}, v.Findings...)})
		} else {
			err = a.showVerdict(file, v, &t)
		}
		if err != nil {
			return err
		}
	}
	if !c.JSON {
		if err := a.print("%s", t); err != nil {
			return err
		}
	}
	switch {
	case t.errors > 0:
		return status(2)
	case c.Fail && t.other:
		return status(1)
	}
	return nil
}

// judge asks the core about one file.
func judge(ctx context.Context, core *gateway.Core, file string) (inspect.Verdict, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return inspect.Verdict{}, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return inspect.Verdict{}, 0, err
	case info.IsDir():
		return inspect.Verdict{}, 0, fmt.Errorf("%s is a directory", file)
	case !info.Mode().IsRegular():
		return inspect.Verdict{}, 0, fmt.Errorf("%s is not a file", file)
	}
	v := core.Scanner.Judge(ctx, &inspect.Message{ID: info.Name(), Door: inspect.DoorFile, Body: fileBody{f, info.Size()}})
	defer v.Done()
	if ctx.Err() != nil {
		return v, 0, errors.New("interrupted")
	}
	return v, info.Size(), nil
}

// fileBody is a file as an inspect.Body.
type fileBody struct {
	*os.File
	size int64
}

// Size implements inspect.Body.
func (b fileBody) Size() int64 { return b.size }

// tally sums up a scan.
type tally struct {
	objects, errors, threats int
	octets                   int64
	other                    bool // an action that is not Pass
	began                    time.Time
}

// String is the summary that scripts of other products look for, and how long it took.
func (t tally) String() string {
	d := time.Since(t.began).Seconds()
	kb := float64(t.octets) / 1024
	return fmt.Sprintf("Scanned objects: %d, scan errors: %d, threats found: %d, threats neutralized: 0.\n"+
		"Scanned %.2f KB in %.2f s (%.2f KB/s).\n", t.objects, t.errors, t.threats, kb, d, kb/max(d, 0.001))
}

// showVerdict tells about one file: its threats, or why it is unchecked, or that it is good.
func (a *app) showVerdict(file string, v inspect.Verdict, t *tally) error {
	threats, unchecked := map[string]bool{}, map[string]bool{}
	var lines []string
	for _, f := range v.Findings {
		switch {
		case f.Kind == inspect.Threat && !threats[f.Name]:
			threats[f.Name] = true
			lines = append(lines, "infected with "+f.Name)
		case f.Kind == inspect.Unchecked && !unchecked[f.Category]:
			unchecked[f.Category] = true
			lines = append(lines, "not checked: "+f.Category)
		case f.Kind == inspect.Spam:
			lines = append(lines, "spam: "+f.Name)
		}
	}
	if len(lines) == 0 {
		lines = []string{"Ok"}
		if v.Action != inspect.Pass {
			lines = []string{v.Action.String() + ": " + v.Reason}
		}
	}
	t.threats += len(threats)
	for _, line := range lines {
		if err := a.print("%s - %s\n", file, plain(line)); err != nil {
			return err
		}
	}
	return nil
}
