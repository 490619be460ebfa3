package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// GatewayConfig says what kind of mailweir is wanted.
type GatewayConfig struct {
	Name     string
	Binary   string
	NS       *Namespace
	Settings map[string]string // "Section.Parameter": value; several values by lines
}

// Gateway is a mailweir with a configuration, a state directory and a control socket of its own.
type Gateway struct {
	Dir    string
	Config string // path of the settings file
	CAFile string // what `mailweir certificate` printed: whom clients are to trust

	c      GatewayConfig
	cmd    *exec.Cmd
	exited chan error // the result of cmd, once
}

// StartGateway writes the settings, starts mailweir and waits until it says that it is ready.
func (l *Lab) StartGateway(ctx context.Context, c GatewayConfig) (*Gateway, error) {
	g := &Gateway{Dir: l.Path("mailweir-" + c.Name), c: c}
	g.Config, g.CAFile = filepath.Join(g.Dir, "mailweir.ini"), filepath.Join(g.Dir, "ca.pem")
	if err := os.MkdirAll(g.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := g.Write(c.Settings); err != nil {
		return nil, err
	}
	l.OnClose(g.Kill)
	if err := g.Start(ctx); err != nil {
		return nil, err
	}
	pem, err := g.Output(ctx, "certificate")
	if err != nil {
		return nil, fmt.Errorf("get certificate: %w", err)
	}
	return g, os.WriteFile(g.CAFile, []byte(pem), 0o644)
}

// Write writes the settings file; the paths that every gateway of a lab needs are added.
func (g *Gateway) Write(settings map[string]string) error {
	all := map[string]string{
		"Root.StateDir": filepath.Join(g.Dir, "state"), "Root.SpoolDir": filepath.Join(g.Dir, "spool"),
		"Root.ControlSocket": filepath.Join(g.Dir, "control.sock"), "Root.Log": "Stderr:ShowTimestamp", "Root.DefaultLogLevel": "Info",
	}
	for k, v := range settings {
		all[k] = v
	}
	var keys []string
	for k := range all {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	last := ""
	for _, k := range keys {
		section, parameter, ok := strings.Cut(k, ".")
		if !ok {
			return fmt.Errorf("write settings: %q is not Section.Parameter", k)
		}
		if section != last {
			fmt.Fprintf(&b, "[%s]\n", section)
			last = section
		}
		for _, v := range strings.Split(all[k], "\n") {
			fmt.Fprintf(&b, "%s = %s\n", parameter, v)
		}
	}
	if err := os.WriteFile(g.Config, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// Start starts mailweir again after Kill or Stop and waits until it is ready.
func (g *Gateway) Start(ctx context.Context) error {
	path := filepath.Join(g.Dir, "notify")
	os.Remove(path)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for readiness: %w", err)
	}
	defer notify.Close()
	log, err := os.OpenFile(filepath.Join(g.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	// Not bound to ctx: the gateway lives until Kill, Stop or the end of the lab.
	cmd := g.c.NS.Command(context.Background(), g.c.Binary, "run", "--config", g.Config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	if err := g.c.NS.Start(cmd); err != nil {
		return fmt.Errorf("start mailweir: %w", err)
	}
	g.cmd = cmd
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notify) }()
	select {
	case err := <-ready:
		// Wait must be called once only: leave its result where Kill and Stop look for it.
		g.exited = exited
		return err
	case err := <-exited:
		g.cmd = nil
		notify.Close()
		<-ready
		return fmt.Errorf("mailweir ended before it was ready: %w\n%s", err, g.Log())
	case <-ctx.Done():
		g.exited = exited
		g.Kill()
		notify.Close()
		<-ready
		return fmt.Errorf("wait for mailweir: %w\n%s", ctx.Err(), g.Log())
	case <-time.After(20 * time.Second):
		g.exited = exited
		g.Kill()
		notify.Close()
		<-ready
		return fmt.Errorf("mailweir did not become ready\n%s", g.Log())
	}
}

func awaitReady(c *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("read readiness: %w", err)
		}
		for _, line := range strings.Split(string(buf[:n]), "\n") {
			if line == "READY=1" {
				return nil
			}
		}
	}
}

// Pid returns the process id, 0 when mailweir does not run.
func (g *Gateway) Pid() int {
	if g.cmd == nil {
		return 0
	}
	return g.cmd.Process.Pid
}

// Kill ends mailweir as kill -9 does.
func (g *Gateway) Kill() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		<-g.exited
		g.cmd = nil
	}
}

// Stop asks mailweir to end and waits until it has.
func (g *Gateway) Stop(ctx context.Context) error {
	if g.cmd == nil {
		return nil
	}
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop mailweir: %w", err)
	}
	select {
	case err := <-g.exited:
		g.cmd = nil
		if err != nil {
			return fmt.Errorf("mailweir ended badly: %w\n%s", err, g.Log())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("mailweir did not end: %w", ctx.Err())
	}
}

// Command runs another of mailweir's commands with this gateway's settings, in its namespace. What it printed on either
// output is returned.
func (g *Gateway) Command(ctx context.Context, args ...string) (string, error) {
	cmd := g.c.NS.Command(ctx, g.c.Binary, append(args, "--config", g.Config)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := g.c.NS.Start(cmd); err != nil {
		return "", fmt.Errorf("start mailweir %s: %w", args[0], err)
	}
	err := cmd.Wait()
	if err != nil {
		err = fmt.Errorf("run mailweir %s: %w: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), err
}

// Output is Command for what a command prints on its standard output only.
func (g *Gateway) Output(ctx context.Context, args ...string) (string, error) {
	cmd := g.c.NS.Command(ctx, g.c.Binary, append(args, "--config", g.Config)...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := g.c.NS.Start(cmd); err != nil {
		return "", fmt.Errorf("start mailweir %s: %w", args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("run mailweir %s: %w: %s", strings.Join(args, " "), err, bad.String())
	}
	return out.String(), nil
}

// Log returns what mailweir logged, over all its runs.
func (g *Gateway) Log() string {
	b, _ := os.ReadFile(filepath.Join(g.Dir, "log"))
	return string(b)
}

// LabEvent is what a test looks at of an event.
type LabEvent struct {
	Event, Conn, Client, Server, Action, Reason, Detail, Quarantine string
	To                                                              []string
}

// Events returns the event log.
func (g *Gateway) Events() ([]LabEvent, error) {
	f, err := os.Open(filepath.Join(g.Dir, "state/events.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer f.Close()
	var all []LabEvent
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e LabEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		all = append(all, e)
	}
	return all, lines.Err()
}
